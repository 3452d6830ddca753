"""Activation offloading: what autograd saves goes to the host in the forward pass, and comes back in the backward pass.

    offloading = OffloadActivations(module, device)
    with offloading.forward():
        loss = module(tokens)
    with offloading.backward():
        loss.backward()

It does what TRL 1.12 does with `activation_offloading=True` (models/activation_offloading.py: OffloadActivations and
get_act_offloading_ctx_manager, which SFTTrainer.training_step enters; both from torchtune), with its defaults:

  forward   A saved tensor of 1,024 bytes or more is copied to page-locked host memory on a second stream, unless it shares a
            parameter's storage. It stays in a stash, so that the copy can be made, until another one is copied that was saved five
            or more later. What is saved again meanwhile (the input of q_proj, k_proj and v_proj) stays on the device until the
            backward pass. A tensor with gaps or an offset is made contiguous first, on the second stream. The output head's are
            left alone.
  backward  Each is copied into memory of the second stream, where it stays until the work of the next autograd node that brings
            something back has been submitted. If something else still holds it after its own node (a checkpointed layer, whose
            input it is), its memory waits for the device's work when it is let go.
  between   Before each forward pass cached memory goes back to the driver (TRL does so where bitsandbytes is imported, which it
            is wherever it is installed), and after each backward pass the host waits for both streams.

TRL's class is not used itself: it cannot be made without an accelerator, passes over tensors on the CPU, and knows storages by
their addresses, which the simulated device has none of. It also lets either stream use a copy without gaps before the other is
done with it, for which axolotl makes such copies on the work's stream. Here the streams wait for each other, and the memory is
TRL's.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.variable import Variable

from vrambench.methods.device import Device
from vrambench.methods.models.parts import unwrapped
from vrambench.methods.streams import OnHost, streams_of

SMALLEST_BYTES = 1024
"""min_offload_size."""
STASH = 5
"""max_fwd_stash_size."""

HEADS = ("output", "lm_head", "head")

StorageKey = tuple[weakref.ref[torch.UntypedStorage], int, torch.dtype]
"""A storage, an offset in it, and a type. A storage that is gone is never taken for one that came to lie in its place, as TRL may
do, which asks for the address."""


class Saved(NamedTuple):
    """What autograd gets back for a saved tensor: one of the device, or a view of a copy of what is on the host."""

    tensor: torch.Tensor | None
    host: OnHost | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0


class Stashed(NamedTuple):
    """What is being copied to the host, and the `event` after which it has been. `copied`: it is itself a copy, without gaps, in
    memory of the second stream."""

    tensor: torch.Tensor
    event: Any
    copied: bool


class OffloadActivations:
    """Of one trained `module` on `device`. Saved tensors are known by the numbers in which they were saved."""

    def __init__(self, module: nn.Module, device: Device) -> None:
        self._module = module
        self._device = device
        self._streams = streams_of(device)
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._parameters: set[int] = set()
        """Their storages."""
        self._count = 0
        self._saved: dict[int, Saved] = {}
        self._latest: dict[StorageKey, int] = {}
        """The last tensor of each storage that is in the stash, or was saved while it was."""
        self._keys: dict[int, StorageKey] = {}
        self._stash: dict[int, Stashed] = {}
        """Tensors that are being copied to the host."""
        self._taken: dict[int, int] = {}
        """Tensors of the stash that the backward pass has got, those `copied` alone, and how many held their storages then."""
        self._back: dict[int, torch.Tensor] = {}
        self._used: dict[int, Any] = {}
        """Tensors that were brought back, and the events after which the work has used them."""
        self._graph: int | None = None
        self._node: Any = None
        self._in_backward = self._backward_done = False
        leave_out_head(module)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass. What an earlier one saved and no backward pass has used is dropped."""
        if self._backward_done:
            self._drop()
        self._parameters = {parameter.untyped_storage()._cdata for parameter in self._module.parameters()}
        self._device.empty_cache()
        with self._hooks:
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Around the backward pass; what it saves itself (reentrant checkpoints) is offloaded, too."""
        self._in_backward = False
        try:
            with self._hooks:
                yield
        finally:
            self._streams.synchronize()
            for held in (self._back, self._used, self._stash, self._taken):
                held.clear()
            self._backward_done = True

    def _drop(self) -> None:
        for number in list(self._saved):
            self._forget(number)
        self._count = 0
        self._backward_done = False

    # --- forward ---

    def _pack(self, tensor: torch.Tensor) -> int:
        self._count += 1
        number, key = self._count, _key(tensor)
        if key in self._latest:
            self._saved[number] = Saved(tensor)
            self._track(key, number)
        elif self._stays(tensor):
            self._saved[number] = Saved(tensor)
        else:
            self._offload(number, key, tensor)
        return number

    def _stays(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.device.type != self._device.torch.type
            or tensor.nbytes < SMALLEST_BYTES
            or tensor.untyped_storage()._cdata in self._parameters
        )

    def _offload(self, number: int, key: StorageKey, tensor: torch.Tensor) -> None:
        streams = self._streams
        last = self._end_copies(number - STASH)  # noqa: F841 - held until this one's copy has been asked for, as TRL does
        streams.copies.wait_stream(streams.work)
        saved = tensor
        with streams.copying():
            shape, stride, offset = tensor.shape, tensor.stride(), int(tensor.storage_offset())
            if 0 in stride:  # the storage, without what is repeated in it
                elements = tensor.untyped_storage().size() // tensor.element_size()
                host = streams.to_host(torch.as_strided(tensor, (elements,), (1,), 0))
            else:
                tensor = tensor.clone(memory_format=torch.contiguous_format) if offset else tensor.contiguous()
                stride, offset = tensor.stride(), 0
                if tensor is not saved:
                    streams.work.wait_event(streams.copies.record_event())
                host = streams.to_host(tensor)
        self._saved[number] = Saved(None, host, shape, stride, offset)
        self._stash[number] = Stashed(tensor, streams.copies.record_event(), tensor is not saved)
        self._track(key, number)

    def _end_copies(self, up_to: int) -> torch.Tensor | None:
        """The stash lets go of tensors up to this number; gives the last one."""
        last = None
        for number in [number for number in self._stash if number <= up_to]:
            last, event, _ = self._stash.pop(number)
            self._streams.work.wait_event(event)
            self._release(number)
        return last

    # --- backward ---

    def _unpack(self, number: int) -> torch.Tensor:
        if not self._in_backward:
            self._in_backward = True
            self._graph = torch._C._current_graph_task_id()
            Variable._execution_engine.queue_callback(partial(self._let_go, self._back))
        saved = self._saved[number]
        tensor = saved.tensor if saved.host is None else self._bring_back(number, saved)
        assert tensor is not None
        self._forget(number)
        return tensor

    def _bring_back(self, number: int, saved: Saved) -> torch.Tensor:
        assert saved.host is not None
        node = torch._C._current_autograd_node()
        before: list[int] = []
        if torch._C._current_graph_task_id() == self._graph and self._node != node:
            self._node = node
            before = list(self._back)
        streams, holders = self._streams, None
        if number in self._stash:
            tensor = self._stash[number].tensor
            if self._stash[number].copied:
                self._taken[number] = _holders(tensor)
        else:
            with streams.copying():
                tensor = torch.as_strided(streams.from_host(saved.host), saved.shape, saved.stride, saved.offset)
            streams.work.wait_stream(streams.copies)
            self._back[number] = tensor
            holders = _holders(tensor)
        node.register_hook(partial(self._after_node, number, holders, before))
        return tensor

    def _after_node(self, number: int, holders: int | None, before: list[int], outputs: Any, inputs: Any) -> None:
        """A node for which `number` was brought back has been submitted. `holders`: of its storage then. `before`: what had been
        brought back for nodes before it."""
        if holders is not None and number in self._back:
            if _holders(self._back[number]) > holders:  # beyond its node
                self._streams.used_by_work(self._back.pop(number))
            else:
                self._used[number] = self._streams.work.record_event()
        self._order_taken()
        last = self._end_copies(self._count)  # noqa: F841 - held as long as TRL does
        self._let_go(before)

    def _order_taken(self) -> None:
        """Before the stash lets go of copies in the second stream's memory that the work has taken."""
        for number, holders in self._taken.items():
            if number in self._stash and _holders(self._stash[number].tensor) > holders:
                self._streams.used_by_work(self._stash[number].tensor)
        if self._taken:
            self._streams.copies.wait_event(self._streams.work.record_event())
            self._taken.clear()

    def _let_go(self, numbers: Any) -> None:
        """Of tensors that were brought back. The second stream does not use their memory again before the work has used it."""
        for number in list(numbers):
            if number in self._used:
                self._streams.copies.wait_event(self._used.pop(number))
            self._back.pop(number, None)

    # --- storages ---

    def _track(self, key: StorageKey, number: int) -> None:
        self._latest[key] = number
        self._keys[number] = key

    def _release(self, number: int) -> None:
        """If nothing was saved of its storage since, what is saved next is offloaded again."""
        key = self._keys.pop(number, None)
        if key is not None and self._latest.get(key) == number:
            del self._latest[key]

    def _forget(self, number: int) -> None:
        saved = self._saved.pop(number)
        if saved.host is not None:
            self._streams.let_go(saved.host)
        self._release(number)


def _key(tensor: torch.Tensor) -> StorageKey:
    return weakref.ref(tensor.untyped_storage()), int(tensor.storage_offset()), tensor.dtype


def _holders(tensor: torch.Tensor) -> int:
    """How many tensors, views too, hold its storage."""
    count: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return count


def leave_out_head(module: nn.Module) -> None:
    """What the output head saves stays on the device: a copy would only just have been made when it is needed again."""
    plain = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    for head in output_heads(module):
        head.register_forward_pre_hook(lambda *_: plain.__enter__())
        head.register_forward_hook(lambda *_: plain.__exit__(), always_call=True)


def output_heads(module: nn.Module) -> list[nn.Module]:
    """By the first of TRL's names for one that the model in `module` has: none where its head is called otherwise."""
    model = unwrapped(getattr(module, "model", module))
    named = [getattr(model, name, None) for name in HEADS]
    return [head for head in named if isinstance(head, nn.Module)][:1]
