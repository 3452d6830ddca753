"""Cells that do like work, and the best of them: rates and peaks are compared within one algorithm, model, batch and length
only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vrambench.bench.results.settings import flat_settings
from vrambench.reports import units
from vrambench.reports.report import Report, told_apart
from vrambench.reports.rows import Row, peak_basis

WORK = (
    *("model", "batch_size", "prompt_tokens", "response_tokens", "max_length", "lengths", "packing", "rollout_batch"),
    *("group_size", "gradient_accumulation_steps", "data", "reward", "reward_model"),
)
"""Settings that decide what a step works on."""
PASSES = ("epochs", "num_iterations")
"""Options that say how often a step trains on its tokens."""
SHORT = {"batch_size": "batch", "prompt_tokens": "prompt", "response_tokens": "response", "rollout_batch": "rollout"}


@dataclass(frozen=True)
class Best:
    """A cell that stands out. `words`: its rate and peak; `spread`: the lowest and highest rate of its steps; `near`: others of its
    group that are as fast, as far as steps tell."""

    index: int
    label: str
    name: str
    words: str
    spread: str = ""
    near: int = 0


@dataclass(frozen=True)
class Like:
    """Cells that do the same work, of one run. `about`: what tells their work from that of other groups of the report. `fits`:
    how many fit; None where that is known of none. `fastest`, `smallest`: of those that fit; of those that are ok, where it is
    not known which fit."""

    algorithm: str
    about: str
    cells: int
    ok: int
    fits: int | None
    fastest: Best | None
    smallest: Best | None


def alike(report: Report) -> tuple[Like, ...]:
    """Every group: those of which it is known what fits before others, then those of most cells. Those of one cell, which is
    compared with nothing, only where there are no others. Tests of people's own code are in none: each does work of its own."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in filter(lambda row: row.algorithm, report.rows):
        groups.setdefault(_work(row), []).append(row)
    several = {key: rows for key, rows in groups.items() if len(rows) > 1} or groups
    keys = [dict(key) for key in several]
    models = {key.get("model") for key in keys}
    found = [_like(_about(dict(key), keys, len(models) > 1), rows) for key, rows in several.items()]
    return tuple(sorted(found, key=lambda like: (like.fits is None, -like.cells)))


def _work(row: Row) -> tuple[tuple[str, str], ...]:
    settings = flat_settings(row.cell)
    told = {name: str(settings[name]) for name in WORK if name in settings}
    told |= {name: str(value) for name, value in settings.items() if name.partition(".")[2] in PASSES}
    return (("algorithm", row.algorithm), *told.items(), ("run", row.run))


def _about(key: dict[str, str], keys: Sequence[dict[str, str]], models: bool) -> str:
    """The fewest of its settings that tell it from the other groups of its algorithm; with several `models`, its own always."""
    left = [other for other in keys if other["algorithm"] == key["algorithm"]]
    told = []
    for name in dict.fromkeys(name for other in (key, *left) for name in other):
        same = [other for other in left if other.get(name) == key.get(name)]
        if name in key and (len(same) < len(left) or (name == "model" and models)):
            told.append(key[name] if name in ("run", "model") else f"{SHORT.get(name, name)} {key[name]}")
        left = same
    return ", ".join(told)


def _like(about: str, rows: Sequence[Row]) -> Like:
    ok = [row for row in rows if row.status == "ok"]
    judged = any(row.verdict.fit != "unknown" for row in rows)
    fitting = [row for row in rows if row.verdict.fit in ("fits", "tight")]
    candidates = [row for row in ok if row.verdict.fit in ("fits", "tight")] if judged else ok
    basis = peak_basis(rows)
    fastest = _first(candidates, lambda row: row.tokens_per_second or None)
    smallest = _first(candidates, lambda row: -peak if (peak := _peak(row, basis)) is not None else None)
    labels = told_apart(rows)
    return Like(
        algorithm=rows[0].algorithm,
        about=about,
        cells=len(rows),
        ok=len(ok),
        fits=len(fitting) if judged else None,
        fastest=_best(fastest, basis, candidates, labels),
        smallest=_best(smallest, basis, (), labels),
    )


def _peak(row: Row, basis: str | None) -> int | None:
    return getattr(row.memory, basis) if basis else None


def _first(rows: Sequence[Row], score: Callable[[Row], float | None]) -> Row | None:
    scored = [(value, -row.index, row) for row in rows if (value := score(row)) is not None]
    return max(scored)[2] if scored else None


def _best(row: Row | None, basis: str | None, rivals: Sequence[Row], labels: Mapping[int, str]) -> Best | None:
    if row is None:
        return None
    rate = f"{units.rate(row.tokens_per_second, 'tokens/s')}, " if row.tokens_per_second else ""
    spread = f"{units.rate(min(row.rates))} to {units.rate(max(row.rates))}" if len(row.rates) > 1 else ""
    words = rate + units.size(_peak(row, basis))
    return Best(row.index, labels[row.index], row.name, words, spread, _near(row, rivals))


def _near(best: Row, rivals: Sequence[Row]) -> int:
    """Rivals whose fastest step is faster than the slowest of `best`: samples do not tell them apart."""
    if not best.rates:
        return 0
    return sum(row is not best and bool(row.rates) and max(row.rates) >= min(best.rates) for row in rivals)
