"""Reading, checking and writing torch's snapshots. What is read may be damaged or hostile: nothing of it is ever run.

The form is that of `torch.cuda.memory._snapshot()` (its docstring, and torch/cuda/_memory_viz.py, whose own readers are run here
on what we write).
"""

from __future__ import annotations

import copy
import gzip
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from torch.cuda import _memory_viz

from tests.bench.allocator.made import MIB, whole_recording
from vrambench.bench.allocator import Allocator, AllocatorSettings
from vrambench.bench.allocator.comparison import device_traces, replay_snapshot
from vrambench.bench.allocator.snapshot import Snapshot, read_snapshot, snapshot_of
from vrambench.methods.errors import ConfigurationError


def test_settings_come_from_the_snapshot() -> None:
    snapshot = whole_recording()
    assert Snapshot.of(snapshot).settings() == AllocatorSettings()
    snapshot["allocator_settings"] |= {
        "PYTORCH_CUDA_ALLOC_CONF": "roundup_power2_divisions:4",
        "max_split_size": 64 * MIB,
        "expandable_segments": True,
    }
    assert Snapshot.of(snapshot).settings() == AllocatorSettings(
        roundup_power2_divisions=(4,) * 16, max_split_bytes=64 * MIB, expandable_segments=True
    )
    del snapshot["allocator_settings"]
    assert Snapshot.of(snapshot).settings() == AllocatorSettings()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "expandable_segments:True",
        "large_segment_size_mb:32,max_split_size_mb:64,max_non_split_rounding_mb:40",
        "roundup_power2_divisions:[64:8,256:4,>:1],garbage_collection_threshold:0.5,per_process_memory_fraction:0.5",
    ],
)
def test_settings_are_written_as_they_are_read(text: str) -> None:
    settings = AllocatorSettings.parse(text)
    assert AllocatorSettings.parse(settings.text()) == settings


# What is refused


def test_unknown_actions_and_states_are_named() -> None:
    snapshot = whole_recording()
    snapshot["device_traces"][0][0]["action"] = "segment_allocate"
    with pytest.raises(ConfigurationError, match="did you mean 'segment_alloc'"):
        device_traces(snapshot)
    snapshot = whole_recording()
    snapshot["segments"][0]["blocks"][0]["state"] = "active"
    with pytest.raises(ConfigurationError, match="'active' is not one of"):
        device_traces(snapshot)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([[]], "snapshot.segments.0: []: must be a mapping (name: value)"),
        ({"segments": []}, "snapshot.device_traces: is not there"),
        ({"segments": {}, "device_traces": []}, "snapshot.segments: {}: must be a list"),
        ({"segments": [], "device_traces": [[{"action": "alloc"}]]}, "snapshot.device_traces.0.0.size: is not there"),
        (
            {"segments": [], "device_traces": [[{"action": "alloc", "size": "1", "stream": 0}]]},
            "snapshot.device_traces.0.0.size: '1': must be a whole number",
        ),
        (
            {"segments": [], "device_traces": [[{"action": "alloc", "size": -1, "stream": 0}]]},
            "snapshot.device_traces.0.0.size: -1: must be at least 0",
        ),
    ],
)
def test_what_is_no_snapshot_is_told_in_our_words(held: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Snapshot.of(held)
    assert str(caught.value) == said


@pytest.mark.parametrize("write", [bytes, gzip.compress])
def test_a_dump_is_read_from_its_file(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "job.pickle"
    path.write_bytes(write(pickle.dumps(whole_recording())))
    assert replay_snapshot(read_snapshot(path))[0].exact


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_is_read(protocol: int) -> None:
    assert replay_snapshot(read_snapshot(pickle.dumps(whole_recording(), protocol)))[0].exact


def test_a_bare_list_of_segments_is_a_map_without_requests() -> None:
    """torch.cuda.memory_snapshot(); the same where no history was kept, and for a device beyond those with a trace."""
    segments = whole_recording()["segments"]
    for source in (read_snapshot(pickle.dumps(segments)), {"segments": segments, "device_traces": [[]]}):
        (device,) = replay_snapshot(source)
        assert device.exact
        assert device.recorded.reserved_bytes == 22 * MIB
    segments[0]["device"] = 3
    assert [device.device for device in replay_snapshot(segments)] == [0, 3]


def test_a_memory_fraction_in_the_settings_is_no_hindrance() -> None:
    snapshot = whole_recording()
    snapshot["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"] = "per_process_memory_fraction:0.5"
    assert replay_snapshot(snapshot)[0].exact


class Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (run_me, ())


def run_me() -> None:
    Evil.ran = True


def test_a_pickle_that_would_run_something_does_not() -> None:
    data = pickle.dumps(whole_recording() | {"external_annotations": [Evil()]})
    with pytest.raises(ConfigurationError, match="only plain containers"):
        read_snapshot(data)
    assert not Evil.ran
    pickle.loads(data)
    assert Evil.ran, "it would have"


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle", gzip.compress(b"no pickle", mtime=0), pickle.dumps([1, 2]), pickle.dumps({"segments": []})],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="snapshot"):
        read_snapshot(data)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "job.pickle", tmp_path):
        with pytest.raises(ConfigurationError, match=f"{path}: is neither a recording's file nor"):
            read_snapshot(path)


def test_a_wrong_field_is_named() -> None:
    snapshot = whole_recording()
    snapshot["device_traces"][0][2]["size"] = -1
    with pytest.raises(ConfigurationError, match=r"snapshot\.device_traces\.0\.2\.size: -1: must be at least 0"):
        Snapshot.of(snapshot)
    snapshot = whole_recording()
    snapshot["segments"][1]["blocks"].pop()
    with pytest.raises(ConfigurationError, match="hold 512 bytes of its 2097152"):
        Snapshot.of(snapshot)


def test_a_few_bytes_do_not_take_gigabytes() -> None:
    """An index of 2**32 - 1 for an object to come back to, text and lists said to be as long, and a frame of 2**60 bytes."""
    for data in (
        b"\x80\x04}r\xff\xff\xff\xff.",
        b"\x80\x04X\xff\xff\xff\xffa.",
        b"\x80\x05\x96" + b"\xff" * 5 + b"\0\0\0a.",
        b"\x80\x04\x95" + b"\0" * 7 + b"\x10}.",
        b"\x80\x04\x8b\xff\xff\xff\x7f\x01.",
        b"L" + b"9" * 5000 + b"L\n.",
    ):
        with pytest.raises(ConfigurationError, match="snapshot"):
            read_snapshot(data)


ODD = [0, -1, 1, 511, 2 * MIB, 2**62, 2**63, 2**80, 1.5, "", "alloc", "active", None, True, [], {}, (1, 2), b"\0", [[]]]


def mutated(snapshot: dict[str, Any], chance: random.Random) -> Any:
    """One to three places of a copy changed: another value, a key or an item left out or twice, or two swapped."""
    made = copy.deepcopy(snapshot)
    for _ in range(chance.randint(1, 3)):
        at: Any = made
        while True:
            keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key, other = chance.choice(keys), chance.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.9:
                at = at[key]
                continue
            match chance.randrange(4):
                case 0:
                    at[key] = chance.choice(ODD)
                case 1:
                    del at[key]
                case 2:
                    at[key], at[other] = at[other], at[key]
                case 3 if isinstance(at, list):
                    at.insert(other, at[key])
                case 3 if isinstance(at[key], int):
                    at[key] += chance.choice([-512, 512, MIB, 20 * MIB])
            break
    return made


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to four bytes changed, or cut off."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        made[chance.randrange(len(made))] = chance.randrange(256)
    return bytes(made[: chance.randrange(len(made))] if chance.random() < 0.1 else made)


def late_recording(text: str) -> dict[str, Any]:
    """Some forty entries of an allocator that was at work before."""
    allocator, chance = Allocator(AllocatorSettings.parse(text), record=True), random.Random(0)
    handles: list[int] = []
    for step in range(60):
        if step == 30:
            allocator.empty_cache()
            assert allocator.trace is not None
            allocator.trace.clear()
        if handles and chance.random() < 0.45:
            allocator.free(handles.pop(chance.randrange(len(handles))))
        else:
            handles.append(allocator.malloc(int(2 ** chance.uniform(8, 25)), chance.choice([0, 0, 7])))
    return snapshot_of(allocator)


@pytest.mark.parametrize("text", ["", "expandable_segments:True", "max_split_size_mb:24"])
def test_what_is_damaged_is_refused_in_one_sentence_or_replayed(text: str) -> None:
    """Of 450 mutations each, some are still snapshots; none is another error than ours."""
    chance, snapshot = random.Random(1), late_recording(text)
    data = pickle.dumps(snapshot)
    refusals = []
    for number in range(450):
        source: Any = mutated(snapshot, chance) if number % 3 else damaged(data, chance)
        try:
            replay_snapshot(read_snapshot(source) if number % 3 == 0 else source)
        except ConfigurationError as error:
            refusals.append(str(error))
    assert 100 < len(refusals) < 450
    assert all(len(refusal.splitlines()) == 1 for refusal in refusals)


def test_torchs_own_readers_take_what_we_write() -> None:
    allocator = Allocator(record=True)
    kept = [allocator.malloc(size) for size in (100, 5 * MIB, 30 * MIB)]
    allocator.free(kept[1])
    snapshot = snapshot_of(allocator, device=1)
    assert "total_reserved: 52.0MiB" in _memory_viz.segsum(snapshot)
    assert "cudaMalloc" in _memory_viz.trace(snapshot)
    assert "raise OutOfMemoryError" not in _memory_viz.trace(snapshot)
    assert [device.device for device in replay_snapshot(snapshot)] == [1]
