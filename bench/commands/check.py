"""`vrambench check`: a run held against a baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vrambench.bench.commands.shared import Json, check_out, stdout_kept_clean
from vrambench.methods.errors import ConfigurationError


def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    *,
    baseline: Annotated[Path, typer.Option("--baseline", help="What `vrambench baseline` wrote.", metavar="FILE")],
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            "--tolerance",
            help="What may grow by how much, as allocated_bytes=1%|64MiB; may be repeated.",
            metavar="METRIC=T",
        ),
    ] = None,
    two_sided: Annotated[
        bool, typer.Option("--two-sided", help="What shrank by more than its tolerance fails, too.")
    ] = False,
    across_versions: Annotated[
        bool, typer.Option("--across-versions", help="Compare even where versions of packages differ.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.", metavar="FILE")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write a summary in Markdown.", metavar="FILE")] = None,
    as_json: Json = False,
) -> int:
    """Hold a run against a baseline.

    Exit code 0: nothing is worse; 1: something is; 3: there is no baseline, or it was made with other hardware or versions; 4: a
    measurement failed, which is neither a pass nor a regression."""
    from vrambench.bench.gate.baseline import read_baseline
    from vrambench.bench.gate.check import check as checked
    from vrambench.bench.results.store import RunFolder
    from vrambench.reports.ci.junit import junit_of
    from vrambench.reports.ci.markdown import summary_of

    for file in (junit, summary):
        if file is not None:
            check_out(file)
    told = dict(_tolerance(one) for one in tolerance or [])
    with stdout_kept_clean() as out:
        folder = RunFolder.open(run)
        found = checked(read_baseline(baseline), folder, told, across_versions=across_versions, two_sided=two_sided)
        if junit is not None:
            junit.write_text(junit_of(found), encoding="utf-8")
        if summary is not None:
            summary.write_text(summary_of(found), encoding="utf-8")
        if as_json:
            print(json.dumps(found.document(), indent=1), file=out)
        else:
            from vrambench.reports.text.checked import print_check

            print_check(found, out)
    return found.exit_code


def _tolerance(typed: str) -> tuple[str, str]:
    metric, equals, text = typed.partition("=")
    if not equals:
        raise ConfigurationError(f"--tolerance {typed}: write METRIC=T, as allocated_bytes=1%", field="tolerance")
    return metric.strip(), text.strip()
