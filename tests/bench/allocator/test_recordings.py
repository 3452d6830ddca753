"""Recordings of other people's GPUs (recordings/README.md): the model puts every block where CUDA's allocator did."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.bench.allocator.made import MIB
from vrambench.bench.allocator import replay
from vrambench.bench.allocator.blocks import Addresses
from vrambench.bench.allocator.comparison import device_traces, events_of, replay_snapshot
from vrambench.bench.allocator.recorded import recorded_peaks
from vrambench.bench.allocator.snapshot import read_snapshot

FOLDER = Path(__file__).parent / "recordings"
ENTRIES = {
    "address-order": 12_008,
    "ce-compiled": 21,
    "ce-liger": 47,
    "ce-whole": 21,
    "expandable-start": 5_112,
    "forward-100": 2_304,
    "training-200": 11_480,
    "unsplit-tails": 7_887,
    "windows": 23_105,
}
LATE = {"address-order", "expandable-start", "unsplit-tails"}
"""Recordings that began when memory was in use."""


@pytest.mark.parametrize("name", ENTRIES)
def test_every_request_is_served_from_the_recorded_address(name: str) -> None:
    snapshot = read_snapshot(FOLDER / f"{name}.pickle.gz")
    assert sum(map(len, snapshot.device_traces)) == ENTRIES[name]
    (device,) = replay_snapshot(snapshot)
    assert device.moved_entry is None
    assert device.same_end
    assert device.exact
    assert device.began_empty is (name not in LATE)
    assert device.left_out is None


def in_own_order(name: str, *, falling: bool) -> tuple[int, float]:
    """Replayed without the recorded places of new segments: bytes reserved too many at the peak, and the share of pairs of new
    segments that would lie the other way round."""
    snapshot = read_snapshot(FOLDER / f"{name}.pickle.gz")
    settings = snapshot.settings()
    (trace,) = device_traces(snapshot)
    events = [event for event in events_of(trace, settings)[0] if event[0] != "segment_placed"]
    result = replay(events, settings, start=trace.start.segments, falling=falling)
    recorded = recorded_peaks(trace.start, trace.entries, settings)
    addresses = Addresses(falling=falling)
    for segment in trace.start.segments:
        addresses.claim(segment.address, segment.size)
    new = [(address, nbytes) for action, address, nbytes, _ in trace.entries if action == "segment_alloc"]
    pairs = list(itertools.combinations([(address, addresses.take(nbytes)) for address, nbytes in new], 2))
    other_way = sum((one[0] < two[0]) != (one[1] < two[1]) for one, two in pairs) / len(pairs)
    return result.stats.reserved.peak - recorded.reserved_bytes, other_way


def test_native_linux_places_segments_falling() -> None:
    too_much, other_way = in_own_order("address-order", falling=True)
    assert too_much == 0
    assert other_way < 0.001
    too_much, other_way = in_own_order("address-order", falling=False)
    assert too_much == 4 * MIB
    assert other_way > 0.99


def test_windows_places_segments_rising() -> None:
    """Its reserved peak is the recorded one either way, as it began empty."""
    too_much, rising = in_own_order("windows", falling=False)
    assert too_much == 0
    assert rising < 0.12
    too_much, falling = in_own_order("windows", falling=True)
    assert too_much == 0
    assert falling > 0.8


def test_every_recording_is_described() -> None:
    described = (FOLDER / "README.md").read_text()
    files = sorted(FOLDER.glob("*.gz"))
    assert [file.name for file in files] == [f"{name}.pickle.gz" for name in ENTRIES]
    assert all(f"`{file.name}`" in described for file in files)
    assert sum(file.stat().st_size for file in files) < 150_000
