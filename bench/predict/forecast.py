"""Does a cell fit? Its job's memory on a GPU, predicted without one: the ledger, by phase and role, and the verdict.

    forecast = Predictor().forecast(cell, cell.workload.budget, card=CARDS["rtx-4090"])
    forecast.verdict, forecast.margin_bytes, forecast.memory.device_bytes

The simulated job's allocs and frees (simulate.py) go through the model of CUDA's caching allocator (bench/allocator); what lies
outside the allocator is added. The ledger is that of a measurement: requested <= allocated <= active <= reserved <= device.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.measure.collector import collector_held
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.alloc_conf import read
from vrambench.bench.predict.band import Band, error_band, kind_of
from vrambench.bench.predict.cache import Cache
from vrambench.bench.predict.kept import KeptForecast, about_forecast, read_forecast, write_forecast
from vrambench.bench.predict.replay import Replay, held, shares, shares_in
from vrambench.bench.predict.several import order_note, predicted_batches
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.trace import Trace
from vrambench.bench.predict.unmodelled import decides, missed, saves, unmodelled
from vrambench.bench.predict.unseen.hardware import Outside, outside_allocator
from vrambench.bench.results.forecast import Forecast, PredictedPhase, Unmodelled, Verdict
from vrambench.bench.results.records import Memory
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.called import card_of
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError


class Predictor:
    """Forecasts, one after the other; what it learns of operators, and the last simulations, it keeps.

    `alloc_conf`: the allocator's options, written as in PYTORCH_ALLOC_CONF; None: those of this process' environment. Raises
    ConfigurationError where they say what no allocator here can do. `left_out`: what a configuration says, and is not modelled;
    where it may decide, the verdict is `unsure`. `cache`: where forecasts are kept, and looked up.
    """

    def __init__(
        self, alloc_conf: str | None = None, left_out: tuple[Unmodelled, ...] = (), cache: Cache | None = None
    ) -> None:
        self._left_out = left_out
        self._conf = read(alloc_conf)
        self._cache = cache
        self.events = 0
        """Allocs and frees of the last forecast's job."""
        self._simulator = Simulator()
        self._simulations: dict[tuple[str, str | None, bool], Simulation] = {}

    def forecast(
        self,
        cell: Cell,
        budget_bytes: int | None = None,
        card: Card | None = None,
        *,
        expandable: bool = False,
        worst_alone: bool = False,
    ) -> Forecast:
        """The prediction for `cell` under a budget (its own unless another is given) on `card`; without one, for a card that is not
        known. `expandable`: with expandable segments, whatever the options say. `worst_alone`: of several lengths, the largest
        batches alone, without what the lengths of others leave cached. Raises ConfigurationError as the job would, and NotPredicted
        where it fails in another way."""
        began = time.perf_counter()
        _check_predicted(cell)
        whole = budget_bytes or cell.workload.budget
        elsewhere = cell.workload.reserved_elsewhere or 0
        budget = whole - elsewhere
        card = card or card_of(whole)
        settings = replace(self._conf.settings, expandable_segments=True) if expandable else self._conf.settings
        conf = self._conf._replace(settings=settings)
        asked = about_forecast(cell, whole, card, conf, self._left_out, worst_alone) if self._cache else None
        kept = read_forecast(self._cache, asked) if self._cache and asked else None
        if kept is not None:
            self.events = kept.events
            return kept.forecast
        with collector_held(collect=False):  # hundreds of thousands of small records, none of them in a cycle
            outside = outside_allocator(card, sum(value.library_bytes for value in cell.values.values()))
            simulation = self.simulation(cell, card, worst_alone=worst_alone)
            trace = simulation.trace
            judged = judge(trace, settings, budget, outside, error_band(kind_of(cell)))
            notes = [*self._conf.notes, *_settings_notes(judged, settings)]
            several = cell.workload.lengths is not None and not worst_alone
            notes += [order_note(judged.replay, settings)] if several else []
            made = _forecast(simulation, judged, budget, outside, notes)
            batches = predicted_batches(cell, judged.replay.phases) if several else None
            made = made.model_copy(update={"batches": batches})
            made = doubted(made, (*unmodelled(cell, trace), *self._left_out), judged.error)
        told = {"alloc_conf": settings.text(), "seconds": time.perf_counter() - began}
        if elsewhere:
            memory = made.memory.model_copy(update={"elsewhere_bytes": elsewhere})
            told |= {"budget_bytes": whole, "memory": memory}
        made = made.model_copy(update=told)
        self.events = len(trace.events)
        if self._cache and asked:
            write_forecast(self._cache, asked, KeptForecast(made, self.events))
        return made

    def forget(self) -> None:
        """The simulations; what was learnt of operators stays."""
        self._simulations.clear()

    def simulation(self, cell: Cell, card: Card | None = None, *, worst_alone: bool = False) -> Simulation:
        """The simulated job, kept for the next question about the same cell."""
        work = cell.workload.model_copy(update={"budget": 1})
        key = (cell.model_copy(update={"workload": work}).id, card.name if card else None, worst_alone)
        if key not in self._simulations:
            self.forget()
            try:
                self._simulations[key] = self._simulator.run(cell, card, worst_alone=worst_alone)
            except ConfigurationError:
                raise
            except Exception as error:
                raise NotPredicted(
                    f"{cell.name} on {cell.workload.model!r} cannot be predicted: {_why(error)}"
                ) from error
        return self._simulations[key]


def _check_predicted(cell: Cell) -> None:
    """That the trainer is ours: another library's cannot run where nothing is computed."""
    foreign = cell.algorithm_value.foreign
    if foreign is None:
        return
    said = f"{foreign.library}'s own {foreign.trainer} can be measured (`vrambench run`), and not predicted"
    if foreign.same in ALGORITHMS:
        loss = foreign.predicted.get(cell.workload.loss, cell.workload.loss)
        if loss is None:
            said += f"; our {foreign.same}, which is predicted, has no loss {cell.workload.loss}"
        else:
            said += f"; what predicts it is ours: --algorithm {foreign.same} --set loss={loss}"
        if loss and foreign.said(cell.workload):
            said += f" (docs/recipes.md says what {foreign.namespace}.* is there)"
    raise NotPredicted(f"{cell.name}: {said}")


LOOKS_AT_VALUES = ("torch.nonzero()", "Cannot copy out of meta tensor", "_local_scalar_dense")
"""What torch says where an operator wants values that the simulated device does not have."""


def _why(error: Exception) -> str:
    """Why a simulated job that ended in `error` is no prediction."""
    said = str(error).strip()
    if any(words in said for words in LOOKS_AT_VALUES):
        return (
            "sizes within a step depend on values, such as which tokens an expert gets, and the simulated device has none: "
            "`vrambench run` measures it"
        )
    return f"the simulated job ends in {type(error).__name__}: {said.splitlines()[0] if said else ''}".rstrip(": ")


class Judged(NamedTuple):
    """A trace under a budget: the replay that tells its bytes (under the budget where it runs only there), what is reserved without
    one, the verdict, the error band in bytes, how much more is reserved where addresses rise, and where the device is behind the
    host, and the shares that the band was made of."""

    replay: Replay
    unlimited_bytes: int
    verdict: Verdict
    band_bytes: int
    rising_order_bytes: int
    behind_bytes: int
    error: Band


def judge(trace: Trace, settings: AllocatorSettings, budget: int, outside: Outside, error: Band) -> Judged:
    """The verdict: with cached memory kept if that fits, else with cached memory given back where the budget is reached."""
    free_run = Replay(trace, settings)
    other_order = Replay(trace, settings, falling=False).reserved_bytes - free_run.reserved_bytes
    behind = 0
    if trace.lent:
        behind = max(0, Replay(trace, settings, behind=True).reserved_bytes - free_run.reserved_bytes)
    unlimited = free_run.reserved_bytes
    device = unlimited + outside.expected_bytes
    band = _band_bytes(device, error, outside, other_order) + behind
    if device <= budget:
        return Judged(
            free_run, unlimited, "fits" if device + band <= budget else "tight", band, other_order, behind, error
        )
    capped = Replay(trace, settings, max(0, budget - outside.expected_bytes))
    if capped.oom is None:
        return Judged(capped, unlimited, "tight", band, other_order, behind, error)
    free_run.oom, free_run.oom_phase = capped.oom, capped.oom_phase
    return Judged(free_run, unlimited, "does not fit", band, other_order, behind, error)


def doubted(made: Forecast, left_out: tuple[Unmodelled, ...], error: Band) -> Forecast:
    """`made`, with what is left out. Its verdict is `unsure` where it fits and that may be more than there is room for, where it
    does not fit and that may be what is too much, and whatever it is where one of these is decisive."""
    device = made.memory.device_bytes or 0
    left_out += missed(error.misses, device)
    if made.fits:
        left_out = tuple(one for one in left_out if one.nbytes != 0)
        deciding = any(decides(one, device + made.band_bytes, made.budget_bytes) for one in left_out)
    else:
        deciding = any(saves(one, device, made.budget_bytes) for one in left_out)
    unsure = deciding or any(one.decisive for one in left_out)
    verdict: Verdict = "unsure" if unsure else made.verdict
    return made.model_copy(update={"unmodelled": left_out, "verdict": verdict})


def _band_bytes(device: int, error: Band, outside: Outside, other_order: int) -> int:
    """By how much more a measurement may show, of three causes together."""
    return round(error.share * device) + outside.high_bytes - outside.expected_bytes + max(0, other_order)


def _band_basis(device: int, judged: Judged, outside: Outside) -> str:
    """What the band's bytes are made of, in words."""
    error = judged.error
    parts = [f"{error.share * device / 2**20:,.0f} MiB ({error.share:.1%}), {error.basis}"]
    if outside.high_bytes > outside.expected_bytes:
        parts.append(f"{(outside.high_bytes - outside.expected_bytes) / 2**20:,.0f} MiB outside the allocator")
    if judged.rising_order_bytes > 0:
        parts.append(f"{judged.rising_order_bytes / 2**20:,.0f} MiB by the order of addresses")
    if judged.behind_bytes > 0:
        parts.append(f"{judged.behind_bytes / 2**20:,.0f} MiB by how far the device is behind the host")
    return "; ".join(parts)


def _settings_notes(judged: Judged, settings: AllocatorSettings) -> list[str]:
    """On which settings of the allocator it rests, and what they change."""
    if not settings.text():
        return ["allocator: PyTorch's defaults"]
    usual = Replay(judged.replay.trace, AllocatorSettings()).reserved_bytes
    saved = usual - Replay(judged.replay.trace, settings).reserved_bytes
    change = (
        f"{abs(saved) / 2**20:,.0f} MiB {'less' if saved > 0 else 'more'} reserved than with" if saved else "as with"
    )
    return [f"allocator: {settings.text()}, {change} PyTorch's defaults"]


def _notes(simulation: Simulation, outside: Outside, other_order: int) -> list[str]:
    notes = [f"outside the allocator: {outside.reason}"]
    if other_order:
        notes.append(
            f"{abs(other_order) / 2**20:,.0f} MiB {'more' if other_order > 0 else 'less'} reserved where the driver places memory"
            " at rising addresses (Windows, WSL2); predicted is native Linux, where addresses mostly fall"
        )
    if simulation.managed_bytes:
        notes.append(
            "managed memory (paged optimizer state) comes on top, as far as it lies on the device: the driver moves it to the host"
            " where it needs the room"
        )
    return [*notes, *simulation.notes]


def _forecast(simulation: Simulation, judged: Judged, budget: int, outside: Outside, notes: list[str]) -> Forecast:
    replay, context = judged.replay, outside.expected_bytes
    device = replay.reserved_bytes + context
    peak = replay.trace.events[replay.peak_event].place
    return Forecast(
        budget_bytes=budget,
        verdict=judged.verdict,
        margin_bytes=budget - device,
        band_bytes=judged.band_bytes,
        band_basis=_band_basis(device, judged, outside),
        memory=Memory(
            requested_bytes=replay.requested_bytes,
            allocated_bytes=replay.allocated_bytes,
            active_bytes=replay.active_bytes,
            reserved_bytes=replay.reserved_bytes,
            device_bytes=device,
            context_bytes=context,
            managed_bytes=simulation.managed_bytes,
            host_pinned_bytes=simulation.host_pinned_bytes,
            num_alloc_retries=replay.num_alloc_retries,
        ),
        unlimited_bytes=judged.unlimited_bytes + context,
        phases=tuple(
            PredictedPhase(
                name=name,
                step=step,
                allocated_bytes=allocated,
                reserved_bytes=reserved,
                device_bytes=reserved + context,
                at_peak=shares_in(replay, (name, step)),
            )
            for (name, step), (allocated, reserved) in replay.phases.items()
        ),
        roles=simulation.roles,
        parameters=simulation.parameters,
        limiting_phase=peak.phase or "",
        limiting_step=peak.step,
        limiting_role=peak.role,
        at_peak=shares(replay),
        held=held(replay),
        oom=replay.oom,
        oom_phase=replay.oom_phase,
        fragmentation_bytes=replay.reserved_bytes - replay.active_bytes,
        rising_order_bytes=judged.rising_order_bytes,
        host_bytes=simulation.host_bytes,
        outside=outside.reason,
        notes=(*_notes(simulation, outside, judged.rising_order_bytes), *notes),
        seconds=0.0,
    )
