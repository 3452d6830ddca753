"""What makes peaks smaller: roles that are on the host while nobody asks them, caches given back between phases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.bench.predict.test_equality import differences
from tests.bench.predict.traces import traced
from vrambench.bench.measure.ledger import count_parameters
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.trace import ALLOC, EMPTY
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job

MakeCell = Callable[..., Cell]

PPO: dict[str, Any] = {
    "algorithm": "ppo",
    "rollout_batch": 2,
    "response_tokens": 2,
    "ppo": {"epochs": 1},
    "reward": "model",
    "max_grad_norm": 0.5,
}
AWAY = {"ref_reward_offload": True}
BETWEEN = {"empty_cache_between_phases": True}
CASES: dict[str, dict[str, Any]] = {
    "ppo": PPO,
    "ppo, bf16": PPO | {"precision": "bf16"},
    "remax": PPO | {"algorithm": "remax"},
    "nf4, a copy as reference": PPO | {"precision": "nf4", "adapter": "lora", "reference": "copy"},
    "reward alone": PPO | {"adapter": "lora"},
    "dpo": {"algorithm": "dpo"},
}


def steps(cell: Cell) -> list[dict[str, float]]:
    job = Job(cell, get_device("cpu"))
    job.load()
    return [{name: float(value) for name, value in job.step(index).items()} for index in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_visitors_change_nothing_that_is_computed(cell: MakeCell, name: str) -> None:
    assert steps(cell(**CASES[name] | AWAY)) == steps(cell(**CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_visitors_are_simulated(cell: MakeCell, name: str) -> None:
    made = cell(**CASES[name] | AWAY)
    real = traced(made, get_device("cpu"))
    simulated = traced(made, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert not differences(made, real, simulated)


def simulation(cell: Cell) -> Simulation:
    return Simulator().run(cell)


def peaks(one: Simulation) -> dict[str, int]:
    found: dict[str, int] = {}
    for event, live in one.trace.live():
        if event.place.phase and event.place.step == 1:
            found[event.place.phase] = max(live, found.get(event.place.phase, 0))
    return found


def test_what_visits_is_on_the_device_while_it_is_asked(cell: MakeCell) -> None:
    """Its weights, to the byte, are gone from all phases but scoring, and in page-locked memory of the host."""
    here, away = (simulation(cell(**PPO | {"precision": "bf16"} | said)) for said in ({}, AWAY))
    weights = sum(here.roles[name].weights_bytes for name in ("reference", "reward"))
    before, after = peaks(here), peaks(away)
    buffers = 256  # of the models' positions
    for phase in ("rollout", "learn", "optimizer_step"):
        assert before[phase] - after[phase] == pytest.approx(weights, abs=buffers)
    assert away.host_pinned_bytes >= weights - buffers
    assert away.host_bytes == away.host_pinned_bytes
    assert here.host_pinned_bytes == 0
    assert away.parameters == here.parameters
    assert sum(away.roles[name].weights_bytes for name in ("reference", "reward")) <= buffers
    moved = [e for e in away.trace.events if e.kind == ALLOC and e.ident in away.trace.owners]
    kinds = {away.trace.owners[event.ident].kind for event in moved if event.place.phase == "score"}
    assert "gathered_weights" in kinds


def test_parameters_are_counted_wherever_they_are(cell: MakeCell) -> None:
    counts = []
    for said in ({}, AWAY):
        job = Job(cell(**PPO | said), get_device("cpu"))
        job.load()
        counts.append(count_parameters(job.parameters()))
    assert counts[0] == counts[1]


SHARED = PPO | {"adapter": "lora", "lora_target_modules": "all-linear", "value": "adapter", "reward": "tokens"}
ON_ONE_BASE: dict[str, dict[str, Any]] = {
    "lora": SHARED,
    "nf4, checkpointed": SHARED | {"precision": "nf4", "gradient_checkpointing": True},
    "dora, bf16, reference apart": SHARED | {"adapter": "dora", "precision": "bf16", "reference": "copy"},
}


@pytest.mark.parametrize("name", ON_ONE_BASE)
def test_a_value_adapter_is_simulated(cell: MakeCell, name: str) -> None:
    made = cell(**ON_ONE_BASE[name])
    real = traced(made, get_device("cpu"))
    simulated = traced(made, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert not differences(made, real, simulated)


@pytest.mark.parametrize("said", [{}, {"gradient_checkpointing": True}], ids=str)
def test_two_adapters_are_trained_apart(cell: MakeCell, said: dict[str, Any]) -> None:
    """Each by its own loss: the policy's first step is that of a policy whose values are another model's, and the base stays."""
    jobs = {}
    for value in ("adapter", "separate"):
        jobs[value] = Job(cell(**SHARED | said | {"value": value, "learning_rate": 1e-2}), get_device("cpu"))
        jobs[value].load()
    job = jobs["adapter"]
    module = job.roles["policy"].module
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for each in jobs.values():
        each.step(0)
    changed = {name for name, parameter in module.named_parameters() if not parameter.equal(before[name])}
    assert {name for name in before if ".default." in name or ".value." in name} >= changed
    assert any(".value." in name for name in changed)
    assert any(".default." in name for name in changed)
    assert count_parameters(job.parameters()).trainable == count_parameters(jobs["separate"].parameters()).trainable
    assert module.model.active_adapter == "default"


def test_a_value_adapter_costs_no_second_base(cell: MakeCell) -> None:
    found = {value: simulation(cell(**SHARED | {"value": value})) for value in ("head", "adapter", "separate")}
    base = found["head"].roles["policy"].weights_bytes
    adapter, separate = (found[value].roles["value"] for value in ("adapter", "separate"))
    assert adapter.shares == "policy"
    assert adapter.gradients_bytes == separate.gradients_bytes
    assert adapter.optimizer_bytes == separate.optimizer_bytes
    held = {value: sum(role.weights_bytes for role in one.roles.values()) for value, one in found.items()}
    assert held["adapter"] - held["head"] < 0.3 * base < 0.7 * base < held["separate"] - held["head"]


def test_the_cache_is_emptied_between_phases_alone(cell: MakeCell) -> None:
    """Not between backward passes and optimizer steps, of which there are two."""
    two = PPO | {"rollout_batch": 4}
    trace = traced(cell(**two | BETWEEN), get_device("meta"))
    found = [event.place.phase for event in trace.events if event.kind == EMPTY and event.place.step == 1]
    assert found == ["optimizer_step", "rollout", "score"], "each belongs to the phase that ends"
    assert steps(cell(**two | BETWEEN)) == steps(cell(**two))


def test_without_rollouts_there_is_nothing_between(cell: MakeCell) -> None:
    assert cell(**BETWEEN | AWAY).workload.empty_cache_between_phases is None
    assert cell(**BETWEEN | AWAY).workload.ref_reward_offload is None
