"""What a gate found as annotations, which GitHub shows on the lines of a file where it changed and beside the job.

    ::error file=matrix.yaml,line=14,title=regressed%3A bf16 lora adamw_torch none ppo::allocated 1.2 GiB more ...

GitHub reads these workflow commands from a step's output, and takes ten errors and ten warnings of a step.
"""

from __future__ import annotations

from collections.abc import Callable

from vrambench.bench.gate.check import CellCheck, Check, Outcome
from vrambench.reports.checked import headline, lines
from vrambench.reports.units import printable

LEVELS: dict[Outcome, str] = {"regressed": "error", "failed": "error", "vanished": "warning", "new": "notice"}
Place = Callable[[CellCheck], tuple[str, int] | None]
"""The file and the line that asked for a cell."""


def annotations_of(found: Check, place: Place) -> str:
    """A line for each cell that is worse, failed, new or gone, worst first; one alone where nothing can be compared."""
    if found.not_comparable:
        return _command("error", None, "vrambench", headline(found))
    told = [
        _command(
            LEVELS[cell.outcome], place(cell), f"{cell.outcome}: {cell.name}", "\n".join(lines(cell)) or cell.outcome
        )
        for cell in found.cells
        if cell.outcome in LEVELS
    ]
    return "".join(told)


def _command(level: str, place: tuple[str, int] | None, title: str, text: str) -> str:
    where = f"file={_property(place[0])},line={place[1]}," if place else ""
    shown = "\n".join(printable(line) for line in text.splitlines())
    return f"::{level} {where}title={_property(title)}::{_data(shown)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(printable(text)).replace(":", "%3A").replace(",", "%2C")
