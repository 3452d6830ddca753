"""Live storages and their trace against allocations that are known beforehand."""

from __future__ import annotations

import torch

from vrambench.bench.measure.meters.storages import Storage, Storages, StorageTrace, storage_bytes

KIB = 1024


def tensor(kib: int) -> torch.Tensor:
    return torch.empty(kib * KIB, dtype=torch.uint8)


def test_live_and_peak_bytes_follow_allocations_and_frees() -> None:
    before = tensor(3)
    with StorageTrace("cpu") as trace:
        base = trace.live_bytes
        assert base >= 3 * KIB, "what was there before counts"
        first = tensor(10)
        assert trace.live_bytes - base == 10 * KIB
        del first
        assert trace.live_bytes == base
        second = tensor(4)
        view = second[: 2 * KIB].view(2, KIB)
        assert trace.live_bytes - base == 4 * KIB, "a view is no storage of its own"
        del second
        assert trace.live_bytes - base == 4 * KIB, "the view keeps the storage alive"
        del view
    assert trace.peak_bytes - base == 10 * KIB
    assert before.numel() == 3 * KIB


def test_a_resized_storage_counts_with_its_new_size() -> None:
    with StorageTrace("cpu") as trace:
        base = trace.live_bytes
        held = tensor(10)
        held.untyped_storage().resize_(2 * KIB)
        held.view(-1, KIB // 8)
        assert trace.live_bytes - base == 2 * KIB
        del held
        assert trace.live_bytes == base


def test_every_storage_ends_once_and_resized_ones_begin_anew() -> None:
    ended: list[int] = []

    def gone(storage: Storage) -> None:
        ended.append(storage.nbytes)

    storages = Storages("cpu", gone)
    held = tensor(3)
    for nbytes in (3 * KIB, KIB):
        held.untyped_storage().resize_(nbytes)
        storage = storages.appeared(held)
        assert storage is not None
        assert storage.nbytes == nbytes
        storages.add(storage)
        assert storages.of(held) is storage
        assert storages.appeared(held) is None
    assert ended == [3 * KIB]
    del held
    assert ended == [3 * KIB, KIB]


def test_peaks_belong_to_the_phase_in_which_they_come() -> None:
    with StorageTrace("cpu") as trace:
        base = trace.live_bytes
        trace.begin_phase("rollout")
        kept = tensor(2)
        large = tensor(8)
        del large
        trace.begin_phase("learn")
        small = tensor(1)
        trace.begin_phase("rollout")
    assert {name: peak - base for name, peak in trace.phase_peaks.items()} == {"rollout": 10 * KIB, "learn": 3 * KIB}
    assert kept.numel() + small.numel() == 3 * KIB


def test_backward_passes_are_seen() -> None:
    weight = torch.ones(256, 256, requires_grad=True)
    with StorageTrace("cpu") as trace:
        base = trace.live_bytes
        (weight * 2.0).sum().backward()
        assert trace.live_bytes - base == 256 * 256 * 4, "the gradient, held by C++ alone"
    weight_again = torch.ones(256, 256, requires_grad=True)
    weight_again.grad = torch.ones(256, 256)
    with StorageTrace("cpu") as second:
        assert second.live_bytes >= base + 2 * 256 * 256 * 4, "gradients that were there before count"


def test_the_simulated_device_is_traced_alike() -> None:
    def work(device: str) -> int:
        with StorageTrace(device) as trace:
            base = trace.live_bytes
            a = torch.empty(64, 64, device=device)
            b = (a @ a).relu()
            del a
            (b + 1).sum()
        return trace.peak_bytes - base

    assert work("meta") == work("cpu") > 0


def test_other_devices_do_not_count() -> None:
    with StorageTrace("meta") as trace:
        base = trace.live_bytes
        tensor(100)
    assert trace.peak_bytes == base


def test_shared_storages_count_once() -> None:
    whole = torch.zeros(100)
    counted: set[int] = set()
    assert storage_bytes([whole, whole[:10], whole.view(10, 10)], "cpu", counted) == 400
    assert storage_bytes([whole[5:]], "cpu", counted) == 0
    assert storage_bytes([torch.zeros(1, device="meta")], "cpu", counted) == 0
