"""ZeRO's stand-ins allocate and free what DeepSpeed's engine does, in its order. No GPU is needed for the proof, in two steps:

1. on the CPU, event by event, against the engine itself. There the host's buffers lie beside the device's, so the stand-in makes
   them as well (`host_device`). Two differences remain: numbers of 8 bytes at most with which the engine, or the count of the
   optimizer's state, reckons on the host, in loading and in the optimizer's step; and when a tensor goes that was reduced, since
   gloo's own thread may be the last to let go of it, sooner or later. So what comes is compared in order, what goes as a multiset.
2. on the simulated device, what comes and the peaks, against the same engine. What differs more is the same without ZeRO: how
   weights are loaded, what attention's kernels give back beside their output, and int8's products.

Run as a script, this file does the first step's cells: `python test_simulated_zero.py '[{cell}, ...]'`, JSON on the last line. An
engine needs a process of its own: a process group, once there, is there for every later test.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from vrambench.bench.measure.meters.storages import Storage, StorageTrace
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload import Offload
from vrambench.methods.offload.deepspeed import stand_in
from vrambench.methods.offload.host import host_memory
from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.offload.simulated import SimulatedEngine
from vrambench.methods.offload.simulated3 import SimulatedZero3

MakeCell = Callable[..., Cell]
Ran = dict[str, dict[str, Any]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="CPUAdam is compiled with g++")

STEPS = 2
NUMBER = 8  # bytes
LARGEST = 16_384  # elements of the tiny model's largest parameter
SMALL: dict[str, Any] = {"offload": "zero2_optimizer", "response_tokens": 2, "zero": {"reduce_bucket_size": 100_000}}
SMALL_BUCKET = {"reduce_bucket_size": 3_000}
GATHERED = SMALL_BUCKET | {
    "stage3_param_persistence_threshold": 300,
    "stage3_prefetch_bucket_size": 10_000,
    "stage3_max_live_parameters": 40_000,
    "stage3_max_reuse_distance": 20_000,
}
"""Of the tiny model, norms stay, and all else comes and goes."""
LORA = {"adapter": "lora", "lora_target_modules": "all-linear"}
CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16, accumulated, checkpointed, small buckets": {
        "precision": "bf16",
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "zero": SMALL_BUCKET | {"overlap_comm": True},
    },
    "ppo with a head, accumulated, not clipped": {
        "algorithm": "ppo",
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.0,
        "ppo": {"epochs": 1},
    },
    "ppo with a critic, bf16": {
        "algorithm": "ppo",
        "value": "separate",
        "precision": "bf16",
        "rollout_batch": 2,
        "ppo": {"epochs": 1},
    },
    "remax, lora on nf4": {"algorithm": "remax", **LORA, "precision": "nf4", "rollout_batch": 2},
    "lora on int8, checkpointed": {**LORA, "precision": "int8", "gradient_checkpointing": True},
    "bf16 adapters under fp32, accumulated": {
        **LORA,
        "adapter_dtype": "bf16",
        "gradient_accumulation_steps": 2,
        "zero": SMALL_BUCKET,
    },
    "zero2, bf16, adafactor, accumulated": {
        "offload": "zero2",
        "optimizer": "adafactor",
        "precision": "bf16",
        "gradient_accumulation_steps": 2,
        "zero": SMALL_BUCKET,
    },
    "zero3, bf16 adapters under fp32": {
        "offload": "zero3_optimizer",
        **LORA,
        "adapter_dtype": "bf16",
        "gradient_accumulation_steps": 2,
        "zero": SMALL_BUCKET,
    },
    "zero3 all": {"offload": "zero3_all", "zero": GATHERED | {"sub_group_size": 50_000}},
    "zero3 all, bf16, accumulated, checkpointed": {
        "offload": "zero3_all",
        "precision": "bf16",
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "zero": {"reduce_bucket_size": 100_000, "stage3_param_persistence_threshold": 300},
    },
    "zero3 all, ppo with a critic": {
        "offload": "zero3_all",
        "algorithm": "ppo",
        "value": "separate",
        "rollout_batch": 2,
        "ppo": {"epochs": 1},
        "zero": GATHERED,
    },
    "zero3 all, dora": {"offload": "zero3_all", "adapter": "dora", "precision": "bf16", "zero": GATHERED},
    "zero3 all, remax, lora, its own loss": {
        "offload": "zero3_all",
        "algorithm": "remax",
        **LORA,
        "precision": "bf16",
        "loss": "chunked_nll",
        "rollout_batch": 2,
        "zero": GATHERED,
    },
}
# Their host optimizers take temporary memory of the host, which is not traced here; what they keep is.
OPTIMIZERS = ("adafactor", "adamw_bnb_8bit")


class Change(NamedTuple):
    """A storage of `nbytes` came (positive, by `operator`) or went (negative) in `phase`."""

    phase: str
    nbytes: int
    operator: str = ""


class Recorder(StorageTrace):
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


@pytest.fixture(scope="module")
def ran(cell: MakeCell) -> Ran:
    """What `compared` says of CASES and OPTIMIZERS, in a process of its own."""
    cells = {name: cell(**SMALL | settings).flat() for name, settings in CASES.items()}
    cells |= {name: cell(**SMALL | {"optimizer": name}).flat() for name in OPTIMIZERS}
    done = subprocess.run(
        [sys.executable, "-P", __file__, json.dumps(list(cells.values()))],
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cells, json.loads(done.stdout.splitlines()[-1]), strict=True))


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_it_does_to_memory_what_the_engine_does(ran: Ran, name: str) -> None:
    """Every storage that comes, in order, and every one that goes; so the peaks, but for the norm in fp32 that each engine keeps on
    the host, and for what went late."""
    case = ran[name]
    assert case["first_difference"] is None
    assert case["gone_otherwise"] == []
    assert case["changes"] > 1_000
    engine, made = case["engine"], case["stand_in"]
    assert made["phases"] == engine["phases"]
    assert 0 < engine["live_bytes"] - made["live_bytes"] <= 5 * len(engine["held"])
    assert made["peaks"].keys() == engine["peaks"].keys()
    for phase, peak in engine["peaks"].items():
        assert 1 - 1e-4 <= peak / made["peaks"][phase] <= 1 + 1e-4 + engine["late_bytes"] / peak, phase


@needs_compiler
@pytest.mark.parametrize("name", [*CASES, *OPTIMIZERS])
def test_the_hosts_memory_is_what_the_engine_keeps_there(ran: Ran, name: str) -> None:
    """Of every trained model; on the CPU nothing is page-locked."""
    assert ran[name]["stand_in"]["held"] == ran[name]["engine"]["held"]


@needs_compiler
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_optimizers_change_the_host_alone(ran: Ran, name: str) -> None:
    engine, made = ran[name]["engine"]["peaks"], ran[name]["stand_in"]["peaks"]
    assert made["learn"] == pytest.approx(engine["learn"], rel=1e-4)  # with the state of the step before


@pytest.fixture(scope="module", params=CASES)
def simulated(request: pytest.FixtureRequest, cell: MakeCell) -> tuple[str, Traced, Traced]:
    """A case's name, and what the simulated device did: with the host's buffers on it, and as it is."""
    made = cell(**SMALL | CASES[request.param])
    with standing_in(made.offload_value, "meta"):
        # What is made once for all is there from now on. (bitsandbytes logs its first failure to load a kernel; while the log is
        # kept, as pytest does, the error in it keeps the weight that was being quantised.)
        Job(made, get_device("meta")).load()
        both = traced(made, "meta")
    return request.param, both, traced(made, "meta")


@needs_compiler
def test_it_is_the_same_on_the_simulated_device(ran: Ran, simulated: tuple[str, Traced, Traced]) -> None:
    """As the engine on the CPU: what comes after loading, in order, and all peaks. Loading may hold one weight more on the
    simulated device, with ZeRO and without."""
    name, both, _ = simulated
    engine = ran[name]["engine"]
    if "int8" not in name:  # whose products have kernels of their own on the CPU
        assert [list(change) for change in came(both.changes)] == ran[name]["came"]
    assert both.phases == engine["phases"]
    loading = both.peaks["load"] - engine["peaks"]["load"]
    assert -1e-3 * engine["peaks"]["load"] <= loading <= LARGEST * torch.float32.itemsize
    late = engine["late_bytes"]
    expected = {phase: pytest.approx(peak, abs=2e-3 * peak + late) for phase, peak in engine["peaks"].items()}
    assert both.peaks == expected | {"load": both.peaks["load"]}


def test_without_the_hosts_buffers_the_devices_remain(simulated: tuple[str, Traced, Traced]) -> None:
    _, both, alone = simulated
    assert both.live_bytes - alone.live_bytes == sum(alone.held)
    assert alone.phases == both.phases
    assert not torch.distributed.is_initialized()


SUMS = {"bf16 adapters under fp32, accumulated": 149_504, "zero2, bf16, adafactor, accumulated": 250_496}


def test_gradients_on_the_device_are_sums_in_fp32_alone(simulated: tuple[str, Traced, Traced]) -> None:
    """When the optimizer steps, the others are on the host; where nothing is offloaded, all are there, in their own type."""
    name, _, alone = simulated
    assert set(alone.gradients) == {SUMS.get(name, 0)}


def test_loading_needs_the_trained_weights_twice(cell: MakeCell) -> None:
    """Flat, and once more on the way to the host; afterwards once, and the staging buffer."""
    job = Job(cell(**SMALL | {"precision": "bf16"}), get_device("meta"))
    with Recorder("meta") as trace:
        before = trace.live_bytes  # of other tests' jobs, as long as somebody holds them
        trace.begin_phase("load")
        job.load()
    weights = sum(parameter.nbytes for parameter in job.parameters())
    assert trace.peak_bytes - before == pytest.approx(2 * weights, rel=1e-3)
    assert trace.live_bytes - before == pytest.approx(weights + LARGEST * 2, rel=1e-3)
    assert len({parameter.untyped_storage()._cdata for parameter in job.parameters()}) == 1


def test_a_bucket_is_there_in_backward_passes_alone(cell: MakeCell) -> None:
    sizes = {}
    for elements in (100_000, 300_000):
        found = traced(cell(**SMALL | {"zero": {"reduce_bucket_size": elements}}), "meta")
        sizes[elements] = [change.nbytes for change in found.changes if change.nbytes == elements * 4]
        assert found.peaks["load"] < found.peaks["learn"] > found.peaks["optimizer_step"] + elements * 4
    assert {elements: len(buckets) for elements, buckets in sizes.items()} == {100_000: STEPS, 300_000: STEPS}


def test_a_learner_goes_when_its_job_goes(cell: MakeCell) -> None:
    """Or the next simulated job would be traced with this one's weights."""
    job = Job(cell(**SMALL), get_device("meta"))
    job.load()
    job.step(0)
    learner = weakref.ref(job.roles["policy"].learner)
    weight = weakref.ref(next(job.parameters()))
    del job
    gc.collect()
    assert learner() is None
    assert weight() is None


def test_fp16_is_as_bf16(cell: MakeCell) -> None:
    """DeepSpeed refuses fp16 on the CPU, so no engine can show it here; it checks both for overflow."""
    half, brain = (
        traced(cell(**SMALL | {"precision": name, "max_grad_norm": 0.5}), "meta") for name in ("fp16", "bf16")
    )
    assert came(half.changes) == came(brain.changes)
    assert half.peaks == brain.peaks


def test_page_locked_memory_comes_in_powers_of_two(cell: MakeCell) -> None:
    """Of Llama 2 7B in bf16, whose largest parameters are its embeddings: what the host needs, without the model."""
    embeddings = 32_000 * 4_096
    sizes = [embeddings] * 51 + [6_738_415_616 - 51 * embeddings]
    memory = host_memory([sizes], torch.bfloat16, cell(offload="zero2_optimizer", precision="bf16").setup)
    trained = sum(sizes)
    assert [buffer.nbytes for buffer in memory] == [
        4 * trained,
        2 * trained,
        2 * embeddings,
        4 * trained,
        4 * trained,
        4 * trained,
    ]
    assert memory.host_pinned_bytes == (32 + 16 + 32) * 2**30 + 256 * 2**20
    assert memory.host_bytes == memory.host_pinned_bytes + 8 * trained
    settings = {"offload": "zero2_optimizer", "precision": "bf16", "gradient_accumulation_steps": 2}
    pageable = host_memory([sizes], torch.bfloat16, cell(**settings, zero={"pin_memory": False}).setup)
    assert pageable.host_pinned_bytes == 0
    assert pageable.host_bytes == sum(buffer.nbytes for buffer in memory) + 2 * trained


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([compared(flat) for flat in json.loads(sys.argv[1])]))
