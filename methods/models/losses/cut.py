"""The loss that never makes logits: `loss: cut_cross_entropy` (Wijmans et al., arXiv 2411.09009).

Apple's ml-cross-entropy (of June 2025; cce.py, cce_lse_forward.py, indexed_dot.py, cce_backward.py) computes logits block by
block inside Triton kernels. In memory there are the logarithms of the sums of exponentials, a mean logit for every word, by
which the backward pass orders the words, and in the backward pass the gradients of states and head in their types: with the
package's defaults nothing is summed in fp32. The head's gradient is made where the head is trained only.

On CUDA it is that package's own function. Elsewhere, for predictions and tests, the same buffers are made in the same order
around operators that stand for the kernels, which allocate nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vrambench.methods.amp import autocast_dtype
from vrambench.methods.models import parts

LOCK_ROWS, LOCK_COLUMNS = 128, 64
"""Rows and columns of a gradient for which the kernels have one lock."""


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt.

    Raises ConfigurationError where the model scales its logits, which the kernels cannot.
    """
    head = parts.plain_head(model, "loss: cut_cross_entropy", bias=False)
    cap = parts.cap_alone(model, "cut_cross_entropy", "its kernels know")
    states, labels = parts.hidden_states(model, inputs), inputs.wanted
    if labels.is_cuda:
        from cut_cross_entropy import linear_cross_entropy

        loss: torch.Tensor = linear_cross_entropy(states, head.weight, labels, shift=True, softcap=cap)
        return loss
    states, targets = states.contiguous().flatten(0, -2), labels.flatten()
    return _Cut.apply(states, head.weight, targets, _positions(labels, inputs.predicted), cap)


def _positions(labels: torch.Tensor, predicted: int) -> torch.Tensor:
    """The flat positions before the `predicted` ones of labels[:, 1:], those that are not IGNORED."""
    kept = labels[..., 1:] != parts.IGNORED
    flat = kept.nonzero_static(size=predicted).to(torch.int32)
    flat[:, 0] *= labels.stride(0)
    return flat.sum(1)


class _Cut(torch.autograd.Function):
    """LinearCrossEntropyFunction with reduction="mean": of targets at `positions` + 1, from states [N, hidden] and a head's weight
    [V, hidden]."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        positions: torch.Tensor,
        cap: float | None,
    ) -> torch.Tensor:
        ctx.types = states.dtype, weight.dtype
        ctx.wanted = states.requires_grad, weight.requires_grad
        lower = autocast_dtype(states.device)
        if lower is not None:
            states, weight = states.to(lower), weight.to(lower)
        count = len(positions)
        sums = states.new_full((count,), float("-inf"), dtype=torch.float32)
        states.new_full((-(-count // LOCK_ROWS),), 0, dtype=torch.int32)
        average = states.new_full((len(weight),), 0.0, dtype=torch.float32)
        log_sums(states, weight, positions, cap, sums, average)
        losses = states.new_zeros((count,), dtype=torch.float32)
        negative_dots(states, weight, targets, positions, cap, losses)
        losses.add_(sums)
        ctx.save_for_backward(states, weight, targets, positions, sums, average)
        ctx.cap = cap
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        states, weight, targets, positions, sums, average = ctx.saved_tensors
        torch.argsort(average).to(torch.int32)
        grad_states = torch.zeros_like(states) if ctx.wanted[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.wanted[1] else None
        columns = -(-weight.shape[1] // LOCK_COLUMNS)
        locks = [
            tensor.new_zeros((-(-rows // LOCK_ROWS), columns), dtype=torch.int32)
            for tensor, rows in ((grad_states, len(positions)), (grad_weight, len(weight)))
            if tensor is not None
        ]
        gradients(states, weight, targets, positions, sums, grad_output, ctx.cap, grad_states, grad_weight)
        del locks
        if grad_weight is not None:
            grad_weight = grad_weight.to(ctx.types[1])
        if grad_states is not None:
            grad_states = grad_states.to(ctx.types[0])
        return grad_states, grad_weight, None, None, None


def _logits(states: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor, cap: float | None) -> torch.Tensor:
    logits = states[positions].float() @ weight.float().t()
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.library.custom_op("vrambench::log_sums", mutates_args=("sums", "average"))
def log_sums(
    states: torch.Tensor,
    weight: torch.Tensor,
    positions: torch.Tensor,
    cap: float | None,
    sums: torch.Tensor,
    average: torch.Tensor,
) -> None:
    """_cce_lse_forward_kernel: logarithms of the sums of exponentials of logits, for each position, and each word's mean logit."""
    logits = _logits(states, weight, positions, cap)
    sums.copy_(logits.logsumexp(dim=-1))
    average.copy_(logits.mean(dim=0))


@torch.library.custom_op("vrambench::negative_dots", mutates_args=("losses",))
def negative_dots(
    states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    positions: torch.Tensor,
    cap: float | None,
    losses: torch.Tensor,
) -> None:
    """_indexed_neg_dot_forward_kernel: minus the targets' logits."""
    logits = _logits(states, weight, positions, cap)
    losses.copy_(-logits.gather(-1, targets[positions + 1].unsqueeze(-1)).squeeze(-1))


@torch.library.custom_op("vrambench::cut_gradients", mutates_args=("grad_states", "grad_weight"))
def gradients(
    states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    positions: torch.Tensor,
    sums: torch.Tensor,
    grad_output: torch.Tensor,
    cap: float | None,
    grad_states: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
) -> None:
    """_cce_backward_kernel: the gradients of states and head, of the mean."""
    logits = _logits(states, weight, positions, cap)
    wanted = targets[positions + 1].unsqueeze(-1)
    gradient = (logits - sums.unsqueeze(-1)).exp()
    gradient.scatter_add_(-1, wanted, torch.full_like(wanted, -1.0, dtype=torch.float32))
    gradient *= grad_output / len(positions)
    if cap is not None:
        gradient *= 1 - (logits / cap).square()
    if grad_states is not None:
        grad_states[positions] = (gradient @ weight.float()).to(grad_states.dtype)
    if grad_weight is not None:
        grad_weight.copy_(gradient.t() @ states[positions].float())


for kernel in (log_sums, negative_dots, gradients):
    kernel.register_fake(lambda *arguments: None)
