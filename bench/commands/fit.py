"""`vrambench fit`: whether one cell fits."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from vrambench.bench.commands import completion
from vrambench.bench.commands.early import load, with_others
from vrambench.bench.commands.menu import is_menu, named, print_menu
from vrambench.bench.commands.selectors import with_selectors
from vrambench.bench.commands.shared import (
    EXIT_DOES_NOT_FIT,
    AllocConf,
    Json,
    Mistakes,
    NoCache,
    card_named,
    default_matrix,
    end_progress,
    matrix_again,
    say,
    say_progress,
    shipped_matrix,
    stdout_kept_clean,
)
from vrambench.bench.plan.aliased import field_in_our_name
from vrambench.methods.errors import ConfigurationError, shown
from vrambench.methods.workload import AXIS_NAMES

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix
    from vrambench.bench.plan.plan import Plan, PlannedCell
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.predict.cache import Cache, Question
    from vrambench.bench.predict.kept import KeptAnswer
    from vrambench.methods.cell import Cell

_ONE = "fit answers for one cell; vrambench plan takes it"
REFUSED = {"sweep": _ONE, "coverage": _ONE, "repeat": "fit predicts, and measures nothing that could be repeated"}
"""Selectors that say nothing to it."""

MOST_SHOWN = 6
"""Values of a field that an error lists."""

What = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL|MATRIX]",
        help="A model (a preset, a hub id or a folder), or the matrix file; ./matrix.yaml, else the one that is shipped.",
        show_default=False,
        autocompletion=completion.models,
    ),
]
Maxima = Annotated[
    list[str] | None,
    typer.Option(
        "--max",
        help="Fields whose largest values that fit are wanted, each with the others as they are; may be repeated.",
        metavar="FIELD,FIELD",
    ),
]
Advices = Annotated[
    int | None, typer.Option("--advise", help="Suggest the N nearest configurations that fit.", min=1, metavar="N")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit code 1 for `tight` and `unsure` as well.")]


@with_selectors(REFUSED)
def fit(
    what: What = None,
    *,
    selection: Selection,
    maxima: Maxima = None,
    advices: Advices = None,
    strict: Strict = False,
    alloc_conf: AllocConf = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> int:
    """Predict whether one cell fits on a GPU, or, of a model alone, which of the usual recipes do.

    It takes seconds, and neither a GPU nor weights. Exit code 0: it fits, even if tightly or as far as is known; 1: it does not."""
    try:
        matrix, selection = named(what, selection)
    except ConfigurationError as error:
        raise with_others(error, selection) from None
    maximum = ",".join(_searched(maxima)) if maxima else None
    if is_menu(what, selection):
        _check_alone(maxima, advices)
        return print_menu(
            matrix, selection, alloc_conf=alloc_conf, strict=strict, as_json=as_json, cache=_cache(no_cache)
        )
    loaded = load(matrix, selection)
    _check_asked(matrix, selection)
    with stdout_kept_clean() as out:
        from vrambench.bench.plan.built import as_built
        from vrambench.bench.predict.alloc_conf import read
        from vrambench.bench.predict.kept import about_answer, read_answer

        read(alloc_conf)
        cache = _cache(no_cache)
        asked = about_answer(loaded, selection, maximum=maximum, advices=advices, alloc_conf=alloc_conf)
        kept = read_answer(cache, asked) if cache else None
        for line in kept.lines if kept else ():
            say(line)
        try:
            kept = kept or _predicted(loaded, matrix, selection, maximum, advices, alloc_conf, cache, asked)
        except Forbidden as error:
            if loaded.config is None:
                raise
            raise _told_by_key(error, loaded, selection, None if as_json else out) from None
        answer = kept.answer
        config = as_built(loaded.config, [answer.cell]) if loaded.config else None
        if as_json:
            told = answer.document(kept.command, selection.read_as, config.told() if config else None)
            print(json.dumps(told, indent=1), file=out)
        else:
            from vrambench.reports.text.answers import print_fit
            from vrambench.reports.text.config import print_config

            if config:
                print_config(config, out)
            print_fit(answer, out, kept.profile)
            if config:
                print(f"the same without the file: {kept.command}", file=out)
    fits = answer.forecast.verdict == "fits" if strict else answer.forecast.fits
    return 0 if fits else EXIT_DOES_NOT_FIT


def _check_asked(path: Path | None, selection: Selection) -> None:
    """That of the shipped matrix' hundreds of cells something was chosen: a planned one takes seconds to come by."""
    chosen = selection.axes or selection.only or selection.profile or selection.config is not None
    if not chosen and (path or default_matrix()).resolve() == shipped_matrix():
        raise ConfigurationError(
            f"fit answers for a model or for one cell: {_recipes_of(selection.model or 'qwen3-8b')} --budget rtx-4090; or name a "
            f"value of each axis ({', '.join(f'--{axis}' for axis in AXIS_NAMES)}), or a trainer's own file by --config FILE"
        )


def _searched(typed: Sequence[str]) -> Iterator[str]:
    """The fields of `--max` by our names, each checked."""
    from vrambench.bench.predict.searchable import check_searchable, searched_fields

    seen: set[str] = set()
    for field in searched_fields(",".join(typed)):
        name, note = field_in_our_name(field)
        if note:
            say(f"--max {note}")
        check_searchable(name)
        if name in seen:
            raise ConfigurationError(f"--max {','.join(typed)}: {name} is named twice", field="max")
        seen.add(name)
        yield name


def _cache(no_cache: bool) -> Cache | None:
    from vrambench.bench.predict.cache import Cache

    return None if no_cache else Cache.usual()


def _check_alone(maxima: list[str] | None, advices: int | None) -> None:
    """That nothing is asked which only one cell under one budget can answer."""
    option = f"--max {','.join(maxima)}" if maxima else f"--advise {advices}" if advices else None
    if option:
        raise ConfigurationError(f"{option}: it is answered for one cell; name all five axes and one budget")


def _predicted(
    matrix: Matrix,
    path: Path | None,
    selection: Selection,
    maximum: str | None,
    advices: int | None,
    alloc_conf: str | None,
    cache: Cache | None,
    asked: Question,
) -> KeptAnswer:
    """The answer anew, kept in `cache` as that to what is `asked`. `path`: where the matrix was read, if that was said."""
    from vrambench.bench.measure.collector import collector_held
    from vrambench.bench.predict.kept import KeptAnswer, write_answer
    from vrambench.bench.predict.quiet import hush

    hush()
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        say(line)

    with collector_held(collect=False):  # what is imported, and made of it, stays
        from vrambench.bench.plan.plan import select
        from vrambench.bench.predict.fit import fit as fit_cell

        card = card_named(selection, matrix)
        planned = select(matrix, selection, "cuda")
        for warning in planned.warnings:
            tell(f"warning: {warning}")
        one = only_cell(planned, maximum)
        try:
            answer = fit_cell(
                one.cell,
                card,
                maximum=maximum,
                advices=advices,
                alloc_conf=alloc_conf,
                said=one.said,
                left_out=planned.left_out,
                tell=say_progress,
                cache=cache,
            )
        finally:
            end_progress()
    again = _again(one.cell, matrix, path, selection.profile)
    kept = KeptAnswer(answer, planned.profile, again, tuple(lines))
    if cache:
        write_answer(cache, asked, kept, one.said)
    return kept


def _told_by_key(error: Forbidden, matrix: Matrix, selection: Selection, out: TextIO | None) -> Mistakes:
    """`error`, and which keys of the trainer's file bring the cell under the rule. How all were read is printed to `out`."""
    from vrambench.bench.plan.blame import to_blame
    from vrambench.bench.plan.built import as_built
    from vrambench.reports.text.config import print_config

    if out is not None and matrix.config is not None:
        print_config(as_built(matrix.config, [error.planned.cell]), out)
    return Mistakes([error.message, *to_blame(error.planned, matrix, selection)])


def _again(cell: Cell, matrix: Matrix, path: Path | None, profile: str | None) -> str:
    """The shortest command that asks for the cell: of the matrix at `path`, or of the default one."""
    from vrambench.bench.plan.shortest import shortest

    named, matrix = matrix_again(matrix, path)
    return shlex.join(["vrambench", "fit", *named, *shortest(cell, matrix, profile=profile)])


class Forbidden(ConfigurationError):
    """A rule forbids the cell that is asked for, `planned`."""

    def __init__(self, message: str, planned: PlannedCell) -> None:
        super().__init__(message)
        self.planned = planned


def only_cell(plan: Plan, searched: str | None = None) -> PlannedCell:
    """The plan's one cell; of several that differ in the `searched` fields alone, the one with their least values.
    ConfigurationError where there are others, with what they differ in, or where a rule forbids it."""
    from vrambench.bench.predict.reach import check_searched
    from vrambench.bench.predict.searchable import searched_fields

    planned = plan.cells[0]
    fields = searched_fields(searched)
    for field in fields:
        check_searched(planned.cell, field)
    if len(plan.cells) > 1:
        flats = [one.cell.flat() for one in plan.cells]
        others = [{name: value for name, value in flat.items() if name not in fields} for flat in flats]
        if not fields or any(other != others[0] for other in others):
            raise ConfigurationError(f"{len(plan.cells)} cells are left, and fit answers for one; {_narrowing(flats)}")
        planned = min(plan.cells, key=lambda one: [getattr(one.cell.workload, field) for field in fields])
    rule = planned.rejection
    if rule is not None:
        raise Forbidden(f"{planned.name}: invalid on CUDA by the rule {rule.rule}: {rule.reason}", planned)
    return planned


def _recipes_of(model: str) -> str:
    return f"for a model's usual recipes, vrambench fit {shlex.quote(model)}"


def _narrowing(flats: list[dict[str, Any]]) -> str:
    """How to come to one of several cells: each axis, or else each field, that still has several values."""
    several: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for flat in flats for name in flat):
        values = [flat.get(name) for flat in flats]
        distinct = [value for place, value in enumerate(values) if value is not None and value not in values[:place]]
        if len(distinct) > 1:
            several[name] = distinct
    axes = {name: values for name, values in several.items() if name in AXIS_NAMES}
    parts = []
    for name, values in (axes or several).items():
        texts = [str(value) if isinstance(value, str) else shown(value) for value in values]
        listed = ", ".join(texts[:MOST_SHOWN]) + (
            f" and {len(texts) - MOST_SHOWN} more" if len(texts) > MOST_SHOWN else ""
        )
        option = f"--{name} {texts[0]}" if name in AXIS_NAMES else f"--set {name}={texts[0]}"
        parts.append(f"{name} is {listed} (as in {option})")
    menu = f" (or ask {_recipes_of(flats[0]['model'])})" if axes else ""
    return f"choose one value each: {'; '.join(parts)}{menu}" if parts else "name all five axes"
