"""What to change so that a cell fits: a search that reads the ledger, and asks for one prediction after the other.

    ask = lambda cell: predictor.forecast(cell, budget, card)
    advise(cell, 3, ask)                    Advice: valid configurations that fit, what changes least of the training first

Each step changes what is largest at the peak. Validity is that of CUDA. Nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vrambench.bench.plan.traits import packs_experts
from vrambench.bench.plan.validity import check
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.answer import Advice, Suggestion
from vrambench.bench.predict.changes import changed, differences
from vrambench.bench.predict.reach import Ask
from vrambench.bench.predict.relief import (
    CHANGES,
    ENVIRONMENT,
    EXPANDABLE,
    FRAGMENTATION,
    PLACES,
    Change,
    Level,
    applies,
    beside,
    left,
    settings_of,
)
from vrambench.bench.results.forecast import Forecast
from vrambench.bench.results.records import Share
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError

MOST_PREDICTIONS = 39

TIGHT_ROOM = 0.5
"""Share of the error band that must be left for what is only tight to be suggested: with less it is a matter of luck."""

HELPS = 0.02, 0.1
"""Shares of the budget, and of what is lacking, that a change must free at the peak to be tried, where less would not do."""

GIB = 2**30

Chosen = frozenset[Change]


class Variant(NamedTuple):
    """A configuration with changes; `settings`: all that they set."""

    cell: Cell
    settings: Mapping[str, Any]


def advise(
    cell: Cell,
    wanted: int,
    ask: Ask,
    *,
    quick: Ask | None = None,
    expandable: Ask | None = None,
    said: Mapping[str, Any] | None = None,
    most: int = MOST_PREDICTIONS,
    tell: Callable[[str], None] = lambda text: None,
) -> Advice:
    """`wanted` configurations that fit, each without the dearest change of those before it; what changes least of the training
    comes first.

    A search goes level by level (relief.py) and changes what is live at the peak: by the cheapest change that frees enough, else by
    that which frees most, and then by others; a level whose changes cannot free enough together is not tried. What turns out
    needless is taken back.
    Not given is what the rules forbid, or newly warn of. What is only tight is given where the cell itself does not fit, with some
    room. Stops at `most` predictions.

    `quick` predicts the least that a configuration takes: what that is too much for is not asked of `ask`. `expandable` predicts
    with expandable segments. `said`: what the matrix says of fields and options that the cell does not use, for changes that do.
    """
    own = ask(cell)
    if own.verdict == "fits":
        return Advice(suggestions=(), predictions=1, ending="nothing needs to change: it fits as it is")
    doubts = [one.reason for one in own.unmodelled if one.decisive]
    if doubts:  # which no change takes away
        ending = f"none is looked for, since this may be another job than yours; first mend {'; '.join(doubts)}"
        return Advice(suggestions=(), predictions=1, ending=ending)
    return _Search(cell, own, ask, quick, expandable, said, most, tell).advice(wanted)


@dataclass
class _Search:
    """The search for one `cell`, whose forecast is `own`; the rest is as in `advise`. `known`: forecasts by changes, None where
    there can be none; `made`: configurations by changes, None where a rule is against it."""

    cell: Cell
    own: Forecast
    ask: Ask
    quick: Ask | None
    expandable: Ask | None
    said: Mapping[str, Any] | None
    most: int
    tell: Callable[[str], None]
    predictions: int = 1
    known: dict[Chosen, Forecast | None] = field(default_factory=dict)
    made: dict[Chosen, Variant | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nothing: Chosen = frozenset()
        self.known[nothing], self.made[nothing] = self.own, Variant(self.cell, {})
        self.at_hand = [change for change in CHANGES if applies(change, self.cell)]
        if self.expandable is None or "expandable_segments" in self.own.alloc_conf:
            self.at_hand = [change for change in self.at_hand if change.what != ENVIRONMENT]
        self.warned = {finding.rule for finding in check(self.cell, "cuda")}

    def advice(self, wanted: int) -> Advice:
        found: list[Chosen] = []
        left_out: set[Change] = set()
        while len(found) < wanted:
            way = self._way(left_out)
            if way is None:
                break
            way = self._needed(way)
            if way not in found:
                found.append(way)
            dearest = max(way, key=_price)
            alike = [one for one in self.at_hand if one.parts > 1 and one.what == dearest.what]
            left_out |= {dearest, *alike}
        if not found:
            same_work = [change for change in self.at_hand if change.level < Level.LESS_WORK]
            self._completed(frozenset(), same_work, to_the_end=True)  # for what is nearest
        found.sort(key=_prices)
        return Advice(
            suggestions=tuple(map(self._suggestion, found)),
            predictions=self.predictions,
            ending=self._ending(len(found), wanted),
        )

    def _way(self, left_out: set[Change]) -> Chosen | None:
        """Changes that make it fit, none of those that are `left_out`: one of the lowest level that will do, and others."""
        nothing: Chosen = frozenset()
        for level in Level:
            usable = [one for one in self.at_hand if one.level <= level and one not in left_out]
            if self._too_little(nothing, usable):
                continue
            for change in self._helping(nothing, [one for one in usable if one.level == level]):
                others = [one for one in usable if one.what != change.what]
                begun = self._smaller(nothing, change, others)
                completed = self._completed(begun, others) if begun is not None else None
                if completed is not None:
                    return completed
                if self.predictions >= self.most:
                    return None
        return None

    def _completed(self, chosen: Chosen, usable: Sequence[Change], *, to_the_end: bool = False) -> Chosen | None:
        """`chosen` and as many more as make it fit, what frees most at the peak first; None where they do not. `to_the_end`: even
        where they cannot."""
        left = set(usable) - chosen
        while not self._will_do(chosen):
            if not to_the_end and self._too_little(chosen, list(left)):
                return None
            for change in self._helping(chosen, [one for one in usable if one in left]):
                following = self._smaller(chosen, change, usable)
                left.discard(change)
                if following is not None:
                    chosen = following
                    break
            else:
                return None
        return chosen

    def _helping(self, chosen: Chosen, changes: Sequence[Change]) -> list[Change]:
        """Those that free enough at the peak to be tried: of those that are enough alone the cheapest first, of others that which
        frees most."""
        lacking = self._excess(chosen)
        freed = {change: self._freed(chosen, [change]) for change in changes}
        worth = max(HELPS[0] * self.own.budget_bytes, HELPS[1] * lacking)
        helping = [change for change in changes if freed[change] >= min(lacking, worth)]
        enough = sorted((one for one in helping if freed[one] >= lacking), key=_price)
        return enough + sorted((one for one in helping if freed[one] < lacking), key=lambda one: -freed[one])

    def _smaller(self, chosen: Chosen, change: Change, partners: Sequence[Change]) -> Chosen | None:
        """`chosen` with `change`, and with a partner where a rule forbids it alone; None where that takes no less."""
        for partner in (None, *partners):
            more = _with(_with(chosen, partner) if partner else chosen, change)
            if (partner is None or partner in more) and self._variant(more) is not None:
                break
        else:
            return None
        if self.predictions >= self.most and more not in self.known:
            return None
        forecast = self._forecast(more)
        takes_less = forecast is not None and (self._will_do(more) or self._excess(more) < self._excess(chosen))
        return more if takes_less else None

    def _needed(self, chosen: Chosen) -> Chosen:
        """`chosen` without what it fits without, dearest first, and with numbers no smaller than must be."""
        for change in sorted(chosen, key=_price, reverse=True):
            if self._also_fits(chosen - {change}):
                chosen -= {change}
        for change in [one for one in chosen if one.parts > 1]:
            alike = [one for one in self.at_hand if one.what == change.what and one.parts < change.parts]
            low, high = 0, len(alike)  # the first of those from `high` on fits
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._also_fits(_with(chosen, alike[middle])) else (middle + 1, high)
            chosen = _with(chosen, alike[high]) if high < len(alike) else chosen
        return chosen

    def _also_fits(self, chosen: Chosen) -> bool:
        if any(chosen <= more and not self._will_do(more) for more in self.known):
            return False
        may_ask = chosen in self.known or self.predictions < self.most
        return may_ask and self._variant(chosen) is not None and self._will_do(chosen)

    def _will_do(self, chosen: Chosen) -> bool:
        """Whether it fits; where the cell itself does not, tight with some room is enough."""
        forecast = self._forecast(chosen)
        if forecast is None:
            return False
        room = forecast.margin_bytes >= TIGHT_ROOM * forecast.band_bytes
        return forecast.verdict == "fits" or (self.own.verdict == "does not fit" and forecast.fits and room)

    def _excess(self, chosen: Chosen) -> int:
        """By how much it is too large to fit, the error band included."""
        forecast = self.known[chosen]
        assert forecast is not None
        device = forecast.memory.device_bytes or 0
        return max(device, forecast.unlimited_bytes) - device - forecast.margin_bytes + forecast.band_bytes

    def _freed(self, chosen: Chosen, changes: Sequence[Change]) -> float:
        """Of what is live at the peak with `chosen`, the most that `changes` free, and of fragmentation."""
        forecast = self.known[chosen]
        assert forecast is not None
        fragmentation = any(FRAGMENTATION in change.leaves for change in changes) * forecast.fragmentation_bytes
        total = sum(share.nbytes for share in forecast.at_peak)
        return total - self._stays(chosen, changes, forecast.at_peak) + fragmentation

    def _stays(self, chosen: Chosen, changes: Sequence[Change], shares: Sequence[Share]) -> float:
        """Of `shares`, which are live at one moment with `chosen`, what `changes` leave at least."""
        variant = self.made[chosen]
        assert variant is not None
        before = {one.what: one for one in chosen}
        total = 0.0
        for share in shares:
            stays = 1.0
            for change in changes:
                there = left(before[change.what], share, self.cell) if change.what in before else 1.0
                stays = min(stays, left(change, share, variant.cell) / (there or 1.0))
            total += stays * share.nbytes
        return total

    def _too_little(self, chosen: Chosen, changes: Sequence[Change]) -> bool:
        """Whether `changes` cannot do together, even without any fragmentation: at the peak, or where an optimizer steps."""
        forecast = self.known[chosen]
        assert forecast is not None
        memory = forecast.memory
        room = forecast.margin_bytes + (memory.device_bytes or 0) - (memory.context_bytes or 0)
        moments = (forecast.at_peak, _held(forecast))
        return any(self._stays(chosen, changes, shares) > room for shares in moments)

    def _variant(self, chosen: Chosen) -> Variant | None:
        """The cell with these changes; None where they come to nothing, or rules forbid or newly warn of it."""
        if chosen not in self.made:
            self.made[chosen] = self._make(chosen)
        return self.made[chosen]

    def _make(self, chosen: Chosen) -> Variant | None:
        settings: dict[str, Any] = {}
        for change in sorted(chosen, key=PLACES.__getitem__):
            settings |= settings_of(change, self.cell)
        try:
            cell = changed(self.cell, settings, said=self.said)
            if packs_experts(cell) and not packs_experts(self.cell) and (more := beside(cell)):
                settings |= more
                cell = changed(self.cell, settings, said=self.said)
        except ConfigurationError:  # an option that the other value would need otherwise
            return None
        for change in chosen:
            without = {name: value for name, value in settings.items() if name not in change.settings}
            idle = change.parts == 1 and change.what != ENVIRONMENT and len(without) < len(settings)
            if idle and changed(self.cell, without, said=self.said) == cell:
                return None
        findings = check(cell, "cuda")
        new = any(one.kind == "reject" or one.rule not in self.warned for one in findings)
        return None if new else Variant(cell, settings)

    def _forecast(self, chosen: Chosen) -> Forecast | None:
        """What is predicted of it, told with its changes; None where it cannot be run."""
        if chosen not in self.known:
            variant = self._variant(chosen)
            self.known[chosen] = self._asked(chosen, variant) if variant else None
        return self.known[chosen]

    def _asked(self, chosen: Chosen, variant: Variant) -> Forecast | None:
        words = self._words(chosen)
        ask = self.ask
        grows = any(change.what == ENVIRONMENT for change in chosen)
        if grows and self.expandable:
            ask = self.expandable
        try:
            self.predictions += 1
            forecast = (self.quick if self.quick and not grows else ask)(variant.cell)
            if self.quick and not grows and forecast.fits:
                self.predictions += 1
                forecast = ask(variant.cell)
        except (ConfigurationError, NotPredicted) as error:
            self.tell(f"{words}: {error}")
            return None
        self.tell(f"{words}: {forecast.verdict}")
        return forecast

    def _changes(self, chosen: Chosen) -> dict[str, Any]:
        """By name, what is another value in it."""
        variant = self.made[chosen]
        assert variant is not None
        grows = any(change.what == ENVIRONMENT for change in chosen)
        own = f"{self.own.alloc_conf}," if self.own.alloc_conf else ""
        line = {ENVIRONMENT: own + EXPANDABLE} if grows else {}
        return line | differences(self.cell, variant.cell, variant.settings)

    def _words(self, chosen: Chosen) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._changes(chosen).items())

    def _suggestion(self, chosen: Chosen) -> Suggestion:
        forecast, variant = self.known[chosen], self.made[chosen]
        assert forecast is not None
        assert variant is not None
        return Suggestion(
            name=variant.cell.name,
            changes=self._changes(chosen),
            price={change.what: change.price for change in sorted(chosen, key=PLACES.__getitem__)},
            verdict=forecast.verdict,
            device_bytes=forecast.memory.device_bytes or 0,
            margin_bytes=forecast.margin_bytes,
        )

    def _ending(self, found: int, wanted: int) -> str:
        """Why the search stops; where nothing fits, what is nearest and what it lacks."""
        if found == wanted:
            return f"{wanted} found"
        if self.predictions >= self.most:
            number = f"stopped at the limit of {self.most} predictions, with {found} of {wanted} found"
            return number if found else f"{number}; {self._lacks()}"
        if found:
            return f"{found} of {wanted} found: without the dearest change of these, nothing else that is known makes it fit"
        return f"no change that is known makes it fit; {self._lacks()}"

    def _lacks(self) -> str:
        """What is nearest where nothing fits, what it lacks, what is largest there, and the smallest card with so much room."""
        tried = {chosen: forecast for chosen, forecast in self.known.items() if forecast is not None}
        chosen, forecast = min(tried.items(), key=lambda one: self._excess(one[0]))
        margin = forecast.margin_bytes / GIB
        room = f"{-margin:.2f} GiB too much" if margin < 0 else f"tight by luck, with {margin:.2f} GiB to spare"
        held = [f"{share.kind.replace('_', ' ')}, {share.nbytes / GIB:.2f} GiB" for share in forecast.at_peak]
        parts = [f"nearest is {self._words(chosen) or 'what was asked for'}: {room}"]
        parts += [f"largest in it: {held[0]}"] if held else []
        needed = (forecast.memory.device_bytes or 0) + forecast.band_bytes
        large = [card for card in CARDS.values() if (card.usable_bytes or 0) >= needed]
        parts += [f"a card with room for it: {min(large, key=lambda one: one.usable_bytes or 0).name}"] if large else []
        return "; ".join(parts)


def _held(forecast: Forecast) -> list[Share]:
    """What is live where an optimizer steps: all weights and state, and one role's gradients."""
    shares = []
    for name, role in forecast.roles.items():
        shares.append(Share(role=name, kind="weights", nbytes=role.weights_bytes))
        shares.append(Share(role=name, kind="optimizer", nbytes=role.optimizer_bytes))
    gradients = max((role.gradients_bytes for role in forecast.roles.values()), default=0)
    return [*shares, Share(role=None, kind="gradients", nbytes=gradients)]


def _with(chosen: Chosen, change: Change) -> Chosen:
    """`chosen` with `change`, in place of another value of the same thing and of what it makes needless."""
    return frozenset(one for one in chosen if one.what not in (change.what, *change.instead)) | {change}


def _price(change: Change) -> tuple[int, int]:
    return change.level, PLACES[change]


def _prices(chosen: Chosen) -> list[tuple[int, int]]:
    """By the dearest change, then the others."""
    return sorted(map(_price, chosen), reverse=True)
