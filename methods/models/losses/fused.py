"""The loss fused with the head, by Liger-Kernel: `loss: liger`.

Liger (0.8, ops/fused_linear_cross_entropy.py) makes the logits of a chunk of tokens in the model's type, and a Triton kernel puts
their gradient in their place; so the gradients of the states and of the head are there when the forward pass ends, and are kept
for the backward pass. A chunk has as many tokens as make its logits about as large as all hidden states. Beside it there are
the states' gradient, and, where the head is trained, the head's gradient, its part from a chunk, and that part in fp32 (neither
part under autocast from capability 8.0 on, where cuBLAS adds to fp32 weights' gradients itself).

On CUDA it is Liger's own function. Elsewhere, for predictions and tests, the same buffers are made in the same order around
one operator that stands for the kernel, which allocates nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vrambench.methods.models import parts


def mean(model: nn.Module, inputs: parts.Inputs) -> torch.Tensor:
    """The mean cross-entropy of labels[:, 1:] that are learnt.

    Raises ConfigurationError where the model scales its logits, which Liger's kernel cannot.
    """
    head = parts.plain_head(model, "loss: liger", bias=False)
    cap = parts.cap_alone(model, "liger", "Liger's kernel knows")
    states = parts.hidden_states(model, inputs)
    # Every position has a label, the last a masked one: transformers/model/loss_utils.py of Liger, LigerForCausalLMLoss.
    labels = F.pad(inputs.wanted, (0, 1), value=parts.IGNORED)[..., 1:].contiguous()
    states = states.view(-1, states.shape[-1])
    total = _function(labels)(states, head.weight, labels.view(-1), cap)
    return total / inputs.predicted


def _function(tokens: torch.Tensor) -> Any:
    if not tokens.is_cuda:
        return _Fused.apply
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda states, weight, labels, cap: liger_fused_linear_cross_entropy(
        states, weight, labels, reduction="sum", softcap=cap
    )


class _Fused(torch.autograd.Function):
    """LigerFusedLinearCrossEntropyFunction with reduction="sum": the sum of cross-entropies of labels [N], from states [N, hidden]
    and a head's weight [V, hidden]."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        count, width = states.shape
        chunk = chunk_tokens(count, width, len(weight))
        grad_states = torch.zeros_like(states)
        trains_head = states.requires_grad and weight.requires_grad
        grad_weight = torch.zeros_like(weight) if trains_head else None
        losses = torch.zeros(count, dtype=torch.float32, device=states.device)
        (labels != parts.IGNORED).sum()
        for start in range(0, count, chunk):
            end = min(start + chunk, count)
            part = states[start:end]
            logits = part @ weight.t()
            cross_entropy_in_place(logits, losses[start:end], labels[start:end], cap)
            if states.requires_grad:
                grad_states[start:end] = logits @ weight
            if grad_weight is None:
                continue
            if grad_weight.dtype == torch.float32 and logits.dtype != torch.float32:
                add_product(grad_weight, logits.t(), part.to(logits.dtype))
            else:
                grad_weight += torch.mm(logits.t(), part).float()
        ctx.save_for_backward(grad_states, grad_weight)
        return torch.sum(losses)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
        grad_states, grad_weight = ctx.saved_tensors
        for gradient in (grad_states, grad_weight):
            if gradient is not None:
                gradient.mul_(grad_output)
        return grad_states, grad_weight, None, None


def chunk_tokens(tokens: int, width: int, words: int) -> int:
    """Tokens in a chunk: a power of two."""
    chunks = -(-words // width)
    return 1 << (-(-tokens // chunks) - 1).bit_length()


@torch.library.custom_op("vrambench::cross_entropy_in_place", mutates_args=("logits", "losses"))
def cross_entropy_in_place(logits: torch.Tensor, losses: torch.Tensor, labels: torch.Tensor, cap: float | None) -> None:
    """liger_cross_entropy_kernel: logits [N, V] become their gradients, losses [N] the cross-entropies of labels [N]."""
    capped = logits.float() if cap is None else cap * torch.tanh(logits.float() / cap)
    logprobs = capped.log_softmax(dim=-1)
    kept = labels != parts.IGNORED
    wanted = labels.clamp(min=0).unsqueeze(-1)
    losses.copy_(-logprobs.gather(-1, wanted).squeeze(-1) * kept)
    gradient = (logprobs.exp() - torch.zeros_like(logprobs).scatter_(-1, wanted, 1.0)) * kept.unsqueeze(-1)
    if cap is not None:
        gradient = gradient * (1 - (capped / cap).square())
    logits.copy_(gradient)


@torch.library.custom_op("vrambench::add_product", mutates_args=("total",))
def add_product(total: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> None:
    """total += one @ two, of factors in half precision and a total in fp32: one call of cuBLAS (torch.addmm with out_dtype)."""
    total.add_(one.float() @ two.float())


@add_product.register_fake
def _(total: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> None:
    return None


@cross_entropy_in_place.register_fake
def _(logits: torch.Tensor, losses: torch.Tensor, labels: torch.Tensor, cap: float | None) -> None:
    return None
