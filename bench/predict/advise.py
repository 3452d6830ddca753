"""What to change so that a cell fits: a search that asks for one prediction after the other.

    ask = lambda cell: predictor.forecast(cell, budget, card)
    advise(cell, 3, ask)                    Advice: the nearest valid configurations that fit, cheapest change first

Validity is that of CUDA. Nothing is printed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vrambench.bench.plan.traits import packs_experts
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.changes import (
    CHANGES,
    PACKED,
    Change,
    applies,
    beside_packed,
    changed,
    differences,
    halved,
)
from vrambench.bench.predict.reach import Ask, rejection
from vrambench.bench.results.forecast import Forecast, Verdict
from vrambench.bench.results.records import Record
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

MOST_PREDICTIONS = 40

TIGHT_ROOM = 0.5
"""Share of the error band that must be left for what is only tight to be suggested: with less it is a matter of luck."""

MORE_ROOM = 0.05
"""Share of the budget that a further change must free to be worth a line of its own."""

EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
EXPANDABLE_PRICE = "nothing of the job changes: the allocator maps memory page by page (not on Windows)"


class Suggestion(Record):
    """A configuration that fits. `changes`: fields and axes (or a variable of the environment) with their new values; `price`: what
    each costs, in words, by the name of what is changed; what has to go with a change has none of its own."""

    name: str
    changes: dict[str, Any]
    price: dict[str, str]
    verdict: Verdict
    device_bytes: int
    margin_bytes: int


class Variant(NamedTuple):
    """A configuration that may do, with the changes that make it of the cell, and all that they set."""

    cell: Cell
    changes: frozenset[Change] = frozenset()
    settings: Mapping[str, Any] = {}


class Advice(Record):
    """`predictions`: how many were made. `ending`: why the search stopped, in a sentence."""

    suggestions: tuple[Suggestion, ...]
    predictions: int
    ending: str


def advise(
    cell: Cell,
    wanted: int,
    ask: Ask,
    *,
    expandable: Ask | None = None,
    bf16: bool = True,
    said: Mapping[str, Any] | None = None,
    most: int = MOST_PREDICTIONS,
    tell: Callable[[str], None] = lambda text: None,
) -> Advice:
    """The `wanted` nearest configurations of the same algorithm and work that fit: fewest changes first, then by CHANGES.

    What is only tight is given where the cell itself does not fit, with some room and where fewer changes do not do. What
    adds to changes that fit already is tried last, and given only where it leaves clearly more room. Not tried is what cannot
    fit, since weights (and the gradients that an optimizer steps on together) of its precision and adapter exceed the budget
    alone, with what lies outside the allocator, and what cannot be run. Stops at `most` predictions.

    `said`: what the matrix says of fields and options that the cell does not use, for changes that do.

    `expandable` predicts with expandable segments: suggested first of all where it is fragmentation that breaks the budget.
    """
    own = ask(cell)
    if own.verdict == "fits":
        return Advice(suggestions=(), predictions=1, ending="nothing needs to change: it fits as it is")
    held = {_bulk(cell): _held_bytes(cell, own)}
    outside = own.memory.context_bytes or 0
    found: list[tuple[frozenset[Change], Suggestion]] = []
    unchanged, predictions = [], 1
    if expandable and _broken_by_fragmentation(own):
        predictions += 1
        unchanged = _with_expandable_segments(cell, own, expandable(cell))
        if len(unchanged) == wanted:
            return Advice(suggestions=tuple(unchanged), predictions=predictions, ending=f"{wanted} found")
    ending = "all other changes that are known do not fit, or add to these for little more room"
    later: list[Variant] = []
    first = ((variant, False) for variant in _variants(cell, bf16, said))
    again = ((variant, True) for variant in later)  # read when the first are through
    for variant, second in itertools.chain(first, again):
        changes = variant.changes
        within = [given for smaller, given in found if smaller < changes and given.verdict == "fits"]
        if within and not second:
            later.append(variant)
            continue
        if held.get(_bulk(variant.cell), 0) + outside > own.budget_bytes:
            continue
        if predictions >= most:
            ending = f"stopped at the limit of {most} predictions, with {len(unchanged) + len(found)} of {wanted} found"
            break
        predictions += 1
        forecast = _asked(cell, variant, ask, tell)
        if forecast is None:
            continue
        bulk = _bulk(variant.cell)
        held[bulk] = max(held.get(bulk, 0), _held_bytes(variant.cell, forecast))
        enough = max((given.margin_bytes for given in within), default=-own.budget_bytes) + MORE_ROOM * own.budget_bytes
        if within and forecast.margin_bytes < enough:
            continue
        if forecast.verdict == "fits" or (own.verdict == "does not fit" and _worth(forecast, changes, found)):
            found.append((changes, _suggestion(cell, variant, forecast)))
            if len(unchanged) + len(found) == wanted:
                ending = f"{wanted} found"
                break
    if not unchanged and not found and predictions < most:
        ending = "no change that is known makes it fit"
    return Advice(suggestions=(*unchanged, *(given for _, given in found)), predictions=predictions, ending=ending)


def _asked(cell: Cell, variant: Variant, ask: Ask, tell: Callable[[str], None]) -> Forecast | None:
    """What is predicted of `variant`, told with its changes; None where it cannot be run."""
    try:
        forecast = ask(variant.cell)
    except (ConfigurationError, NotPredicted) as error:
        tell(f"{_words(cell, variant)}: {error}")
        return None
    tell(f"{_words(cell, variant)}: {forecast.verdict}")
    return forecast


def _broken_by_fragmentation(own: Forecast) -> bool:
    """Whether what is in use at the peak would fit, with the error band, and what is reserved does not."""
    return own.margin_bytes + own.fragmentation_bytes >= own.band_bytes and "expandable_segments" not in own.alloc_conf


def _with_expandable_segments(cell: Cell, own: Forecast, forecast: Forecast) -> list[Suggestion]:
    """The cell itself, where that makes it fit."""
    if forecast.verdict == "fits" or (own.verdict == "does not fit" and _worth(forecast, frozenset(), ())):
        return [_suggestion(cell, Variant(cell), forecast)]
    return []


def _worth(
    forecast: Forecast, changes: frozenset[Change], found: Sequence[tuple[frozenset[Change], Suggestion]]
) -> bool:
    """Whether what is only tight is worth a line: with some room, and not adding to what is given already."""
    room = forecast.margin_bytes >= TIGHT_ROOM * forecast.band_bytes
    return forecast.fits and room and not any(fewer < changes for fewer, _ in found)


def _variants(cell: Cell, bf16: bool, said: Mapping[str, Any] | None) -> Iterator[Variant]:
    """Valid configurations by number of changes; of as many, that whose dearest change is cheaper comes first."""
    places = {change: place for place, change in enumerate(CHANGES)}
    choices: dict[str, list[Change | None]] = {}
    for change in CHANGES:
        if applies(change, cell):
            choices.setdefault(change.what, [None]).append(change)
    sets = [tuple(one for one in chosen if one is not None) for chosen in itertools.product(*choices.values())]
    for chosen in sorted(sets, key=lambda one: (len(one), sorted((places[change] for change in one), reverse=True))):
        if not chosen:
            continue
        settings = {name: value for change in chosen for name, value in change.settings.items()}
        if any(change.what == "batch_size" for change in chosen):
            settings |= halved(cell)
        try:
            variant = changed(cell, settings, flash=bf16, said=said)
            if PACKED in settings and (more := beside_packed(variant)):
                settings |= more
                variant = changed(cell, settings, flash=bf16, said=said)
        except ConfigurationError:  # an option that the other value would need otherwise
            continue
        without_effect = PACKED in settings and not packs_experts(variant)
        if not without_effect and rejection(variant, bf16=bf16) is None:
            yield Variant(variant, frozenset(chosen), settings)


def _bulk(cell: Cell) -> tuple[str, str, bool, bool, bool]:
    """What decides a cell's weights and gradients: precision, adapter, whether experts are packed, whether all gradients are there
    at once, and whether weights are elsewhere."""
    elsewhere = cell.offload_value.parameters_on_host
    return cell.precision, cell.adapter, packs_experts(cell), _one_by_one(cell), elsewhere


def _one_by_one(cell: Cell) -> bool:
    """Gradients are freed before all of them are there, or lie elsewhere."""
    return cell.optimizer_value.layerwise or cell.offload_value.optimizer_on_host


def _held_bytes(cell: Cell, forecast: Forecast) -> int:
    """What every cell of this bulk holds on the device at one moment, whatever else is changed."""
    roles = forecast.roles.values()
    weights = sum(role.weights_bytes for role in roles)
    if _one_by_one(cell):
        return weights
    return weights + max((role.gradients_bytes for role in roles), default=0)


def _suggestion(cell: Cell, variant: Variant, forecast: Forecast) -> Suggestion:
    changes = variant.changes
    prices = {change.what: change.price for change in CHANGES if change in changes}
    return Suggestion(
        name=variant.cell.name,
        changes=differences(cell, variant.cell, variant.settings) if changes else EXPANDABLE,
        price=prices or dict.fromkeys(EXPANDABLE, EXPANDABLE_PRICE),
        verdict=forecast.verdict,
        device_bytes=forecast.memory.device_bytes or 0,
        margin_bytes=forecast.margin_bytes,
    )


def _words(cell: Cell, variant: Variant) -> str:
    return ", ".join(f"{name} {value}" for name, value in differences(cell, variant.cell, variant.settings).items())
