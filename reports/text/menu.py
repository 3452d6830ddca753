"""What `vrambench fit MODEL` says on a terminal: a line for each recipe, and how to ask more.

print_menu(menu, sys.stdout)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from vrambench.reports import units
from vrambench.reports.text.answers import COLOURS, print_rows, tokens
from vrambench.reports.text.terminal import plain

if TYPE_CHECKING:
    from vrambench.bench.predict.answer import Maximum, Menu, MenuRow


def print_menu(menu: Menu, out: TextIO) -> None:
    """Under one budget each recipe's peak and how far it goes, under several its verdict on each; then why a row says nothing,
    and the command that says all of the first row that fits, or what is nearest."""
    rows = menu.rows
    budgets = list(dict.fromkeys(row.budget for row in rows))
    table = _one_budget(rows) if len(budgets) == 1 else _several(rows, budgets)
    console = print_rows(*table, out)
    for line in dict.fromkeys(_reasons(rows)):
        console.tell(line)
    console.tell(_work(rows[0], alone=len(budgets) == 1, budget_of=menu.budget_of))
    console.tell(_last(rows))


def _one_budget(rows: Sequence[MenuRow]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    length = next((row.length.field for row in rows if row.length), "max_length")
    headings = ("recipe", "cell", "peak", "to spare", "verdict", "largest batch_size", f"largest {length} at batch 1")
    return headings, [
        (
            plain(row.recipe),
            plain(row.name),
            units.size(row.forecast.memory.device_bytes) if row.forecast else units.DASH,
            units.size(row.forecast.margin_bytes) if row.forecast else units.DASH,
            _verdict(row),
            _largest(row.batch),
            _largest(row.length),
        )
        for row in rows
    ]


def _several(rows: Sequence[MenuRow], budgets: Sequence[str | None]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    by_key: dict[tuple[str, str], dict[str | None, MenuRow]] = {}
    for row in rows:
        by_key.setdefault(row.key, {})[row.budget] = row
    table = []
    for (recipe, cell), on in by_key.items():
        told = []
        for budget in budgets:
            one = on.get(budget)
            size = f" {units.size(one.forecast.memory.device_bytes)}" if one and one.forecast else ""
            told.append(_verdict(one) + size if one else units.DASH)
        table.append((plain(recipe), plain(cell), *told))
    return ("recipe", "cell", *(plain(budget or units.DASH) for budget in budgets)), table


def _verdict(row: MenuRow) -> str:
    if row.forecast is not None:
        return f"[{COLOURS[row.forecast.verdict]}]{row.forecast.verdict}[/]"
    return "[dim]invalid[/]" if row.rule else "[red]not predicted[/]"


def _largest(found: Maximum | None) -> str:
    if found is None:
        return units.DASH
    return "none fits" if found.value is None else f"{found.value:,}"


def _reasons(rows: Sequence[MenuRow]) -> Iterator[str]:
    """Rules once each, and why something was not predicted."""
    for row in rows:
        rule = row.rule
        if rule is not None:
            yield f"{row.title}: invalid by the rule {rule.rule}: {rule.reason}"
        elif row.reason:
            yield f"{row.title}: not predicted: {row.reason}"
    for row in rows:
        if row.forecast and row.forecast.verdict == "unsure":
            yield f"{row.called}: unsure, since what is left out may be more than what is to spare: " + "; ".join(
                one.reason for one in row.forecast.unmodelled
            )
        if row.forecast and row.forecast.verdict == "tight":
            yield f"{row.called}: tight: to spare is less than the error band of {units.size(row.forecast.band_bytes)}"


def _work(row: MenuRow, *, alone: bool, budget_of: str | None) -> str:
    workload = row.cell.workload
    size = units.size(workload.budget)
    on = f"; {size} is usable" if alone else ""
    if budget_of:
        on = f"; {size} is the budget of {budget_of} (--budget names a card or another size)"
    return f"{workload.model}, batch_size {workload.batch_size}, {tokens(workload)}{on}"


def _last(rows: Sequence[MenuRow]) -> str:
    """The command for the first row that fits; where none does, how much the nearest lacks."""
    first = next((row for row in rows if row.fits), None)
    if first is not None:
        return f"all about {first.called}: {first.command}"
    predicted = [row for row in rows if row.forecast is not None]
    if not predicted:
        return "no recipe could be predicted"
    nearest = max(predicted, key=lambda row: row.forecast.margin_bytes if row.forecast else 0)
    assert nearest.forecast is not None
    lacking = units.size(-nearest.forecast.margin_bytes)
    where = f" on {nearest.budget}" if nearest.budget else ""
    return f"nothing fits; nearest is {nearest.called}, which lacks {lacking}{where}: {nearest.command} --advise 3"
