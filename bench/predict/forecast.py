"""Does a cell fit? Its job's memory on a GPU, predicted without one: the ledger, by phase and role, and the verdict.

    forecast = Predictor().forecast(cell, cell.workload.budget, card=CARDS["rtx-4090"])
    forecast.verdict, forecast.margin_bytes, forecast.memory.device_bytes

The simulated job's allocs and frees (simulate.py) go through the model of CUDA's caching allocator (bench/allocator); what lies
outside the allocator is added. The ledger is that of a measurement: requested <= allocated <= active <= reserved <= device.
"""

from __future__ import annotations

import time
from collections import Counter

from vrambench.bench.allocator import Allocator, AllocatorSettings, DeviceOutOfMemory
from vrambench.bench.measure.collector import collector_held
from vrambench.bench.predict.band import error_band
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, EMPTY, FREE, MARK, Event, Place, Trace
from vrambench.bench.predict.unseen.hardware import Outside, outside_allocator
from vrambench.bench.results.forecast import Forecast, PredictedPhase, Share, Verdict
from vrambench.bench.results.records import Memory, OutOfMemory
from vrambench.methods.cards import CARDS, Card
from vrambench.methods.cell import Cell


class Predictor:
    """Forecasts, one after the other; what it learns of operators, and the last simulations, it keeps."""

    def __init__(self, settings: AllocatorSettings | None = None) -> None:
        self._settings = settings or AllocatorSettings()
        self._simulator = Simulator()
        self._simulations: dict[tuple[str, str | None], Simulation] = {}

    def forecast(self, cell: Cell, budget_bytes: int | None = None, card: Card | None = None) -> Forecast:
        """The prediction for `cell` under a budget (its own unless another is given) on `card`; without one, for a card that is not
        known. Raises ConfigurationError as the job itself would."""
        began = time.perf_counter()
        budget = budget_bytes or cell.workload.budget
        card = card or card_of(budget)
        with collector_held(collect=False):  # hundreds of thousands of small records, none of them in a cycle
            outside = outside_allocator(card, sum(value.library_bytes for value in cell.values.values()))
            return self._forecast(self.simulation(cell, card), budget, outside, began)

    def _forecast(self, simulation: Simulation, budget: int, outside: Outside, began: float) -> Forecast:
        free_run = Replay(simulation.trace, self._settings)
        other_order = Replay(simulation.trace, self._settings, falling=False).reserved_bytes - free_run.reserved_bytes
        device = free_run.reserved_bytes + outside.expected_bytes
        band = round(error_band().share * device) + outside.high_bytes - outside.expected_bytes + max(0, other_order)
        chosen = free_run
        if device + band <= budget:
            verdict: Verdict = "fits"
        elif device <= budget:
            verdict = "tight"
        else:
            capped = Replay(simulation.trace, self._settings, max(0, budget - outside.expected_bytes))
            if capped.oom is None:
                chosen, verdict = capped, "tight"
            else:
                free_run.oom, free_run.oom_phase, verdict = capped.oom, capped.oom_phase, "does not fit"
        return _forecast(simulation, chosen, budget, verdict, band, outside, other_order, time.perf_counter() - began)

    def forget(self) -> None:
        """The simulations; what was learnt of operators stays."""
        self._simulations.clear()

    def simulation(self, cell: Cell, card: Card | None = None) -> Simulation:
        """The simulated job, kept for the next question about the same cell."""
        work = cell.workload.model_copy(update={"budget": 1})
        key = (cell.model_copy(update={"workload": work}).id, card.name if card else None)
        if key not in self._simulations:
            self.forget()
            self._simulations[key] = self._simulator.run(cell, card)
        return self._simulations[key]


class Replay:
    """A trace in the allocator: peaks by phase and of all, and what was live at the highest moment (of allocated bytes).

    `allowed_bytes`: what the allocator may reserve; `oom` says where that was too little. `falling`: the order of addresses, as
    on native Linux (vrambench.bench.allocator.blocks.Addresses).
    """

    def __init__(
        self, trace: Trace, settings: AllocatorSettings, allowed_bytes: int | None = None, *, falling: bool = True
    ) -> None:
        self.phases: dict[tuple[str, int | None], tuple[int, int]] = {}
        self.requested_bytes = self.allocated_bytes = self.active_bytes = self.reserved_bytes = 0
        self.oom: OutOfMemory | None = None
        self.oom_phase: str | None = None
        self.allocator = Allocator(settings, allowed_bytes=allowed_bytes, falling=falling)
        self.trace = trace
        self.peak_event = 0
        self._run()

    def _run(self) -> None:
        allocator, handles = self.allocator, dict[int, int]()
        malloc, free = allocator.malloc, allocator.free
        highest = 0
        phase: tuple[str, int | None] | None = None
        for index, (kind, ident, nbytes, _, place) in enumerate(self.trace.events):
            if kind == ALLOC:
                try:
                    handles[ident] = malloc(nbytes)
                except DeviceOutOfMemory as error:
                    self.oom = OutOfMemory(
                        where="device", asked_bytes=error.asked_bytes, missing_bytes=error.missing_bytes or None
                    )
                    self.oom_phase = place.phase
                    break
                if allocator._allocated > highest:
                    highest = allocator._allocated
                    self.peak_event = index
            elif kind == FREE:
                free(handles.pop(ident))
            elif kind == EMPTY:
                allocator.empty_cache()
            elif kind == MARK:
                self._close(phase)
                phase = (place.phase or "", place.step)
        self._close(phase)

    def _close(self, phase: tuple[str, int | None] | None) -> None:
        stats = self.allocator.stats
        self.requested_bytes = max(self.requested_bytes, stats.requested.peak)
        self.allocated_bytes = max(self.allocated_bytes, stats.allocated.peak)
        self.active_bytes = max(self.active_bytes, stats.active.peak)
        self.reserved_bytes = max(self.reserved_bytes, stats.reserved.peak)
        if phase is not None:
            before = self.phases.get(phase, (0, 0))
            self.phases[phase] = (max(before[0], stats.allocated.peak), max(before[1], stats.reserved.peak))
        self.allocator.reset_peaks()

    @property
    def num_alloc_retries(self) -> int:
        return self.allocator.stats.num_alloc_retries

    def live_at_peak(self) -> list[Event]:
        """The allocs that were live when the most was allocated."""
        live: dict[int, Event] = {}
        for event in self.trace.events[: self.peak_event + 1]:
            if event.kind == ALLOC:
                live[event.ident] = event
            elif event.kind == FREE:
                del live[event.ident]
        return list(live.values())


def card_of(budget_bytes: int) -> Card | None:
    """The card whose usable capacity is exactly the budget: how a budget that was given as a card's name is written."""
    return next((card for card in CARDS.values() if card.usable_bytes == budget_bytes), None)


def shares(replay: Replay) -> tuple[Share, ...]:
    """Whose the memory is that is live at the peak, largest first."""
    sums: Counter[tuple[str | None, str]] = Counter()
    for event in replay.live_at_peak():
        owner = replay.trace.owners.get(event.ident)
        if owner is not None:
            sums[owner.role, owner.kind] += event.nbytes
        elif event.ident in replay.trace.hidden:
            sums[None, "workspace"] += event.nbytes
        else:
            sums[event.place.role, _passing(event.place, replay.trace.heads)] += event.nbytes
    return tuple(Share(role=role, kind=kind, nbytes=count) for (role, kind), count in sums.most_common())


def _passing(place: Place, heads: set[str]) -> str:
    """What is called that nobody keeps, by where it was made."""
    if place.phase in ("optimizer_step", "svd"):
        return "step_temporaries"
    if place.phase == "load":
        return "load_temporaries"
    if place.role is None:
        return "data"
    if place.module in heads or not place.module:
        return "backward_temporaries" if place.backward else "logits_and_loss"
    return "activations"


def _forecast(
    simulation: Simulation,
    replay: Replay,
    budget: int,
    verdict: Verdict,
    band: int,
    outside: Outside,
    other_order: int,
    seconds: float,
) -> Forecast:
    context = outside.expected_bytes
    device = replay.reserved_bytes + context
    peak = replay.trace.events[replay.peak_event].place
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
    notes += simulation.notes
    return Forecast(
        budget_bytes=budget,
        verdict=verdict,
        margin_bytes=budget - device,
        band_bytes=band,
        band_basis=error_band().basis,
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
        phases=tuple(
            PredictedPhase(
                name=name,
                step=step,
                allocated_bytes=allocated,
                reserved_bytes=reserved,
                device_bytes=reserved + context,
            )
            for (name, step), (allocated, reserved) in replay.phases.items()
        ),
        roles=simulation.roles,
        parameters=simulation.parameters,
        limiting_phase=peak.phase or "",
        limiting_step=peak.step,
        limiting_role=peak.role,
        at_peak=shares(replay),
        oom=replay.oom,
        oom_phase=replay.oom_phase,
        fragmentation_bytes=replay.reserved_bytes - replay.active_bytes,
        rising_order_bytes=other_order,
        host_bytes=simulation.host_bytes,
        outside=outside.reason,
        notes=tuple(notes),
        seconds=seconds,
    )
