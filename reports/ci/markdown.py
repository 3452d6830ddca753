"""What a gate found as Markdown, for the page of a CI job: small, whatever the run's size."""

from __future__ import annotations

import html

from vrambench.bench.gate.check import OUTCOMES, Check, Outcome
from vrambench.reports.checked import headline, lines
from vrambench.reports.units import printable

MOST_BYTES = 900_000
"""GitHub takes a summary of 1 MiB."""
SIGNS: dict[Outcome, str] = {"regressed": "❌", "failed": "⚠️", "improved": "✅", "vanished": "➖", "new": "➕"}


def summary_of(found: Check) -> str:
    """A heading, the counts, and a table of what changed, worst first, as far as there is room."""
    passed = {0: "passed", 1: "regressed", 3: "not comparable", 4: "not measured"}[found.exit_code]
    parts = [f"## vrambench: {passed}\n\n{_text(headline(found))}\n"]
    parts += [f"\nUnlike the baseline's run: {_text(note)}\n" for note in found.notes]
    rows = [
        f"| {SIGNS[outcome]} {outcome} | {_text(cell.name)} | {'<br>'.join(map(_text, lines(cell)))} |\n"
        for outcome in OUTCOMES[:-1]
        for cell in found.of(outcome)
    ]
    if rows:
        parts.append("\n| | cell | what changed |\n|---|---|---|\n")
    used = sum(len(part.encode()) for part in parts)
    for place, row in enumerate(rows):
        used += len(row.encode())
        if used > MOST_BYTES - 100:
            parts.append(f"\nand {len(rows) - place:,} more\n")
            break
        parts.append(row)
    return "".join(parts)


def _text(text: str) -> str:
    """A name or a reason as Markdown shows it, whatever it holds."""
    escaped = html.escape(printable(text), quote=False).replace("|", "\\|")
    return "".join(f"\\{char}" if char in "`*_[]" else char for char in escaped)
