"""A recording as Perfetto's trace: its counters are the bytes that the recording shows, in the form that Chrome's JSON has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.allocator.made import MIB, whole_recording
from tests.bench.allocator.test_explained import RECORDINGS, out_of_memory
from vrambench.bench.allocator import Allocator, DeviceOutOfMemory
from vrambench.bench.allocator.comparison import device_traces
from vrambench.bench.allocator.perfetto import MOST_NAMES, perfetto_of
from vrambench.bench.allocator.recorded import recorded_peaks
from vrambench.bench.allocator.snapshot import Asked, Snapshot, Span, read_snapshot, snapshot_of


def counter(trace: dict[str, Any], name: str) -> list[tuple[int, int]]:
    found = (event for event in trace["traceEvents"] if event["ph"] == "C" and event["name"] == name)
    return [(event["ts"], event["args"]["bytes"]) for event in found]


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDINGS.glob("*.pickle.gz")))
def test_counters_are_what_a_real_recording_shows(name: str) -> None:
    snapshot = read_snapshot(RECORDINGS / name)
    trace = json.loads(json.dumps(perfetto_of(snapshot)))
    (device,) = device_traces(snapshot)
    peaks = recorded_peaks(device.start, device.entries, snapshot.settings())
    assert max(value for _, value in counter(trace, "reserved")) == peaks.reserved_bytes
    assert max(value for _, value in counter(trace, "in use")) == peaks.requested_bytes
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXCi"
        assert event["ph"] == "M" or event["ts"] >= 0
    times = [time for time, _ in counter(trace, "in use")]
    assert times == sorted(times)


def test_names_parts_and_the_end_of_memory_are_told() -> None:
    allocator = Allocator(record=True, capacity_bytes=60 * MIB)
    kept = allocator.malloc(5 * MIB), allocator.malloc(30 * MIB - 1)
    with pytest.raises(DeviceOutOfMemory):
        allocator.malloc(36 * MIB)
    assert len(set(kept)) == 2
    asked = [Asked((), "model.layers.0.mlp"), Asked((), "model.layers.1.mlp"), Asked((), "logits")]
    spans = [Span("load", 0, 2), Span("learn", 2, 5)]
    trace = perfetto_of(Snapshot.of(snapshot_of(allocator, asked=asked, spans=spans)))
    assert counter(trace, "in use: model.layers.*.mlp")[-1][1] == 35 * MIB - 1
    slices = [(event["name"], event["ts"], event["dur"]) for event in trace["traceEvents"] if event["ph"] == "X"]
    assert slices == [("load", 0, 2), ("learn", 2, 3)]
    (moment,) = (event for event in trace["traceEvents"] if event["ph"] == "i")
    assert (moment["name"], moment["args"]["asked_bytes"]) == ("out of memory", 36 * MIB)


def test_many_names_share_a_counter() -> None:
    allocator = Allocator(record=True)
    asked = [Asked((), f"name {number}") for number in range(30)]
    for number in range(30):
        allocator.malloc((number + 1) * MIB)
    trace = perfetto_of(Snapshot.of(snapshot_of(allocator, asked=asked)))
    names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"}
    assert len(names) == 2 + MOST_NAMES + 1
    assert counter(trace, "in use: others")[-1][1] == sum(range(1, 11)) * MIB


def test_without_names_there_are_two_counters() -> None:
    trace = perfetto_of(Snapshot.of(whole_recording()))
    assert {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"} == {"reserved", "in use"}
    ended = perfetto_of(Snapshot.of(out_of_memory()))
    assert sum(event["ph"] == "i" for event in ended["traceEvents"]) == 1


def test_a_file_without_a_trace_is_empty(tmp_path: Path) -> None:
    assert perfetto_of(Snapshot.of([])) == {"traceEvents": [], "displayTimeUnit": "ms"}
