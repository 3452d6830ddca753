"""Learners: accumulation, clipping, loss scaling and layerwise steps against what they must equal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn

from vrambench.bench.measure.meters.storages import StorageTrace
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload.learner import PlainLearner, clip_gradients, tensors_in
from vrambench.methods.optimizers.layerwise import Layerwise

MakeJob = Callable[..., Job]


def policy(job: Job) -> Any:
    return job.roles["policy"].learner


def weights(job: Job) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in job.roles["policy"].module.parameters()]


def norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.cat([gradient.float().flatten() for gradient in gradients])))


def norms_at_the_step(job: Job) -> list[float]:
    """The gradients' global norm whenever the optimizer steps from now on."""
    learner, seen = policy(job), list[float]()
    learner._optimizer.register_step_pre_hook(lambda *_: seen.append(norm(list(learner.gradients()))))
    return seen


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_accumulating_equals_one_large_batch(job: MakeJob, max_grad_norm: float) -> None:
    settings = {"max_grad_norm": max_grad_norm, "adamw": {"eps": 1e-4}}  # a step smooth in the gradient
    parts = job(batch_size=2, gradient_accumulation_steps=3, **settings)
    whole = job(batch_size=6, **settings)
    before = weights(whole)
    for index in range(3):
        torch.testing.assert_close(parts.step(index)["loss"], whole.step(index)["loss"])
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=2e-7)
    assert not torch.equal(weights(whole)[0], before[0])


def test_only_every_kth_backward_steps(job: MakeJob) -> None:
    made = job(gradient_accumulation_steps=3)
    learner, tokens = policy(made), made.data.sequences(0, 2, 8)
    start = weights(made)
    for call in (1, 2, 3, 4):
        learner.backward(-learner.module(tokens, 1).logprobs.mean())
        assert bool(list(learner.gradients())) == (call != 3)
        if call < 3:
            assert all(map(torch.equal, weights(made), start))
    assert not all(map(torch.equal, weights(made), start))


def test_a_loss_that_is_kept_keeps_nothing_of_its_pass(job: MakeJob) -> None:
    made = job(adapter="lora", gradient_checkpointing=True)
    learner, tokens = policy(made), made.data.sequences(0, 2, 8)
    with StorageTrace("cpu") as trace:
        loss = -learner.module(tokens, 1).logprobs.mean()
        learner.backward(loss)
        held = trace.live_bytes
        del loss
        assert trace.live_bytes == held - torch.float32.itemsize


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
@pytest.mark.parametrize("dtypes", [("float32",), ("bfloat16",), ("float32", "bfloat16", "float16")])
def test_clipping_is_torchs(dtypes: tuple[str, ...], max_norm: float) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(5, 7, dtype=getattr(torch, dtype))) for dtype in dtypes * 4]
    for parameter in ours[1:]:  # one parameter has no gradient
        parameter.grad = torch.randn(5, 7).to(parameter.dtype)
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    for parameter, other in zip(ours, theirs, strict=True):
        other.grad = None if parameter.grad is None else parameter.grad.clone()
    clip_gradients(ours, max_norm)
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    for parameter, other in zip(ours[1:], theirs[1:], strict=True):
        exact = parameter.dtype == torch.float32 and "bfloat16" not in dtypes
        rtol = 1e-6 if exact else 2**-6  # norm and scale are rounded to different types
        torch.testing.assert_close(parameter.grad, other.grad, rtol=rtol, atol=1e-7)
    assert ours[0].grad is None


def test_a_norm_that_is_small_enough_is_left_alone() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([0.1, -0.2, 0.3, 0.0])
    clip_gradients([parameter], 1.0)
    assert torch.equal(parameter.grad, torch.tensor([0.1, -0.2, 0.3, 0.0]))
    clip_gradients([parameter], 0.1)
    assert norm([parameter.grad]) == pytest.approx(0.1, rel=1e-4)
    clip_gradients([nn.Parameter(torch.zeros(4))], 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_near_nothing_is_held_apart_from_it(dtype: torch.dtype) -> None:
    """max_norm / (norm + 1e-6): with a norm of 1e-6, half of what it would be; in each type."""
    ours, theirs = (nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(2))
    for parameter in (ours, theirs):
        parameter.grad = torch.tensor([1e-6], dtype=dtype)
    clip_gradients([ours], 5e-7)
    torch.nn.utils.clip_grad_norm_([theirs], 5e-7)
    assert ours.grad is not None
    assert float(ours.grad) == pytest.approx(2.5e-7, rel=0.01)
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2**-7, atol=0)


def test_clipping_happens_once_for_an_accumulated_gradient(job: MakeJob) -> None:
    free = job(max_grad_norm=0, gradient_accumulation_steps=2)
    held = job(max_grad_norm=0.125, gradient_accumulation_steps=2)
    norms, clipped = norms_at_the_step(free), norms_at_the_step(held)
    free.step(0)
    held.step(0)
    assert norms[0] > 0.25
    assert clipped == [pytest.approx(0.125, rel=1e-4)]


def test_fp16_autocast_scales_the_loss_and_skips_a_step_that_overflows(job: MakeJob) -> None:
    made = job(precision="fp16_amp")
    learner, tokens = policy(made), made.data.sequences(0, 2, 8)

    def loss() -> torch.Tensor:
        with learner.forward():
            return -learner.module(tokens, 1).logprobs.mean()

    start, scale = weights(made), learner._scaler.get_scale()
    assert scale == 2**16
    learner.backward(loss() * 1e35)
    assert all(map(torch.equal, weights(made), start))
    assert learner._scaler.get_scale() == scale / 2
    assert not list(learner.gradients())
    norms = norms_at_the_step(made)
    learner.backward(loss())
    assert not all(map(torch.equal, weights(made), start))
    assert learner._scaler.get_scale() == scale / 2
    assert norms[0] <= 1.0 + 1e-3  # clipped after the scale was taken out
    assert all(torch.isfinite(weight).all() for weight in weights(made))


@pytest.mark.parametrize("max_norm", [0.125, 1e6])
def test_fp16_autocast_clips_what_the_gradients_are_without_the_scale(job: MakeJob, max_norm: float) -> None:
    """Clipped while still scaled, a gradient would come out 65,536 times too small."""
    plain, scaled = job(max_grad_norm=0), job(precision="fp16_amp", max_grad_norm=max_norm)
    free, clipped = norms_at_the_step(plain), norms_at_the_step(scaled)
    plain.step(0)
    scaled.step(0)
    assert free[0] > 0.25
    assert clipped == [pytest.approx(min(max_norm, free[0]), rel=0.02)]


def test_optimizer_steps_are_counted(job: MakeJob) -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1),
        ({"gradient_accumulation_steps": 3}, 1),
        ({"algorithm": "ppo", "ppo": {"epochs": 3}}, 6),
        ({"optimizer": "galore_adamw_layerwise", "max_grad_norm": 0, "galore": {"rank": 4}}, 1),
    ]
    for settings, steps in cases:
        for device in ("cpu", "meta"):
            made = job(device=device, **(settings | ({"ppo": {"epochs": 1}} if device == "meta" else {})))
            made.step(0)
            expected = 2 if device == "meta" and "algorithm" in settings else steps
            assert policy(made).optimizer_steps() == expected, settings


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_amp"])
def test_nothing_else_scales_the_loss(job: MakeJob, precision: str) -> None:
    learner = policy(job(precision=precision))
    loss = torch.ones((), requires_grad=True)
    assert torch.equal(learner._scaler.scale(loss), loss)
    assert not learner._scaler.is_enabled()


@pytest.mark.parametrize("precision", ["bf16_amp", "fp16_amp"])
def test_autocast_computes_in_half_and_keeps_fp32_weights_and_gradients(job: MakeJob, precision: str) -> None:
    made = job(precision=precision)
    learner = policy(made)
    half = torch.bfloat16 if precision == "bf16_amp" else torch.float16
    seen: list[torch.dtype] = []
    linear = next(part for part in made.roles["policy"].module.modules() if isinstance(part, nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with learner.forward():
        loss = -learner.module(made.data.sequences(0, 2, 8), 1).logprobs.mean()
    loss.backward()
    assert seen == [half]
    assert {gradient.dtype for gradient in learner.gradients()} == {torch.float32}


RL = ["rollout", "score"]


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, ["learn", "optimizer_step"]),
        ({"gradient_accumulation_steps": 3}, ["learn", "optimizer_step"]),
        ({"algorithm": "remax"}, RL + ["learn", "optimizer_step"] * 2),
        ({"algorithm": "remax", "gradient_accumulation_steps": 2}, [*RL, "learn", "optimizer_step"]),
        ({"algorithm": "reinforce"}, RL + ["learn", "optimizer_step"] * 2),
        ({"algorithm": "rloo", "rloo": {"num_iterations": 2}}, RL + ["learn", "optimizer_step"] * 8),
        ({"algorithm": "grpo", "gradient_accumulation_steps": 16}, [*RL, "learn", "optimizer_step"]),
        ({"algorithm": "ppo", "ppo": {"epochs": 3}}, RL + ["learn", "optimizer_step"] * 6),
        (
            {"algorithm": "ppo", "value": "separate", "ppo": {"epochs": 1}},
            RL + ["learn", "optimizer_step"] * 4,
        ),
        ({"optimizer": "galore_adamw_layerwise", "max_grad_norm": 0, "galore": {"rank": 4}}, ["learn"]),
    ],
)
def test_phases_come_in_order(job: MakeJob, settings: dict[str, Any], order: list[str]) -> None:
    heard: list[str] = []
    made = job(phase=heard.append, **settings)
    assert heard == ["load"]
    heard.clear()
    for index in range(2):
        made.step(index)
        assert [name for name, _ in groupby(name for name in heard if name != "svd")] == order
        assert ("svd" in heard) == ("galore" in settings and index == 0)
        heard.clear()


def test_layerwise_galore_takes_the_same_steps(job: MakeJob) -> None:
    settings = {"max_grad_norm": 0, "learning_rate": 1e-2, "galore": {"rank": 8, "update_proj_gap": 2}}
    together = job(optimizer="galore_adamw", **settings)
    layerwise = job(optimizer="galore_adamw_layerwise", **settings)
    start = weights(together)
    for index in range(3):
        torch.testing.assert_close(layerwise.step(index)["loss"], together.step(index)["loss"])
        assert not list(policy(layerwise).gradients())
    torch.testing.assert_close(weights(layerwise), weights(together))
    assert not any(map(torch.equal, weights(together), start))
    sizes = [sorted(tensor.numel() for tensor in policy(made).optimizer_state()) for made in (together, layerwise)]
    assert sizes[0] == sizes[1]


def test_layerwise_frees_each_gradient_before_the_next_one() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    parameters = list(model.parameters())
    Layerwise(parameters, lambda parameter: torch.optim.SGD([parameter], lr=0.1))
    held: list[int] = []
    for parameter in parameters:
        parameter.register_hook(lambda _: held.append(sum(other.grad is not None for other in parameters)))
    before = [parameter.detach().clone() for parameter in parameters]
    model(torch.ones(2, 3)).square().sum().backward()
    assert len(held) == len(parameters)
    assert max(held) <= 1  # of one layer, the other of weight and bias
    assert all(parameter.grad is None for parameter in parameters)
    assert not any(map(torch.equal, before, parameters))


def test_any_optimizer_can_be_layerwise() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    other = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    other.load_state_dict(one.state_dict())
    layerwise = Layerwise(list(one.parameters()), lambda parameter: torch.optim.AdamW([parameter], lr=0.1))
    whole = torch.optim.AdamW(other.parameters(), lr=0.1)
    for _ in range(3):
        inputs = torch.randn(4, 3)
        one(inputs).square().mean().backward()
        other(inputs).square().mean().backward()
        whole.step()
        whole.zero_grad()
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()))
    assert set(layerwise.state) == set(one.parameters())
    assert [group["lr"] for group in layerwise.param_groups] == [0.1] * 4
    sizes = [sorted(tensor.numel() for tensor in tensors_in(made.state)) for made in (layerwise, whole)]
    assert sizes[0] == sizes[1]


def test_optimizer_state_is_every_tensor_that_adamw_keeps(job: MakeJob) -> None:
    made = job()
    learner = policy(made)
    assert not list(learner.optimizer_state())
    made.step(0)
    count = len(weights(made))
    state = list(learner.optimizer_state())
    assert sum(tensor.numel() > 1 for tensor in state) == 2 * count
    assert len(state) == 3 * count  # and each parameter's step


def test_optimizer_state_holds_galores_projectors(job: MakeJob) -> None:
    made = job(optimizer="galore_adamw", galore={"rank": 8})
    made.step(0)
    learner = policy(made)
    projectors = [entry["projector"] for entry in learner._optimizer.state.values() if "projector" in entry]
    assert len(projectors) == 14  # seven linear layers in each of two blocks
    yielded = {id(tensor) for tensor in learner.optimizer_state()}
    assert {id(projector.ortho_matrix) for projector in projectors} <= yielded


def test_tensors_in_nested_things() -> None:
    a, b, c, d = (torch.zeros(index) for index in range(4))

    class Thing:
        def __init__(self) -> None:
            self.kept = [b, {"deep": (c, "text", 1)}]
            self.me = self

    class Fresh:
        def values(self) -> list[list[torch.Tensor]]:
            return [[torch.zeros(1)] for _ in range(50)]

    found = list(tensors_in({"a": a, "again": a, "thing": Thing(), "set": {d}, "code": len, "module": nn.Linear(2, 2)}))
    assert sorted(tensor.numel() for tensor in found) == [0, 1, 2, 3]
    assert len(list(tensors_in([Fresh(), Fresh()]))) == 100


def test_the_learner_trains_only_what_requires_gradients(cell: Callable[..., Cell]) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    frozen, trained = module[0].weight.clone(), module[1].weight.clone()
    learner = PlainLearner(module, cell(learning_rate=0.1).setup, get_device("cpu"), lambda name: None)
    learner.backward(module(torch.ones(1, 2)).sum())
    assert torch.equal(module[0].weight, frozen)
    assert not torch.equal(module[1].weight, trained)
