"""The simulated device's autocast, its weights in lower precision and its loss scaler: against torch's own on the CPU.

Named differences between a job on the CPU and on a simulated CPU: attention is another operator, which on meta keeps CUDA's
seeds (24 bytes for each flash kernel); tokens read from data are made there as zeros; and no gradient ever overflows, so that
no step of the optimizer is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from tests.methods.traces import QuickTrace
from vrambench.bench.measure.meters.storages import StorageTrace, tensors_of
from vrambench.methods.amp import (
    CPU_LISTS,
    CUDA_LISTS,
    KEY,
    CastPolicy,
    recompute_contexts,
)
from vrambench.methods.device import Device, get_device
from vrambench.methods.job import Job

MakeCell = Callable[..., Any]
Made = tuple[Any, ...]
CPU = get_device("cpu")
SIMULATED_CPU = replace(get_device("meta"), stands_for="cpu")
FLASH_SEEDS = 24


class Allocations(TorchDispatchMode):
    """Operators that make storages on one device, with the type and bytes of each."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.made: list[Made] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        known = {tensor.untyped_storage()._cdata for tensor in self.here(args, tuple(kwargs.values()))}
        new = [tensor for tensor in self.here(result) if tensor.untyped_storage()._cdata not in known]
        if new:
            self.made.append((str(func), *((tensor.dtype, tensor.untyped_storage().nbytes()) for tensor in new)))
        return result

    def here(self, *values: Any) -> list[torch.Tensor]:
        return [tensor for tensor in tensors_of(values) if tensor.device.type == self.device]

    def casts(self) -> list[tuple[torch.dtype, int]]:
        return [first for name, first, *_ in self.made if name == "aten._to_copy.default"]


def autocast(device: str, dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype) if device == "cpu" else CastPolicy(dtype, CPU_LISTS)


# --- whole jobs, beside the real autocast of the CPU ---


@pytest.fixture
def nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both devices do all of the work, so that they can be laid side by side operator by operator: the simulated one leaves no
    repetition out, and the real one steps though a gradient overflowed."""
    monkeypatch.setattr(Device, "alike", lambda self, items, group=1: items)
    monkeypatch.setattr(Device, "growing", lambda self, items: iter(items))
    monkeypatch.setattr(Device, "map_alike", lambda self, function, items: [function(item) for item in items])
    monkeypatch.setattr(torch.amp.GradScaler, "_maybe_opt_step", lambda self, optimizer, state: optimizer.step())


def loaded(
    cell: MakeCell, device: Device, settings: dict[str, Any], phase: Callable[[str], None] = lambda _: None
) -> Job:
    job = Job(cell(**settings), device, phase)
    job.load()
    return job


def comparable(made: list[Made]) -> list[Made]:
    """Without what differs by name: attention by its output or gradients only, no zeros in place of tokens, and no empty
    tensors, which checkpoints make on the CPU before torch 2.13."""
    found = []
    for name, *tensors in made:
        if not any(nbytes for _, nbytes in tensors):
            continue
        if "_scaled_dot_product" in name:
            found.append(("attention", *tensors[: 3 if "backward" in name else 1]))
        elif name != "aten.zeros.default" or tensors[0][0] != torch.int64:
            found.append((name, *tensors))
    return found


QUANTISED = {"precision": "nf4", "adapter": "lora", "autocast": "bf16"}
HALF = {"precision": "bf16", "autocast": "bf16"}
JOBS: list[dict[str, Any]] = [
    {"algorithm": "sft", "precision": "bf16_amp"},
    {"algorithm": "sft", "precision": "bf16_amp", "gradient_checkpointing": True},
    {"algorithm": "sft", "precision": "fp16_amp", "gradient_accumulation_steps": 2, "attention": "math"},
    {"algorithm": "sft", "precision": "fp16_amp", "adapter": "lora", "gradient_checkpointing": True},
    {"algorithm": "sft", "precision": "fp16_amp", "optimizer": "adamw_torch_fused"},
    {"algorithm": "ppo", "precision": "fp16_amp", "adapter": "lora", "value": "separate", "ppo": {"epochs": 1}},
    {"algorithm": "ppo", "precision": "bf16_amp", "gradient_checkpointing": True, "ppo": {"epochs": 1}},
    {"algorithm": "remax", "precision": "bf16_amp", "adapter": "lora", "reward": "model"},
    {"algorithm": "remax", "precision": "fp16_amp", "gradient_checkpointing": True},
    {"algorithm": "sft", **QUANTISED, "gradient_checkpointing": True, "fp32_modules": "all"},
    {"algorithm": "sft", **QUANTISED, "fp32_modules": ["norms"], "nf4": {"double_quant": True}},
    {"algorithm": "ppo", **QUANTISED, "model": "tiny-gpt2", "fp32_modules": ["norms", "head"], "ppo": {"epochs": 1}},
    {
        "algorithm": "sft",
        **HALF,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "loss": "chunked_nll",
    },
    {"algorithm": "sft", **HALF, "adapter": "lora", "loss": "nll"},
    {"algorithm": "sft", "precision": "fp16", "autocast": "fp16", "adapter": "lora", "gradient_checkpointing": True},
    {"algorithm": "ppo", **HALF, "gradient_checkpointing": True, "loss": "chunked_nll", "ppo": {"epochs": 2}},
    {"algorithm": "remax", **HALF, "loss": "chunked_nll"},
    {"algorithm": "remax", **QUANTISED, "compute_dtype": "fp16", "autocast": "fp16", "gradient_checkpointing": True},
]


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize("settings", JOBS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_job_allocates_as_under_the_real_autocast_of_the_cpu(cell: MakeCell, settings: dict[str, Any]) -> None:
    """Two steps: every operator that allocates, in order, with types and bytes; then the peak of each phase of the second."""
    settings = {"response_tokens": 2, "rollout_batch": 2} | settings
    made, peaks = {}, {}
    for device in (CPU, SIMULATED_CPU):
        trace = QuickTrace(device.kind)
        job = loaded(cell, device, settings, lambda name, trace=trace: trace.begin_phase(name))
        with trace, Allocations(device.kind) as allocations:
            job.step(0)
            before = trace.live_bytes
            trace.phase_peaks.clear()
            job.step(1)
        made[device.kind] = comparable(allocations.made)
        peaks[device.kind] = {name: peak - before for name, peak in trace.phase_peaks.items()}
    assert len(made["cpu"]) > 500
    assert made["meta"] == made["cpu"]
    layers = job.config.num_hidden_layers
    assert set(peaks["meta"]) == set(peaks["cpu"])
    for phase, peak in peaks["cpu"].items():
        assert 0 <= peaks["meta"][phase] - peak <= layers * FLASH_SEEDS, phase


@pytest.mark.parametrize(
    ("algorithm", "adapter", "precision", "checkpointing"),
    list(itertools.product(["sft", "ppo", "remax"], ["none", "lora"], ["bf16_amp", "fp16_amp"], [False, True])),
)
def test_cells_run_on_meta_and_end_with_nothing_cast(
    job: Callable[..., Job], algorithm: str, adapter: str, precision: str, checkpointing: bool
) -> None:
    settings: dict[str, Any] = {"ppo": {"epochs": 1}, "response_tokens": 2, "rollout_batch": 2}
    settings |= {"algorithm": algorithm, "adapter": adapter, "precision": precision}
    made = job(device="meta", gradient_checkpointing=checkpointing, **settings)
    assert made.device.stands_for == "cuda"
    with QuickTrace("meta"), Allocations("meta") as allocations:
        metrics = made.step(0)
    assert {value.device.type for value in metrics.values()} == {"meta"}
    half = torch.bfloat16 if precision == "bf16_amp" else torch.float16
    linear = [types for name, *types in allocations.made if name == "aten.mm.default"]
    assert {dtype for [(dtype, _)] in linear} == {half}
    learner: Any = made.roles["policy"].learner
    assert learner.skipped_steps() == 0
    assert torch._C._dispatch_tls_is_dispatch_key_excluded(KEY)
    weights = torch.ones(2, 2, device="meta")
    assert (weights @ weights).dtype == torch.float32


# --- operators that name an output type ---


@pytest.mark.parametrize("args", [(), (1,), (2, [0]), (2, [0], True)])
def test_cuda_s_norms_give_fp32(args: tuple[Any, ...]) -> None:
    norm = torch.ops.aten.norm.Scalar if len(args) < 2 else torch.ops.aten.norm.ScalarOpt_dim
    with Allocations("meta") as seen, CastPolicy(torch.bfloat16):
        result = norm(torch.ones(4, 4, dtype=torch.bfloat16, device="meta"), *args)
    assert result.dtype == torch.float32
    assert not seen.casts()
    assert result.shape == ((1, 4) if len(args) == 3 else (4,) if len(args) == 2 else ())


def test_cross_entropy_on_cuda_keeps_log_probabilities_in_half() -> None:
    """It names the input's type as log_softmax's, which autocast then leaves alone; nll_loss is cast."""
    logits = torch.ones(4, 8, dtype=torch.bfloat16, device="meta")
    with Allocations("meta") as seen, CastPolicy(torch.bfloat16, CUDA_LISTS):
        F.cross_entropy(logits, torch.zeros(4, dtype=torch.long, device="meta"))
    made = [(name.split(".")[1], first[0]) for name, first, *_ in seen.made[1:]]
    assert made == [("_log_softmax", torch.bfloat16), ("_to_copy", torch.float32), ("nll_loss_forward", torch.float32)]


# --- weights that were cast ---


def linear(device: str) -> tuple[nn.Linear, torch.Tensor]:
    return nn.Linear(4, 8, device=device), torch.ones(2, 4, device=device, requires_grad=True)


def halves(device: str, work: Callable[[nn.Linear, torch.Tensor], Any]) -> list[int]:
    """Bytes of what `work` casts to bf16, in order."""
    layer, inputs = linear(device)
    with Allocations(device) as seen:
        work(layer, inputs)
    return [size for dtype, size in seen.casts() if dtype == torch.bfloat16]


def _twice(layer: nn.Linear, inputs: torch.Tensor) -> None:
    for _ in range(2):
        with autocast(inputs.device.type, torch.bfloat16):
            layer(inputs + 0)
            layer(inputs + 0)


def _nested(layer: nn.Linear, inputs: torch.Tensor) -> None:
    kind = inputs.device.type
    with autocast(kind, torch.bfloat16):
        with autocast(kind, torch.bfloat16):
            layer(inputs)
        layer(inputs)


def _without_gradients(layer: nn.Linear, inputs: torch.Tensor) -> None:
    layer.requires_grad_(False)
    with autocast(inputs.device.type, torch.bfloat16):
        layer(inputs + 0)
        layer(inputs + 0)


def _views(layer: nn.Linear, inputs: torch.Tensor) -> None:
    view = layer.weight.detach()[:4].requires_grad_()
    with autocast(inputs.device.type, torch.bfloat16):
        inputs @ view
        inputs @ view


def _under_no_grad(layer: nn.Linear, inputs: torch.Tensor) -> None:
    with autocast(inputs.device.type, torch.bfloat16):
        with torch.no_grad():
            layer(inputs)
        layer(inputs)


def _checkpointed(layer: nn.Linear, inputs: torch.Tensor, stop: bool = True) -> None:
    options: dict[str, Any] = {"context_fn": recompute_contexts} if inputs.is_meta else {}

    def block(states: torch.Tensor) -> torch.Tensor:
        return layer(layer(states).exp()[:, :4]).sin()

    with set_checkpoint_early_stop(stop):
        with autocast(inputs.device.type, torch.bfloat16):
            states = checkpoint(block, inputs + 0, use_reentrant=False, **options)
            states = checkpoint(block, states[:, :4], use_reentrant=False, **options)
            layer(states[:, :4])
        states.sum().backward()


WORK: list[tuple[Callable[..., None], list[int] | None]] = [
    (_twice, [16, 64, 16, 16] * 2),
    (_nested, [16, 64, 16]),
    (_without_gradients, [16, 64, 16] * 2),
    (_views, None),
    (_under_no_grad, None),
    (_checkpointed, None),
    (lambda layer, inputs: _checkpointed(layer, inputs, stop=False), None),
]


@pytest.mark.parametrize(("work", "expected"), WORK)
def test_weights_are_cast_as_often_as_under_the_real_autocast(
    work: Callable[..., None], expected: list[int] | None
) -> None:
    real = halves("cpu", work)
    assert len(real) > 1
    assert halves("meta", work) == real
    if expected is not None:
        assert real == expected


def test_cast_weights_live_until_the_outermost_policy_is_left() -> None:
    layer, inputs = linear("meta")
    inputs = inputs.detach().bfloat16()
    with StorageTrace("meta") as trace:
        before = trace.live_bytes
        with CastPolicy(torch.bfloat16):
            with CastPolicy(torch.bfloat16):
                layer(inputs)
            assert trace.live_bytes - before == 64 + 16
        assert trace.live_bytes == before


def test_casts_are_recorded_by_autograd() -> None:
    layer, inputs = linear("meta")
    with CastPolicy(torch.bfloat16):
        out = layer(inputs)
    out.float().sum().backward()
    for tensor in (*layer.parameters(), inputs):
        assert tensor.grad is not None
        assert (tensor.grad.dtype, tensor.grad.shape) == (torch.float32, tensor.shape)


def test_recomputation_runs_under_the_policy_of_its_forward_pass() -> None:
    """Types are checked by torch: a recomputation that makes other tensors than forward did is refused."""
    layer, inputs = linear("meta")
    seen: list[torch.dtype] = []

    def block(states: torch.Tensor) -> torch.Tensor:
        result = layer(states).tanh()
        seen.append(result.dtype)
        return result

    def forward() -> torch.Tensor:
        return checkpoint(block, inputs, use_reentrant=False, context_fn=recompute_contexts)

    with set_checkpoint_early_stop(False):
        with CastPolicy(torch.float16):
            states = forward()
        states.sum().backward(retain_graph=True)
        states.sum().backward()
        states = forward()
        with CastPolicy(torch.float16):  # backward inside a policy, of a forward pass outside
            states.sum().backward(retain_graph=True)
            states.sum().backward()
    assert seen == [torch.float16] * 3 + [torch.float32] * 3


def test_a_policy_that_ends_in_an_error_leaves_nothing_on() -> None:
    weights = torch.ones(2, 2, device="meta")
    with pytest.raises(ZeroDivisionError), CastPolicy(torch.bfloat16):
        raise ZeroDivisionError
    assert (weights @ weights).dtype == torch.float32


def test_torch_says_whether_the_policy_is_on() -> None:
    with CastPolicy(torch.float16):
        assert torch.is_autocast_enabled()
        assert torch.get_autocast_dtype("cuda") == torch.float16
        with CastPolicy(None):
            assert not torch.is_autocast_enabled()
        assert torch.is_autocast_enabled()
    assert not torch.is_autocast_enabled()
    with CastPolicy(torch.bfloat16, CPU_LISTS):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_adapters_of_quantised_layers_cast_nothing_under_cuda_s_autocast(
    job: Callable[..., Job], precision: str
) -> None:
    """PEFT takes a layer's input as it is there; elsewhere it makes it fp32 first, and the adapter's output half again."""
    seen: dict[str, set[torch.dtype]] = {}
    for autocast in ("none", "bf16"):
        made = job(device="meta", precision=precision, adapter="lora", autocast=autocast)
        found = seen.setdefault(autocast, set())
        for path, module in made.roles["policy"].module.named_modules():
            if path.endswith("lora_A.default"):
                module.register_forward_pre_hook(lambda module, args, found=found: found.add(args[0].dtype))
        made.step(0)
    assert seen == {"none": {torch.float32}, "bf16": {torch.bfloat16}}


def test_only_meta_tensors_are_cast() -> None:
    with CastPolicy(torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_transformers_regions_without_autocast_are_respected() -> None:
    """GPT-2's reordered attention computes scores in fp32 whatever autocast says."""
    from transformers.models.gpt2 import modeling_gpt2

    original = modeling_gpt2.maybe_autocast
    weights = torch.ones(2, 2, device="meta")
    with CastPolicy(torch.bfloat16):
        with modeling_gpt2.maybe_autocast("meta", enabled=False):
            assert (weights @ weights).dtype == torch.float32
            with CastPolicy(torch.float16):
                assert (weights @ weights).dtype == torch.float16
        assert (weights @ weights).dtype == torch.bfloat16
    assert modeling_gpt2.maybe_autocast is original


# --- loss scaling ---
