"""From how a job ended to what is kept of it: its sample, the one of several that stands for the cell, and where a result goes
that its folder cannot take."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrambench.bench.measure.oom import NATIVE_EXIT
from vrambench.bench.measure.progress import Progress
from vrambench.bench.results.comparable import changed_versions, same_allocation, same_hardware
from vrambench.bench.results.records import OutOfMemory, Result, Sample, Throughput
from vrambench.bench.results.store import RunFolder, dump_result
from vrambench.bench.run.executor import Ended


class StorageError(OSError):
    """The run folder could not take a result."""


def sample_of(ended: Ended) -> Sample:
    """What an ended job gave: its own last word, or what it had measured with the way in which it ended."""
    code = ended.exit_code
    if ended.final is not None:
        notes = list(ended.final.notes)
        if code != 0:
            notes.append(f"the process ended with {_ending(code)} after its result was complete")
        if ended.garbled:
            notes.append(f"{_messages(ended.garbled)} of the job could not be read")
        return ended.final.model_copy(update={"notes": tuple(notes)})
    more: dict[str, Any] = {"phase": ended.spot.phase or "start"}
    if ended.timed_out_seconds is not None:
        more |= {"status": "timeout", "reason": f"not done after {ended.timed_out_seconds:g} s"}
        if code is None:
            more["reason"] += "; the process could not be ended, and may still hold memory"
    elif ended.lost:
        more |= {"status": "error", "reason": "what the job ran under ended, and took it along"}
    elif code is not None and code < 0:
        name = signal_name(-code)
        more |= {"status": "crashed", "signal": name, "reason": f"ended by {name}"}
        if name == "SIGKILL" and ended.out_of_host_memory:
            more |= {
                "status": "oom",
                "reason": "the system's out-of-memory killer ended the process",
                "oom": OutOfMemory(where="host"),
            }
    else:
        garbled = f" ({_messages(ended.garbled)} of it could not be read)" if ended.garbled else ""
        more |= {"status": "error", "reason": f"ended with {_ending(code)}{garbled}: {ended.last_words}"}
        if NATIVE_EXIT.search(ended.last_words):
            more |= {"status": "oom", "oom": OutOfMemory(where="device")}
    return Sample(**_so_far(ended.progress), **more)


def noted(sample: Sample, lost: Sequence[str], expected: Mapping[str, Any], found: Mapping[str, Any]) -> Sample:
    """The sample, with what happened on the way: `lost` are what it ran under and ended, each time, and the environments say where
    the run's cells are to run and where this one did."""
    notes = [f"lost on the way, and run again: {one} had ended" for one in lost]
    for differs in (same_hardware, same_allocation, changed_versions):
        notes += [f"unlike where the run was begun: {change}" for change in differs(expected, found)]
    return sample.model_copy(update={"notes": (*sample.notes, *notes)}) if notes else sample


def representative(samples: Sequence[Sample]) -> Sample:
    """The sample that stands for a cell: the first that is not ok, or else the one with the median step time."""
    for sample in samples:
        if sample.status != "ok":
            return sample
    if len(samples) == 1:
        return samples[0]
    ordered = sorted(
        samples, key=lambda sample: sorted(sample.throughput.step_seconds)[len(sample.throughput.step_seconds) // 2]
    )
    return ordered[(len(ordered) - 1) // 2]


def keep(store: RunFolder, result: Result) -> None:
    """Stores a result. Where the folder's disk cannot take it, it goes where something can: StorageError says where."""
    try:
        store.write_result(result)
    except OSError as error:
        elsewhere = _rescue(result)
        raise StorageError(
            f"{store.path}: {error.strerror}; the result of {result.name} ({result.id}) is kept in {elsewhere}; "
            "make room and run again with the same --out to go on"
        ) from error


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; a number that has no name of its own stays one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ending(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal_name(-code)


def _messages(count: int) -> str:
    return f"{count} messages" if count > 1 else "1 message"


def _so_far(progress: Sequence[Progress]) -> dict[str, Any]:
    """What a job that cannot speak any more had measured."""
    if not progress:
        return {}
    return {
        "source": progress[-1].source,
        "notes": progress[-1].notes,
        "memory": progress[-1].memory,
        "phases": tuple(phase for each in progress for phase in each.phases),
        "parameters": progress[0].parameters,
        "throughput": Throughput(
            step_seconds=tuple(each.step_seconds for each in progress if each.step_seconds is not None)
        ),
    }


def _rescue(result: Result) -> str:
    """Keeps a result that its folder could not take; as a last resort it is printed."""
    for folder in (Path(tempfile.gettempdir()), Path.home()):
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(dir=folder, prefix=f"vrambench-{result.id}-", suffix=".json")
            with os.fdopen(handle, "w") as file:
                file.write(dump_result(result))
            return name
    print(dump_result(result), file=sys.stderr)
    return "the lines above"
