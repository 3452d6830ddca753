"""The view of what others claim, where the runs' cells answer it."""

from __future__ import annotations

from dataclasses import dataclass

from vrambench.methods.errors import ConfigurationError
from vrambench.reports.claims import answered, said, value_words, verdict_words
from vrambench.reports.page.view import View
from vrambench.reports.report import Report


@dataclass(frozen=True)
class ClaimLine:
    id: str
    said: str
    source: str
    claimed: str
    predicted: str
    measured: tuple[str, ...]
    verdict: str
    note: str


@dataclass(frozen=True)
class ClaimsData:
    """`error`: why there are no lines. `predicted`, `measured`: whether any line has that."""

    lines: tuple[ClaimLine, ...] = ()
    error: str | None = None

    @property
    def predicted(self) -> bool:
        return any(line.predicted for line in self.lines)

    @property
    def measured(self) -> bool:
        return any(line.measured for line in self.lines)


def claims(report: Report) -> ClaimsData | None:
    """A line for each claim that some run answers; None where none is."""
    try:
        answers = answered(report.runs)
    except ConfigurationError as error:
        return ClaimsData(error=error.message)
    lines = [
        ClaimLine(
            id=one.claim.id,
            said=said(one.claim),
            source=one.claim.source,
            claimed=one.claim.claimed.text,
            predicted=value_words(one.predicted, one.claim) if one.predicted and one.predicted.verdict else "",
            measured=tuple(dict.fromkeys(value_words(found, one.claim) for found in one.measured if found.verdict)),
            verdict=verdict_words(one),
            note=one.claim.note or "",
        )
        for one in answers
    ]
    return ClaimsData(tuple(lines)) if lines else None


VIEW = View("claims", "Claims", "claims.html", claims)
