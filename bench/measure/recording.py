"""A recording of what the CUDA allocator does while a job runs: every request with the line of Python that made it, and with the
phase, the role and the module that were at work.

    recording = Recording(Path("recordings/<id>.pickle.gz"), job)
    with recording:
        recording.enter("load", None)
        sample = ...
    sample = recording.added_to(sample)
"""

from __future__ import annotations

import gzip
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from vrambench.bench.measure.block_map import block_map, busiest
from vrambench.bench.measure.ledger import unpaged, weights
from vrambench.bench.measure.whose import Mark, Owner, Told, Whose, whose
from vrambench.bench.results.records import Sample
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.parts import head_paths


class Names:
    """Tells `tell` what is at work, `learn: policy/model.layers.3.mlp`, whenever that changes: the phase, and the module of a
    job's roles whose forward runs. In a backward pass it is the phase alone, but for what is computed anew."""

    def __init__(self, job: Job, tell: Callable[[str], None]) -> None:
        self._job = job
        self._tell = tell
        self._phase = ""
        self._at: list[str] = []
        self._names: dict[nn.Module, str] = {}
        self._hooks: list[Any] = []

    def enter(self, phase: str) -> None:
        """The job enters `phase`."""
        self._phase = phase
        self._say()

    def begin(self) -> None:
        self._hooks = [
            register_module_forward_pre_hook(self._enters),
            register_module_forward_hook(self._leaves, always_call=True),
        ]

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._tell("")

    def _enters(self, module: nn.Module, _: Any) -> None:
        if module not in self._names:
            for role, of in self._job.roles.items():
                for name, inner in of.module.named_modules():
                    self._names.setdefault(inner, f"{role}/{name}".rstrip("/"))
        outer = self._at[-1] if self._at else ""
        self._at.append(self._names.setdefault(module, outer))  # what is no role's is its caller's
        self._say()

    def _leaves(self, module: nn.Module, _: Any, __: Any) -> None:
        if self._at:
            self._at.pop()
        self._say()

    def _say(self) -> None:
        at = self._at[-1] if self._at else ""
        self._tell(f"{self._phase}: {at}")


class Recording:
    """Records into `file`, gzip'd, what the allocator does for `job` inside the `with`; where memory runs out, up to there."""

    def __init__(self, file: Path, job: Job) -> None:
        self._file = file
        self._job = job
        # torch names requests from 2.11 on.
        tell = getattr(torch.cuda.memory, "_set_memory_metadata", None)
        self._names = Names(job, tell) if tell else None
        self._snapshot: dict[str, Any] | None = None
        self._marks: list[Mark] = []

    def enter(self, phase: str, step: int | None) -> None:
        """The job enters `phase` of `step`."""
        held = gradients(self._job) if phase == "optimizer_step" else {}
        self._marks.append(Mark(time.time_ns() // 1000, phase, step, held))
        if self._names:
            self._names.enter(phase)

    def __enter__(self) -> Recording:
        torch.cuda.memory._record_memory_history(stacks="python")
        if self._names:
            self._names.begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._names:
            self._names.end()
        self._snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(None)
        self._file.parent.mkdir(exist_ok=True)
        with gzip.open(self._file, "wb", compresslevel=1) as written:
            pickle.dump(self._snapshot, written)

    def told(self) -> Told:
        """What the job has told until now."""
        heads = {path for role in self._job.roles.values() for path in head_paths(role.module)}
        return Told(self._marks, owners(self._job), heads)

    def added_to(self, sample: Sample) -> Sample:
        """`sample` with where every block lay when most was in use, and whose memory was in use then and at each phase's peak; a
        note, where the recording does not tell."""
        assert self._snapshot is not None, "after the recording"
        try:
            device, told = busiest(self._snapshot), self.told()
            if device is None:
                return sample
            blocks, found = block_map(device, told.owners), whose(device.trace, told)
        except Exception as error:  # whatever they cannot be made of, what was measured stays
            words = error.message if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
            note = f"no map of the allocator's blocks: {words}"
            return sample.model_copy(update={"notes": (*sample.notes, note)})
        return with_owners(sample, found).model_copy(update={"blocks": blocks})


def with_owners(sample: Sample, found: Whose) -> Sample:
    """`sample`, with whose memory was in use at its peaks."""
    phases = tuple(
        phase.model_copy(update={"at_peak": found.phases.get((phase.name, phase.step), ())}) for phase in sample.phases
    )
    return sample.model_copy(update={"phases": phases, "held": found.held})


def owners(job: Job) -> dict[int, Owner]:
    """Role and kind of the weights and the optimizer state that the job holds on its device, by address. What several roles use
    belongs to the first of them."""
    found: dict[int, Owner] = {}
    for name, role in job.roles.items():
        state = unpaged(role.learner.optimizer_state()) if role.learner else ()
        for kind, tensors in (("weights", weights(role.module)), ("optimizer", state)):
            for address in _addresses(job, tensors):
                found.setdefault(address, (name, kind))
    return found


def gradients(job: Job) -> dict[int, str]:
    """Whose the gradients are that the job holds on its device now, by address."""
    found: dict[int, str] = {}
    for name, role in job.roles.items():
        for address in _addresses(job, role.learner.gradients() if role.learner else ()):
            found.setdefault(address, name)
    return found


def _addresses(job: Job, tensors: Iterable[torch.Tensor]) -> Iterator[int]:
    """Where those are that lie on the job's device."""
    for tensor in tensors:
        if tensor.device.type == job.device.kind:
            yield tensor.untyped_storage().data_ptr()
