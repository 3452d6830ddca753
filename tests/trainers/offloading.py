"""TRL's own activation offloading, on a CPU that passes for a GPU: tensors of the CPU say that they are on CUDA, what is moved
there is copied, and streams are none."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vrambench.methods import activation_offloading as ours
from vrambench.methods.streams import NoStream


class AsOnCuda(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return SimpleNamespace(type="cuda")
        if func == torch.Tensor.to and args[1] == "cuda":
            made = torch.empty(args[0].shape, dtype=args[0].dtype)
            return made.copy_(args[0])
        return func(*args, **(kwargs or {}))


def prepare(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets TRL's class run on the CPU, where its SFTTrainer makes it too. Gives the list of what it calls record_stream on, in
    bytes."""
    from trl.models import activation_offloading as theirs
    from trl.trainer import sft_trainer

    for name, stand_in in {
        "torch.cuda.default_stream": NoStream,
        "torch.cuda.Stream": NoStream,
        "torch.cuda.stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(name, stand_in)
    lent: list[int] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: lent.append(tensor.nbytes))
    # Which addresses are used again depends on the machine.
    monkeypatch.setattr(theirs, "_get_unique_tensor_key", ours._key)
    monkeypatch.setattr(sft_trainer, "get_act_offloading_ctx_manager", made)
    return lent


def made(model: nn.Module) -> Any:
    """TRL's context manager for `model`."""
    from trl.models.activation_offloading import get_act_offloading_ctx_manager

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.accelerator.current_accelerator", lambda: SimpleNamespace(type="cuda"))
        context = get_act_offloading_ctx_manager(model, use_pin_memory=False, warn_if_no_head=False)
    context.pack_hook, context.unpack_hook = _as_on_cuda(context.pack_hook), _as_on_cuda(context.unpack_hook)
    return context


def _as_on_cuda(hook: Any) -> Any:
    def hooked(given: Any) -> Any:
        with AsOnCuda():
            return hook(given)

    return hooked
