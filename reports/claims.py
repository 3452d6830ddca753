"""What became of claims: for the runs that are reported, and in the words that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Sequence

from vrambench.bench.claims import answer
from vrambench.bench.claims.answer import NOT_MEASURED, ON_CPU, Answer, Found, Ran
from vrambench.bench.claims.claimed import told
from vrambench.bench.claims.file import Claim, default_claims, load_claims
from vrambench.bench.results import PREDICTED
from vrambench.reports import units
from vrambench.reports.rows import Run


def answered(runs: Sequence[Run]) -> tuple[Answer, ...]:
    """The usual claims that the runs answer. Raises ConfigurationError where the file of claims is wrong."""
    return answer.answered(load_claims(default_claims()), [Ran.of(run.name, run.info, run.results) for run in runs])


def verdict_words(one: Answer) -> str:
    """The verdict, with where it was come to unless all agree on one that was measured on a GPU: `refuted`, `partly (predicted)`,
    `reproduced (predicted); refuted (NVIDIA H200)`."""
    verdicts = one.verdicts
    if not verdicts:
        return NOT_MEASURED
    if len(verdicts) == 1:
        (verdict, where), *_ = verdicts.items()
        if any(one != PREDICTED and not one.startswith(ON_CPU) for one in where):
            return verdict
    return "; ".join(f"{verdict} ({', '.join(where)})" for verdict, where in verdicts.items())


def value_words(found: Found, claim: Claim) -> str:
    """A value in the claim's unit, and where it was measured: `22.7 GB on NVIDIA H200`, `fits, tightly: 23.9 of 24 GiB`."""
    value = told(found.value, claim.claimed) or units.DASH
    if found.device_bytes is not None and found.value is not None:
        value += f"{', tightly' if found.tight else ''}: {units.size(found.device_bytes)} of {units.size(found.budget_bytes)}"
    return value if found.where == PREDICTED else f"{value} on {found.where}"


def said(claim: Claim) -> str:
    """The claim's sentence, and what is assumed of its job."""
    return claim.claim + (f" (assumed: {claim.assumed})" if claim.assumed else "")
