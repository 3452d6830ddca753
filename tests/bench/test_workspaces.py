"""Hidden workspaces against values worked out by hand from the sources' formulas, and the card figures beside them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vrambench.bench.predict.unseen.hardware import hardware, outside_allocator
from vrambench.bench.predict.unseen.matmuls import LT_MATMULS, MATMULS, cublas_workspace_bytes, cublaslt_workspace
from vrambench.bench.predict.unseen.workspaces import UNKNOWN, WORKSPACES, workspaces
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CARDS
from vrambench.methods.precision import PRECISIONS

MIB = 2**20
FLASH = "aten._scaled_dot_product_flash_attention.default"
FLASH_BACKWARD = "aten._scaled_dot_product_flash_attention_backward.default"
EFFICIENT = "aten._scaled_dot_product_efficient_attention.default"
EFFICIENT_BACKWARD = "aten._scaled_dot_product_efficient_attention_backward.default"
EMBEDDING = "aten.embedding_dense_backward.default"


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def heads(batch: int, number: int, tokens: int, size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[B,H,T,D] in the memory order of a projection, [B,T,H,D]."""
    return meta(batch, tokens, number, size, dtype=dtype).transpose(1, 2)


def asked(name: str, *args: Any, card: str | None = None, result: Any = None, **kwargs: Any) -> tuple[int, ...]:
    return workspaces(CARDS[card] if card else None)[name](args, kwargs, result)


# --- names ---


def operator(name: str) -> Any:
    import bitsandbytes  # noqa: F401 - registers its operators

    namespace, function, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), function), overload)


@pytest.mark.parametrize("name", sorted({*WORKSPACES, *UNKNOWN, *MATMULS, *LT_MATMULS}))
def test_every_operator_exists_under_its_name(name: str) -> None:
    assert str(operator(name)) == name


def test_what_axis_values_declare_are_their_libraries_operators() -> None:
    declared = [name for axis in AXES.values() for value in axis.values().values() for name in value.workspaces]
    assert sorted(declared) == [
        "bitsandbytes.gemm_4bit.default",
        "bitsandbytes.int8_mm_dequant.default",
        "bitsandbytes.int8_scaled_mm.default",
        "bitsandbytes.int8_vectorwise_dequant.default",
        "bitsandbytes.int8_vectorwise_quant.default",
    ]
    assert all(str(operator(name)) == name for name in declared)


def test_an_operator_is_known_or_unknown_and_not_both() -> None:
    assert not WORKSPACES.keys() & UNKNOWN.keys()
    assert LT_MATMULS <= MATMULS


# --- attention ---


def test_flash_backward_of_llama_2_7b_at_512_tokens() -> None:
    states = heads(1, 32, 512, 128)
    assert asked(FLASH_BACKWARD, states, states, states, states, states) == (32 * 512 * 4, 512 * 32 * 128 * 4)


def test_flash_backward_rounds_queries_to_128_and_heads_to_32_or_64() -> None:
    small, large = heads(2, 8, 500, 80), heads(1, 4, 130, 160)
    assert asked(FLASH_BACKWARD, small, small, small, small, small) == (2 * 8 * 512 * 4, 2 * 8 * 512 * 96 * 4)
    assert asked(FLASH_BACKWARD, large, large, large, large, large) == (4 * 256 * 4, 4 * 256 * 192 * 4)


def test_flash_backward_of_grouped_heads_expands_keys_and_values() -> None:
    query, key = heads(2, 24, 512, 128), heads(2, 8, 512, 128)
    assert asked(FLASH_BACKWARD, query, query, key, key, query)[2:] == 2 * (2 * 512 * 24 * 128 * 2,)


def test_flash_backward_copies_a_gradient_that_lies_by_heads() -> None:
    states, grad = heads(1, 4, 128, 64), meta(1, 4, 128, 64)
    assert asked(FLASH_BACKWARD, grad, states, states, states, states)[0] == 4 * 128 * 64 * 2


def test_flash_forward_of_a_full_gpu_splits_nothing() -> None:
    states = heads(4, 32, 512, 128)
    assert asked(FLASH, states, states, states, 0.0, True) == ()


def test_flash_decoding_splits_over_the_keys() -> None:
    """One query, 32 heads, 2048 keys in 16 blocks, 82 processors counted twice: four splits fill 128/164 = 0.78 of a wave,
    and no number of splits does better (8: 256/164 of two waves, 16: 512/164 of four)."""
    query, keys = heads(1, 32, 1, 128), heads(1, 32, 2048, 128)
    assert asked(FLASH, query, keys, keys) == (4 * 32 * 4, 4 * 32 * 128 * 4)


def test_flash_decoding_of_grouped_heads_counts_groups_as_queries() -> None:
    query, keys = heads(1, 32, 1, 128), heads(1, 8, 256, 128)
    assert asked(FLASH, query, keys, keys) == (2 * 8 * 4 * 4, 2 * 8 * 4 * 128 * 4)
    assert asked(FLASH, query, keys, keys, 0.1) == ()


def test_efficient_forward_needs_sums_only_for_wide_heads_in_half_precision() -> None:
    wide, narrow = heads(2, 4, 64, 160), heads(2, 4, 64, 128)
    assert asked(EFFICIENT, wide, wide, wide, None, True) == (2 * 4 * 64 * 160 * 4,)
    assert asked(EFFICIENT, narrow, narrow, narrow, None, True) == ()
    single = heads(2, 4, 64, 160, torch.float32)
    assert asked(EFFICIENT, single, single, single, None, True) == ()


def test_efficient_backward_in_fp32_multiplies_out_and_then_holds_tiles() -> None:
    states = heads(1, 32, 512, 128, torch.float32)
    product, sums = 32 * 512 * 128 * 4, 32 * 512 * 4
    assert asked(EFFICIENT_BACKWARD, states, states, states, states) == (product, sums, sums)
    # Of 65 queries a second tile is nearly empty, and all tiles together are more than the product.
    odd = heads(1, 32, 65, 128, torch.float32)
    tiles = 2 * 2 * (64 * 64 + 4)  # by rows and columns of 64, each with a lock and a counter
    assert asked(EFFICIENT_BACKWARD, odd, odd, odd, odd) == (32 * 65 * 4, 32 * tiles * 4)


def test_efficient_backward_in_half_precision_by_tile() -> None:
    states = heads(2, 4, 512, 128)
    sums = 2 * 4 * 512 * 4
    assert asked(EFFICIENT_BACKWARD, states, states, states, states, card="a100-80gb") == (
        sums,
        8 * 4 * (128 * 128 + 4) * 4,
    )
    # Too little shared memory for the wide tile: keys' and values' gradients are summed in memory too, in 8 splits.
    assert asked(EFFICIENT_BACKWARD, states, states, states, states) == (
        sums,
        8 * (8 * 2 * (64 * 64 + 4) + 8 * 64 * 2 * 128) * 4,
    )


# --- gradients of small parameters, reductions ---


def test_embedding_backward_at_32k_tokens() -> None:
    args = (meta(32768, 4096), meta(32768, dtype=torch.int64), 32000, -1, False)
    buffers = asked(EMBEDDING, *args)
    assert buffers[-1] == (3276 + 32000) * 4096 * 4
    assert buffers[:3] == 3 * (32768 * 8,)
    assert sum(buffers) == pytest.approx(0.58e9, rel=0.01)


def test_embedding_backward_of_few_indices_needs_nothing() -> None:
    assert asked(EMBEDDING, meta(3072, 64), meta(3072, dtype=torch.int64), 32000, -1, False) == ()
    assert len(asked(EMBEDDING, meta(3072, 64), meta(3072, dtype=torch.int64), 32000, -1, True)) == 10


@pytest.mark.parametrize(("card", "blocks"), [("rtx-3090", 31), ("a100-80gb", 32), ("t4", 10)])
def test_a_norm_weight_s_gradient_is_staged_in_global_memory(card: str, blocks: int) -> None:
    """[1,2048,4096] over tokens: four outputs a lane, 32 lanes by 4 warps, 32 blocks side by side; 512 values are left to
    each thread, so that more blocks share them: processors * blocks of 128 threads on each / 32, but 16 values at least."""
    grad = meta(1, 2048, 4096)
    buffers = asked("aten.sum.dim_IntList", grad, [0, 1], True, card=card, result=meta(1, 1, 4096))
    assert buffers == (4 * 4096 * blocks * 32 * 4, 4 * 32)


def test_a_reduction_over_rows_that_fill_the_gpu_needs_nothing() -> None:
    grad = meta(2048, 4096)
    assert asked("aten.sum.dim_IntList", grad, [-1], result=meta(2048)) == ()
    assert asked("aten.sum.dim_IntList", meta(8, 4096), [0], result=meta(4096)) == ()
    assert (
        asked("aten.argmax.default", meta(8, 32000, dtype=torch.float32), -1, result=meta(8, dtype=torch.int64)) == ()
    )


def test_a_whole_sum_needs_a_number_for_each_block() -> None:
    """10^8 values, 512 threads with one each: 82 processors with 3 such blocks, fewer than the 763 that leave 256 values."""
    (staging, semaphores) = asked("aten.sum.default", meta(10**8), result=meta(1))
    assert (staging, semaphores) == (4 * 763, 4)


def test_a_sum_over_what_must_be_cast_holds_the_cast() -> None:
    mask = meta(4, 512, dtype=torch.bool)
    assert asked("aten.sum.default", mask, result=meta(1, dtype=torch.int64))[0] == 4 * 512 * 8
    lower = meta(4, 512)
    assert asked("aten.sum.default", lower, dtype=torch.float32, result=meta(1, dtype=torch.float32)) == ()


def test_a_norm_s_order_is_no_dimension() -> None:
    source = meta(2048, 4096)
    whole = asked("aten.linalg_vector_norm.default", source, 2, result=meta(1))
    columns = asked("aten.linalg_vector_norm.default", source, 2, [0], result=meta(4096))
    assert whole == asked("aten.sum.default", source, result=meta(1))
    assert columns == asked("aten.sum.dim_IntList", source, [0], result=meta(4096))


def test_a_list_s_norms_are_as_many_numbers_as_its_largest_tensor_has_chunks() -> None:
    tensors = [meta(32000, 4096), *(meta(4096) for _ in range(290))]
    assert asked("aten._foreach_norm.Scalar", tensors, 2) == (291 * 2000 * 4,)
    assert asked("aten._foreach_norm.Scalar", [], 2) == ()


def test_layer_norm_s_partial_gradients_only_where_it_is_long_and_narrow() -> None:
    def gradient(rows: int, width: int) -> tuple[int, ...]:
        source, sums = meta(rows, width), meta(rows, 1, dtype=torch.float32)
        weight = meta(width)
        mask = [True, True, True]
        return asked(
            "aten.native_layer_norm_backward.default", source, source, [width], sums, sums, weight, weight, mask
        )

    assert gradient(2048, 6144) == gradient(100_000, 6144) == ()
    parts = (768 * 2, 1365 * 768 * 2)
    assert gradient(100_000, 768) == (*parts, *parts, 8_650_752, 24)  # as an H200 recorded it


# --- sorting and drawing ---


@pytest.mark.parametrize(
    ("rows", "length", "buffers"),
    [
        (8, 4096, (4096 * 8,)),
        (1, 32000, (32000 * 8, 32000 * 12)),
        (8, 32000, (256000 * 8, 256000 * 8, 256000 * 4, 256000 * 12)),
        (128, 32000, (4096000 * 8, 4096000 * 12)),
    ],
)
def test_sorting_fp32_rows(rows: int, length: int, buffers: tuple[int, ...]) -> None:
    source = meta(rows, length, dtype=torch.float32)
    assert asked("aten.sort.default", source, -1, True) == buffers
    assert asked("aten.sort.stable", source, stable=True, dim=-1, descending=True) == buffers


def test_drawing_races_exponentials() -> None:
    probabilities = meta(8, 32000, dtype=torch.float32)
    assert asked("aten.multinomial.default", probabilities, 1) == (8 * 32000 * 4,)
    assert asked("aten.multinomial.default", probabilities, 4, True) == ()


def test_accumulating_puts_sort_their_indices() -> None:
    target, index = meta(32000, 64), meta(100, dtype=torch.int64)
    assert asked("aten.index_put.default", target, [index], meta(100, 64), True) == (800, 800, 800, 800, 1600)
    assert asked("aten.index_put.default", target, [index], meta(1, 64), True)[0] == 100 * 64 * 2
    assert asked("aten.index_put.default", target, [index], meta(100, 64)) == ()


# --- what the matrix libraries keep ---


def test_cublas_s_workspace_by_capability_and_setting() -> None:
    assert cublas_workspace_bytes(None) == cublas_workspace_bytes((8, 9)) == 8_519_680
    assert cublas_workspace_bytes((9, 0)) == cublas_workspace_bytes((12, 0)) == 33_554_432
    assert cublas_workspace_bytes((9, 0), ":4096:2:16:8") == 8_519_680
    assert cublas_workspace_bytes(None, ":0:0") == 0
    assert cublas_workspace_bytes((8, 0), "large") == 8_519_680


def test_cublaslt_s_workspace_by_version() -> None:
    assert cublaslt_workspace("2.8.0+cu126") == (MIB, False)
    assert cublaslt_workspace("2.10.1") == (MIB, True)
    assert cublaslt_workspace("2.13.0+cu130").nbytes == 0
    with pytest.raises(ValueError, match="torch version 'main'"):
        cublaslt_workspace("main")


# --- bitsandbytes ---


def declared(
    precision: str, name: str, *args: Any, result: torch.Tensor | None = None, **kwargs: Any
) -> tuple[int, ...]:
    return PRECISIONS.get(precision).workspaces[f"bitsandbytes.{name}.default"](args, kwargs, result)


def test_a_large_nf4_product_unpacks_its_weight() -> None:
    packed, shape, scales = meta(4096 * 11008 // 2, 1), [11008, 4096], meta(4096 * 11008 // 64)
    many, few = meta(4, 512, 4096), meta(4, 1, 4096)
    assert declared("nf4", "gemm_4bit", many, packed, shape, scales, 64, "nf4") == (4096 * 11008 * 2,)
    assert declared("nf4", "gemm_4bit", few, packed, shape, scales, 64, "nf4") == ()
    nested = meta(4096 * 11008 // 64, dtype=torch.uint8)
    assert declared("nf4", "gemm_4bit", many, packed, shape, scales, 64, "nf4", absmax_8bit=nested) == (
        *2 * (4096 * 11008 // 64 * 4,),
        4096 * 11008 * 2,
    )


def test_an_int8_product_holds_sums_in_int32_and_a_half() -> None:
    inputs, weight = meta(2048, 4096, dtype=torch.int8), meta(11008, 4096, dtype=torch.int8)
    outliers = (2048 * 7 * 2, 11008 * 7 * 2)
    sums = 2048 * 11008 * 4
    bf16, fp16 = meta(2048, 11008), meta(2048, 11008, dtype=torch.float16)
    assert declared("int8", "int8_scaled_mm", inputs, weight, result=bf16) == (*outliers, sums, sums // 2)
    assert declared("int8", "int8_scaled_mm", inputs, weight, result=fp16) == (*outliers, sums)
    odd, odd_weight = meta(2048, 5461, dtype=torch.int8), meta(11008, 5461, dtype=torch.int8)
    floats = (2048 * 5461 * 4, 11008 * 5461 * 4, sums)
    assert declared("int8", "int8_scaled_mm", odd, odd_weight, result=bf16) == (*outliers, sums, *floats)
    assert declared("int8", "int8_vectorwise_quant", meta(2048, 4096, dtype=torch.float16)) == (
        2048 * 4096 * 2,
        2048 * 4096,
    )


def test_an_int8_weight_is_not_searched_for_outliers_as_an_input_is() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from vrambench.methods.cell import resolve

    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    axes = {"precision": "int8", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
    precision = PRECISIONS.get("int8")
    assert precision.quantize is not None
    with Names() as names, torch.device("meta"):
        linear = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
        module = precision.quantize(linear, resolve(axes, {}).workload)
        module(torch.empty(2, 64, dtype=torch.bfloat16))
    assert names.seen.count("bitsandbytes.int8_vectorwise_quant.default") == 1
    state: Any = module.state
    assert (state.CB.dtype, state.CB.shape) == (torch.int8, (96, 64))
    assert (state.SCB.dtype, state.SCB.shape) == (torch.float32, (96,))


# --- outside the allocator ---


def test_outside_the_allocator_what_is_known_and_what_is_not() -> None:
    known = outside_allocator(CARDS["a100-80gb"])
    assert known[:3] == (513 * MIB, 631 * MIB, 749 * MIB)
    assert "seen at the end of real jobs" in known.reason

    alike = outside_allocator(CARDS["rtx-4090"])
    assert (alike.low_bytes, alike.high_bytes) == (255 * MIB, 439 * MIB)
    assert "no figure is known for the rtx-4090" in alike.reason
    assert "on other cards of 24 GiB" in alike.reason

    other = outside_allocator(CARDS["a100-40gb"])
    assert (other.low_bytes, other.high_bytes) == (501 * MIB, 749 * MIB)

    nobody = outside_allocator(None)
    assert (nobody.low_bytes, nobody.high_bytes) == (255 * MIB, 749 * MIB)
    assert "no card is named" in nobody.reason


def test_libraries_that_not_every_job_loads_come_on_top() -> None:
    plain, more = outside_allocator(CARDS["h200"]), outside_allocator(CARDS["h200"], 64 * MIB)
    assert [more[part] - plain[part] for part in range(3)] == [64 * MIB] * 3
    assert "64 MiB of them are libraries" in more.reason


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_every_card_has_an_interval_and_hardware(card: Any) -> None:
    low, expected, high, reason = outside_allocator(card)
    assert 0 < low <= expected <= high < 2**30
    assert reason
    assert hardware(card).multiprocessors == card.multiprocessors
    assert math.log2(hardware(card).threads_per_multiprocessor) >= 10
