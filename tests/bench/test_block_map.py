"""Where every block lay when most was in use: in real recordings as `explain` has it, by name in one made by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.bench.allocator.made import MIB, whole_recording
from vrambench.bench.allocator.explained import explain
from vrambench.bench.allocator.snapshot import Snapshot, read_snapshot
from vrambench.bench.measure.block_map import UNUSED, block_map, busiest

RECORDINGS = Path(__file__).parent / "allocator" / "recordings"


@pytest.mark.parametrize("name", ["training-200", "windows", "unsplit-tails"])
def test_the_map_holds_what_was_reserved_and_what_of_it_was_unused(name: str) -> None:
    snapshot = read_snapshot(RECORDINGS / f"{name}.pickle.gz")
    (told,) = explain(snapshot)
    device = busiest(snapshot)
    assert device
    found = block_map(device)
    assert found.names[0] == UNUSED
    stretches = [stretch for segment in found.segments for stretch in segment]
    assert sum(stretch.nbytes for stretch in stretches) == told.reserved_bytes
    unused = [stretch.nbytes for stretch in stretches if stretch.name == 0]
    assert sum(unused) == told.unused.nbytes
    assert max(unused, default=0) == told.unused.largest_bytes
    assert all(one.name != other.name for segment in found.segments for one, other in pairwise(segment))


def test_blocks_have_the_names_that_requests_were_given() -> None:
    recording = whole_recording()
    first, small, last = (entry for entry in recording["device_traces"][0] if entry["action"] == "alloc")
    first["user_metadata"] = "load: policy/layers.1"
    small["user_metadata"] = "load: policy/layers.2.norm"
    last["frames"] = [{"filename": "/me/job/train.py", "line": 7, "name": "step"}]
    kept = {small["addr"]: ("policy", "weights"), first["addr"]: ("value", "weights")}
    device = busiest(recording)
    assert device
    found = block_map(device, kept)
    names = [(found.names[name], nbytes) for segment in found.segments for name, nbytes in segment]
    assert [(name.role, name.kind, name.called, name.where) for name, _ in names if name.used] == [
        ("value", "weights", "", "job/train.py:7 step"),
        ("policy", "weights", "load: policy/layers.*.norm", ""),
    ]
    assert [nbytes for _, nbytes in names] == [20 * MIB, 512, 2 * MIB - 512]


def test_what_was_freed_after_the_peak_is_nobodys_at_the_end() -> None:
    """Its address may have gone to another since."""
    recording = whole_recording()
    trace = recording["device_traces"][0]
    address = trace[-1]["addr"]
    for action in ("free_requested", "free_completed"):
        trace.append({**trace[-1], "action": action, "addr": address, "size": 19 * MIB + 1})
    recording["segments"][0]["blocks"][0] |= {"state": "inactive", "requested_size": 0}
    device = busiest(recording)
    assert device
    found = block_map(device, {address: ("policy", "weights")})
    assert [name.role for name in found.names] == [None, None]


def test_nothing_recorded_is_no_map() -> None:
    assert busiest(Snapshot(segments=[], device_traces=[])) is None
