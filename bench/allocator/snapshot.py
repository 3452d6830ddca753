"""Real recordings of CUDA's caching allocator against the model of it: does the model put every block where the GPU did?

    torch.cuda.memory._record_memory_history(context=None)      # on a GPU, before the job
    torch.cuda.memory._dump_snapshot("job.pickle")              # after it

    for device in replay_snapshot(read_snapshot(Path("job.pickle"))):
        device.exact, device.predicted.reserved.peak, device.recorded.reserved_bytes

In: a dump of `torch.cuda.memory._snapshot()`, or that dictionary. Out: per device, the peaks that the trace itself shows beside
those of the model that was given only the requests, and the first request that the model served from another address. With
the requests the same, an error of this replay is an error of the allocator model alone.

A recording may begin when memory is in use already: what was there is worked out backwards from the segments at its end. The
other way round, `snapshot_of` writes what a simulated allocator did in torch's form, for pytorch.org/memory_viz.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vrambench.bench.allocator import Allocator, AllocatorSettings, AllocatorStats, Block, Event, Segment, replay
from vrambench.bench.allocator.blocks import State
from vrambench.bench.allocator.recorded import (
    MEMORY_ACTIONS,
    Entry,
    RecordedPeaks,
    address_space,
    recorded_peaks,
    start_of,
)
from vrambench.bench.allocator.settings import UNLIMITED
from vrambench.methods.errors import ConfigurationError, UnknownValue

OTHER_ACTIONS = ("oom", "snapshot", "user_defined")
STATES: dict[str, State] = {
    "active_allocated": "active_allocated",
    "active_pending_free": "active_pending_free",
    "active_awaiting_free": "active_pending_free",  # the name in torch's documentation
    "inactive": "inactive",
}
CONF_KEYS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


@dataclass(frozen=True, slots=True)
class DeviceTrace:
    """One device's part of a snapshot: what it held when the recording began, what happened, and what it held at the end."""

    device: int
    start: tuple[Segment, ...]
    entries: tuple[Entry, ...]
    end: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class DeviceComparison:
    """`moved_entry` is the first entry of the trace that the model answered with another address; `same_end` says whether it ended
    with the recorded segments and blocks, to the byte; `began_empty` whether nothing was worked out backwards. `at_peak` is the
    model's map when reserved memory was at its peak."""

    device: int
    recorded: RecordedPeaks
    predicted: AllocatorStats
    began_empty: bool
    moved_entry: int | None
    same_end: bool
    at_peak: tuple[Segment, ...]

    @property
    def exact(self) -> bool:
        """Every block where it was, and the three peaks equal."""
        peaks = self.predicted
        return (
            self.moved_entry is None
            and self.same_end
            and (peaks.requested.peak, peaks.allocated.peak, peaks.reserved.peak)
            == (self.recorded.requested_bytes, self.recorded.allocated_bytes, self.recorded.reserved_bytes)
        )


class _PlainUnpickler(pickle.Unpickler):
    """A pickle may call anything while it is read; a snapshot needs only containers, numbers and text."""

    def find_class(self, module: str, name: str) -> Any:
        raise ConfigurationError(f"snapshot: holds {module}.{name}; only plain containers, numbers and text are read")


def read_snapshot(source: Path | bytes) -> dict[str, Any]:
    """The dictionary in a dump of torch.cuda.memory._dump_snapshot. Raises ConfigurationError for anything else, and runs nothing
    that a pickle might want to run."""
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        snapshot = _PlainUnpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"snapshot: not a pickle that can be read ({error})") from error
    if not isinstance(snapshot, dict) or not {"segments", "device_traces"} <= snapshot.keys():
        raise ConfigurationError("snapshot: no dictionary with 'segments' and 'device_traces'")
    return snapshot


def settings_of(snapshot: Mapping[str, Any]) -> AllocatorSettings:
    """The allocator's settings when the snapshot was taken; torch's defaults where it holds none."""
    stored = snapshot.get("allocator_settings") or {}
    settings = AllocatorSettings.parse(next((stored[key] for key in CONF_KEYS if stored.get(key)), ""))
    most = stored.get("max_split_size", settings.max_split_bytes)  # unlimited is -1: all bits set
    return replace(
        settings,
        expandable_segments=bool(stored.get("expandable_segments", settings.expandable_segments)),
        max_split_bytes=most if 0 <= most < UNLIMITED else UNLIMITED,
    )


def device_traces(snapshot: Mapping[str, Any], settings: AllocatorSettings | None = None) -> list[DeviceTrace]:
    """The devices that a snapshot tells about. Raises ConfigurationError for private pools (CUDA graphs), which the model does not
    have, and for traces that do not agree with the segments."""
    settings = settings or settings_of(snapshot)
    ends: dict[int, list[Segment]] = {}
    for raw in snapshot["segments"]:
        ends.setdefault(raw.get("device", 0), []).append(_segment(raw))
    traces = []
    for device, raw_entries in enumerate(snapshot["device_traces"]):
        entries = _entries(raw_entries)
        end = tuple(sorted(ends.get(device, ()), key=lambda segment: segment.address))
        if entries or end:
            traces.append(DeviceTrace(device, start_of(entries, end, settings), tuple(entries), end))
    return traces


def events_of(trace: DeviceTrace, settings: AllocatorSettings) -> tuple[list[Event], list[int]]:
    """The trace as events for `replay` (ids are addresses), and for each the entry that it comes from.

    Segments that go back to the driver are the user's doing (empty_cache) or a full card's, neither of which the requests tell:
    they are passed on, as one empty_cache for a whole run of them (each by itself where max_split_size lets single ones go).
    """
    events: list[Event] = []
    positions: list[int] = []
    releasing = False
    entries = trace.entries
    skip = -1
    for index, (action, address, nbytes, stream) in enumerate(entries):
        event: Event | None = None
        if action == "alloc":
            event = action, address, nbytes, stream
        elif action == "free_requested":
            following = entries[index + 1] if index + 1 < len(entries) else None
            at_once = following is not None and following[:2] == ("free_completed", address)
            skip = index + 1 if at_once else skip
            event = "free" if at_once else action, address, nbytes, stream
        elif action == "free_completed" and index != skip:
            event = action, address, nbytes, stream
        elif action in ("segment_alloc", "segment_map"):
            event = "segment_placed", address, nbytes, stream
        elif action == "segment_free" and settings.max_split_bytes != UNLIMITED:
            event = "segment_released", address, 0, 0
        elif action in ("segment_free", "segment_unmap") and not releasing:
            event = "empty_cache", 0, 0, 0
        releasing = action in ("segment_free", "segment_unmap") or (releasing and action not in MEMORY_ACTIONS)
        if event is not None:
            events.append(event)
            positions.append(index)
    return events, positions


def replay_snapshot(
    snapshot: Mapping[str, Any], settings: AllocatorSettings | None = None, total_bytes: int | None = None
) -> list[DeviceComparison]:
    """Replays each device's requests through the model, and lays its peaks beside the recorded ones.

    `settings` are the snapshot's own unless given; `total_bytes` is the card's memory, which sets how far an expandable segment can
    grow.
    """
    settings = settings or settings_of(snapshot)
    comparisons = []
    for trace in device_traces(snapshot, settings):
        events, positions = events_of(trace, settings)
        result = replay(
            events,
            settings,
            address_space_bytes=total_bytes * 9 // 8 if total_bytes else address_space(trace.entries),
            start=trace.start,
            ids_are_addresses=True,
        )
        comparisons.append(
            DeviceComparison(
                device=trace.device,
                recorded=recorded_peaks(trace.start, trace.entries, settings),
                predicted=result.stats,
                began_empty=not trace.start,
                moved_entry=None if result.moved_event is None else positions[result.moved_event],
                same_end=result.final_map == trace.end,
                at_peak=result.block_map,
            )
        )
    return comparisons


def snapshot_of(allocator: Allocator, device: int = 0) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot()` would give after the same work on CUDA `device`; needs an allocator that records."""
    assert allocator.trace is not None, "the allocator was made with record=True"
    traces: list[list[dict[str, Any]]] = [[] for _ in range(device + 1)]
    for time, (action, address, nbytes, stream) in enumerate(allocator.trace):
        key = "device_free" if action == "oom" else "addr"
        entry = {"action": action, key: address, "size": nbytes, "stream": stream, "time_us": time, "frames": []}
        traces[device].append(entry | {"compile_context": "N/A", "user_metadata": "", "pool_id": (0, 0)})
    settings = allocator.settings
    unlimited = settings.max_split_bytes == UNLIMITED
    return {
        "segments": [_raw_segment(segment, device) for segment in allocator.block_map()],
        "device_traces": traces,
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": settings.text(),
            "max_split_size": -1 if unlimited else settings.max_split_bytes,
            "garbage_collection_threshold": settings.garbage_collection_threshold,
            "expandable_segments": settings.expandable_segments,
        },
        "external_annotations": [],
    }


def _raw_segment(segment: Segment, device: int) -> dict[str, Any]:
    def total(*states: str) -> int:
        return sum(block.size for block in segment.blocks if block.state in states)

    return {
        "device": device,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": total("active_allocated"),
        "active_size": total("active_allocated", "active_pending_free"),
        "requested_size": sum(block.requested for block in segment.blocks),
        "stream": segment.stream,
        "segment_type": segment.pool,
        "segment_pool_id": (0, 0),
        "is_expandable": segment.expandable,
        "frames": [],
        "blocks": [
            {
                "address": segment.address + block.offset,
                "size": block.size,
                "requested_size": block.requested,
                "state": block.state,
                "frames": [],
            }
            for block in segment.blocks
        ],
    }


def _segment(raw: Mapping[str, Any]) -> Segment:
    if tuple(raw.get("segment_pool_id", (0, 0))) != (0, 0):
        raise ConfigurationError(
            "snapshot: holds private pools (CUDA graphs or torch.cuda.MemPool), which the model does not have"
        )
    blocks = []
    offset = 0
    for block in raw["blocks"]:
        if block["state"] not in STATES:
            raise UnknownValue("snapshot.segments.blocks.state", block["state"], STATES)
        state = STATES[block["state"]]
        requested = 0 if state == "inactive" else block.get("requested_size", block["size"])
        blocks.append(Block(offset, block["size"], requested, state))
        offset += block["size"]
    pool: Literal["small", "large"] = "small" if raw["segment_type"] == "small" else "large"
    expandable = bool(raw.get("is_expandable", False))
    return Segment(raw["address"], raw["total_size"], raw["stream"], pool, tuple(blocks), expandable)


def _entries(raw_entries: Sequence[Mapping[str, Any]]) -> list[Entry]:
    entries: list[Entry] = []
    for raw in raw_entries:
        action = raw["action"]
        if action not in MEMORY_ACTIONS + OTHER_ACTIONS:
            raise UnknownValue("snapshot.device_traces.action", action, MEMORY_ACTIONS + OTHER_ACTIONS)
        if tuple(raw.get("pool_id", (0, 0))) != (0, 0) and action in MEMORY_ACTIONS:
            raise ConfigurationError(
                "snapshot: holds private pools (CUDA graphs or torch.cuda.MemPool), which the model does not have"
            )
        entries.append((action, raw.get("addr", 0), raw["size"], raw["stream"]))
    if _requests_left_out(entries):
        return [
            each
            for entry in entries
            for each in ([("free_requested", *entry[1:]), entry] if entry[0] == "free_completed" else [entry])
        ]
    return entries


def _requests_left_out(entries: Sequence[Entry]) -> bool:
    """Recorded with skip_actions=["free_requested"]: something allocated in the recording was freed, and no free was asked for.
    (Of a block that was there before, the free may have been asked for before, too.)"""
    allocated: set[int] = set()
    left_out = False
    for action, address, _, _ in entries:
        if action == "free_requested":
            return False
        if action == "alloc":
            allocated.add(address)
        left_out = left_out or (action == "free_completed" and address in allocated)
    return left_out
