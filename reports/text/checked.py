"""What `check` says on a terminal."""

from __future__ import annotations

from typing import TextIO

from vrambench.bench.gate.check import OUTCOMES, Check
from vrambench.reports.checked import headline, lines
from vrambench.reports.text.terminal import Output

MOST_CELLS = 50
"""Of one outcome; the others are counted."""


def print_check(found: Check, out: TextIO) -> None:
    """Every cell that changed, worst first, with what grew; then the counts."""
    console = Output(out)
    for outcome in OUTCOMES[:-1]:
        cells = found.of(outcome)
        for cell in cells[:MOST_CELLS]:
            console.tell(f"{outcome}: {cell.name} ({cell.id})")
            for line in lines(cell):
                console.tell(f"  {line}")
        if cells[MOST_CELLS:]:
            console.tell(f"{outcome}: {len(cells) - MOST_CELLS:,} more")
    for note in found.notes:
        console.tell(f"unlike the baseline's run: {note}")
    console.tell(headline(found))
