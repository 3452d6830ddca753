"""The products that tests make are torch's own."""

from __future__ import annotations

import pytest
import torch

from tests.products import PRODUCTS, quick_products
from vrambench.bench.measure.meters.storages import StorageTrace

SHAPES = {"mm": [(9, 33), (33, 17)], "bmm": [(3, 9, 33), (3, 33, 17)]}
SHAPES |= {"addmm": [(17,), *SHAPES["mm"]], "baddbmm": [(3, 1, 17), *SHAPES["bmm"]]}


def own(name: str, *factors: torch.Tensor, **scales: float) -> torch.Tensor:
    """Torch's own product, whatever this process' products are."""
    return PRODUCTS[name](*factors, **scales, out=torch.empty(0, dtype=factors[0].dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_torchs_own_to_a_rounding(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factors = [torch.randn(shape).to(dtype) for shape in SHAPES[name]]
    factors[-1] = factors[-1].transpose(-1, -2).contiguous().transpose(-1, -2)  # as weights are
    scales = {"beta": 0.5, "alpha": 2.0} if len(factors) == 3 else {}
    expected = own(name, *factors, **scales)
    with quick_products(), StorageTrace("cpu") as trace:
        trace.begin_phase("learn")
        found = PRODUCTS[name](*factors, **scales)
    assert (found.dtype, found.shape, found.stride()) == (dtype, expected.shape, expected.stride())
    torch.testing.assert_close(
        found, expected, rtol=torch.finfo(dtype).eps, atol=1e-5 if dtype is torch.float32 else 1e-2
    )
    assert trace.phase_peaks["learn"] == sum(one.untyped_storage().nbytes() for one in (*factors, expected, found))


def test_gradients_are_those_of_the_products() -> None:
    weight = torch.randn(17, 33, dtype=torch.bfloat16, requires_grad=True)
    given = torch.randn(9, 33, dtype=torch.bfloat16, requires_grad=True)
    with quick_products():
        torch.nn.functional.linear(given, weight).sum().backward()
    assert weight.grad is not None
    assert given.grad is not None
    torch.testing.assert_close(weight.grad.float(), given.detach().float().sum(0).expand(17, 33), rtol=0.01, atol=0.02)
    torch.testing.assert_close(given.grad.float(), weight.detach().float().sum(0).expand(9, 33), rtol=0.01, atol=0.02)


def test_types_that_differ_are_an_error_still() -> None:
    with quick_products(), pytest.raises(RuntimeError, match="same dtype"):
        torch.mm(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bfloat16))
