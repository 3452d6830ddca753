"""Claims on a terminal: `vrambench claims`, and the lines below the table of a run that measured some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from vrambench.bench.claims.answer import NOT_MEASURED, Answer
from vrambench.bench.results import PREDICTED
from vrambench.bench.results.store import RunFolder
from vrambench.reports import units
from vrambench.reports.claims import answered, said, value_words, verdict_words
from vrambench.reports.rows import Run
from vrambench.reports.text.answers import print_rows
from vrambench.reports.text.terminal import plain, visible

COLOURS = {"reproduced": "green", "partly": "yellow", "refuted": "red"}


def print_claims(answers: Sequence[Answer], file: str, out: TextIO) -> None:
    """A row for each claim, and how many had which verdict."""
    rows = [
        (
            f"{plain(one.claim.id)}\n[dim]{plain(said(one.claim))}[/]",
            plain(one.claim.claimed.text),
            plain(value_words(one.predicted, one.claim)) if one.predicted else units.DASH,
            "\n".join(dict.fromkeys(plain(value_words(found, one.claim)) for found in one.measured if found.verdict))
            or units.DASH,
            _verdict(one),
        )
        for one in answers
    ]
    console = print_rows(("claim", "claimed", "predicted", "measured", "verdict"), rows, out)
    counted = Counter(" and ".join(one.verdicts) or NOT_MEASURED for one in answers)
    console.tell(
        f"{units.plural(len(answers), 'claim')}: {', '.join(f'{count} {words}' for words, count in counted.items())}; {file}"
    )


def lines(folders: Sequence[Path]) -> Iterator[str]:
    """A line for each claim that the runs in the folders answer."""
    stores = [RunFolder.open(folder) for folder in folders]
    for one in answered([Run(str(store.path), store.info, tuple(store.results())) for store in stores]):
        values = "; ".join(
            f"{value_words(found, one.claim)}{' predicted' if found.where == PREDICTED else ''}"
            for found in one.found
            if found.verdict
        )
        yield visible(f"claim {one.claim.id}: {one.claim.claimed.text} claimed, {values}: {verdict_words(one)}")


def _verdict(one: Answer) -> str:
    """Its colour is that of a verdict on which all agree."""
    colour = COLOURS[next(iter(one.verdicts))] if len(one.verdicts) == 1 else "yellow" if one.verdicts else "dim"
    words = f"[{colour}]{plain(verdict_words(one))}[/]"
    return words + (f"\n[dim]{plain(one.reason)}[/]" if one.reason else "")
