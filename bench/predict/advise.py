"""How far one field goes, and what to change so that a cell fits: searches that ask for one prediction after the other.

    ask = lambda cell: predictor.forecast(cell, budget, card)
    largest(cell, "batch_size", ask)        Maximum: the largest value that is not predicted out of memory, with its probes
    advise(cell, 3, ask)                    Advice: the nearest valid configurations that fit, cheapest change first

Validity is that of CUDA. Nothing is printed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrambench.bench.plan.validity import Finding, check
from vrambench.bench.results.forecast import Forecast, Verdict
from vrambench.bench.results.records import OutOfMemory, Record
from vrambench.methods.axes import AXES
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.errors import ConfigurationError, UnknownValue

Ask = Callable[[Cell], Forecast]

NOT_SEARCHED = {
    "steps": "every step after the second holds what the second held",
    "warmup_steps": "every step after the second holds what the second held",
    "seed": "memory does not depend on it",
    "lora_alpha": "a factor, on which memory does not depend",
}
"""Integer fields that memory does not depend on, with the reason."""

FARTHEST = {"gradient_accumulation_steps": 64}
"""How far a field is searched whose own bytes stop growing while predicting takes longer and longer. The others end at a rule, at
the budget or at the field's own bound."""

MOST_PREDICTIONS = 40

TIGHT_ROOM = 0.5
"""Share of the error band that must be left for what is only tight to be suggested: with less it is a matter of luck."""

MORE_ROOM = 0.05
"""Share of the budget that a further change must free to be worth a line of its own."""


class Probe(Record):
    """One value that was tried; where it does not fit, in which phase memory runs out, and of what request."""

    value: int
    device_bytes: int
    verdict: Verdict
    oom_phase: str | None = None
    oom: OutOfMemory | None = None


class Maximum(Record):
    """The largest `value` of `field` that is not predicted out of memory (None: not even the smallest one), found by doubling and
    bisection. `along`: what else had to change with it for the cell to stay valid. `bound`: what stops the next value."""

    field: str
    value: int | None
    device_bytes: int | None
    along: dict[str, int]
    bound: str
    probes: tuple[Probe, ...]


class Suggestion(Record):
    """A configuration that fits. `changes`: fields and axes with their new values; `price`: what they cost, in words."""

    name: str
    changes: dict[str, Any]
    price: tuple[str, ...]
    verdict: Verdict
    device_bytes: int
    margin_bytes: int


class Advice(Record):
    """`predictions`: how many were made. `ending`: why the search stopped, in a sentence."""

    suggestions: tuple[Suggestion, ...]
    predictions: int
    ending: str


@dataclass(frozen=True, eq=False)
class Change:
    """One thing to change. `what`: the axis or field; `settings`: its new value, and what has to go with it; `of`: the
    values that it improves on (every other one, where none is named); `price`: what it costs."""

    what: str
    settings: Mapping[str, Any]
    price: str
    of: tuple[str, ...] = ()


_ADAMW = ("adamw_torch", "adamw_torch_fused")
_FULL_STATE = (*_ADAMW, "galore_adamw")

CHANGES: tuple[Change, ...] = (
    # Cheapest first: what leaves the arithmetic of an update alone and costs only time; then other optimizers, with ever more
    # approximation; then fewer trained weights; then rounded ones; last what waits for the host in every step.
    Change("gradient_checkpointing", {"gradient_checkpointing": True}, "each forward pass is computed twice"),
    Change("batch_size", {}, "half the sequences in a forward pass, twice as many passes"),
    Change(
        "optimizer",
        {"optimizer": "adamw_torch_fused"},
        "nothing: the same step in one kernel, without copies of all parameters",
        ("adamw_torch",),
    ),
    Change("optimizer", {"optimizer": "adamw_bnb_8bit"}, "optimizer state rounded to 8 bits", _FULL_STATE),
    Change("optimizer", {"optimizer": "adafactor"}, "another optimizer, with a factored second moment", _FULL_STATE),
    Change(
        "optimizer",
        {"optimizer": "paged_adamw_8bit"},
        "optimizer state rounded to 8 bits, which the driver moves to the host where it lacks room",
        (*_FULL_STATE, "adamw_bnb_8bit"),
    ),
    Change(
        "optimizer",
        {"optimizer": "galore_adamw_8bit_layerwise", "max_grad_norm": 0},
        "gradients projected to a low rank, rounded state, no clipping, and an SVD now and then",
        (
            *_FULL_STATE,
            "adamw_bnb_8bit",
            "paged_adamw_8bit",
            "adafactor",
            "galore_adamw_8bit",
            "galore_adamw_layerwise",
        ),
    ),
    Change("adapter", {"adapter": "lora"}, "only factors of low rank are trained", ("none",)),
    Change("precision", {"precision": "bf16"}, "weights and updates rounded to bf16", ("fp32", "bf16_amp", "fp16_amp")),
    Change(
        "precision",
        {"precision": "int8"},
        "base weights rounded to 8 bits",
        ("fp32", "bf16", "fp16", "bf16_amp", "fp16_amp"),
    ),
    Change(
        "precision",
        {"precision": "nf4"},
        "base weights rounded to 4 bits",
        ("fp32", "bf16", "fp16", "bf16_amp", "fp16_amp", "int8"),
    ),
    Change("offload", {"offload": "zero2_optimizer"}, "optimizer steps on the host's memory and cores", ("none",)),
)


def integer_fields(cell: Cell) -> tuple[str, ...]:
    """The workload's fields that are whole numbers in this cell and that its memory depends on."""
    return tuple(
        name
        for name, value in cell.workload.model_dump(exclude={"options", "budget"}).items()
        if isinstance(value, int) and not isinstance(value, bool) and name not in NOT_SEARCHED
    )


def check_searched(cell: Cell, field: str) -> None:
    """UnknownValue or ConfigurationError where `field` is none whose largest value can be asked for."""
    fields = integer_fields(cell)
    if field in NOT_SEARCHED:
        raise ConfigurationError(f"--max {field}: {NOT_SEARCHED[field]}; take one of {', '.join(fields)}", field=field)
    if field not in fields:
        raise UnknownValue("--max", field, fields)


def changed(cell: Cell, settings: Mapping[str, Any]) -> Cell:
    """`cell` with other axis values and fields. What `auto` stood for (attention, reference) is decided anew where the axis
    changes that decides it."""
    axes = {axis: settings.get(axis, value) for axis, value in cell.axes.items()}
    workload = cell.workload.flat() | {name: value for name, value in settings.items() if name not in AXES}
    if axes["precision"] != cell.precision and cell.workload.attention == cell.precision_value.attention(cell.workload):
        workload["attention"] = "auto"
    if axes["adapter"] != cell.adapter and cell.workload.reference in ("adapter_off", "copy"):
        workload["reference"] = "auto"
    return resolve(axes, workload)


def rejection(cell: Cell, *, bf16: bool = True) -> Finding | None:
    """The rule that forbids `cell` on CUDA."""
    return next((finding for finding in check(cell, "cuda", bf16=bf16) if finding.kind == "reject"), None)


def largest(
    cell: Cell, field: str, ask: Ask, *, bf16: bool = True, tell: Callable[[str], None] = lambda text: None
) -> Maximum:
    """The largest value of `field` whose verdict is not "does not fit": doubled from the cell's own, then bisected.

    Where there is a rollout, `batch_size` and `gradient_accumulation_steps` take `rollout_batch` along, so that it stays as
    many optimizer steps; `rollout_batch` itself goes by whole ones. That memory grows with the field is taken for granted.
    Raises UnknownValue where `field` is none of `integer_fields(cell)`.
    """
    check_searched(cell, field)
    probes: dict[int, Probe] = {}
    stops: dict[int, str] = {}
    unit = _unit(cell, field)

    def fits(count: int) -> bool:
        value = count * unit
        if value in stops or value in probes:
            return value in probes and probes[value].verdict != "does not fit"
        if value > FARTHEST.get(field, value):
            stops[value] = f"not searched beyond {FARTHEST[field]}"
            return False
        try:
            variant = changed(cell, {field: value} | _along(cell, field, value))
        except ConfigurationError as error:
            stops[value] = error.message
            return False
        rule = rejection(variant, bf16=bf16)
        if rule is not None:
            stops[value] = f"{rule.rule}: {rule.reason}"
            return False
        forecast = ask(variant)
        probes[value] = Probe(
            value=value,
            device_bytes=forecast.memory.device_bytes or 0,
            verdict=forecast.verdict,
            oom_phase=forecast.oom_phase,
            oom=forecast.oom,
        )
        tell(f"{field} {value}: {forecast.verdict}")
        return forecast.fits

    own = max(1, getattr(cell.workload, field) // unit)
    low, high = (own, 2 * own) if fits(own) else (0, own)
    while low and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    value, over = low * unit, high * unit
    return Maximum(
        field=field,
        value=value or None,
        device_bytes=probes[value].device_bytes if value else None,
        along=_along(cell, field, value) if value else {},
        bound=stops.get(over) or f"{field} {over} does not fit",
        probes=tuple(probes.values()),
    )


def _unit(cell: Cell, field: str) -> int:
    """Between two valid values of `field`."""
    return cell.rollout_unit if field == "rollout_batch" else 1


def _along(cell: Cell, field: str, value: int) -> dict[str, int]:
    """What changes with `field`, so that a rollout stays as many optimizer steps as it is."""
    workload = cell.workload
    if workload.rollout_batch is None or field not in ("batch_size", "gradient_accumulation_steps"):
        return {}
    return {"rollout_batch": workload.rollout_batch * value // getattr(workload, field)}


def advise(
    cell: Cell,
    wanted: int,
    ask: Ask,
    *,
    bf16: bool = True,
    most: int = MOST_PREDICTIONS,
    tell: Callable[[str], None] = lambda text: None,
) -> Advice:
    """The `wanted` nearest configurations of the same algorithm and work that fit: fewest changes first, then by CHANGES.

    What is only tight is given where the cell itself does not fit, with some room and where fewer changes do not do. What
    adds to changes that fit already is tried last, and given only where it leaves clearly more room. Not tried is what cannot
    fit, since weights (and the gradients that an optimizer steps on together) of its precision and adapter exceed the budget
    alone, with what lies outside the allocator. Stops at `most` predictions.
    """
    own = ask(cell)
    if own.verdict == "fits":
        return Advice(suggestions=(), predictions=1, ending="nothing needs to change: it fits as it is")
    held = {_bulk(cell): _held_bytes(cell, own)}
    outside = own.memory.context_bytes or 0
    found: list[tuple[frozenset[Change], Suggestion]] = []
    predictions = 1
    ending = "all other changes that are known do not fit, or add to these for little more room"
    later: list[tuple[frozenset[Change], Cell]] = []
    first = ((changes, variant, False) for changes, variant in _variants(cell, bf16))
    again = ((changes, variant, True) for changes, variant in later)  # read when the first are through
    for changes, variant, second in itertools.chain(first, again):
        within = [given for smaller, given in found if smaller < changes and given.verdict == "fits"]
        if within and not second:
            later.append((changes, variant))
            continue
        if held.get(_bulk(variant), 0) + outside > own.budget_bytes:
            continue
        if predictions >= most:
            ending = f"stopped at the limit of {most} predictions, with {len(found)} of {wanted} found"
            break
        forecast = ask(variant)
        predictions += 1
        tell(f"{_words(cell, variant)}: {forecast.verdict}")
        held[_bulk(variant)] = max(held.get(_bulk(variant), 0), _held_bytes(variant, forecast))
        enough = max((given.margin_bytes for given in within), default=-own.budget_bytes) + MORE_ROOM * own.budget_bytes
        if within and forecast.margin_bytes < enough:
            continue
        if forecast.verdict == "fits" or (own.verdict == "does not fit" and _worth(forecast, changes, found)):
            found.append((changes, _suggestion(cell, variant, changes, forecast)))
            if len(found) == wanted:
                ending = f"{wanted} found"
                break
    if not found and predictions < most:
        ending = "no change that is known makes it fit"
    return Advice(suggestions=tuple(given for _, given in found), predictions=predictions, ending=ending)


def _worth(
    forecast: Forecast, changes: frozenset[Change], found: Sequence[tuple[frozenset[Change], Suggestion]]
) -> bool:
    """Whether what is only tight is worth a line: with some room, and not adding to what is given already."""
    room = forecast.margin_bytes >= TIGHT_ROOM * forecast.band_bytes
    return forecast.fits and room and not any(fewer < changes for fewer, _ in found)


def _variants(cell: Cell, bf16: bool) -> Iterator[tuple[frozenset[Change], Cell]]:
    """Valid configurations by number of changes; of as many, that whose dearest change is cheaper comes first."""
    places = {change: place for place, change in enumerate(CHANGES)}
    choices: dict[str, list[Change | None]] = {}
    for change in CHANGES:
        if _applies(change, cell):
            choices.setdefault(change.what, [None]).append(change)
    sets = [tuple(one for one in chosen if one is not None) for chosen in itertools.product(*choices.values())]
    for chosen in sorted(sets, key=lambda one: (len(one), sorted((places[change] for change in one), reverse=True))):
        if not chosen:
            continue
        settings = {name: value for change in chosen for name, value in change.settings.items()}
        if any(change.what == "batch_size" for change in chosen):
            settings |= _halved(cell)
        try:
            variant = changed(cell, settings)
        except ConfigurationError:  # an option that the other value would need otherwise
            continue
        if rejection(variant, bf16=bf16) is None:
            yield frozenset(chosen), variant


def _applies(change: Change, cell: Cell) -> bool:
    if change.what == "batch_size":
        return cell.workload.batch_size % 2 == 0
    if change.what in AXES:
        return cell.axes[change.what] in change.of
    return bool(getattr(cell.workload, change.what) != change.settings[change.what])


def _halved(cell: Cell) -> dict[str, int]:
    """The same sequences in each optimizer step, in twice as many passes."""
    workload = cell.workload
    return {
        "batch_size": workload.batch_size // 2,
        "gradient_accumulation_steps": 2 * workload.gradient_accumulation_steps,
    }


def _bulk(cell: Cell) -> tuple[str, str, bool]:
    """What decides a cell's weights and gradients: precision, adapter, and whether all gradients are there at once."""
    return cell.precision, cell.adapter, _one_by_one(cell)


def _one_by_one(cell: Cell) -> bool:
    """Gradients are freed before all of them are there, or lie elsewhere."""
    return cell.optimizer_value.layerwise or cell.offload_value.zero_stage > 0


def _held_bytes(cell: Cell, forecast: Forecast) -> int:
    """What every cell of this bulk holds on the device at one moment, whatever else is changed."""
    roles = forecast.roles.values()
    weights = sum(role.weights_bytes for role in roles)
    if _one_by_one(cell):
        return weights
    return weights + max((role.gradients_bytes for role in roles), default=0)


def _suggestion(cell: Cell, variant: Cell, changes: frozenset[Change], forecast: Forecast) -> Suggestion:
    prices: Sequence[str] = [change.price for change in CHANGES if change in changes]
    return Suggestion(
        name=variant.name,
        changes=differences(cell, variant),
        price=tuple(prices),
        verdict=forecast.verdict,
        device_bytes=forecast.memory.device_bytes or 0,
        margin_bytes=forecast.margin_bytes,
    )


def differences(cell: Cell, variant: Cell) -> dict[str, Any]:
    """The axes and fields in which `variant` is another, by name, without those that follow from its axis values."""
    before, after = cell.flat(), variant.flat()
    following = {field for value in variant.values.values() for field in value.fields} | {"attention", "learning_rate"}
    return {
        name: value
        for name, value in after.items()
        if value != before.get(name) and not isinstance(value, dict) and name not in following and value is not None
    }


def _words(cell: Cell, variant: Cell) -> str:
    return ", ".join(f"{name} {value}" for name, value in differences(cell, variant).items())
