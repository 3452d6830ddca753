"""Measures one cell in this process: builds the job, warms it up, times its steps, counts its bytes.

Goes in: a cell, a device, a meter. Comes out: a `Sample`, whatever happens to the job short of the process' own death; and after
every step the sample so far, so that a process that dies loses nothing it had measured.

    sample = Measurement(cell, get_device("cpu"), CpuMeter()).run()
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vrambench.bench.measure.collector import collector_held
from vrambench.bench.measure.ledger import count_parameters, gradients, largest_gradients, role_bytes
from vrambench.bench.measure.meters import Meter
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.measure.meters.host import room_bytes
from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.bench.measure.oom import parse_oom
from vrambench.bench.measure.recorder import Recorder
from vrambench.bench.results.records import Learning, Memory, Parameters, Phase, RoleBytes, Sample, Source, Throughput
from vrambench.methods.cell import Cell
from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.rewards import RewardError

Listener = Callable[[str, int | None], None]


@dataclass(frozen=True)
class Progress:
    """What a job has measured since it last said so: after load (`parameters`), and after every step.

    `phases` ended since then; `step_seconds` is the step's time if it was a timed one; `memory` the job's peaks so far.
    """

    memory: Memory
    phases: tuple[Phase, ...]
    source: Source = "measured"
    notes: tuple[str, ...] = ()
    step_seconds: float | None = None
    parameters: Parameters | None = None


class NotFinite(ArithmeticError):
    """A loss or reward that is not a finite number."""


class Measurement:
    """One cell's job under one meter. `listen` hears every phase, `save` what each step gave."""

    def __init__(
        self,
        cell: Cell,
        device: Device,
        meter: Meter,
        *,
        listen: Listener = lambda phase, step: None,
        save: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.cell = cell
        self.device = device
        self.meter = meter
        self.save = save
        self.recorder = Recorder(device, meter, listen)
        self.job = Job(cell, device, self._enter)
        self.learning: list[dict[str, float]] = []
        self.step_seconds: list[float] = []
        self.energy_joules: float | None = None
        self.seconds: dict[str, float] = {}
        self.roles: dict[str, RoleBytes] = {}
        self.gradients: dict[str, int] = {}
        self.parameters: Parameters | None = None
        self._counts_gradients = False

    def run(self) -> Sample:
        """Load, warm-up, timed steps and one step more in which bytes are counted."""
        began = time.perf_counter()
        try:
            with collector_held():
                self._run()
        except Exception as error:
            self._part("total", began)
            return self._failed(error)
        self._part("total", began)
        return self.sample("ok")

    def _run(self) -> None:
        work = self.cell.workload
        began = time.perf_counter()
        self.meter.start()
        began = self._part("meter", began)
        self.job.load()
        self.recorder.close()
        began = self._part("load", began)
        self.parameters = count_parameters(self.job.parameters())
        self.save(self._progress(self.recorder.phases, parameters=self.parameters))
        for index in range(work.warmup_steps):
            self._step(index, timed=False)
        began = self._part("warmup", began)
        energy = self.meter.energy_joules()
        for index in range(work.warmup_steps, work.warmup_steps + work.steps):
            self._step(index, timed=True)
        if energy is not None:
            self.energy_joules = (self.meter.energy_joules() or energy) - energy
        began = self._part("steps", began)
        self._check_finite()
        self._counted_step(work.warmup_steps + work.steps)
        self._part("counted_step", began)

    def _step(self, index: int, *, timed: bool) -> None:
        """One step; its wall time if it is `timed`, the device idle at both ends."""
        self.recorder.step = index
        self.device.synchronize()
        began = time.perf_counter()
        metrics = self.job.step(index)
        self.recorder.close()
        seconds = time.perf_counter() - began
        # Read now, outside the step's time: on a device that is full later, no tensor of theirs is to be made.
        self.learning.append({name: float(value) for name, value in metrics.items()})
        gc.collect()
        if timed:
            self.step_seconds.append(seconds)
        phases = self.recorder.phases_of(index)
        self.save(self._progress(phases, step_seconds=seconds if timed else None))

    def _counted_step(self, index: int) -> None:
        """One more step, untimed: gradients and, on the CPU, every live storage are counted in it."""
        self.recorder.step = index
        self._counts_gradients = True
        if isinstance(self.meter, CpuMeter):
            with StorageTrace(self.device.kind) as self.meter.trace:
                self.job.step(index)
                self.recorder.close()
        else:
            self.job.step(index)
            self.recorder.close()
        if self.cell.optimizer_value.layerwise:
            self.gradients = largest_gradients(self.job)
        self.roles = role_bytes(self.job, self.gradients)

    def _enter(self, phase: str) -> None:
        if self._counts_gradients and phase == "optimizer_step":
            for role, held in gradients(self.job).items():
                self.gradients[role] = max(held, self.gradients.get(role, 0))
        self.recorder.enter(phase)

    def _part(self, name: str, began: float) -> float:
        now = time.perf_counter()
        self.seconds[name] = now - began
        return now

    def _check_finite(self) -> None:
        learning = self._learning()
        for name in ("reward", "loss"):  # a reward that is none makes the loss none
            for step, value in enumerate(getattr(learning, name)):
                if value is None:
                    raise NotFinite(f"the {name} of step {step} is not a finite number")

    def _progress(self, phases: tuple[Phase, ...], **more: Any) -> Progress:
        return Progress(self.meter.memory(), phases, source=self.meter.source, notes=self.meter.notes(), **more)

    def _learning(self) -> Learning:
        series = {
            name: tuple(step[name] if math.isfinite(step[name]) else None for step in self.learning)
            for name in ("loss", "reward", "kl")
            if self.learning and name in self.learning[0]
        }
        return Learning(**series)

    def _throughput(self) -> Throughput:
        if not self.step_seconds:
            return Throughput()
        seconds, trainer = statistics.median(self.step_seconds), self.job.trainer
        rollouts = [
            phase.seconds
            for phase in self.recorder.phases
            if phase.name == "rollout" and phase.step is not None and phase.step >= self.cell.workload.warmup_steps
        ][: len(self.step_seconds)]
        return Throughput(
            step_seconds=tuple(self.step_seconds),
            train_tokens_per_second=trainer.train_tokens / seconds,
            generated_tokens_per_second=trainer.generated_tokens / statistics.median(rollouts) if rollouts else None,
            samples_per_second=trainer.samples / seconds,
            energy_joules=self.energy_joules,
        )

    def sample(self, status: str, **more: object) -> Sample:
        """Everything known so far; it needs no memory on the device."""
        return Sample.model_validate(
            {
                "status": status,
                "source": self.meter.source,
                "memory": self.meter.memory(),
                "phases": self.recorder.phases,
                "roles": self.roles,
                "throughput": self._throughput(),
                "learning": self._learning(),
                "parameters": self.parameters,
                "seconds": self.seconds,
                "notes": (*self.meter.notes(), *self._skipped()),
                **more,
            }
        )

    def _skipped(self) -> tuple[str, ...]:
        """Says so where loss scaling left optimizer steps out: their time is a step's all the same."""
        if self.seconds.get("counted_step") is None:
            return ()
        learners = [role.learner for role in self.job.roles.values() if role.learner is not None]
        skipped = sum(learner.skipped_steps() for learner in learners)
        return (f"loss scaling skipped {skipped} optimizer steps, whose gradients overflowed",) if skipped else ()

    def _failed(self, error: Exception) -> Sample:
        """The sample of a job that an exception ended. Its traceback goes to the log."""
        traceback.print_exception(error)
        phase = self.recorder.phase
        with contextlib.suppress(RuntimeError):  # after some errors CUDA answers nothing more
            self.recorder.close()
        oom = parse_oom(error)
        if oom and oom.where == "host" and oom.asked_bytes and (room := room_bytes()) is not None:
            oom = oom.model_copy(update={"missing_bytes": max(0, oom.asked_bytes - room)})
        if isinstance(error, ConfigurationError | NotFinite | RewardError):
            reason = str(error)
        else:
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return self.sample("oom" if oom else "error", reason=reason[:500], phase=phase, oom=oom)
