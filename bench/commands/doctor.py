"""`vrambench doctor`: what this machine can run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vrambench.bench.commands.shared import Json, say, stdout_kept_clean


def doctor(
    *,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Compile what has to be compiled once, instead of in the first run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine can run, and why not the rest."""
    from vrambench.bench.machine.doctor import as_document, as_rows, examine, prepare_offloads, with_failures
    from vrambench.bench.machine.environment import describe_environment
    from vrambench.reports.text.answers import print_rows
    from vrambench.reports.text.terminal import plain

    with stdout_kept_clean() as out:
        failures = prepare_offloads(say) if prepare else {}
        findings = with_failures(examine(), failures)
        if as_json:
            print(json.dumps(as_document(findings, describe_environment("auto")), indent=1), file=out)
        else:
            rows = [[plain(text) for text in row] for row in as_rows(findings)]
            print_rows(("what", "state", "seen", "what follows"), rows, out)
    if failures:
        raise OSError("; ".join(f"offload {name} cannot be prepared: {said}" for name, said in failures.items()))
