"""DeepSpeed's ZeRO on one GPU: what it offloads to the host, with its own engine, gradients and master weights.

With one GPU nothing is sharded:

  zero2            16-bit weights and gradients, fp32 master weights and moments: more than without ZeRO.
  zero2_optimizer  fp32 master weights and moments are on the host, where DeepSpeed's CPUAdam steps.
  zero3_optimizer  the same by stage 3, whose bucket is there all the time. Weights stay where they are, and are never copied.
  zero3_all        weights are on the host, too. Each module's come to the device when it runs, forward and backward, and in a
                   rollout for every token.

CPUAdam is C++, compiled once by `prepare`, into a folder of our own and under a lock that dies with its holder.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from vrambench.methods.device import Device
from vrambench.methods.offload import Offload
from vrambench.methods.offload.learner import Learner, PhaseMarker, tensors_in
from vrambench.methods.offload.simulated import SimulatedEngine
from vrambench.methods.offload.simulated2 import SimulatedZero2, SimulatedZero2Optimizer
from vrambench.methods.offload.simulated3 import SimulatedZero3
from vrambench.methods.offload.zero import STAGE_3_ONLY, ZeroOptions
from vrambench.methods.setup import Setup

LIBRARY_BYTES = 556 * 2**20
"""NCCL's communicators, for a world of one process too: seen on an H200 with torch 2.11 (results/nvidia-h200/measured)."""

MASTERS = {2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}
"""By stage, what DeepSpeed's optimizers call their fp32 master weights."""
GRADIENTS = (
    "averaged_gradients",
    "all_grad_tensors",
    "offload_gradient_dict",
    "accumulated_grads_in_cpu",
    "grad_partitions_flat_buffer",
)
"""Where they hold gradients between backward passes, and up to the step."""


def build_folder() -> Path:
    """Where CPUAdam is compiled, below the user's cache: one folder for each Python, torch (and CUDA) and DeepSpeed, and for each
    place where those are installed. Build files name headers and sources by path, so two environments that shared a folder would
    compile it anew in turns."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    places = [str(spec.origin) for name in ("torch", "deepspeed") if (spec := find_spec(name))]
    place = hashlib.blake2b("\n".join(places).encode(), digest_size=4).hexdigest()
    versions = f"{python}_torch{torch.__version__}_deepspeed{_deepspeed_version()}"
    return cache / "vrambench" / "torch_extensions" / f"{versions}_{place}"


def _deepspeed_version() -> str:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return ""


def load_extensions() -> None:
    """Compiles DeepSpeed's extensions if need be, and loads them: CPUAdam, and what its CPU backend communicates through.

    Raises RuntimeError with the compiler's words where they cannot be compiled.
    """
    folder = build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    _put_our_ninja_first()
    with FileLock(folder / "vrambench.lock"):
        # torch's own lock is a file that outlives a killed process, and then every later build waits for ever.
        for stale in folder.glob("*/lock"):
            stale.unlink()
        from deepspeed.accelerator import get_accelerator
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
        if get_accelerator().device_name() == "cpu":
            get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)


def _put_our_ninja_first() -> None:
    """Two versions of ninja do not understand each other's logs: whichever comes second compiles everything anew."""
    spec = find_spec("ninja")
    if spec is None:
        return
    import ninja

    if not os.environ.get("PATH", "").startswith(ninja.BIN_DIR):
        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ.get("PATH", "")


def load_compiled() -> None:
    """Loads the extensions of jobs on the CPU if both have been compiled, and compiles neither."""
    if compiled() and compiled("deepspeed_shm_comm"):
        load_extensions()


def compiled(extension: str = "cpu_adam") -> bool:
    """Whether one has been compiled on this machine for this Python and torch."""
    return any(build_folder().glob(f"*{extension}/*.so"))


def engine_config(setup: Setup, device: Device) -> dict[str, Any]:
    """DeepSpeed's configuration for one trained model of `cell`."""
    work = setup.workload
    options: ZeroOptions = work.of(ZeroOptions)
    dtype = setup.precision.dtype(work)
    host = {"device": "cpu", "pin_memory": options.pin_memory and device.kind == "cuda"}
    stage_3 = {name: getattr(options, name) for name in STAGE_3_ONLY} if setup.zero_stage == 3 else {}
    return {
        "train_micro_batch_size_per_gpu": work.batch_size,
        "gradient_accumulation_steps": work.gradient_accumulation_steps,
        "gradient_clipping": work.max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {
            "stage": setup.zero_stage,
            "reduce_bucket_size": options.reduce_bucket_size,
            "overlap_comm": options.overlap_comm,
            **({"offload_optimizer": host} if setup.optimizer_on_host else {}),
            **({"offload_param": host} if setup.parameters_on_host else {}),
            **stage_3,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def join_alone(device: Device) -> None:
    """A process group of this process alone, without a launcher."""
    if torch.distributed.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": str(device.torch.index or 0),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import deepspeed

    deepspeed.init_distributed(dist_backend="nccl" if device.kind == "cuda" else "gloo", verbose=False)


class ZeroLearner:
    """A DeepSpeed engine around one trained model."""

    def __init__(self, module: nn.Module, setup: Setup, device: Device, phase: PhaseMarker) -> None:
        import deepspeed

        self._device = device
        self._phase = phase
        self._empty_every = setup.workload.torch_empty_cache_steps
        self._stage = setup.zero_stage
        value = setup.optimizer
        load_extensions()
        join_alone(device)
        make = value.offloaded if value.offloaded and setup.optimizer_on_host else value.make
        optimizer = make(value.groups(module, setup.workload), module, setup.workload)
        self.module, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=engine_config(setup, device), dist_init_required=False
        )

    def forward(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._device.empty_cache_in(self.optimizer_steps(), self._empty_every)
        self.module.backward(loss)
        loss.detach_()
        if self.module.is_gradient_accumulation_boundary():
            self._phase("optimizer_step")
        self.module.step()

    @property
    def _masters(self) -> list[torch.Tensor]:
        zero = self.module.optimizer
        masters: list[torch.Tensor] = getattr(zero, MASTERS[self._stage])
        return masters

    def gradients(self) -> Iterator[torch.Tensor]:
        zero = self.module.optimizer
        kept = [getattr(zero, name, None) for name in GRADIENTS]
        return tensors_in([*kept, [owner.grad for owner in (*self.module.parameters(), *self._masters)]])

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        return tensors_in([self._masters, self.module.optimizer.optimizer.state])

    def train(self, mode: bool = True) -> None:
        """Nothing: no optimizer that knows two kinds of weights runs here."""

    def optimizer_steps(self) -> int:
        return int(self.module.global_steps)

    def skipped_steps(self) -> int:
        return int(self.module.skipped_steps)


def zero_learner(module: nn.Module, setup: Setup, device: Device, phase: PhaseMarker) -> Learner:
    """The engine, or on the simulated device what allocates as it does."""
    if not device.simulated:
        return ZeroLearner(module, setup, device, phase)
    return stand_in(setup)(module, setup, device, phase)


def stand_in(setup: Setup) -> type[SimulatedEngine]:
    """What stands for the engine on the simulated device."""
    if setup.zero_stage == 3:
        return SimulatedZero3
    return SimulatedZero2Optimizer if setup.optimizer_on_host else SimulatedZero2


def _zero(summary: str, stage: int, *, optimizer_on_host: bool = True, parameters_on_host: bool = False) -> Offload:
    return Offload(
        summary=summary,
        options=ZeroOptions,
        learner=zero_learner,
        zero_stage=stage,
        optimizer_on_host=optimizer_on_host,
        parameters_on_host=parameters_on_host,
        across_layers=stage == 3 or not optimizer_on_host,
        prepare=load_extensions,
        requires=("deepspeed", "deepspeed.ops.adam"),
        library_bytes=LIBRARY_BYTES,
    )


ZERO2 = _zero("DeepSpeed ZeRO-2, everything on the device", 2, optimizer_on_host=False)
ZERO2_OPTIMIZER = _zero("DeepSpeed ZeRO-2, optimizer state and master weights on the host", 2)
ZERO3_OPTIMIZER = _zero("DeepSpeed ZeRO-3, optimizer state and master weights on the host", 3)
ZERO3_ALL = _zero(
    "DeepSpeed ZeRO-3, weights on the host, too, of which each module gets its own", 3, parameters_on_host=True
)
