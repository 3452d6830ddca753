"""A measured cell: what its sample says, and that it says the same twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.measure.progress import Progress
from vrambench.bench.plan.plan import PlannedCell
from vrambench.bench.results.store import RunFolder
from vrambench.bench.run.session import run
from vrambench.methods.batches import Batches
from vrambench.methods.device import get_device


def measure(planned: PlannedCell, **more: Any) -> Any:
    return Measurement(planned.cell, get_device("cpu"), CpuMeter(), **more).run()


def test_a_sample_says_all_that_the_schema_asks_for(plan: Any) -> None:
    sample = measure(plan({"algorithm": "ppo"}, steps=3, warmup_steps=2, rollout_batch=4))
    assert (sample.status, sample.source, sample.reason) == ("ok", "measured", None)
    assert len(sample.learning.loss) == len(sample.learning.reward) == len(sample.learning.kl) == 5
    assert len(sample.throughput.step_seconds) == 3
    median = sorted(sample.throughput.step_seconds)[1]
    assert sample.throughput.train_tokens_per_second == pytest.approx(4 * 8 / median)
    assert sample.throughput.samples_per_second == pytest.approx(4 / median)
    rollout = sorted(phase.seconds for phase in sample.phases if phase.name == "rollout" and phase.step in (2, 3, 4))[1]
    assert sample.throughput.generated_tokens_per_second == pytest.approx(4 * 4 / rollout)
    assert sample.memory.requested_bytes == sample.memory.allocated_bytes
    assert sample.memory.reserved_bytes is None, "there is no caching allocator, so nothing is known of it"
    assert sample.memory.device_bytes is None
    assert sample.memory.host_rss_bytes > 10 * 2**20
    assert set(sample.seconds) == {"meter", "imports", "load", "data", "warmup", "steps", "counted_step", "total"}


def test_phases_cover_the_steps(plan: Any) -> None:
    sample = measure(plan({"algorithm": "ppo"}, steps=2, warmup_steps=1))
    names = [(phase.name, phase.step) for phase in sample.phases]
    assert names[0] == ("load", None)
    assert names[1:5] == [("rollout", 0), ("score", 0), ("learn", 0), ("optimizer_step", 0)]
    assert len(names) == len(set(names)), "one record for each phase of each step"
    for step, seconds in zip((1, 2), sample.throughput.step_seconds, strict=True):
        inside = sum(phase.seconds for phase in sample.phases if phase.step == step)
        assert 0 < inside <= seconds
    counted = {phase.name: phase.allocated_bytes for phase in sample.phases if phase.step == 3}
    assert max(counted.values()) == sample.memory.allocated_bytes
    assert all(phase.allocated_bytes is None for phase in sample.phases if phase.step != 3), (
        "timed steps are not traced"
    )


def test_progress_adds_up_to_the_sample(plan: Any) -> None:
    said: list[Progress] = []
    sample = measure(plan(steps=2, warmup_steps=1), save=said.append)
    assert said[0].parameters == sample.parameters
    assert tuple(each.step_seconds for each in said if each.step_seconds) == sample.throughput.step_seconds
    told = [phase for each in said for phase in each.phases]
    assert told == [phase for phase in sample.phases if phase.step != 3]


def test_a_workload_that_does_not_fit_the_model_is_an_error_that_says_so(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abc")
    sample = measure(plan(data=str(tmp_path / "short.txt")))
    assert (sample.status, sample.phase) == ("error", "load")
    assert sample.reason.startswith("data: ")


@pytest.mark.parametrize(
    "axes",
    [
        {"algorithm": "sft", "precision": "bf16_amp"},
        {"algorithm": "ppo", "adapter": "lora", "precision": "nf4", "optimizer": "paged_adamw_8bit"},
        {"algorithm": "remax", "optimizer": "galore_adamw"},
        {"algorithm": "sft", "offload": "zero2_optimizer"},
    ],
    ids=lambda axes: "-".join(axes.values()),
)
def test_the_same_cell_twice_gives_the_same(plan: Any, listening: Any, tmp_path: Path, axes: dict[str, str]) -> None:
    """Losses, rewards and traced bytes, in two fresh processes."""
    planned = plan(axes, steps=3, galore={"rank": 4})
    run([planned], tmp_path / "run", repeat=2, listener=listening)
    result = RunFolder.open(tmp_path / "run").read_result(planned.cell.id)
    assert result is not None
    first, second = result.samples
    assert first.status == second.status == "ok", (first.reason, second.reason)
    assert first.learning == second.learning
    assert first.memory.allocated_bytes == second.memory.allocated_bytes
    assert [phase.allocated_bytes for phase in first.phases] == [phase.allocated_bytes for phase in second.phases]
    assert first.roles == second.roles


def test_what_was_learned_before_memory_ran_out_is_kept(plan: Any) -> None:
    """On a device that is full, nothing more can be made to tell it."""
    made = Measurement(plan(steps=3, warmup_steps=1).cell, get_device("cpu"), CpuMeter())
    step, stack = made.job.step, torch.stack

    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    def then_full(index: int) -> Any:
        if index == 2:
            torch.stack = full
            full()
        return step(index)

    made.job.step = then_full  # type: ignore[method-assign]
    try:
        sample = made.run()
    finally:
        torch.stack = stack
    assert (sample.status, sample.oom.where) == ("oom", "device")  # type: ignore[union-attr]
    assert len(sample.learning.loss) == 2
    assert sample.phases


@pytest.mark.parametrize("optimizer", ["galore_adamw", "galore_adamw_layerwise"])
def test_galores_svd_is_a_phase_of_its_own(plan: Any, optimizer: str) -> None:
    planned = plan(
        {"optimizer": optimizer}, steps=2, warmup_steps=1, max_grad_norm=0.0, galore={"rank": 4, "update_proj_gap": 2}
    )
    sample = measure(planned)
    assert sample.status == "ok", sample.reason
    assert [phase.step for phase in sample.phases if phase.name == "svd"] == [0, 2]
    assert sample.roles["policy"].gradients_bytes > 0


def test_layerwise_gradients_are_at_least_the_largest(plan: Any) -> None:
    layerwise = measure(plan({"optimizer": "galore_adamw_layerwise"}, max_grad_norm=0.0, galore={"rank": 4}))
    together = measure(plan({"optimizer": "galore_adamw"}, max_grad_norm=0.0, galore={"rank": 4}))
    assert layerwise.roles["policy"].gradients_bytes == 4 * 256 * 64
    assert together.roles["policy"].gradients_bytes == 4 * together.parameters.trainable


def test_evaluating_and_saving_are_phases_of_their_own(plan: Any) -> None:
    more = {"eval_batch_size": 2, "max_eval_samples": 3, "save": "merged"}
    sample = measure(plan({"adapter": "lora"}, steps=2, warmup_steps=0, **more))
    assert sample.status == "ok", sample.reason
    peaks = {(phase.name, phase.step): phase.allocated_bytes for phase in sample.phases}
    assert peaks["evaluate", 1] > 0
    assert peaks["save", 2] > 0
    assert sample.memory.allocated_bytes == max(bytes_ for bytes_ in peaks.values() if bytes_)
    assert sample.learning.metrics["eval_loss"][0] is None
    assert sample.learning.metrics["eval_loss"][1] > 0
    assert {"evaluate", "save"} <= set(sample.seconds)


def test_of_several_lengths_bytes_are_those_of_the_largest_batch_and_tokens_those_without_padding(plan: Any) -> None:
    work: dict[str, Any] = {"batch_size": 2, "steps": 3, "warmup_steps": 1, "attention": "eager"}
    planned = plan(lengths={4: 0.9, 64: 0.1}, seed=2, **work)
    batches = [Batches(planned.cell.workload).of_step(step)[0] for step in range(4)]
    assert len({batch.tokens for batch in batches[1:]}) > 1
    sample = measure(planned)
    alike = measure(plan(lengths={64: 1.0}, **work))
    assert sample.status == alike.status == "ok"
    assert sample.memory.allocated_bytes == pytest.approx(alike.memory.allocated_bytes, rel=0.02)
    rates = [batch.tokens / seconds for batch, seconds in zip(batches[1:], sample.throughput.step_seconds, strict=True)]
    assert sample.throughput.train_tokens_per_second == pytest.approx(sorted(rates)[1])
