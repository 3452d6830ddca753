"""DeepSpeed's ZeRO on one GPU: what it offloads to the host, with its own engine, gradients and master weights.

With one GPU nothing is sharded. ZeRO-2 with the optimizer on the host keeps 16-bit weights and gradients on the device, and
fp32 master weights and moments on the host, where DeepSpeed's CPUAdam steps. That is C++, compiled once by `prepare`, into a
folder of our own and under a lock that dies with its holder.
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
from vrambench.methods.offload.simulated import SimulatedZero
from vrambench.methods.offload.zero import ZeroOptions
from vrambench.methods.setup import Setup

LIBRARY_BYTES = 556 * 2**20
"""NCCL's communicators, for a world of one process too: seen on an H200 with torch 2.11 (results/nvidia-h200/measured)."""


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


def compiled() -> bool:
    """Whether CPUAdam has been compiled on this machine for this Python and torch."""
    return any(build_folder().glob("*cpu_adam/*.so"))


def engine_config(setup: Setup, device: Device) -> dict[str, Any]:
    """DeepSpeed's configuration for one trained model of `cell`."""
    work = setup.workload
    options: ZeroOptions = setup.workload.of(ZeroOptions)
    dtype = setup.precision.dtype(work)
    return {
        "train_micro_batch_size_per_gpu": work.batch_size,
        "gradient_accumulation_steps": work.gradient_accumulation_steps,
        "gradient_clipping": work.max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {
            "stage": setup.zero_stage,
            "offload_optimizer": {"device": "cpu", "pin_memory": options.pin_memory and device.kind == "cuda"},
            "reduce_bucket_size": options.reduce_bucket_size,
            "overlap_comm": options.overlap_comm,
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
        value = setup.optimizer
        load_extensions()
        join_alone(device)
        make = value.offloaded or value.make
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

    def gradients(self) -> Iterator[torch.Tensor]:
        zero = self.module.optimizer
        owners = [*self.module.parameters(), *zero.single_partition_of_fp32_groups]
        kept = [zero.averaged_gradients, zero.offload_gradient_dict, zero.accumulated_grads_in_cpu]
        return tensors_in([*kept, [owner.grad for owner in owners]])

    def optimizer_state(self) -> Iterator[torch.Tensor]:
        zero = self.module.optimizer
        return tensors_in([zero.single_partition_of_fp32_groups, zero.optimizer.state])

    def train(self, mode: bool = True) -> None:
        """Nothing: no optimizer that knows two kinds of weights runs here."""

    def optimizer_steps(self) -> int:
        return int(self.module.global_steps)

    def skipped_steps(self) -> int:
        return int(self.module.skipped_steps)


def zero_learner(module: nn.Module, setup: Setup, device: Device, phase: PhaseMarker) -> Learner:
    """The engine, or on the simulated device what allocates as it does."""
    return (SimulatedZero if device.simulated else ZeroLearner)(module, setup, device, phase)


ZERO2_OPTIMIZER = Offload(
    summary="DeepSpeed ZeRO-2, optimizer state and master weights on the host",
    options=ZeroOptions,
    learner=zero_learner,
    zero_stage=2,
    prepare=load_extensions,
    requires=("deepspeed", "deepspeed.ops.adam"),
    library_bytes=LIBRARY_BYTES,
)
