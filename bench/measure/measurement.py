"""Measures one cell in this process: builds the job, warms it up, times its steps, counts its bytes.

Goes in: a cell, a device, a meter. Comes out: a `Sample`, whatever happens to the job short of the process' own death; and after
every step the sample so far, so that a process that dies loses nothing it had measured.

    sample = Measurement(cell, get_device("cpu"), CpuMeter()).run()
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vrambench.bench.measure.collector import collector_held
from vrambench.bench.measure.ledger import count_parameters, gradients, largest_gradients, role_bytes
from vrambench.bench.measure.meters import Meter
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.measure.meters.host import room_bytes
from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.bench.measure.oom import parse_oom
from vrambench.bench.measure.progress import Progress
from vrambench.bench.measure.rates import Decompositions, Timed, throughput
from vrambench.bench.measure.recorder import Recorder
from vrambench.bench.results.records import Learning, Memory, Parameters, Phase, RoleBytes, Sample, Throughput
from vrambench.methods.cell import Cell
from vrambench.methods.device import Device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.offload.learner import Learner
from vrambench.methods.rewards import RewardError

Listener = Callable[[str, int | None], None]

COUNTED_TRIES = 8
"""Steps that are taken until one is counted in which loss scaling skips nothing: each overflow halves a scale of 2^16."""


class NotFinite(ArithmeticError):
    """A loss, a reward or another metric that is not a finite number."""


class Measurement:
    """One cell's job under one meter. `listen` hears every phase, `save` what each step gave. `saved`: see Job."""

    def __init__(
        self,
        cell: Cell,
        device: Device,
        meter: Meter,
        *,
        listen: Listener = lambda phase, step: None,
        save: Callable[[Progress], None] = lambda progress: None,
        saved: Path | None = None,
    ) -> None:
        self.cell = cell
        self.device = device
        self.meter = meter
        self.save = save
        self.recorder = Recorder(device, meter, listen)
        self.job = Job(cell, device, self._enter, saved)
        self.learning: list[dict[str, float]] = []
        self.step_seconds: list[float] = []
        self.step_joules: list[float | None] = []
        self.seconds: dict[str, float] = {}
        self.roles: dict[str, RoleBytes] = {}
        self.gradients: dict[str, int] = {}
        self.parameters: Parameters | None = None
        self._counts_gradients = False
        self._counted_without_step = False
        self._optimizer_steps = 0

    def run(self) -> Sample:
        """Load, warm-up, timed steps, what evaluation there is, one step more in which bytes are counted, and saving."""
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
        self._import()
        began = self._part("imports", began)
        self.job.load()
        self.recorder.close()
        began = self._part("load", began)
        self.parameters = count_parameters(self.job.parameters())
        self.save(self._progress(self.recorder.phases, parameters=self.parameters))
        for index in range(work.warmup_steps):
            self._step(index, timed=False)
        began = self._part("warmup", began)
        for index in range(work.warmup_steps, work.warmup_steps + work.steps):
            self._step(index, timed=True)
        began = self._part("steps", began)
        if self.job.evaluates:
            self._evaluate()
            began = self._part("evaluate", began)
        self._check_finite()
        self._counted_steps(work.warmup_steps + work.steps)
        began = self._part("counted_step", began)
        if self.job.saves:
            with self._counted():
                self.job.save()
            self._part("save", began)

    def _import(self) -> None:
        """What the cell's values import beside torch and transformers: seconds, which are no part of loading the job. What is
        missing or broken fails again where it is used, and is named there."""
        for name in self.cell.requires:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def _prepare(self, index: int) -> None:
        began = time.perf_counter()
        self.job.prepare(index)
        self.seconds["data"] = self.seconds.get("data", 0.0) + time.perf_counter() - began

    def _step(self, index: int, *, timed: bool) -> None:
        """One step; its wall time and the device's energy if it is `timed`, the device idle at both ends."""
        self.recorder.step = index
        self._prepare(index)
        self.device.synchronize()
        energy = self.meter.energy_joules() if timed else None
        began = time.perf_counter()
        metrics = self.job.step(index)
        self.recorder.close()
        seconds = time.perf_counter() - began
        energy_after = self.meter.energy_joules() if timed else None
        # Read now, outside the step's time: on a device that is full later, no tensor of theirs is to be made.
        self.learning.append({name: float(value) for name, value in metrics.items()})
        gc.collect()
        self._optimizer_steps = max((learner.optimizer_steps() for learner in self._learners()), default=0)
        if timed:
            self.step_seconds.append(seconds)
            self.step_joules.append(None if energy is None or energy_after is None else energy_after - energy)
        phases = self.recorder.phases_of(index)
        self.save(self._progress(phases, step_seconds=seconds if timed else None))

    def _counted_steps(self, index: int) -> None:
        """One more step, untimed, in which bytes are counted; one more after it where loss scaling skipped what it should hold."""
        for step in range(index, index + COUNTED_TRIES):
            before = self._skipped_steps()
            self._counted_step(step)
            if self._skipped_steps() == before:
                return
        self._counted_without_step = True

    def _counted_step(self, index: int) -> None:
        """Gradients and, on the CPU, every live storage are counted in it."""
        self.recorder.step = index
        self._prepare(index)
        self._counts_gradients = True
        with self._counted():
            self.job.step(index)
        if self.cell.optimizer_value.layerwise:
            self.gradients = largest_gradients(self.job)
        self.roles = role_bytes(self.job, self.gradients)

    def _evaluate(self) -> None:
        """After the last timed step, whose metrics it adds to."""
        with self._counted():
            metrics = self.job.evaluate()
        self.learning[-1] |= {name: float(value) for name, value in metrics.items()}

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """A part of the job in which, on the CPU, live storages are counted."""
        if not isinstance(self.meter, CpuMeter):
            yield
            self.recorder.close()
            return
        with StorageTrace(self.device.kind) as self.meter.trace:
            yield
            self.recorder.close()

    def _enter(self, phase: str) -> None:
        if self._counts_gradients and phase == "optimizer_step":
            for role, held in gradients(self.job).items():
                self.gradients[role] = max(held, self.gradients.get(role, 0))
        self.recorder.enter(phase)

    def _part(self, name: str, began: float) -> float:
        now = time.perf_counter()
        self.seconds[name] = now - began
        return now

    def _memory(self) -> Memory:
        return self.meter.memory().model_copy(update={"elsewhere_bytes": self.cell.workload.reserved_elsewhere})

    def _check_finite(self) -> None:
        names = dict.fromkeys(("reward", "loss", *self._metric_names()))  # a NaN reward makes the loss NaN
        for name in names:
            for step, metrics in enumerate(self.learning):
                if not math.isfinite(metrics.get(name, 0.0)):
                    raise NotFinite(f"the {name} of step {step} is not a finite number")

    def _progress(self, phases: tuple[Phase, ...], **more: Any) -> Progress:
        return Progress(self._memory(), phases, source=self.meter.source, notes=self.meter.notes(), **more)

    def _learning(self) -> Learning:
        given = [{name: value for name, value in step.items() if math.isfinite(value)} for step in self.learning]
        series = {name: tuple(step.get(name) for step in given) for name in self._metric_names()}
        own = {name: series.pop(name) for name in ("loss", "reward", "kl") if name in series}
        return Learning(**own, metrics=series)

    def _metric_names(self) -> list[str]:
        """Of every metric that some step gave, in the order in which they came."""
        return list(dict.fromkeys(name for step in self.learning for name in step))

    def _throughput(self) -> Throughput:
        if not self.step_seconds:
            return Throughput()
        trainer, rollouts = self.job.trainer, self._phase_seconds("rollout")
        timed = Timed(
            step_seconds=self.step_seconds,
            rollout_seconds=[rollouts[step] for step in self._timed_steps() if step in rollouts],
            energy_joules=self.step_joules,
            train_tokens=[self.job.train_tokens(step) for step in self._timed_steps()],
            generated_tokens=trainer.generated_tokens,
            samples=trainer.samples,
        )
        return throughput(timed, self._decompositions())

    def _timed_steps(self) -> range:
        """Those that have been timed so far."""
        warmup = self.cell.workload.warmup_steps
        return range(warmup, warmup + len(self.step_seconds))

    def _phase_seconds(self, name: str) -> dict[int, float]:
        named = [phase for phase in self.recorder.phases if phase.name == name]
        return {phase.step: phase.seconds or 0.0 for phase in named if phase.step is not None}

    def _decompositions(self) -> Decompositions | None:
        """The optimizer's, where it is of the kind that has some."""
        gap = self.cell.optimizer_value.svd_gap
        if gap is None or not self.step_seconds:
            return None
        return Decompositions(
            seconds=self._phase_seconds("svd"),
            gap=gap(self.cell.workload),
            optimizer_steps=self._optimizer_steps / len(self.learning),
            warmup=self.cell.workload.warmup_steps,
            steps=self._timed_steps().stop,
        )

    def sample(self, status: str, **more: object) -> Sample:
        """Everything known so far; it needs no memory on the device."""
        return Sample.model_validate(
            {
                "status": status,
                "source": self.meter.source,
                "memory": self._memory(),
                "phases": self.recorder.phases,
                "roles": self.roles,
                "throughput": self._throughput(),
                "learning": self._learning(),
                "parameters": self.parameters,
                "seconds": self.seconds,
                "notes": (*self.meter.notes(), *self._notes()),
                **more,
            }
        )

    def _skipped_steps(self) -> int:
        """Optimizer steps that loss scaling has left out, all roles'. Waits for the device."""
        return sum(learner.skipped_steps() for learner in self._learners())

    def _learners(self) -> list[Learner]:
        return [role.learner for role in self.job.roles.values() if role.learner is not None]

    def _notes(self) -> Iterator[str]:
        """What is to be known of the rates, and of steps that loss scaling left out: their time is a step's all the same."""
        decompositions = self._decompositions()
        if decompositions is not None and (note := decompositions.note()):
            yield note
        if self.seconds.get("counted_step") is None:  # after some errors CUDA answers nothing more
            return
        if skipped := self._skipped_steps():
            yield f"loss scaling skipped {skipped} optimizer steps, whose gradients overflowed"
        if self._counted_without_step:
            yield "it skipped the step in which bytes were counted, too: peaks may lack what an optimizer step takes"

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
