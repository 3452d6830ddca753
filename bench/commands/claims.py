"""`vrambench claims`: what others say, and whether predictions and runs bear it out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vrambench.bench.commands.shared import Json, predictions, say, stdout_kept_clean
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from vrambench.bench.claims.answer import Ran
    from vrambench.bench.claims.file import Claims
    from vrambench.bench.results.forecast import Outcome
    from vrambench.methods.cell import Cell

ALL = "all"


def claims(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN...]", help="Folders of runs that may answer them.", show_default=False),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--claims",
            help="The file of claims.",
            metavar="FILE",
            show_default="./claims.yaml, else the one that is shipped",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="These claims alone.", metavar="ID,..", show_default="all")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict/--no-predict", help="Predict for a GPU what predictions can tell.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Hold claims against predictions and runs.

    Each claim is a formula over what its cells give, and is reproduced, partly reproduced, refuted, or not measured here."""
    chosen = load(file, only, "--only")
    with stdout_kept_clean() as out:
        from vrambench.bench.claims.answer import answer
        from vrambench.bench.predict.quiet import hush

        hush()
        ran = [read_run(folder) for folder in runs or ()]
        predicted = predictions(None, own_process=True)

        def ask(cells: Sequence[Cell]) -> Mapping[str, Outcome]:
            return predicted(cells, None)

        answers = answer(chosen, ran, ask if predict else None)
        if as_json:
            document = {"claims_file": chosen.name, "claims": [one.document() for one in answers]}
            print(json.dumps(document, indent=1), file=out)
        else:
            from vrambench.reports.text.claims import print_claims

            print_claims(answers, chosen.name, out)


def load(file: Path | None, ids: str | None, option: str) -> Claims:
    """The claims of the file, else the usual ones: all, or those of `ids`."""
    from vrambench.bench.claims.file import default_claims, load_claims

    named = [one.strip() for one in (ids or ALL).split(",")]
    if "" in named:
        raise ConfigurationError(f"{option} {ids}: an empty name; separate claims by single commas", field="claims")
    return load_claims(file or default_claims()).only([] if named == [ALL] else named, option)


def read_run(folder: Path) -> Ran:
    """A run folder as claims see it; what cannot be read in it goes to stderr."""
    from vrambench.bench.claims.answer import Ran
    from vrambench.bench.results.store import RunFolder

    store = RunFolder.open(folder)
    for one in store.unreadable:
        say(f"{one.file}: {one.reason}")
    return Ran.of(str(folder), store.info, store.results())
