"""Attention without masks, against transformers' own with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from vrambench.methods.device import get_device
from vrambench.methods.models.attention import IMPLEMENTATIONS, implementation
from vrambench.methods.models.config import model_config
from vrambench.methods.models.kernels import flash

ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral")
LENGTH = 24


def model_of(name: str, kernel: str, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            model_config(name), attn_implementation=kernel if kernel == "eager" else implementation(kernel)
        )


def tokens_of(count: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_gradients_equal_eager_attention(name: str, kernel: str) -> None:
    ours, theirs = model_of(name, kernel), model_of(name, "eager")
    tokens = tokens_of()
    with get_device("cpu").attention(kernel):
        logits = ours(tokens).logits
        logits.square().mean().backward()
    expected = theirs(tokens).logits
    expected.square().mean().backward()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    for (label, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, other.grad, atol=1e-5, rtol=1e-3, msg=lambda text, at=label: f"{at}: {text}"
        )


@torch.no_grad()
def test_a_cpu_whose_kernel_takes_no_grouped_heads_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of("tiny", "flash"), tokens_of()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    with get_device("cpu").attention("flash"):
        monkeypatch.setattr("vrambench.methods.models.kernels.CPU_TAKES_GROUPS", False)
        repeated = model(tokens).logits
        monkeypatch.undo()
        torch.testing.assert_close(model(tokens).logits, repeated)


@pytest.mark.parametrize("kernel", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_decoding_one_token_at_a_time_equals_one_forward(name: str, kernel: str) -> None:
    model, tokens = model_of(name, kernel), tokens_of()
    cache = DynamicCache()
    with get_device("cpu").attention(kernel):
        whole = model(tokens).logits
        parts = [model(tokens[:, :8], past_key_values=cache, use_cache=True).logits]
        for at in range(8, LENGTH):
            positions = torch.full((1, 1), at)
            step = model(tokens[:, at : at + 1], position_ids=positions, past_key_values=cache, use_cache=True)
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


class Sizes(TorchDispatchMode):
    """The largest number of elements of any tensor that an operator gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators.add(str(func))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
        return out


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_tensor_of_queries_by_keys_on_meta(name: str, kernel: str) -> None:
    length = 1024
    model = model_of(name, kernel, "meta")
    with Sizes() as sizes:
        model(torch.zeros(1, length, dtype=torch.long, device="meta")).logits.mean().backward()
    assert any(f"{kernel}_attention_backward" in operator for operator in sizes.operators)
    assert sizes.largest < length * length


def test_explicit_products_on_meta_do_make_queries_by_keys() -> None:
    length = 1024
    with Sizes() as sizes:
        model_of("tiny", "math", "meta")(torch.zeros(1, length, dtype=torch.long, device="meta"))
    assert sizes.largest == 4 * length * length


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("kernel", IMPLEMENTATIONS)
def test_shapes_on_meta_are_those_on_a_device(kernel: str, size: int) -> None:
    function = IMPLEMENTATIONS[kernel].function
    shapes = []
    for device in ("cpu", "meta"):
        query = torch.ones(2, 4, 6, size, device=device, requires_grad=True)
        key, value = (torch.ones(2, 2, 6, size, device=device, requires_grad=True) for _ in range(2))
        out, _ = function(torch.nn.Module(), query, key, value, None, scaling=0.5)
        out.sum().backward()
        assert query.grad is not None
        assert key.grad is not None
        shapes.append((out.shape, out.stride(), query.grad.shape, key.grad.shape))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("queries", "keys", "options", "said"),
    [
        (3, 8, {}, "3 queries over 8 keys"),
        (8, 8, {"mask": True}, "gives attention a mask"),
    ],
)
def test_what_a_missing_mask_would_make_wrong_is_refused(queries: int, keys: int, options: dict, said: str) -> None:
    mask = torch.ones(1, 1, queries, keys) if options.pop("mask", False) else None
    query, key = torch.ones(1, 2, queries, 8), torch.ones(1, 2, keys, 8)
    with pytest.raises(ValueError, match=said):
        flash(torch.nn.Module(), query, key, key, mask, **options)
