"""Models filled layer by layer: the right values, tied weights, and never more than one layer too much."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from vrambench.methods.models.config import model_config
from vrambench.methods.models.fill import build, fill
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.precision import PRECISIONS
from vrambench.methods.workload import Workload

ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
CPU = torch.device("cpu")


def filled(
    config: PreTrainedConfig, precision: str, device: torch.device = CPU, seed: int = 0, **options: Any
) -> nn.Module:
    value, workload = PRECISIONS.get(precision), Workload(options=options)
    model = build(AutoModelForCausalLM, config, value.dtype(workload), "eager")
    torch.manual_seed(seed)
    quantize = value.quantize
    fill(
        model,
        device,
        quantize=quantize and (lambda linear: quantize(linear, workload)),
        keep=[model.get_output_embeddings()],
    )
    return model


@pytest.mark.parametrize("name", [*ARCHITECTURES, "tiny-llama3-rope"])
def test_values_are_those_of_transformers_own_initialisation(name: str) -> None:
    config = model_config("tiny" if name == "tiny-llama3-rope" else name)
    if name == "tiny-llama3-rope":
        config.rope_parameters = PRESETS["llama-3.2-3b"].config().rope_parameters
    ours, theirs = filled(config, "fp32"), AutoModelForCausalLM.from_config(config)
    for (label, mine), (other_label, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert label == other_label
        assert mine.dtype == other.dtype
        assert mine.mean().item() == pytest.approx(other.mean().item(), abs=0.005), label
        assert mine.std().item() == pytest.approx(other.std().item(), rel=0.15, abs=1e-9), label
    buffers = dict(theirs.named_buffers())
    assert dict(ours.named_buffers()).keys() == buffers.keys()
    for label, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[label], rtol=0, atol=0)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2"])
def test_a_seed_gives_the_same_weights_again_and_another_seed_others(name: str, precision: str) -> None:
    first, again, other = (filled(model_config(name), precision, seed=seed).state_dict() for seed in (1, 1, 2))
    assert first.keys() == again.keys()
    tensors = [key for key, value in first.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(first[key], again[key]) for key in tensors)
    assert not all(torch.equal(first[key], other[key]) for key in tensors)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-opt", "tiny-tied"])
def test_tied_embeddings_are_one_parameter(name: str, precision: str, device: str) -> None:
    config = model_config("tiny" if name == "tiny-tied" else name)
    config.tie_word_embeddings = True
    model: Any = filled(config, precision, torch.device(device))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert type(model.get_output_embeddings()) is nn.Linear


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_meta_has_the_shapes_types_and_modules_of_the_cpu(name: str, precision: str) -> None:
    def inventory(device: str) -> list[tuple[str, str, tuple[int, ...], torch.dtype]]:
        model = filled(model_config(name), precision, torch.device(device))
        tensors = [*model.named_parameters(), *model.named_buffers()]
        assert all(tensor.device.type == device for _, tensor in tensors)
        kinds = dict(model.named_modules())
        return [(at, type(kinds[at.rpartition(".")[0]]).__name__, tuple(x.shape), x.dtype) for at, x in tensors]

    assert inventory("cpu") == inventory("meta")


@pytest.mark.parametrize(("precision", "kind"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_layer_but_the_head_is_quantised(name: str, precision: str, kind: str) -> None:
    config = model_config(name)
    model: Any = filled(config, precision)
    plain: Any = filled(config, "fp32")
    linears = {at for at, m in plain.named_modules() if type(m).__name__ in ("Linear", "Conv1D")} - {
        "lm_head",
        "embed_out",
    }
    assert {at for at, module in model.named_modules() if type(module).__name__ == kind} == linears
    assert len(linears) >= 2 * config.num_hidden_layers


class Live(TorchDispatchMode):
    """Bytes of the storages that appeared under it and are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf.untyped_storage())
        return out

    def see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4", "nf4-double"])
@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2", "tiny-neox"])
def test_filling_holds_at_most_the_final_bytes_and_one_layer(name: str, precision: str, device: str) -> None:
    config = model_config(name)
    config.num_hidden_layers, config.hidden_size, config.vocab_size = 1, 256, 64
    if getattr(config, "intermediate_size", None):
        config.intermediate_size = 1024
    options = {"nf4": {"double_quant": precision == "nf4-double"}}
    precision = precision.removesuffix("-double")
    filled(config, precision, torch.device(device), **options)  # what is made once for all models, such as code tables
    config.num_hidden_layers = 6
    with Live() as live:
        model = filled(config, precision, torch.device(device), **options)
        final = live.bytes
    shapes: Any = build(AutoModelForCausalLM, config, torch.bfloat16, "eager")
    layers = max((m for m in shapes.modules() if isinstance(m, nn.ModuleList)), key=len)
    layer = sum(parameter.numel() * 2 for parameter in layers[0].parameters())
    assert live.peak <= final + layer + 4096
    whole = sum(parameter.numel() * 2 for parameter in shapes.parameters())
    if precision != "bf16":
        assert final < 0.7 * whole  # so that the bound above says something
        assert live.peak < whole
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


def test_a_layer_is_freed_before_the_next_one_is_made() -> None:
    """The bound above must fail for a filler that keeps layers: one that quantises only at the end does."""
    seen: list[Callable[[], object]] = []
    config = model_config("tiny")
    config.num_hidden_layers = 4
    model = build(AutoModelForCausalLM, config, torch.bfloat16, "eager")
    alive: list[int] = []

    def quantize(linear: nn.Linear) -> nn.Module:
        seen.append(weakref.ref(linear.weight))
        alive.append(sum(reference() is not None for reference in seen))
        return nn.Identity()

    fill(model, CPU, quantize=quantize, keep=[model.get_output_embeddings()])
    assert len(alive) == 4 * 7
    assert max(alive) == 1
