"""What a measured cell's times, energy and metrics are made of, on a device whose work takes as long as the test says.

The device is asynchronous, as a GPU is: work is handed to it at once, and takes its time where somebody waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vrambench.bench.measure import measurement as measurement_module
from vrambench.bench.measure import recorder as recorder_module
from vrambench.bench.measure.measurement import COUNTED_TRIES, Measurement
from vrambench.bench.measure.meters import PhasePeaks
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.measure.recorder import Recorder
from vrambench.bench.results.records import Sample
from vrambench.methods.device import Device, get_device

WATTS = 100.0
DATA, LEARN, STEP, BETWEEN = 7.0, 2.0, 3.0, 50.0
"""Seconds of work: making a step's data, its two phases, and what everybody else has the device do between two steps."""


class Clock:
    """The time, and work that the device has been given and nobody has waited for. `joules` counts from long before the job."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pending = 0.0

    def perf_counter(self) -> float:
        return self.now

    @property
    def joules(self) -> float:
        return 1e6 + WATTS * self.now

    def wait(self) -> None:
        self.now += self.pending
        self.pending = 0.0


class AsyncDevice(Device):
    """A CPU that says it waits for the clock's work."""

    clock: Clock

    def synchronize(self) -> None:
        self.clock.wait()


class CountingMeter(CpuMeter):
    """A CPU's meter that knows the energy, of which a reading takes half a second, and None where `forgets` says so."""

    def __init__(self, clock: Clock, forgets: Callable[[int], bool] = lambda reading: False) -> None:
        super().__init__()
        self.clock = clock
        self.forgets = forgets
        self.readings = 0

    def energy_joules(self) -> float | None:
        self.readings += 1
        joules = self.clock.joules
        self.clock.now += 0.5
        return None if self.forgets(self.readings) else joules


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (measurement_module, recorder_module):
        monkeypatch.setattr(module, "time", made)
    return made


def scripted(
    planned: Any, clock: Clock, meter: CpuMeter | None = None, metrics: Callable[[int], dict[str, float]] | None = None
) -> Measurement:
    """A measurement whose job loads for real, and whose steps are the clock's work, with `metrics` of each step."""
    device = AsyncDevice("cpu", torch.device("cpu"))
    object.__setattr__(device, "clock", clock)

    def busy(progress: Any) -> None:
        clock.pending += BETWEEN

    made = Measurement(planned.cell, device, meter or CountingMeter(clock), save=busy)

    def step(index: int) -> Any:
        made.job.phase("learn")
        clock.pending += LEARN
        made.job.phase("optimizer_step")
        clock.pending += STEP
        told = metrics(index) if metrics else {"loss": 1.0}
        return {name: torch.tensor(value) for name, value in told.items()}

    def prepare(index: int) -> None:
        clock.now += DATA

    made.job.step = step  # type: ignore[method-assign]
    made.job.prepare = prepare  # type: ignore[method-assign]
    return made


def run(made: Measurement) -> Sample:
    sample = made.run()
    assert sample.status == "ok", sample.reason
    return sample


def test_a_timed_step_is_its_own_work_and_nobody_elses(plan: Any, clock: Clock) -> None:
    """Not what came before it, which the device is waited for, nor its data, nor readings of the meter."""
    sample = run(scripted(plan(steps=3, warmup_steps=1), clock))
    assert sample.throughput.step_seconds == (LEARN + STEP,) * 3
    assert sample.throughput.train_tokens_per_second == pytest.approx(2 * 8 / (LEARN + STEP))
    assert sample.seconds["data"] == 5 * DATA, "of warm-up, of timed steps and of the counted one"
    assert sample.seconds["steps"] >= 3 * (DATA + LEARN + STEP)


def test_a_phases_time_is_its_own(plan: Any, clock: Clock) -> None:
    """The device is waited for where one ends and the next begins."""
    sample = run(scripted(plan(steps=2, warmup_steps=1), clock))
    for step in range(3):
        seconds = {phase.name: phase.seconds for phase in sample.phases if phase.step == step}
        assert seconds == {"learn": LEARN, "optimizer_step": STEP}


def test_energy_is_of_the_timed_steps_alone(plan: Any, clock: Clock) -> None:
    sample = run(scripted(plan(steps=3, warmup_steps=1), clock))
    # Half of a reading's time lies in a step: the one that begins it is taken before it ends.
    assert sample.throughput.energy_joules == pytest.approx(3 * WATTS * (LEARN + STEP + 0.5))


@pytest.mark.parametrize("reading", [1, 2, 4, 6])
def test_energy_with_an_unknown_reading_is_unknown_and_never_nothing(plan: Any, clock: Clock, reading: int) -> None:
    meter = CountingMeter(clock, forgets=lambda number: number == reading)
    assert run(scripted(plan(steps=3, warmup_steps=1), clock, meter)).throughput.energy_joules is None
    assert meter.readings == 6, "warm-up and the counted step are nobody's energy"


def test_energy_is_known_after_an_error(plan: Any, clock: Clock) -> None:
    made = scripted(
        plan(steps=2, warmup_steps=1), clock, metrics=lambda index: {"loss": math.nan if index == 2 else 1.0}
    )
    sample = made.run()
    assert sample.status == "error"
    assert sample.throughput.energy_joules == pytest.approx(2 * WATTS * (LEARN + STEP + 0.5))
    assert len(sample.throughput.step_seconds) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "reward", "kl", "accuracy"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_metric_that_is_no_finite_number_is_an_error(
    plan: Any, clock: Clock, name: str, step: int, value: float
) -> None:
    def metrics(index: int) -> dict[str, float]:
        return {"loss": 1.0, "reward": 0.5, "kl": 0.0, "accuracy": 0.25} | ({name: value} if index == step else {})

    sample = scripted(plan(steps=2, warmup_steps=1), clock, metrics=metrics).run()
    assert (sample.status, sample.reason) == ("error", f"the {name} of step {step} is not a finite number")
    series = getattr(sample.learning, name, None) or sample.learning.metrics[name]
    assert [index for index, known in enumerate(series) if known is None] == [step]


def test_of_several_the_reward_is_named_since_the_loss_follows_from_it(plan: Any, clock: Clock) -> None:
    made = scripted(plan(steps=1, warmup_steps=0), clock, metrics=lambda index: {"loss": math.nan, "reward": math.nan})
    assert made.run().reason == "the reward of step 0 is not a finite number"


def test_what_an_algorithm_tells_of_its_steps_is_kept_by_its_names(plan: Any, clock: Clock) -> None:
    def metrics(index: int) -> dict[str, float]:
        return {"loss": 2.0, "accuracy": 0.5 + index} | ({"margin": 1.5} if index == 1 else {})

    sample = run(scripted(plan(steps=2, warmup_steps=0), clock, metrics=metrics))
    assert sample.learning.loss == (2.0, 2.0)
    assert sample.learning.reward == ()
    assert sample.learning.metrics == {"accuracy": (0.5, 1.5), "margin": (None, 1.5)}
    assert Sample.model_validate_json(sample.model_dump_json()) == sample


def test_data_is_made_before_the_step_and_only_once(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real job of every kind: no sequence is made inside a step."""
    for algorithm in ("sft", "ppo", "remax"):
        made = Measurement(plan({"algorithm": algorithm}, steps=1, warmup_steps=1).cell, get_device("cpu"), CpuMeter())
        load, events = made.job.load, list[str]()

        def listening(made: Measurement = made, load: Any = load, events: list[str] = events) -> None:
            load()
            source, step = made.job.data.source, made.job.step
            sequences = source.sequences

            def counted(*arguments: int) -> torch.Tensor:
                events.append(f"data {arguments[0]}")
                return sequences(*arguments)

            def marked(index: int) -> Any:
                events.append(f"step {index}")
                return step(index)

            source.sequences = counted  # type: ignore[method-assign]
            made.job.step = marked  # type: ignore[method-assign]

        monkeypatch.setattr(made.job, "load", listening)
        run(made)
        assert events == ["data 0", "step 0", "data 1", "step 1", "data 2", "step 2"]


def test_what_a_cell_imports_is_no_part_of_loading_it(plan: Any, clock: Clock) -> None:
    planned = plan({"adapter": "lora", "precision": "nf4", "optimizer": "adamw_bnb_8bit"}, steps=1, warmup_steps=0)
    asked: list[str] = []

    def importing(name: str) -> None:
        asked.append(name)
        clock.now += 5.0
        if name == "peft":
            raise ImportError(name)

    made = scripted(planned, clock)
    load = made.job.load

    def loading() -> None:
        assert asked == ["bitsandbytes", "peft"]
        patched.undo()
        load()

    made.job.load = loading  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measurement_module.importlib, "import_module", importing)
        sample = run(made)
    assert sample.seconds["imports"] == 10.0
    assert sample.seconds["load"] == 0.0


def test_of_several_stretches_times_add_up_and_the_highest_peaks_count() -> None:
    peaks = [PhasePeaks(5, 50, None), PhasePeaks(9, 70, 100), PhasePeaks(2, 60, 90), PhasePeaks(None, None, None)]

    class Scripted(CpuMeter):
        def end_phase(self) -> PhasePeaks:
            return peaks.pop(0)

    recorder = Recorder(get_device("cpu"), Scripted())
    recorder.step = 3
    for name in ("learn",) * 4:
        recorder.enter(name)
    recorder.close()
    (phase,) = recorder.phases
    assert (phase.allocated_bytes, phase.reserved_bytes, phase.device_bytes) == (9, 70, 100)
    assert not peaks


@pytest.mark.parametrize(("skips", "counted"), [(0, 1), (2, 3), (99, COUNTED_TRIES)])
def test_a_counted_step_that_loss_scaling_skipped_is_counted_again(
    plan: Any, clock: Clock, skips: int, counted: int
) -> None:
    made = scripted(plan(steps=1, warmup_steps=1), clock)
    step, steps, skipped = made.job.step, list[int](), 0

    def skipping(index: int) -> Any:
        nonlocal skipped
        steps.append(index)
        skipped += 2 <= index < 2 + skips
        return step(index)

    made.job.step = skipping  # type: ignore[method-assign]
    made._skipped_steps = lambda: skipped  # type: ignore[method-assign]
    sample = run(made)
    assert steps == list(range(2 + counted))
    assert any("skipped the step in which bytes were counted" in note for note in sample.notes) == (skips == 99)
    assert any(f"skipped {skipped} optimizer steps" in note for note in sample.notes) == (skips > 0)


def fp16_sample(plan: Any, overflows: set[int]) -> Sample:
    """Of a job under fp16 autocast whose gradients overflow in these steps. Nothing of the job is left, so that another one's
    storages can be counted."""
    made = Measurement(plan({"precision": "fp16_amp"}, steps=1, warmup_steps=0).cell, get_device("cpu"), CpuMeter())
    step = made.job.step

    def overflowing(index: int) -> Any:
        learner: Any = made.job.roles["policy"].learner
        if index in overflows:
            learner.backward = lambda loss: type(learner).backward(learner, loss * 1e35)
        told = step(index)
        vars(learner).pop("backward", None)
        return told

    made.job.step = overflowing  # type: ignore[method-assign]
    return run(made)


def test_a_counted_step_that_overflows_changes_no_peak(plan: Any) -> None:
    """Its optimizer step is left out, and with it what that holds."""
    plain, late = fp16_sample(plan, set()), fp16_sample(plan, {1, 2})
    assert late.memory.allocated_bytes == plain.memory.allocated_bytes
    assert late.roles == plain.roles
    assert max(phase.step or 0 for phase in late.phases) == 3
