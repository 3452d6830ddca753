"""ZeRO-3 for the simulated device: which parameters are gathered, and when each goes.

    gathering = Gathering(module, partitions, options)        hooks on every module below `module`
    gathering.release_all()                                   before an optimizer step

A module's parameters come when it runs, forward or backward, and go when it has run. DeepSpeed writes down in which order modules
run, from one forward pass of the whole to the next (its trace). While they run in that order again, it gathers ahead, and what is
needed soon stays. Any other order, such as a rollout's, ends that. It follows DeepSpeed 0.19.8 (runtime/zero/parameter_offload.py
and partitioned_param_coordinator.py, whose functions the docstrings name), one rank.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vrambench.methods.offload.zero import ZeroOptions, number_of


class Status(enum.Enum):
    AWAY = "away"
    COMING = "coming"
    HERE = "here"


@dataclass(eq=False)
class Partition:
    """One parameter, which `gather` brings to the device and `free` takes away; `gather_alone`: as `gather`, where nothing else
    comes with it. `numel`: its elements when it is there. `persistent`: it is small enough to stay. `active`: modules that need
    it now."""

    parameter: nn.Parameter
    number: int
    gather: Callable[[], None]
    gather_alone: Callable[[], None]
    free: Callable[[], None]
    numel: int
    status: Status = Status.AWAY
    persistent: bool = False
    active: set[nn.Module] = field(default_factory=set)


class Order(enum.Enum):
    """What is known of the order in which modules run (ZeRoTraceMode)."""

    RECORDED = 1
    KNOWN = 2
    UNKNOWN = 3


class Gathering:
    """`module`: the whole that is trained. `partitions`: of all its parameters, frozen ones too."""

    def __init__(
        self,
        module: nn.Module,
        partitions: dict[nn.Parameter, Partition],
        options: ZeroOptions,
        device: torch.device,
    ) -> None:
        self._module = module
        self._partitions = partitions
        self._device = device
        self._options = options
        self._order = Order.UNKNOWN
        self._step = 0
        self._modules: list[nn.Module] = []
        self._uses: list[tuple[Partition, int]] = []
        """Parameters in the order of their use, each with the step of it."""
        self._queue: deque[tuple[Partition, int]] = deque()
        """Uses that were not gathered for yet."""
        self._latest: dict[Partition, int] = {}
        """The last step that each was gathered for."""
        self._available = 0
        self._coming: dict[Partition, None] = {}
        self._in_backward: dict[nn.Module, None] = {}
        self._recomputed: dict[nn.Module, set[Partition]] = {}
        self._released: dict[tuple[nn.Module, int], set[Partition]] = {}
        self._outer: dict[nn.Module, list[nn.Parameter]] = {}
        """Parameters of other modules that a module reads in its forward pass."""
        self._running: list[nn.Module] = []
        self._before_backward: dict[nn.Module, int] = {}
        self._gradients_to_come: dict[nn.Module, int] = {}
        for part in module.modules():
            part._parameters = Watched(part._parameters, self)
        self._in_forward = False
        module.register_forward_pre_hook(self._begin)
        self._hook(module)
        module.register_forward_hook(self._end)
        self._running.append(module)

    # --- hooks ---

    def _hook(self, module: nn.Module) -> None:
        """_register_deepspeed_module."""
        for child in module.children():
            self._hook(child)
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)
        module.register_forward_hook(self._give)
        module.register_forward_pre_hook(self._get)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._in_forward = True
        self._reset()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._in_forward = False

    @torch.no_grad()
    def _before(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(module)
        self._fetch(module, forward=True)

    @torch.no_grad()
    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        self._release(module, forward=True)

    def _give(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        def touch(tensor: torch.Tensor) -> Any:
            self._before_backward[module] = self._before_backward.get(module, 0) + 1
            return _Notice.apply(tensor, lambda: self._reaches(module))

        return _touched(touch, output)

    def _get(self, module: nn.Module, inputs: Any) -> Any:
        self._gradients_to_come[module] = 0

        def touch(tensor: torch.Tensor) -> Any:
            if tensor.requires_grad:
                self._gradients_to_come[module] += 1
            return _Notice.apply(tensor, lambda: self._leaves(module))

        return _touched(touch, inputs)

    @torch.no_grad()
    def _reaches(self, module: nn.Module) -> None:
        """The backward pass comes to `module`."""
        if self._before_backward[module] > 0:
            self._fetch(module, forward=False)
            self._before_backward[module] -= 1

    @torch.no_grad()
    def _leaves(self, module: nn.Module) -> None:
        """A gradient of an input of `module` is there."""
        self._gradients_to_come[module] -= 1
        if self._gradients_to_come[module] == 0:
            self._release(module, forward=False)

    def read(self, parameter: nn.Parameter) -> None:
        """Code of a forward pass asks a module for `parameter` (ZeROOrderedDict)."""
        partition = self._partitions.get(parameter)
        if partition is None or not self._in_forward or partition.status is not Status.AWAY:
            return
        self._outer.setdefault(self._running[-1], []).append(parameter)
        partition.gather_alone()
        partition.status = Status.HERE

    # --- order ---

    def _its(self, module: nn.Module) -> list[Partition]:
        """iter_params."""
        its = (*module.parameters(recurse=False), *self._outer.get(module, ()))
        return list(dict.fromkeys(self._partitions[parameter] for parameter in its))

    def _reset(self) -> None:
        """reset_step: a forward pass of the whole begins."""
        self._end_coming()
        if self._order is not Order.KNOWN:
            self._compare(len(self._modules))
        if self._order is Order.RECORDED:
            self._uses = [
                (partition, step)
                for step, module in enumerate(self._modules)
                for partition in sorted(self._its(module), key=lambda one: one.number)
            ]
            self._compare(len(self._uses))
            self._compare(len(self._uses))
            self._order = Order.KNOWN
        elif self._order is Order.UNKNOWN:
            self._order = Order.RECORDED
        self._queue = deque(self._uses)
        self._latest = {}
        self._step = 0
        self._available = 0

    def _compare(self, numbers: int) -> None:
        """assert_ints_same_as_other_ranks: so many, and how many, are sent around."""
        for count in (1, numbers):
            torch.empty(count, dtype=torch.int64, device=self._device)

    def _end_coming(self) -> None:
        """_clean_inflight_param_registry."""
        for partition in self._coming:
            partition.status = Status.HERE
            self._release_one(partition)
        self._coming.clear()

    def _follow(self, module: nn.Module) -> None:
        """trace_prologue, record_module."""
        if self._order is Order.KNOWN and (len(self._modules) <= self._step or self._modules[self._step] is not module):
            self._order = Order.UNKNOWN
            self._modules, self._uses, self._latest = [], [], {}
            self._queue.clear()
            self._end_coming()
        if self._order is Order.RECORDED:
            self._modules.append(module)

    # --- gathering ---

    def _fetch(self, module: nn.Module, *, forward: bool) -> None:
        """fetch_sub_module."""
        self._follow(module)
        if not forward:
            self._in_backward[module] = None
        wanted = self._its(module)
        self._gather(wanted)
        recomputing = forward and torch._C._current_graph_task_id() != -1
        for partition in wanted:
            partition.active.add(module)
            if recomputing and self._in_backward and not partition.parameter.requires_grad:
                owner = next(reversed(self._in_backward))
                self._recomputed.setdefault(owner, set()).add(partition)
                partition.active.add(owner)
            if partition in self._coming:
                del self._coming[partition]
                partition.status = Status.HERE
        if self._order is Order.KNOWN:
            self._gather_ahead(wanted)
        self._step += 1

    def _gather_ahead(self, wanted: list[Partition]) -> None:
        new = {partition for partition in wanted if self._latest.get(partition, -1) < self._step}
        passed: set[Partition] = set()
        while self._queue and len(passed) < len(new):
            partition, step = self._queue.popleft()
            self._latest[partition] = step
            passed.add(partition)
        prefetched = number_of(self._options.stage3_prefetch_bucket_size)
        most = min(self._options.stage3_max_live_parameters - self._available, prefetched)
        ahead: dict[Partition, None] = {}
        elements = 0
        while self._queue and elements < most:
            partition, step = self._queue.popleft()
            self._latest[partition] = max(self._latest.get(partition, -1), step)
            if partition.status is Status.AWAY and partition not in ahead:
                ahead[partition] = None
                elements += partition.numel
        self._gather(ahead)

    def _gather(self, wanted: Iterable[Partition]) -> None:
        """__all_gather_params, NoGatherCoalescedHandle."""
        away = sorted((one for one in wanted if one.status is Status.AWAY), key=lambda one: one.number)
        for partition in away:
            self._available += partition.numel
            partition.gather()
            partition.status = Status.COMING
            self._coming[partition] = None

    # --- releasing ---

    def _release(self, module: nn.Module, *, forward: bool) -> None:
        """release_sub_module."""
        its = set(self._its(module))
        going = self._not_needed_soon(module, its) if self._order is Order.KNOWN else set(its)
        if not forward:
            recomputed = self._recomputed.pop(module, set())
            going |= {partition for partition in recomputed if not partition.persistent}
            its |= recomputed
            self._in_backward.pop(module, None)
        for partition in sorted(its, key=lambda one: one.number):
            partition.active.discard(module)
            if partition in going:
                self._release_one(partition)

    def _not_needed_soon(self, module: nn.Module, its: set[Partition]) -> set[Partition]:
        """__params_to_release, whose answers DeepSpeed keeps."""
        key = module, self._step
        if key not in self._released:
            going = {
                partition
                for partition in its
                if not partition.persistent and self._latest.get(partition, -1) <= self._step
            }
            passed = 0
            for later in self._modules[self._step :]:
                if passed >= self._options.stage3_max_reuse_distance:
                    break
                for partition in self._its(later):
                    going.discard(partition)
                    passed += partition.numel
            self._released[key] = going
        return set(self._released[key])

    def _release_one(self, partition: Partition) -> None:
        if partition.status is Status.HERE and not partition.active:
            partition.free()
            partition.status = Status.AWAY
            self._available -= partition.numel

    def end_backward(self) -> None:
        """release_backward_leftovers: modules whose inputs needed no gradient have not been left."""
        while self._in_backward:
            module, _ = self._in_backward.popitem()
            for partition in {*self._its(module), *self._recomputed.pop(module, set())}:
                partition.active.discard(module)
                if not partition.persistent:
                    self._release_one(partition)

    def release_all(self) -> None:
        """release_and_reset_all."""
        for partition in self._partitions.values():
            if partition in self._coming:
                del self._coming[partition]
                partition.status = Status.HERE
            partition.active.clear()
            self._release_one(partition)

    def gather_persistent(self) -> None:
        """_post_step."""
        self._gather_at_once(partition for partition in self._partitions.values() if partition.persistent)

    def gather_one_by_one(self) -> None:
        """_zero3_consolidated_16bit_state_dict: each module's, one after the other, on their way to the host."""
        self.release_all()
        for module in self._module.modules():
            for partition in self._gather_at_once(self._its(module)):
                self._release_one(partition)

    def _gather_at_once(self, wanted: Iterable[Partition]) -> list[Partition]:
        """_all_gather: those that were away."""
        away = [partition for partition in wanted if partition.status is Status.AWAY]
        for partition in away:
            (partition.gather if len(away) > 1 else partition.gather_alone)()
            partition.status = Status.HERE
        return away


class Watched(OrderedDict[str, Any]):
    """A module's parameters by name; `gathering` hears which are read."""

    def __init__(self, parameters: dict[str, Any], gathering: Gathering) -> None:
        super().__init__(parameters)
        self._gathering = gathering

    def __getitem__(self, name: str) -> Any:
        parameter = super().__getitem__(name)
        if parameter is not None:
            self._gathering.read(parameter)
        return parameter


class _Notice(torch.autograd.Function):
    """A tensor as it is, which says when its gradient is there (PreBackwardFunctionForModule, PostBackwardFunctionModule)."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, tell: Callable[[], None]) -> torch.Tensor:
        ctx.tell = tell
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.tell()
        return *gradients, None


def _touched(touch: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """`value` with `touch` of every tensor in it (apply_to_tensors_only)."""
    if isinstance(value, torch.Tensor):
        return touch(value)
    if isinstance(value, dict):
        for key in value:
            value[key] = _touched(touch, value[key])
    elif isinstance(value, tuple | list):
        touched = [_touched(touch, each) for each in value]
        return type(value)(*touched) if hasattr(value, "_fields") else type(value)(touched)
    return value
