"""`vrambench report`: one HTML file about runs, or their cells as a table."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Annotated, TextIO

import typer

from vrambench.bench.commands.shared import check_out, say, stdout_kept_clean
from vrambench.bench.results import BESIDE
from vrambench.methods.errors import ConfigurationError, brief


class Format(StrEnum):
    """What a report is written as."""

    HTML = "html"
    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    PARQUET = "parquet"


ENDINGS = {
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".csv": Format.CSV,
    ".md": Format.MARKDOWN,
    ".parquet": Format.PARQUET,
    "": Format.HTML,
}
"""Formats that the ending of a file's name tells where --format does not."""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    *,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Show the difference from what `vrambench baseline` wrote.", metavar="FILE"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="The file to write.",
            metavar="FILE",
            show_default="report.html or report.parquet; other tables go to the terminal",
        ),
    ] = None,
    as_format: Annotated[
        Format | None,
        typer.Option("--format", help="What to write.", show_default="as FILE's name ends, else html"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no report.")] = False,
) -> None:
    """Write a report about runs: one HTML file, which needs nothing else to be read, or its cells as a table.

    With several runs the page lays the same cells side by side. What a run without a GPU has predicted beside it comes with it.
    --format csv and parquet hold numbers as they were stored, in bytes and seconds."""
    chosen = as_format or _told_by(out)
    _check_ending(out, chosen)
    _check_once(runs)
    if chosen in (Format.HTML, Format.PARQUET):
        out = out or Path(f"report.{chosen}")
    if out is not None:
        replaces = force or not out.is_file() or (chosen is Format.HTML and is_report(out))
        check_out(out, replaces=replaces, why=", and is no report of ours")
    _check_baseline(baseline, runs, chosen)
    runs = runs if baseline else with_beside(runs)
    with stdout_kept_clean() as stdout:
        if chosen is Format.HTML:
            assert out
            unread = write_report(runs, out, baseline)
        else:
            unread = _write_table(runs, chosen, out, baseline, stdout)
        for line in unread:
            say(line)
        if out is not None:
            print(f"wrote {out}", file=stdout)


def _told_by(out: Path | None) -> Format:
    """The format that the file's name tells. Raises ConfigurationError where it has another ending."""
    ending = out.suffix.lower() if out else ""
    if ending not in ENDINGS:
        known = ", ".join(one for one in ENDINGS if one)
        raise ConfigurationError(
            f"-o {brief(str(out), 300)}: {ending} tells no format, as {known} do; --format says which", field="out"
        )
    return ENDINGS[ending]


def _check_ending(out: Path | None, chosen: Format) -> None:
    """That the file's name does not tell another format. Raises ConfigurationError."""
    ending = out.suffix.lower() if out else ""
    if ending and ENDINGS.get(ending, chosen) is not chosen:
        raise ConfigurationError(
            f"-o {brief(str(out), 300)}: {ending} tells the format {ENDINGS[ending]}, and --format says {chosen}",
            field="out",
        )


def _check_once(runs: Sequence[Path]) -> None:
    """That no run is laid beside itself."""
    there = [run.resolve() for run in runs]
    for place, run in enumerate(runs):
        if there[place] in there[:place]:
            raise ConfigurationError(f"{run}: is named twice; name each run once", field="runs")


def with_beside(runs: Sequence[Path]) -> list[Path]:
    """The folders, each after the one of what was predicted beside it, where there is one: what fits a card comes first."""
    found: dict[Path, Path] = {}
    for run in runs:
        for folder in (run / BESIDE, run):
            if folder == run or (folder / "run.json").exists():
                found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _check_baseline(baseline: Path | None, runs: Sequence[Path], chosen: Format) -> None:
    if baseline is None:
        return
    from vrambench.bench.gate.baseline import read_baseline

    if len(runs) > 1 or chosen not in (Format.HTML, Format.TABLE):
        raise ConfigurationError("--baseline: goes with one run, and --format html or table", field="baseline")
    read_baseline(baseline)


def _write_table(
    runs: Sequence[Path], chosen: Format, out: Path | None, baseline: Path | None, stdout: TextIO
) -> tuple[str, ...]:
    """The cells as a table: to `out`, else to the terminal. Gives a line for each result file that cannot be read."""
    if chosen is Format.TABLE:
        to = stdout if out is None else StringIO()
        unread = _print_table(runs, baseline, to)
        text = to.getvalue() if isinstance(to, StringIO) else ""
    else:
        from vrambench.reports import tables
        from vrambench.reports.read import read_runs, unread_of
        from vrambench.reports.report import Report

        read = read_runs(runs)
        unread, found = unread_of(runs, read), Report(read)
        if chosen is Format.PARQUET:
            assert out
            tables.write_parquet(found, out)
            return unread
        text = tables.markdown(found) if chosen is Format.MARKDOWN else tables.frame(found).to_csv(index=False)
        if out is None:
            stdout.write(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    return unread


def _print_table(runs: Sequence[Path], baseline: Path | None, to: TextIO) -> tuple[str, ...]:
    from vrambench.reports.text.terminal import print_table

    unread = print_table(runs, to)
    if baseline is not None:
        from vrambench.bench.gate.baseline import read_baseline
        from vrambench.bench.gate.check import check
        from vrambench.bench.results.store import RunFolder
        from vrambench.reports.text.checked import print_check

        print_check(check(read_baseline(baseline), RunFolder.open(runs[0])), to)
    return unread


def is_report(path: Path) -> bool:
    """Whether the file is a report that vrambench wrote."""
    with path.open("rb") as file:
        return b'name="generator" content="vrambench' in file.read(4096)


def write_report(folders: Sequence[Path], out: Path, baseline: Path | None = None) -> tuple[str, ...]:
    """As reports/page writes it, whose libraries are imported once they are needed: gives a line for each result file that cannot
    be read. Raises ConfigurationError where a folder is no run's, OSError, with the file's name, where there is no report."""
    from vrambench.reports.page import html

    return html.write_report(folders, out, baseline)
