"""Products of matrices in bf16 and fp16, for tests on CPUs that have no instructions for them.

    with quick_products():

Such a CPU multiplies bf16 at a hundredth of fp32's speed (256 x 512 by 512 x 1024 takes 340 ms and 4 ms), and tests would wait for
little else. Meanwhile these products are made in fp32 and rounded once. So are torch's own, which add up in fp32, too: of ten
thousand numbers one differs, by a rounding. Whoever follows a job sees the same operators, and tensors of the same types and
sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

HALVES = (torch.bfloat16, torch.float16)
PRODUCTS = {"mm": torch.mm, "bmm": torch.bmm, "addmm": torch.addmm, "baddbmm": torch.baddbmm}


@contextmanager
def quick_products() -> Iterator[None]:
    """In this process, where the CPU is such a one."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        yield
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that there was a kernel
        for name, product in PRODUCTS.items():
            library.impl(name, _quick(product), "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def _quick(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same; torch's own kernel is that which is given where the result goes."""

    def run(*factors: torch.Tensor, **scales: float) -> torch.Tensor:
        dtype = factors[0].dtype
        if dtype in HALVES and all(one.dtype == dtype for one in factors):
            widened = [one.float() for one in factors]
            return product(*widened, **scales, out=torch.empty(0)).to(dtype)
        return product(*factors, **scales, out=torch.empty(0, dtype=dtype))

    return run
