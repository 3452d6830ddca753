"""`scaled_dot_product_attention` as transformers calls it: which kernel PyTorch takes on a GPU, and the same without one.

    choose(Asked(torch.bfloat16, 128, 128, masked=True))      Choice("efficient", "a mask, which the flash kernel does not take")

Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, select_sdp_backend; attention.cpp, scaled_dot_product_attention. On
Hopper and Blackwell of data centres (capability 9.0 and 10.0) PyTorch from 2.11 on, with cuDNN from 9.15 on, puts cuDNN's kernel
before these. It keeps what flash and the efficient kernel keep, and is followed as the one of them that would come next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import masking_utils

from vrambench.methods.amp import lowered
from vrambench.methods.batches import Batch
from vrambench.methods.dtypes import HALF

Capability = tuple[int, int]

FLASH_CAPABILITY = (8, 0)
WIDEST_FLASH_HEAD = 256

_capability: ContextVar[Capability | None] = ContextVar("capability", default=None)
_batch: ContextVar[Batch | None] = ContextVar("batch", default=None)


class Asked(NamedTuple):
    """One call: the type of queries, the sizes of query and value heads. `grouped`: there are more query heads than keys', and the
    kernel is left to share them. `training`: a gradient is wanted."""

    dtype: torch.dtype
    size: int
    value_size: int
    masked: bool = False
    grouped: bool = False
    training: bool = True


class Choice(NamedTuple):
    """`kernel`: flash, efficient or math. `why`: what keeps it from being flash, None where it is."""

    kernel: str
    why: str | None


def choose(asked: Asked, capability: Capability | None = None) -> Choice:
    """The kernel that PyTorch takes on a GPU of that compute capability, one with flash attention where it is None."""
    why = _not_flash(asked, capability)
    if why is None:
        return Choice("flash", None)
    not_efficient = _not_efficient(asked, capability)
    if not_efficient is None:
        return Choice("efficient", why)
    return Choice("math", why if why == not_efficient else f"{why}; and {not_efficient}")


def _not_flash(asked: Asked, capability: Capability | None) -> str | None:
    if asked.masked:
        return "a mask, which the flash kernel does not take"
    if asked.dtype not in HALF:
        return "fp32, and the flash kernel takes half precision only"
    if asked.size != asked.value_size:
        return (
            f"query heads of {asked.size} and value heads of {asked.value_size}, which the flash kernel does not take"
        )
    if asked.size > WIDEST_FLASH_HEAD:
        return f"heads of {asked.size}, and the flash kernel takes up to {WIDEST_FLASH_HEAD}"
    if capability is not None and capability < FLASH_CAPABILITY:
        return "a GPU of a compute capability below 8.0, which has no flash kernel"
    small = capability is not None and capability[0] in (8, 12) and capability != FLASH_CAPABILITY
    if small and asked.training and 192 < asked.size <= 224:
        return f"heads of {asked.size}, whose gradient needs more shared memory than this GPU has"
    return None


def _not_efficient(asked: Asked, capability: Capability | None) -> str | None:
    if asked.grouped:
        return "grouped heads, which the efficient kernel does not take as they are"
    half = asked.dtype.itemsize == 2
    if capability is not None and capability < FLASH_CAPABILITY and asked.dtype == torch.bfloat16:
        return "bf16 on a GPU of a compute capability below 8.0"
    multiple = 8 if half else 4
    if asked.size % multiple or asked.value_size % multiple:
        return f"heads of {asked.size}, and the efficient kernel takes multiples of {multiple}"
    return None


@contextmanager
def working_on(batch: Batch) -> Iterator[None]:
    """Within, it is `batch` whose masks and positions are on meta."""
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)


def batch_at_work() -> Batch | None:
    """The batch on meta; None where all sequences are as long."""
    return _batch.get()


def padded() -> bool:
    """Whether a mask on meta hides any token."""
    batch = _batch.get()
    return batch is not None and not batch.full


@contextmanager
def on_simulated_device(capability: Capability | None) -> Iterator[None]:
    """Within, meta tensors are attended to with the kernels of a GPU of that capability, and masks are made as the batch at work
    says, since positions and masks have no values there."""
    token = _capability.set(capability)
    real_attention, real_positions = F.scaled_dot_product_attention, masking_utils.find_packed_sequence_indices
    real_fast_all, real_all = masking_utils.fast_all, torch.all

    def attention(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if query.is_meta:
            return lowered(_as_on_cuda, query, *args, **kwargs)
        return real_attention(query, *args, **kwargs)

    def positions(position_ids: torch.Tensor) -> torch.Tensor | None:
        if not position_ids.is_meta:
            return real_positions(position_ids)
        return _packed(position_ids)

    def fast_all(tensor: torch.Tensor) -> Any:
        made = real_fast_all(tensor)
        return not padded() if tensor.is_meta else made

    def every(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As create_recurrent_attention_mask asks it of a mask."""
        made, batch = real_all(tensor, *args, **kwargs), _batch.get()
        of_mask = tensor.is_meta and batch is not None and tensor.shape == (len(batch.rows), batch.width)
        return not padded() if of_mask else made

    F.scaled_dot_product_attention = attention
    masking_utils.find_packed_sequence_indices = positions
    masking_utils.fast_all = fast_all
    torch.all = every  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real_attention
        masking_utils.find_packed_sequence_indices = real_positions
        masking_utils.fast_all, torch.all = real_fast_all, real_all
        _capability.reset(token)


def _packed(position_ids: torch.Tensor) -> torch.Tensor | None:
    """What `find_packed_sequence_indices` allocates, and gives: the documents' numbers where a row has several."""
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    packed = (steps != 1).cumsum(-1)
    (packed[:, -1] == 0).all()
    batch = _batch.get()
    return packed if batch is not None and batch.flat and len(batch.documents) > 1 else None


def _as_on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` of meta tensors, in the operators that CUDA runs it in."""
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    size, value_size = query.shape[-1], value.shape[-1]
    grouped = enable_gqa and key.shape[1] != query.shape[1]
    asked = Asked(query.dtype, size, value_size, attn_mask is not None, grouped, training)
    kernel = choose(asked, _capability.get()).kernel
    if kernel == "math":
        mask = None if attn_mask is None else _bias(attn_mask, query)
        made: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, mask, dropout_p, is_causal, None, scale=scale, enable_gqa=grouped
        )[0]
        return made
    if kernel == "efficient":
        return efficient_masked(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if size % 8:
        query, key, value = (F.pad(tensor, (0, 8 - size % 8)) for tensor in (query, key, value))
    scale = float(size**-0.5 if scale is None else scale)
    flash: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return flash[..., :size]


def efficient_masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """The efficient kernel [B,H,Tq,D] with a mask [B,1,Tq,Tk], which reaches it as numbers that it adds to its scores."""
    # The kernel keeps its row sums where a gradient will need them.
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    bias = None
    if mask is not None:
        # Rows begin at multiples of eight numbers: preprocess_mask.
        bias = _bias(mask, query)
        if any(stride % 8 for stride in bias.stride()[:-1]) or bias.stride(-1) != 1:
            keys = bias.shape[-1]
            bias = F.pad(bias, (0, 8 - keys % 8))[..., :keys]
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keep, dropout, causal, scale=scale
    )[0]
    return out


def _bias(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """A mask as it is added to scores: of the queries' type, made anew of bool in every call (convert_boolean_attn_mask)."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=query.dtype, device=query.device))
