"""Where bytes are: a job's weights, gradients and optimizer state by role, counted by storages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from vrambench.bench.measure.meters.storages import storage_bytes
from vrambench.bench.results.records import Parameters, RoleBytes
from vrambench.methods.job import Job
from vrambench.methods.offload.learner import tensors_in

# What bitsandbytes keeps on a quantised parameter: LLM.int8's weights and scales, nf4's scales and code book. And where a parameter
# of ZeRO-3's lies while it is not gathered.
KEPT_ON_PARAMETERS = ("CB", "SCB", "quant_state", "ds_tensor")


def weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and what quantised layers keep beside their weights (scales, code books)."""
    for part in module.modules():
        yield from own_weights(part)


def own_weights(module: nn.Module) -> Iterator[torch.Tensor]:
    """Those of `module` itself, without what is below it."""
    for parameter in module._parameters.values():  # parameters(recurse=False) takes five times as long
        if parameter is not None:
            yield from with_state(parameter)
    yield from (buffer for buffer in module._buffers.values() if buffer is not None)
    state = vars(module).get("state")  # bitsandbytes' MatmulLtState
    if state is not None:
        yield from tensors_in(state)


def with_state(parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """`parameter`, and what bitsandbytes and DeepSpeed keep on it."""
    yield parameter
    kept = [getattr(parameter, name) for name in KEPT_ON_PARAMETERS if hasattr(parameter, name)]
    if kept:
        yield from tensors_in(kept)


def elements(parameter: nn.Parameter) -> int:
    """How many numbers it has; under ZeRO-3, whether it is gathered or not."""
    count: int = getattr(parameter, "ds_numel", parameter.numel())
    return count


def whole_bytes(parameter: nn.Parameter) -> int:
    """Of `parameter`, gathered, and of what bitsandbytes keeps on it."""
    held = {tensor.untyped_storage()._cdata: tensor.nbytes for tensor in with_state(parameter)}
    if hasattr(parameter, "ds_numel"):
        for tensor in tensors_in([parameter, getattr(parameter, "ds_tensor", None)]):
            held.pop(tensor.untyped_storage()._cdata, None)
        held[-1] = elements(parameter) * parameter.element_size()
    return sum(held.values())


def gradients(job: Job) -> dict[str, int]:
    """Bytes of the gradients that each role holds on the job's device now."""
    counted: set[int] = set()
    kind = job.device.kind
    return {
        name: storage_bytes(role.learner.gradients(), kind, counted) if role.learner else 0
        for name, role in job.roles.items()
    }


def largest_gradients(job: Job) -> dict[str, int]:
    """Bytes of each role's largest gradient: what a layerwise optimizer, which frees each at once, holds at least."""
    return {
        name: max(parameter.nbytes for parameter in role.module.parameters() if parameter.requires_grad)
        for name, role in job.roles.items()
        if role.learner
    }


def role_bytes(job: Job, gradients_bytes: dict[str, int]) -> dict[str, RoleBytes]:
    """The roles' lines of the ledger, on the job's device; a storage that several roles use belongs to the first of them."""
    counted: set[int] = set()
    kind = job.device.kind
    lines = {}
    for name, role in job.roles.items():
        held = storage_bytes(weights(role.module), kind, counted)
        state = storage_bytes(unpaged(role.learner.optimizer_state()), kind, counted) if role.learner else 0
        lines[name] = RoleBytes(
            weights_bytes=held,
            gradients_bytes=gradients_bytes.get(name, 0),
            optimizer_bytes=state,
            shares=role.shares,
        )
    return lines


def unpaged(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Without what bitsandbytes keeps in managed memory, which is neither the device's nor the host's for good."""
    return (tensor for tensor in tensors if not getattr(tensor, "is_paged", False))


def paged_state(job: Job) -> list[torch.Tensor]:
    """Optimizer state in managed memory, all roles'."""
    states = [tensor for role in job.roles.values() if role.learner for tensor in role.learner.optimizer_state()]
    return [tensor for tensor in states if getattr(tensor, "is_paged", False)]


def count_parameters(parameters: Iterable[nn.Parameter]) -> Parameters:
    """How many numbers they are: a quantised weight counts as the numbers that it stands for, and one of ZeRO-3's whether it is
    gathered or not."""
    total = trainable = 0
    for parameter in parameters:
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else elements(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return Parameters(total=total, trainable=trainable)
