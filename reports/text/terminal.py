"""Results on a terminal: the table at the end of a run, and the lines below it.

    console.print(results_table(results))
    for line in summary_lines(results, not_run=3): console.print(line, markup=False)

A cell that failed is a row like any other, with its reason. Text from users is never read as markup; colours and
width are the console's affair, so NO_COLOR, pipes and narrow windows are respected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vrambench.bench.results.records import FAILED, Result
from vrambench.bench.results.store import RunFolder
from vrambench.reports import units
from vrambench.reports.report import PEAKS, Report
from vrambench.reports.rows import STATUSES, Row, Run, peak_basis, rows_of
from vrambench.reports.summary import summary

STYLES = {
    "ok": "green",
    "oom": "yellow",
    "invalid": "dim",
    "pruned": "dim",
    "timeout": "red",
    "crashed": "red",
    "error": "red",
}
LINES = 12
"""Groups of cells that do like work of which the best are named."""
PIPED_WIDTH = 200
"""Columns where the output is no terminal that has a width of its own."""


class Output(Console):
    """A console on a text stream, as wide as its terminal, else PIPED_WIDTH. `:smile:` is text."""

    def __init__(self, out: TextIO, **more: Any) -> None:
        super().__init__(file=out, highlight=False, emoji=False, **more)
        if not self.is_terminal:
            self.width = PIPED_WIDTH

    def tell(self, text: str, style: str = "") -> None:
        """Prints a line as it is: no markup, no line breaks of our own, nothing that a terminal would obey."""
        self.print(Text(visible(text), style=style), soft_wrap=True)


def visible(text: str) -> str:
    """`text` in one line, with a mark in place of whatever a terminal would obey: escapes, carriage returns, line ends."""
    return units.printable(re.sub("[\t\n\r]+", " ", text))


def plain(text: str) -> str:
    """`visible` text for where Rich reads markup, which it then is not."""
    return escape(visible(text))


def print_table(folders: Sequence[Path], out: TextIO) -> tuple[str, ...]:
    """Prints the table and the summary of each run folder to `out`. Gives a line for each result file that cannot be read."""
    console = Output(out)
    unread: list[str] = []
    for folder in folders:
        store = RunFolder.open(folder)
        results, unreadable = store.contents()
        if results:
            console.print(results_table(results))
        missing = len({cell["id"] for cell in store.info.get("cells", [])} - {result.id for result in results})
        corrupted = tuple(str(one.file) for one in unreadable)
        for line in summary_lines(results, not_run=missing, corrupted=corrupted):
            console.tell(line)
        unread += [f"{one.file}: {one.reason}" for one in unreadable]
    return tuple(unread)


def results_table(results: Sequence[Result]) -> Table:
    """A row for each result, in the order given: how it ended, its peak, its rate, what it learned, or why it did not
    end well. The peak is of `peak_basis`; its heading says which. What no cell has is no column."""
    rows = rows_of([Run("", results=tuple(results))])
    basis = peak_basis(rows)
    peak_heading = f"peak {basis.removesuffix('_bytes')}" if basis else "peak"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("status", no_wrap=True, min_width=7)
    table.add_column("cell", overflow="fold", min_width=16)
    told = [[column(row) for column in MEASURED.values()] for row in rows]
    shown = [index for index in range(len(MEASURED)) if any(texts[index] != units.DASH for texts in told)]
    for heading in (peak_heading, *(list(MEASURED)[index] for index in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row, texts in zip(rows, told, strict=True):
        table.add_row(*_texts(row, basis), *(texts[index] for index in shown))
    return table


def summary_lines(results: Sequence[Result], *, not_run: int = 0, corrupted: Sequence[str] = ()) -> list[str]:
    """What the table comes to, in a few lines: counts, which fit the budget, per algorithm the fastest and the
    smallest, and what needs a look."""
    report = Report([Run("", results=tuple(results))])
    counts = Counter[str](result.status for result in results)
    parts = [f"{counts[status]} {status}" for status in STATUSES if status in counts]
    parts += [f"{not_run} not run"] if not_run else []
    lines = [f"{units.plural(len(results) + not_run, 'cell')}: {', '.join(parts)}" if parts else "no cells"]
    data = summary(report)
    if results:
        lines += data.sentences[1:]
    if report.ok and report.basis and not data.judged and len(data.sentences) < 2:
        lines.append(f"cells are compared by their peak of {PEAKS[report.basis]}")
    for line in data.lines[:LINES]:
        chosen = [("fastest", line.fastest), ("smallest", line.smallest)]
        about = f"{line.algorithm} ({line.about})" if line.about else line.algorithm
        lines += [f"{about}: {which} {best.name} ({best.words})" for which, best in chosen if best]
    failed = [result for result in results if result.status in FAILED]
    if failed:
        lines.append(
            f"{units.plural(len(failed), 'measurement')} failed; run again with --retry {','.join(_retryable(failed))}"
        )
    rules = {result.rule: result.reason for result in reversed(results) if result.rule}
    lines += [f"invalid, {rule}: {reason}" for rule, reason in sorted(rules.items())]
    lines += [f"cannot be read: {name}" for name in corrupted]
    return [visible(line) for line in lines]


def _retryable(failed: Sequence[Result]) -> list[str]:
    return [status for status in FAILED if any(result.status == status for result in failed)]


def _texts(row: Row, basis: str | None) -> list[Text]:
    peak = getattr(row.memory, basis) if basis else None
    cell = Text(visible(row.name))
    if why := _why(row):
        cell.append("\n" + visible(why), style="dim")
    return [
        Text(row.status, style=STYLES.get(row.status, "")),
        cell,
        Text(units.size(peak)),
    ]


def _learned(row: Row) -> str:
    """The reward where there is one, else the loss: the first and the last quarter's mean."""
    if row.reward:
        return f"reward {units.change(row.reward)}"
    return f"loss {units.change(row.loss)}" if row.loss else units.DASH


MEASURED: Mapping[str, Callable[[Row], str]] = {
    "tokens/s": lambda row: units.rate(row.tokens_per_second),
    "step": lambda row: units.seconds(row.step_seconds),
    "learning": _learned,
}
"""Columns of what only a run shows, and a prediction does not."""


def _why(row: Row) -> str:
    if row.status == "ok" or row.result is None:
        return ""
    if row.result.rule:
        return row.result.rule  # its reason is told once, below
    phase = f" (in {row.result.phase})" if row.result.phase else ""
    return f"{row.reason or ''}{phase}"
