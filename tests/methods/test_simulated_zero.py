"""ZeRO's stand-ins allocate and free what DeepSpeed's engine does, in its order. No GPU is needed for the proof, in two steps:

1. on the CPU, event by event, against the engine itself. There the host's buffers lie beside the device's, so the stand-in makes
   them as well (`host_device`). Two differences remain: numbers of 8 bytes at most with which the engine, or the count of the
   optimizer's state, reckons on the host, in loading and in the optimizer's step; and when a tensor goes that was reduced, since
   gloo's own thread may be the last to let go of it, sooner or later. So what comes is compared in order, what goes as a multiset.
2. on the simulated device, what comes and the peaks, against the same engine. What differs more is the same without ZeRO: how
   weights are loaded, what attention's kernels give back beside their output, and int8's products.

zero_traces.py has the tools, and does the first step's cells as a script of its own.
"""

from __future__ import annotations

import functools
import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests import forked
from tests.methods.zero_traces import STEPS, Recorder, Traced, came, standing_in, traced
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.offload.host import host_memory

MakeCell = Callable[..., Cell]
Ran = dict[str, dict[str, Any]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="CPUAdam is compiled with g++")

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
ALONE = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "sub_group_size": 0}
"""As axolotl publishes it: nothing is gathered ahead or stays, and each parameter is stepped on by itself."""
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
    "zero3 all, each by itself": {"offload": "zero3_all", "precision": "bf16", "zero": SMALL_BUCKET | ALONE},
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
    "dora on nf4": {**LORA, "adapter": "dora", "precision": "nf4"},
    "ia3, bf16": {**LORA, "adapter": "ia3", "precision": "bf16", "zero": SMALL_BUCKET},
    "zero3, oft on nf4": {"offload": "zero3_optimizer", **LORA, "adapter": "oft", "precision": "nf4", "zero": GATHERED},
    "zero3 all, lora in bf16": {"offload": "zero3_all", **LORA, "precision": "bf16", "zero": GATHERED},
    "zero3 all, lora on nf4": {"offload": "zero3_all", **LORA, "precision": "nf4", "zero": GATHERED},
    "zero3 all, ia3 in bf16": {"offload": "zero3_all", **LORA, "adapter": "ia3", "precision": "bf16", "zero": GATHERED},
    "zero3 all, oft on nf4": {"offload": "zero3_all", **LORA, "adapter": "oft", "precision": "nf4", "zero": GATHERED},
    "zero3 all, vera": {"offload": "zero3_all", "adapter": "vera", "zero": GATHERED},
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


@pytest.fixture(scope="module")
def ran(cell: MakeCell) -> Ran:
    """What `compared` says of CASES and OPTIMIZERS, in a process of its own; of stage 3 last, since its engine replaces
    torch.nn.functional.linear there for good (deepspeed, runtime/zero/partition_parameters.py)."""
    made = {name: cell(**SMALL | settings) for name, settings in CASES.items()}
    made |= {name: cell(**SMALL | {"optimizer": name}) for name in OPTIMIZERS}
    in_order = sorted(made, key=lambda name: made[name].offload_value.zero_stage)
    cells = {name: made[name].flat() for name in in_order}
    script = Path(__file__).with_name("zero_traces.py")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}.items():
            patch.setenv(name, value)
        done = forked.run([str(script), json.dumps(list(cells.values()))], script.parent, seconds=1800)
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


class Simulated(NamedTuple):
    """What the simulated device did: with the host's buffers on it, all that `came` and the rest, and as it is."""

    came: list[tuple[str, int]]
    both: Traced
    alone: Traced


@pytest.fixture(scope="module")
def simulated(cell: MakeCell) -> Callable[[str], Simulated]:
    """What the simulated device did in a case; each is traced once, for all tests, in whichever order they come."""

    @functools.cache
    def of(name: str) -> Simulated:
        made = cell(**SMALL | CASES[name])
        with standing_in(made.offload_value, "meta"):
            # What is made once for all is there from now on. (bitsandbytes logs its first failure to load a kernel; while the log
            # is kept, as pytest does, the error in it keeps the weight that was being quantised.)
            Job(made, get_device("meta")).load()
            both = traced(made, "meta")
        return Simulated(came(both.changes), both._replace(changes=[]), traced(made, "meta")._replace(changes=[]))

    return of


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_same_on_the_simulated_device(ran: Ran, simulated: Callable[[str], Simulated], name: str) -> None:
    """As the engine on the CPU: what comes after loading, in order, and all peaks. Loading may hold one weight more on the
    simulated device, with ZeRO and without."""
    come, both, _ = simulated(name)
    engine = ran[name]["engine"]
    if "int8" not in name:  # whose products have kernels of their own on the CPU
        assert [list(change) for change in come] == ran[name]["came"]
    assert both.phases == engine["phases"]
    loading, late = both.peaks["load"] - engine["peaks"]["load"], engine["late_bytes"]
    assert -1e-3 * engine["peaks"]["load"] - late <= loading <= LARGEST * torch.float32.itemsize, late
    expected = {phase: pytest.approx(peak, abs=2e-3 * peak + late) for phase, peak in engine["peaks"].items()}
    assert both.peaks == expected | {"load": both.peaks["load"]}


@pytest.mark.parametrize("name", CASES)
def test_without_the_hosts_buffers_the_devices_remain(simulated: Callable[[str], Simulated], name: str) -> None:
    _, both, alone = simulated(name)
    assert both.live_bytes - alone.live_bytes == sum(alone.held)
    assert alone.phases == both.phases
    assert not torch.distributed.is_initialized()


SUMS = {"bf16 adapters under fp32, accumulated": 149_504, "zero2, bf16, adafactor, accumulated": 250_496}


@pytest.mark.parametrize("name", CASES)
def test_gradients_on_the_device_are_sums_in_fp32_alone(simulated: Callable[[str], Simulated], name: str) -> None:
    """When the optimizer steps, the others are on the host; where nothing is offloaded, all are there, in their own type."""
    assert set(simulated(name).alone.gradients) == {SUMS.get(name, 0)}


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
