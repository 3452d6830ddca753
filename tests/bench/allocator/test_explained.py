"""What a recording tells its owner: real ones, ones that we write ourselves, and one in which memory runs out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.bench.allocator.made import MIB, whole_recording
from vrambench.bench.allocator import Allocator, AllocatorSettings, DeviceOutOfMemory
from vrambench.bench.allocator.comparison import replay_snapshot
from vrambench.bench.allocator.explained import RanOut, Unused, explain, place_of
from vrambench.bench.allocator.snapshot import Snapshot, read_snapshot, snapshot_of

RECORDINGS = Path(__file__).parent / "recordings"
MEASURED = Path(__file__).parents[3] / "results" / "nvidia-h200" / "recordings"
EXPANDABLE = AllocatorSettings.parse("expandable_segments:True")


def test_what_was_in_use_at_the_highest_moment() -> None:
    (device,) = explain(Snapshot.of(whole_recording()))
    assert device.exact
    assert device.ran_out is None
    assert device.requested_bytes == sum(live.nbytes for live in device.live) == 19 * MIB + 101
    assert {(live.where, live.before, live.blocks) for live in device.live} == {(None, False, 1)}
    assert device.before_bytes == 0
    (as_recorded,) = device.others
    assert as_recorded.reserved_bytes == 22 * MIB


def test_what_was_there_before_is_told_apart() -> None:
    recording = whole_recording()
    del recording["device_traces"][0][:4]
    (device,) = explain(Snapshot.of(recording))
    assert device.before_bytes == 3 * MIB + 100
    assert sum(live.nbytes for live in device.live if live.before) > 0


def stack(*frames: tuple[str, int, str]) -> list[dict[str, Any]]:
    return [{"filename": filename, "line": line, "name": name} for filename, line, name in frames]


@pytest.mark.parametrize(
    ("frames", "where"),
    [
        (
            [("/v/site-packages/torch/nn/modules/linear.py", 134, "forward"), ("/home/me/job/train.py", 7, "step")],
            "job/train.py:7 step",
        ),
        (
            [("??", 0, "at::empty"), ("/v/transformers/models/llama/modeling_llama.py", 176, "forward")],
            "llama/modeling_llama.py:176 forward",
        ),
        ([("C:\\me\\job\\train.py", 9, "<module>")], "job/train.py:9 <module>"),
        ([("/v/site-packages/torch/optim/adam.py", 1, "step")], "optim/adam.py:1 step"),
        ([("/src/kernel.cpp", 3, "launch")], "src/kernel.cpp:3 launch"),
        ([], None),
    ],
)
def test_the_place_is_the_innermost_frame_that_is_not_pytorchs(
    frames: list[tuple[str, int, str]], where: str | None
) -> None:
    assert place_of(stack(*frames)) == where


@pytest.mark.parametrize("damaged", [None, 3, ["x"], [{}], [{"filename": 1}]])
def test_a_damaged_stack_is_no_failure(damaged: Any) -> None:
    recording = whole_recording()
    for each in recording["device_traces"][0]:
        each |= {"frames": damaged, "user_metadata": damaged}
    (device,) = explain(Snapshot.of(recording))
    assert device.exact
    assert device.called == ()


def test_stacks_name_what_is_in_use_and_what_is_left_at_the_end() -> None:
    recording = whole_recording()
    for each in recording["device_traces"][0]:
        each["frames"] = stack(("/job/train.py", 5 if each["size"] > MIB else 6, "step"))
    (device,) = explain(Snapshot.of(recording))
    assert {live.where: live.blocks for live in device.live} == {"job/train.py:5 step": 1, "job/train.py:6 step": 1}
    late = copy.deepcopy(recording)
    del late["device_traces"][0][:6]
    for segment in late["segments"]:
        for block in segment["blocks"]:
            block["frames"] = stack(("/job/load.py", 1, "load"))
    (device,) = explain(Snapshot.of(late))
    assert any(live.before and live.where == "job/load.py:1 load" for live in device.live)


def out_of_memory() -> dict[str, Any]:
    """Of ten blocks of 8 MiB, two in each segment of 20, every second one is free when 36 MiB are asked for, and a card of 130 MiB
    has 30 left."""
    allocator = Allocator(AllocatorSettings(), 130 * MIB, record=True)
    handles = [allocator.malloc(8 * MIB) for _ in range(10)]
    for handle in handles[1::2]:
        allocator.free(handle)
    with pytest.raises(DeviceOutOfMemory):
        allocator.malloc(36 * MIB)
    allocator.free(handles[0])
    return snapshot_of(allocator)


def test_where_memory_ran_out_and_what_would_have_helped() -> None:
    recording = out_of_memory()
    (device,) = explain(Snapshot.of(recording), [EXPANDABLE])
    assert device.ran_out == RanOut(36 * MIB, 30 * MIB)
    assert device.given_bytes == 130 * MIB
    assert (device.requested_bytes, device.reserved_bytes) == (40 * MIB, 100 * MIB)
    assert device.unused == Unused(60 * MIB, 5, 12 * MIB)
    as_recorded, expandable = device.others
    assert as_recorded.least_bytes == pytest.approx(136 * MIB, abs=MIB)
    assert expandable.least_bytes == pytest.approx(120 * MIB, abs=MIB)


def test_what_the_card_had_left_may_not_be_known() -> None:
    recording = out_of_memory()
    (entry,) = (one for one in recording["device_traces"][0] if one["action"] == "oom")
    entry["device_free"] = 0
    (device,) = explain(Snapshot.of(recording))
    assert device.ran_out == RanOut(36 * MIB, None)
    assert device.given_bytes is None


@pytest.mark.parametrize("file", sorted(RECORDINGS.glob("*.pickle.gz")), ids=lambda file: file.name.partition(".")[0])
def test_real_recordings_are_explained(file: Path) -> None:
    snapshot = read_snapshot(file)
    (device,) = explain(snapshot, [EXPANDABLE])
    (compared,) = replay_snapshot(snapshot)
    assert device.exact
    assert device.ran_out is None
    assert device.requested_bytes == compared.recorded.requested_bytes
    assert device.requested_bytes <= device.reserved_bytes <= compared.recorded.reserved_bytes
    assert device.others[0].reserved_bytes == compared.recorded.reserved_bytes
    for needed in device.others:
        assert device.requested_bytes <= needed.least_bytes <= needed.reserved_bytes


def test_windows_under_expandable_segments() -> None:
    (device,) = explain(read_snapshot(RECORDINGS / "windows.pickle.gz"), [EXPANDABLE])
    assert [needed.reserved_bytes for needed in device.others] == [1810 * MIB, 1726 * MIB]


def test_other_settings_need_what_a_recording_under_them_shows() -> None:
    """One job, recorded on an H200 under both."""
    under = {name: read_snapshot(MEASURED / f"{name}.pickle.gz") for name in ("sft", "expandable")}
    assert under["expandable"].settings().expandable_segments
    (device,) = explain(under["sft"], [EXPANDABLE])
    (recorded,) = replay_snapshot(under["expandable"])
    assert device.others[1].reserved_bytes == recorded.recorded.reserved_bytes == 1314 * MIB


def test_what_we_write_is_explained_as_what_torch_writes() -> None:
    allocator = Allocator(EXPANDABLE, record=True)
    first = allocator.malloc(30 * MIB)
    second = allocator.malloc(30 * MIB)
    allocator.free(first)
    assert second
    allocator.malloc(40 * MIB)
    (device,) = explain(Snapshot.of(snapshot_of(allocator)), [AllocatorSettings()])
    assert device.exact
    assert device.requested_bytes == 70 * MIB
    assert [needed.reserved_bytes for needed in device.others] == [allocator.stats.reserved.peak, 100 * MIB]
