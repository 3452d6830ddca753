"""Memory that PyTorch's CUDA operators allocate inside themselves, where no tracer sees it: a table by operator.

    WORKSPACES["aten._scaled_dot_product_flash_attention_backward.default"](args, kwargs, result)  ->  bytes of each buffer

Arguments may be meta tensors: only shapes, strides and types are read. A function gives the buffers that live together at
the call's peak, its result apart; blocks of the allocator, rounding included, are the allocator model's business. What
CUDA keeps from the first matrix product on is apart: matmuls.py. What nobody can tell from source is in `UNKNOWN`, with the
reason, and declares nothing. Operators of axis values declare theirs beside their own code (`AxisValue.workspaces`).

Some sizes depend on the GPU (number of multiprocessors, shared memory): `workspaces(card)` is the table for a card,
`WORKSPACES` the one for no card, with an RTX 3090's hardware. Each function names its source file, below
aten/src/ATen/native unless it says otherwise; read in PyTorch's sources of 2025 and 2026 and, where they are shipped with
it, in the headers of torch 2.13. tests/gpu/workspaces.py measures the table on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from vrambench.bench.predict.unseen.hardware import Hardware, hardware
from vrambench.bench.predict.unseen.reductions import reduction_buffers
from vrambench.methods.cards import Card
from vrambench.methods.registry import Workspace

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Sized = Callable[[Hardware, Args, Kwargs, Any], tuple[int, ...]]

EMBEDDING_INDICES = 3072
"""Up to here embedding's gradient is summed in place, in one kernel."""

SMALL_SORT = 4096
CHUNK_ELEMENTS = 65536


def workspaces(card: Card | None = None) -> Mapping[str, Workspace]:
    """The table for `card`'s hardware."""
    shape = hardware(card)
    return MappingProxyType({name: partial(sized, shape) for name, sized in _SIZED.items()})


# --- attention ---


def flash_attention(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """Row sums and outputs in fp32 of each split over the keys, where few queries are spread over the whole GPU (decoding).

    transformers/cuda/flash_attn/flash_api.cpp: mha_fwd, set_params_splitkv, num_splits_heuristic. The row sums that the
    backward pass needs are a result.
    """
    query, key = args[0], args[1]
    batch, heads, queries, size = query.shape
    dropout = _argument("aten._scaled_dot_product_flash_attention.default", args, kwargs, "dropout_p")
    if dropout or not query.numel() or not key.numel():
        return ()
    if queries == 1 and heads > key.shape[1]:
        # Grouped heads take the place of queries.
        queries, heads = heads // key.shape[1], key.shape[1]
    block = 256 if size <= 64 else 128 if size <= 128 else 64
    splits = _key_splits(batch * heads * _ceil(queries, 64), gpu.multiprocessors * 2, _ceil(key.shape[2], block))
    if splits == 1:
        return ()
    rows = splits * batch * heads * queries
    return rows * 4, rows * _rounded_head(size) * 4


def _key_splits(blocks: int, processors: int, key_blocks: int) -> int:
    """The smallest number of splits with 85 % of the best occupancy; one where the GPU is four fifths full anyway."""
    if blocks >= 0.8 * processors:
        return 1
    efficiency = {}
    for splits in range(1, min(128, processors, key_blocks) + 1):
        if splits == 1 or _ceil(key_blocks, splits) != _ceil(key_blocks, splits - 1):
            waves = blocks * splits / processors
            efficiency[splits] = waves / math.ceil(waves)
    best = max(efficiency.values())
    return next(splits for splits, reached in efficiency.items() if reached >= 0.85 * best)


def flash_attention_backward(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """fp32 sums of the queries' gradient and of softmax's, with queries rounded up to 128 and head sizes to 32 (64 beyond
    128); with grouped heads the keys' and values' gradients for every query head; copies of what is not contiguous.

    transformers/cuda/flash_attn/flash_api.cpp: mha_bwd; transformers/cuda/attention_backward.cu.
    """
    grad, query, key, _, out = args[:5]
    batch, heads, queries, size = query.shape
    rows = batch * heads * _up(queries, 128)
    buffers = [*_copies(grad.transpose(1, 2), out.transpose(1, 2)), rows * 4, rows * _rounded_head(size) * 4]
    if key.shape[1] != heads:
        buffers += 2 * [batch * key.shape[2] * heads * size * key.element_size()]
    return tuple(buffers)


def flash_dense(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """As `flash_attention`, for tensors [B,T,H,D]; a window changes nothing."""
    query, key = (tensor.transpose(1, 2) for tensor in args[:2])
    dropout = _argument("aten._flash_attention_forward.default", args, kwargs, "dropout_p")
    return flash_attention(gpu, (query, key, key, dropout), {}, result)


def flash_dense_backward(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """As `flash_attention_backward`, for tensors [B,T,H,D]."""
    return flash_attention_backward(gpu, tuple(tensor.transpose(1, 2) for tensor in args[:5]), kwargs, result)


def efficient_attention(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """Outputs in fp32, for half precision and heads of more than 128.

    transformers/cuda/attention.cu, mem_eff_attention/kernel_forward.h: kNeedsOutputAccumulatorBuffer.
    """
    query, value = args[0], args[2]
    if max(query.shape[-1], value.shape[-1]) <= 128 or query.dtype == torch.float32:
        return ()
    return (query.shape[0] * query.shape[1] * query.shape[2] * value.shape[-1] * 4,)


def efficient_attention_backward(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """fp32 tiles of the queries' gradient (where a block's registers are too few, of keys' and values' too), and the rows'
    sums of gradient times output, which fp32 makes by explicit products.

    transformers/cuda/attention_backward.cu, mem_eff_attention/kernel_backward.h: workspace_size; which tile runs, from
    kernels/cutlassB.h. The wide tiles of half precision are taken to need more than 100 KiB of shared memory.
    """
    grad, query, key, value = args[:4]
    batch, heads, queries, size = query.shape
    keys, value_size = key.shape[2], value.shape[-1]
    half = query.element_size() == 2
    rows, columns, registers = _tile(gpu, max(size, value_size), half)
    tiles = _ceil(queries, rows) * _ceil(size, columns) * (rows * columns + 4)
    if half and not registers:
        splits = max(1, min(_ceil(keys, columns), 200 // (batch * heads)))
        tiles += splits * columns * (_up(size, rows) + _up(value_size, rows))
    workspace = batch * heads * _up(tiles, 4) * 4
    copies = _copies(grad.transpose(1, 2))
    sums = batch * heads * queries * 4
    if half and (registers or gpu.capability != (7, 0)):
        return *copies, sums, workspace
    product = batch * heads * queries * value_size * 4
    casts = (product, product) if half else ()
    return max((*copies, sums, workspace), (*copies, *casts, product, sums, sums), key=sum)


def _tile(gpu: Hardware, size: int, half: bool) -> tuple[int, int, bool]:
    """Rows and columns of a block's tile, and whether keys' and values' gradients stay in registers."""
    wide = gpu.shared_memory_bytes > 100 * 1024
    if size <= 64:
        return 64, 64, half
    if half and gpu.capability >= (8, 0):
        if size <= 96 and gpu.capability in ((8, 6), (8, 9)):
            return 128, 64, True
        if size <= 128 and wide:
            return 128, 128, True
    return (128, 64, half and size <= 128) if wide else (64, 64, False)


# --- gradients of small parameters ---


def embedding_backward(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """Above 3072 indices: the sorted indices and their origins, where runs of equal ones and their pieces of ten begin, and
    an fp32 row for each piece there can be: indices / 10 + min(indices, rows of the table).

    cuda/Embedding.cu: embedding_dense_backward_cuda; cuda/EmbeddingBackwardKernel.cu. The temporaries of the sort are gone
    before the rows are made. Newer versions add into an fp32 table instead where indices are over 150 times the rows.
    """
    name = "aten.embedding_dense_backward.default"
    grad, indices = args[0], args[1]
    table = _argument(name, args, kwargs, "num_weights")
    by_frequency = _argument(name, args, kwargs, "scale_grad_by_freq")
    count, item = indices.numel(), indices.element_size()
    copies = _copies(grad, indices)
    if count <= EMBEDDING_INDICES and not by_frequency:
        return copies
    runs = min(count, table)
    pieces = count // 10 + runs
    per_index = (3 + bool(by_frequency)) * (count * item,)
    row = grad.shape[-1] * max(4, grad.element_size())
    return *copies, *per_index, 8, runs * item, runs * item, 8, pieces * item, pieces * row


def layer_norm_backward(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """Partial gradients of weight and bias, for more than 65,536 rows that are too narrow to fill the GPU: what was made for the
    two, the parts, and what their sums are reduced in, one after the other.

    cuda/layer_norm_kernel.cu: LaunchGammaBetaBackwardCUDAKernel. To the byte on an H200.
    """
    source, shape, mask = args[1], args[2], args[7]
    width = math.prod(shape)
    rows = source.numel() // width
    copies = _copies(args[0])
    if rows <= 64 * 1024 or width // 32 >= gpu.multiprocessors // 2:
        return copies
    blocks = min(32 * 1024 // _ceil(width, 32), _ceil(rows, 32))
    parts, wanted = source.new_empty(blocks, width, device="meta"), sum(map(bool, mask[1:]))
    made = wanted * (width * source.element_size(), parts.numel() * source.element_size())
    return copies + made + (reduction_buffers(parts, [0], 4, gpu) if wanted else ())


# --- reductions ---


def summed(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """sum, mean, vector norms: the staging buffer in the accumulator's type (see `reductions`), and a copy of an input that
    is cast before it is summed (any cast but half precision to fp32).

    cuda/ReduceSumProdKernel.cu, ReduceNormKernel.cu; ReduceOpsUtils.h: make_reduction.
    """
    source = args[0]
    fused = source.dtype == result.dtype or (source.element_size() == 2 and result.dtype == torch.float32)
    cast = () if fused else (source.numel() * result.element_size(),)
    accumulator = 8 if result.dtype == torch.float64 or not result.dtype.is_floating_point else 4
    return cast + reduction_buffers(source, _dims(args, kwargs), accumulator, gpu)


def _dims(args: Args, kwargs: Kwargs) -> list[int]:
    """The reduced dimensions, none for all of them: the only argument that can be a dimension or a list of them."""
    given = kwargs.get("dim", next((one for one in args[1:] if isinstance(one, list | tuple)), None))
    if given is None:
        given = next((one for one in args[1:] if isinstance(one, int) and not isinstance(one, bool)), [])
    return [given] if isinstance(given, int) else list(given)


def vector_norm(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """As `summed`; its first number is the order."""
    return summed(gpu, (args[0], *args[2:]), kwargs, result)


def arg_reduced(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """argmax, max and their like over a dimension: pairs of value and index, 16 bytes. cuda/ReduceArgMaxKernel.cu,
    TensorCompare.cu."""
    return reduction_buffers(args[0], _dims(args, kwargs), 16, gpu)


def extreme(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """max, min, amax, amin, any and all, in the input's own type. cuda/ReduceMaxValuesKernel.cu, ReduceLogicKernel.cu."""
    item = 1 if result.dtype == torch.bool else args[0].element_size()
    return reduction_buffers(args[0], _dims(args, kwargs), item, gpu)


def foreach_norm(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """One fp32 number for each tensor and each 65,536 elements of the largest one. cuda/ForeachReduceOp.cu:
    foreach_tensor_norm_cuda."""
    tensors = args[0]
    if not tensors:
        return ()
    chunks = max(_ceil(tensor.numel(), CHUNK_ELEMENTS) for tensor in tensors)
    return (len(tensors) * chunks * max(4, tensors[0].element_size()),)


# --- sorting and drawing ---


def sorted_(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """Rows of up to 4096: one range of indices. Longer ones: a single row, or rows of a million, one after the other; up to
    127 rows, all at once as pairs of row and index; more, by segments. Each with as much again for cub's passes.

    cuda/Sort.cpp, Sort.h, SortStable.cu; cub's lookback tables (about a hundredth) are left out.
    """
    source = args[0]
    if source.numel() == 0 or source.dim() == 0:
        return ()
    dim = kwargs.get("dim", next((one for one in args[1:] if type(one) is int), -1))
    length, item, count = source.shape[dim], source.element_size(), source.numel()
    if length <= SMALL_SORT:
        return (length * 8,)
    copies = () if source.stride(dim) == 1 and source.is_contiguous() else (count * item,)
    rows = count // length
    if rows == 1 or length >= 1_000_000:
        return *copies, length * 8, length * (item + 8)
    if rows < 128:
        return *copies, count * 8, count * 8, count * item, count * (item + 8)
    return *copies, count * 8, count * (item + 8)


def multinomial(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """One draw, or draws without replacement: a race of exponentials as large as the probabilities. Distributions.cpp."""
    source = args[0]
    replaced = _argument("aten.multinomial.default", args, kwargs, "replacement")
    if replaced and _argument("aten.multinomial.default", args, kwargs, "num_samples") > 1:
        return ()
    return (source.numel() * source.element_size(),)


def index_put(gpu: Hardware, args: Args, kwargs: Kwargs, result: Any) -> tuple[int, ...]:
    """With accumulation: the indices made linear, sorted, their origins, and cub's copies of both; values that are
    broadcast are written out. Without, nothing. cuda/Indexing.cu: index_put_with_sort_kernel."""
    target, indices, values = args[:3]
    if not (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
        return ()
    given = [index for index in indices if index is not None]
    count = math.prod(torch.broadcast_shapes(*(index.shape for index in given)))
    rest = [
        size for size, index in zip(target.shape, [*indices, *[None] * target.dim()], strict=False) if index is None
    ]
    written = count * math.prod(rest)
    whole = () if values.numel() == written and values.is_contiguous() else (written * values.element_size(),)
    return *whole, count * 8, count * 8, count * 8, count * 8, count * 16


_SIZED: dict[str, Sized] = {
    "aten._scaled_dot_product_flash_attention.default": flash_attention,
    "aten._scaled_dot_product_flash_attention_backward.default": flash_attention_backward,
    "aten._flash_attention_forward.default": flash_dense,
    "aten._flash_attention_backward.default": flash_dense_backward,
    "aten._scaled_dot_product_efficient_attention.default": efficient_attention,
    "aten._scaled_dot_product_efficient_attention_backward.default": efficient_attention_backward,
    "aten.embedding_dense_backward.default": embedding_backward,
    "aten.native_layer_norm_backward.default": layer_norm_backward,
    "aten.sum.default": summed,
    "aten.sum.dim_IntList": summed,
    "aten.mean.default": summed,
    "aten.mean.dim": summed,
    "aten.linalg_vector_norm.default": vector_norm,
    "aten.argmax.default": arg_reduced,
    "aten.argmin.default": arg_reduced,
    "aten.max.dim": arg_reduced,
    "aten.min.dim": arg_reduced,
    "aten.max.default": extreme,
    "aten.min.default": extreme,
    "aten.amax.default": extreme,
    "aten.amin.default": extreme,
    "aten.any.default": extreme,
    "aten.all.default": extreme,
    "aten._foreach_norm.Scalar": foreach_norm,
    "aten.sort.default": sorted_,
    "aten.sort.stable": sorted_,
    "aten.multinomial.default": multinomial,
    "aten.index_put.default": index_put,
    "aten.index_put_.default": index_put,
    "aten._index_put_impl_.default": index_put,
}

WORKSPACES: Mapping[str, Workspace] = workspaces()

UNKNOWN: Mapping[str, str] = MappingProxyType(
    {
        "aten.linalg_svd.default": (
            "cuSOLVER says what work space gesvdj or gesvd wants only when it is asked, on the GPU, and torch falls from one "
            "driver to the other where the first does not converge"
        ),
        "aten._linalg_svd.default": "as aten.linalg_svd.default",
        "aten.linalg_qr.default": "cuSOLVER's geqrf and orgqr, asked on the GPU",
        "aten._scaled_dot_product_cudnn_attention.default": "the plan that cuDNN chooses on the GPU",
        "aten._scaled_dot_product_cudnn_attention_backward.default": "the plan that cuDNN chooses on the GPU",
        "aten.cumsum.default": "nothing over one dimension of several; for a single row cub's table, some KiB",
        "aten._grouped_mm.default": (
            "from capability 9.0 on, bf16's kernel takes some 60 bytes a group, and what CUTLASS asks for on the GPU, some tens of "
            "KiB; all else is a plain product for each group"
        ),
        "aten.topk.default": "several ways by size, with counters of some KiB, or a sort; not read closely enough",
    }
)
"""Operators whose hidden memory cannot be told from source, with the reason: they declare nothing."""


EARLY: frozenset[str] = frozenset({"aten._foreach_norm.Scalar"})
"""Operators that take their buffers before their results, as recordings show; the others are taken to do it after."""


# --- arithmetic ---


def _argument(name: str, args: Args, kwargs: Kwargs, field: str) -> Any:
    """An argument by its name in the operator's schema, its default where it was not given."""
    if field in kwargs:
        return kwargs[field]
    namespace, operator, overload = name.split(".")
    schema = getattr(getattr(getattr(torch.ops, namespace), operator), overload)._schema
    index = next(number for number, one in enumerate(schema.arguments) if one.name == field)
    return args[index] if index < len(args) else schema.arguments[index].default_value


def _copies(*tensors: torch.Tensor) -> tuple[int, ...]:
    """Bytes of the copies that `contiguous()` makes of those that are not."""
    return tuple(tensor.numel() * tensor.element_size() for tensor in tensors if not tensor.is_contiguous())


def _rounded_head(size: int) -> int:
    return _up(size, 32 if size <= 128 else 64)


def _up(number: int, multiple: int) -> int:
    return _ceil(number, multiple) * multiple


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
