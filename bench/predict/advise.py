"""What to change so that a cell fits: a search that asks for one prediction after the other.

    ask = lambda cell: predictor.forecast(cell, budget, card)
    advise(cell, 3, ask)                    Advice: the nearest valid configurations that fit, cheapest change first

Validity is that of CUDA. Nothing is printed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vrambench.bench.plan.traits import packs_experts
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.answer import Advice, Suggestion
from vrambench.bench.predict.changes import (
    CHANGES,
    PACKED,
    Change,
    applies,
    beside_packed,
    changed,
    differences,
    halved,
    quartered,
)
from vrambench.bench.predict.reach import Ask, rejection
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

MOST_PREDICTIONS = 40

TIGHT_ROOM = 0.5
"""Share of the error band that must be left for what is only tight to be suggested: with less it is a matter of luck."""

MORE_ROOM = 0.05
"""Share of the budget that a further change must free to be worth a line of its own."""

EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
EXPANDABLE_PRICE = "nothing of the job changes: the allocator maps memory page by page (not on Windows)"


_Bulk = tuple[str, str, bool, bool, bool]


class Variant(NamedTuple):
    """A configuration that may do, with the changes that make it of the cell, and all that they set."""

    cell: Cell
    changes: frozenset[Change] = frozenset()
    settings: Mapping[str, Any] = {}


def advise(
    cell: Cell,
    wanted: int,
    ask: Ask,
    *,
    quick: Ask | None = None,
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

    `quick` predicts the least that a configuration takes: what that is too much for is not asked of `ask`. `expandable` predicts
    with expandable segments: suggested first of all where it is fragmentation that breaks the budget. `said`: what the matrix says
    of fields and options that the cell does not use, for changes that do.
    """
    own = ask(cell)
    if own.verdict == "fits":
        return Advice(suggestions=(), predictions=1, ending="nothing needs to change: it fits as it is")
    search = _Search(cell, own, wanted, most, ask, quick, tell)
    if expandable and _broken_by_fragmentation(own):
        search.predictions += 1
        search.unchanged = _with_expandable_segments(cell, own, expandable(cell))
    ending = search.ending(_variants(cell, bf16, said))
    found = (*search.unchanged, *(given for _, given in search.found))
    return Advice(suggestions=found, predictions=search.predictions, ending=ending)


@dataclass
class _Search:
    """One search for `wanted` configurations of `cell`, whose forecast is `own`; the others are as in `advise`. `held`: what every
    cell of a bulk holds at one moment. `nearest`: of what was tried, that which exceeds the budget least."""

    cell: Cell
    own: Forecast
    wanted: int
    most: int
    ask: Ask
    quick: Ask | None
    tell: Callable[[str], None]
    predictions: int = 1
    unchanged: list[Suggestion] = field(default_factory=list)
    found: list[tuple[frozenset[Change], Suggestion]] = field(default_factory=list)
    held: dict[_Bulk, int] = field(default_factory=dict)
    nearest: tuple[Variant, Forecast] | None = None

    def __post_init__(self) -> None:
        self.held[_bulk(self.cell)] = _held_bytes(self.cell, self.own)

    @property
    def _number(self) -> int:
        return len(self.unchanged) + len(self.found)

    def ending(self, variants: Iterator[Variant]) -> str:
        """Goes through `variants`, and says why it stops."""
        later: list[Variant] = []
        first = ((variant, False) for variant in variants)
        again = ((variant, True) for variant in later)  # read when the first are through
        for variant, second in itertools.chain(first, again):
            if self._number == self.wanted:
                break
            if not second and self._within(variant.changes):
                later.append(variant)
            elif not self._too_large(variant.cell):
                if self.predictions >= self.most:
                    number = (
                        f"stopped at the limit of {self.most} predictions, with {self._number} of {self.wanted} found"
                    )
                    return number if self._number else f"{number}; {self._lacks()}"
                self._try(variant)
        if self._number == self.wanted:
            return f"{self.wanted} found"
        if self._number:
            return "all other changes that are known do not fit, or add to these for little more room"
        return f"no change that is known makes it fit; {self._lacks()}"

    def _lacks(self) -> str:
        """What is nearest where nothing fits, what it lacks, and what is largest there."""
        if self.nearest is None:
            least = min(self.held.values()) + (self.own.memory.context_bytes or 0)
            return (
                "weights, gradients that are there together and what is outside the allocator take "
                f"{least / 2**30:.2f} GiB at least, of {self.own.budget_bytes / 2**30:.2f} GiB"
            )
        variant, forecast = self.nearest
        margin = forecast.margin_bytes / 2**30
        room = f"{-margin:.2f} GiB too much" if margin < 0 else f"tight by luck, with {margin:.2f} GiB to spare"
        largest = max(forecast.at_peak, key=lambda share: share.nbytes, default=None)
        held = f"; largest in it: {largest.kind.replace('_', ' ')}, {largest.nbytes / 2**30:.2f} GiB" if largest else ""
        return f"nearest is {_words(self.cell, variant)}: {room}{held}"

    def _within(self, changes: frozenset[Change]) -> list[Suggestion]:
        """What fits with a part of `changes`."""
        return [given for smaller, given in self.found if smaller < changes and given.verdict == "fits"]

    def _too_large(self, cell: Cell) -> bool:
        outside = self.own.memory.context_bytes or 0
        return self.held.get(_bulk(cell), 0) + outside > self.own.budget_bytes

    def _try(self, variant: Variant) -> None:
        """Predicts `variant`, and keeps it where it is worth a line."""
        forecast = self._asked(variant)
        if forecast is None:
            return
        if self.nearest is None or forecast.margin_bytes > self.nearest[1].margin_bytes:
            self.nearest = variant, forecast
        bulk = _bulk(variant.cell)
        self.held[bulk] = max(self.held.get(bulk, 0), _held_bytes(variant.cell, forecast))
        within = self._within(variant.changes)
        more = MORE_ROOM * self.own.budget_bytes
        if within and forecast.margin_bytes < max(given.margin_bytes for given in within) + more:
            return
        tight = self.own.verdict == "does not fit" and _worth(forecast, variant.changes, self.found)
        if forecast.verdict == "fits" or tight:
            self.found.append((variant.changes, _suggestion(self.cell, variant, forecast)))

    def _asked(self, variant: Variant) -> Forecast | None:
        """What is predicted of `variant`, told with its changes; None where it cannot be run."""
        words = _words(self.cell, variant)
        try:
            self.predictions += 1
            forecast = (self.quick or self.ask)(variant.cell)
            if self.quick and forecast.fits:
                self.predictions += 1
                forecast = self.ask(variant.cell)
        except (ConfigurationError, NotPredicted) as error:
            self.tell(f"{words}: {error}")
            return None
        self.tell(f"{words}: {forecast.verdict}")
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
        if any(change.what == "micro_rollout_batch_size" for change in chosen):
            settings |= quartered(cell)
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


def _bulk(cell: Cell) -> _Bulk:
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
