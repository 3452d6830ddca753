"""The kernel that PyTorch takes on a GPU: one row for each rule of its source; and scaled dot product attention without values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vrambench.methods.device import get_device
from vrambench.methods.sdpa import Asked, choose

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("asked", "capability", "kernel", "said"),
    [
        (Asked(BF16, 128, 128), None, "flash", None),
        (Asked(BF16, 128, 128, grouped=True), (8, 0), "flash", None),
        (Asked(FP16, 256, 256), (9, 0), "flash", None),
        (Asked(BF16, 128, 128, masked=True), None, "efficient", "a mask"),
        (Asked(FP32, 128, 128), None, "efficient", "fp32"),
        (Asked(BF16, 192, 128), None, "efficient", "heads of 192 and value heads of 128"),
        (Asked(BF16, 512, 512), None, "efficient", "heads of 512"),
        (Asked(FP16, 64, 64), (7, 5), "efficient", "below 8.0"),
        (Asked(BF16, 64, 64), (7, 5), "math", "bf16 on a GPU"),
        (Asked(FP32, 64, 64, grouped=True), None, "math", "grouped heads"),
        (Asked(BF16, 20, 20, masked=True), None, "math", "multiples of 8"),
        (Asked(FP32, 20, 20, masked=True), None, "efficient", "a mask"),
        (Asked(BF16, 224, 224), (8, 9), "efficient", "shared memory"),
        (Asked(BF16, 224, 224, training=False), (8, 9), "flash", None),
        (Asked(BF16, 224, 224), (8, 0), "flash", None),
    ],
)
def test_the_kernel_that_pytorch_takes(
    asked: Asked, capability: tuple[int, int] | None, kernel: str, said: str | None
) -> None:
    choice = choose(asked, capability)
    assert choice.kernel == kernel
    assert choice.why is None if said is None else said in (choice.why or "")


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "size", "masked", "operator"),
    [
        (BF16, 16, False, "aten._scaled_dot_product_flash_attention.default"),
        (BF16, 20, False, "aten._scaled_dot_product_flash_attention.default"),
        (BF16, 16, True, "aten._scaled_dot_product_efficient_attention.default"),
        (FP32, 16, False, "aten._scaled_dot_product_efficient_attention.default"),
        (BF16, 20, True, "aten._safe_softmax.default"),
    ],
)
def test_on_meta_it_runs_the_operator_of_a_gpu(dtype: torch.dtype, size: int, masked: bool, operator: str) -> None:
    def attend(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        query = torch.ones(2, 4, 6, size, device=device, dtype=dtype, requires_grad=True)
        mask = torch.ones(2, 1, 6, 6, dtype=torch.bool, device=device) if masked else None
        out = F.scaled_dot_product_attention(query, query, query, attn_mask=mask, is_causal=not masked)
        out.sum().backward()
        return out, query

    with get_device("meta").attention("sdpa"), Operators() as operators:
        out, query = attend("meta")
    assert operator in operators.ran
    assert query.grad is not None
    assert (out.shape, out.dtype) == (attend("cpu")[0].shape, dtype)
    assert "scaled_dot_product_attention" in F.scaled_dot_product_attention.__name__, "it is PyTorch's own again"


def test_under_autocast_inputs_are_cast_before_a_mask_is_made_of_their_type() -> None:
    device = get_device("meta")
    query = torch.ones(1, 2, 8, 16, device="meta", requires_grad=True)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool, device="meta")
    with device.attention("sdpa"), device.autocast(BF16), Operators() as operators:
        out = F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    assert out.dtype == BF16
    assert operators.ran.index("aten._to_copy.default") < operators.ran.index("aten.where.self")
    assert "aten._scaled_dot_product_efficient_attention.default" in operators.ran
