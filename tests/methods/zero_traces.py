"""What ZeRO's engine and its stand-ins do to memory, traced and compared: the tools of test_simulated_zero.py.

As a script it compares cells on the CPU: `python zero_traces.py '[{cell}, ...]'`, JSON on the last line. An engine needs a process
of its own: a process group, once there, is there for every later test.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.methods.traces import QuickTrace
from vrambench.bench.measure.meters.storages import Storage
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload import Offload
from vrambench.methods.offload.deepspeed import stand_in
from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.offload.simulated import SimulatedEngine
from vrambench.methods.offload.simulated3 import SimulatedZero3

STEPS = 2
NUMBER = 8  # bytes


class Change(NamedTuple):
    """A storage of `nbytes` came (positive, by `operator`) or went (negative) in `phase`."""

    phase: str
    nbytes: int
    operator: str = ""


class Recorder(QuickTrace):
    """A storage trace that remembers every change. Tensors that only stand for some (FakeTensor) hold nothing. `late_bytes`: the
    largest of those that another thread was the last to let go of."""

    def __init__(self, device_type: str) -> None:
        super().__init__(device_type)
        self.changes: list[Change] = []
        self.late_bytes = 0
        self._operator = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operator = str(func)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _see(self, tensor: torch.Tensor) -> None:
        if isinstance(tensor, FakeTensor):
            return
        before = self.live_bytes
        super()._see(tensor)
        if self.phase is not None and self.live_bytes != before:
            self.changes.append(Change(self.phase, self.live_bytes - before, self._operator))

    def _ended(self, storage: Storage) -> None:
        before = self.live_bytes
        super()._ended(storage)
        resized = storage() is not None
        if self.phase is not None and self.live_bytes != before and not resized:
            self.changes.append(Change(self.phase, self.live_bytes - before))
            if threading.current_thread() is not threading.main_thread():
                self.late_bytes = max(self.late_bytes, before - self.live_bytes)


class Traced(NamedTuple):
    """`peaks` of each phase above what was there before. `held`: the host's bytes of each learner at the end. `late_bytes` as in
    `Recorder`."""

    changes: list[Change]
    peaks: dict[str, int]
    live_bytes: int
    phases: list[str]
    gradients: list[int]
    held: list[int]
    late_bytes: int


class OnTheCpu(SimulatedZero3):
    """gloo has no reduce_scatter: it makes a copy, which it then splits. Parameters are copied as if they came from elsewhere
    (see `copying`)."""

    def _reduce(self, flat: torch.Tensor) -> None:
        super()._reduce(flat)
        torch.empty_like(flat)

    def _arrived(self, home: torch.Tensor) -> torch.Tensor:
        return home.clone() if self._setup.parameters_on_host else home


@contextmanager
def copying(offload: Offload) -> Iterator[None]:
    """DeepSpeed's engine copies parameters that come from the host, as a GPU's memory needs it. On the CPU they are there already,
    and nothing would show which were gathered, and when."""
    from deepspeed.runtime.zero import partition_parameters as deepspeed

    class Copied(deepspeed.NoGatherHandle):
        def __init__(self, param: Any) -> None:
            super().__init__(param)
            param.data = param.data.clone()

    class AllCopied(deepspeed.NoGatherCoalescedHandle):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            for param in params:
                param.data = param.data.clone()

    with pytest.MonkeyPatch.context() as patch:
        if offload.parameters_on_host:
            patch.setattr(deepspeed, "NoGatherHandle", Copied)
            patch.setattr(deepspeed, "NoGatherCoalescedHandle", AllCopied)
        yield


@contextmanager
def standing_in(offload: Offload, host_device: str) -> Iterator[None]:
    """The stand-in as ZeRO's learner on every device, with the host's memory on `host_device`."""
    usual = offload.learner

    def learner(module: Any, setup: Any, device: Any, phase: Any) -> SimulatedEngine:
        kind = OnTheCpu if setup.zero_stage == 3 else stand_in(setup)
        return kind(module, setup, device, phase, torch.device(host_device))

    object.__setattr__(offload, "learner", learner)
    try:
        yield
    finally:
        object.__setattr__(offload, "learner", usual)


def traced(cell: Cell, kind: str) -> Traced:
    """Loads the cell's job on that kind of device and runs STEPS steps of it."""
    heard: list[str] = []
    gradients: list[int] = []

    def phase(name: str) -> None:
        trace.begin_phase(name)
        heard.append(name)
        if name == "optimizer_step":
            learner: Any = job.roles["policy"].learner
            found = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in learner.gradients()}
            gradients.append(sum(storage.nbytes() for storage in found.values()))

    with Recorder(kind) as trace:
        start = trace.live_bytes
        job = Job(cell, get_device(kind), phase)
        job.load()
        for index in range(STEPS):
            job.step(index)
        live = trace.live_bytes - start
        changes = list(trace.changes)
    peaks = {name: peak - start for name, peak in trace.phase_peaks.items()}
    held = [host_bytes(role.learner) for role in job.roles.values() if role.learner is not None]
    return Traced(changes, peaks, live, heard, gradients, held, trace.late_bytes)


ON_HOST = {
    2: (
        "single_partition_of_fp32_groups",
        "param_buffer_of_bit16_for_cpu_offload_groups",
        "temp_grad_buffer_for_cpu_offload",
        "accumulated_grads_in_cpu",
    ),
    3: ("fp32_partitioned_groups_flat", "param_groups_fp16_flat_cpu_memory", "grad_partitions_flat_buffer"),
}
"""What DeepSpeed's optimizers call what they keep on the host, by stage."""


def host_bytes(learner: Any) -> int:
    """What the learner keeps on the host: said by the stand-in, counted in the engine. On the CPU nothing is page-locked, and so
    nothing kept for that."""
    if isinstance(learner, SimulatedEngine):
        memory = learner.host_memory
        return sum(buffer.nbytes for buffer in memory) - sum(buffer.nbytes for buffer in memory.cached)
    zero = learner.module.optimizer
    offload = learner.module.zero_offload_optimizer()
    if offload is None:
        return 0
    names = ON_HOST[learner.module.zero_optimization_stage()]
    masters = getattr(zero, names[0])
    kept = [*(getattr(zero, name, None) for name in names), [master.grad for master in masters], zero.optimizer.state]
    if learner.module.zero_offload_param() is not None:
        kept.append([p.ds_tensor for p in learner.module.parameters() if not p.requires_grad])
    found = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors_in(kept) if tensor.dim()}
    return sum(storage.nbytes() for storage in found.values())


def compared(flat: dict[str, Any]) -> dict[str, Any]:
    """The cell on the CPU with the engine and with the stand-in: where they differ first, and what each came to."""
    cell = from_flat(flat)
    with standing_in(cell.offload_value, "cpu"):
        Job(cell, get_device("cpu")).load()  # what is imported or made once for all is there from now on
        gc.collect()
        gc.freeze()  # and traces need not look through it each time they begin
        made = traced(cell, "cpu")
    with copying(cell.offload_value):
        engine = traced(cell, "cpu")
    coming, going = (
        [[change for change in without_numbers(run.changes) if change.nbytes * sign > 0] for run in (engine, made)]
        for sign in (1, -1)
    )
    pairs = enumerate(zip_longest(*coming))
    gone, also = (Counter(change.nbytes for change in changes) for changes in going)
    return {
        "first_difference": next(
            (each for each in pairs if not all(each[1]) or each[1][0][:2] != each[1][1][:2]), None
        ),
        "gone_otherwise": [*(gone - also).items(), *(also - gone).items()],
        "changes": len(engine.changes),
        "came": came(engine.changes),
        "engine": engine._replace(changes=[])._asdict(),
        "stand_in": made._replace(changes=[])._asdict(),
    }


def without_numbers(changes: list[Change]) -> list[Change]:
    """All but the numbers that the host reckons with. Norms come on the device and in `learn`, where nothing is left out."""
    reckoned = ("load", "optimizer_step")
    return [change for change in changes if change.phase not in reckoned or abs(change.nbytes) > NUMBER]


def came(changes: list[Change]) -> list[tuple[str, int]]:
    """(phase, bytes) of the storages that came after loading, without numbers of the host's and attention's results."""
    return [
        change[:2]
        for change in without_numbers(changes)
        if change.nbytes > 0 and change.phase != "load" and "scaled_dot_product" not in change.operator
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([compared(flat) for flat in json.loads(sys.argv[1])]))
