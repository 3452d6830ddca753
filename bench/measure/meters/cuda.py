"""CUDA's meter: PyTorch's caching allocator, the driver's own count beside it, and the cap that makes a verdict
verified.

    meter = CudaMeter(torch.device("cuda", 0), budget_bytes=24 * 2**30)
    meter.start()                               # in the job's process, before anything of it is on the device
    meter.begin_phase("load", None); ...; peaks = meter.end_phase()
    meter.memory(), meter.source, meter.notes()
    meter.stop()

The allocator's peaks (requested <= allocated <= active <= reserved) are exact, reset for each phase, and the job's
are the largest over its phases: all stay readable after an out-of-memory error. What the device holds beyond them is
NVML's (nvml.py), sampled. `context_bytes` is what this process holds on the device less what the allocator has
reserved, both read while the device is idle: the CUDA context, kernels, libraries, and managed memory that lies on
the device just then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import torch

from vrambench.bench.measure.meters import PhasePeaks
from vrambench.bench.measure.meters.host import peak_rss_bytes, pinned_peak_bytes, reset_peak_rss
from vrambench.bench.measure.meters.nvml import Nvml, Sampler
from vrambench.bench.results.records import Memory
from vrambench.methods.errors import ConfigurationError

KINDS = ("requested", "allocated", "active", "reserved")

# Far more than the allocator's segments and NVML's grains, far less than any card.
PROBE_BYTES = 64 * 2**20

# Less than this beside the job on a device is the driver's own bookkeeping, not another process.
SLACK_BYTES = 64 * 2**20


class CudaMeter:
    """The meter of one job on one GPU. `budget_bytes`: the device memory that the job may use, contexts and libraries
    included, enforced by a cap on the allocator; None leaves the whole card.

    `cuda`, `driver` and `load_kernels` are what the meter reads and does on the device: `torch.cuda`, NVML (None
    where there is none) and a matrix product that makes the libraries load. A budget that cannot be enforced here,
    because the card is smaller or NVML is missing, is not: the job is then `measured`, and a note says why. Where
    other processes hold so much of the card that the budget is out of reach, `start` raises ConfigurationError:
    neither verdict would be true.
    """

    def __init__(
        self,
        device: torch.device,
        budget_bytes: int | None = None,
        *,
        cuda: Any = torch.cuda,
        driver: Callable[[], Nvml | None] = Nvml.open,
        load_kernels: Callable[[torch.device], None] | None = None,
    ) -> None:
        self._device = device
        self._budget = budget_bytes
        self._cuda = cuda
        self._open_driver = driver
        self._load_kernels = load_kernels or load_matrix_products
        self._sampler: Sampler | None = None
        self._peaks: dict[str, int] = dict.fromkeys(KINDS, 0)
        self._device_peak: int | None = None
        self._context: int | None = None
        self._context_at_start: int | None = None
        self._managed: int | None = None
        self._retries_before = 0
        self._allowed: int | None = None
        self._host_peak_reset = False
        self._notes: list[str] = []

    @property
    def source(self) -> Literal["measured", "verified"]:
        """`verified` once the budget is enforced."""
        return "measured" if self._allowed is None else "verified"

    @property
    def allowed_bytes(self) -> int | None:
        """What the allocator may reserve under the budget; None where no budget is enforced."""
        return self._allowed

    def start(self) -> None:
        """Creates the CUDA context, counts it, sets the cap, and begins to sample."""
        self._host_peak_reset = reset_peak_rss()
        driver = self._open_driver()
        fresh = not self._cuda.is_initialized()
        before = driver.snapshot() if driver is not None and fresh else {}
        self._cuda.init()
        self._cuda.set_device(self._device)  # some libraries synchronise, and page, on the current one
        self._load_kernels(self._device)
        self._release()
        if driver is None:
            self._notes.append("device bytes are unknown: NVML is not there")
        else:
            self._attach(driver, before, fresh)
        self._retries_before = self._stats().get("num_alloc_retries", 0)
        self._reset()
        self._context_at_start = self._context
        if self._budget is not None:
            self._cap(self._budget)
        if self._sampler is not None:
            self._sampler.start()

    def begin_phase(self, name: str, step: int | None) -> None:
        self._fold()
        self._reset()

    def end_phase(self) -> PhasePeaks:
        stats = self._fold()
        self._count_context(inside_a_step=True)
        peak = self._device_peak_here(stats["reserved"])
        return PhasePeaks(allocated_bytes=stats["allocated"], reserved_bytes=stats["reserved"], device_bytes=peak)

    def peak_bytes(self) -> int | None:
        return self._peaks["allocated"] or None

    def memory(self) -> Memory:
        stats = self._fold()
        self._count_context()
        self._device_peak_here(stats["reserved"])
        return Memory(
            requested_bytes=self._peaks["requested"],
            allocated_bytes=self._peaks["allocated"],
            active_bytes=self._peaks["active"],
            reserved_bytes=self._peaks["reserved"],
            device_bytes=self._device_peak,
            context_bytes=self._context,
            managed_bytes=self._managed,
            host_rss_bytes=peak_rss_bytes(),
            host_pinned_bytes=pinned_peak_bytes(self._cuda),
            num_alloc_retries=self._stats().get("num_alloc_retries", 0) - self._retries_before,
        )

    def energy_joules(self) -> float | None:
        """What the device has used since its driver was loaded; differences count. None where it does not say."""
        return None if self._sampler is None else self._sampler.device.energy_joules()

    def notes(self) -> tuple[str, ...]:
        notes = list(self._notes)
        if not self._host_peak_reset:
            notes.append("the peak of resident host memory could not be reset: it includes what came before the job")
        if self._sampler is not None and self._sampler.failure:
            notes.append(f"sampling of device bytes ended early ({self._sampler.failure}): short peaks may be missing")
        if self._allowed is not None:
            notes.append(self._cap_note())
        if self._budget is not None and self._device_peak is not None and self._device_peak > self._budget:
            over = self._device_peak - self._budget
            notes.append(
                f"the device held {size(over)} more than the budget at its peak: what lies outside PyTorch grew after"
                " the cap was set, so a card of this size may not be enough"
            )
        return tuple(notes)

    def stop(self) -> None:
        self._fold()
        self.pause()

    def pause(self) -> None:
        """No sampling until `resume`."""
        if self._sampler is not None:
            self._sampler.stop()

    def resume(self) -> None:
        if self._sampler is not None:
            self._sampler.start()

    def _attach(self, driver: Nvml, before: dict[str, Any], fresh: bool) -> None:
        """Finds torch's device among NVML's by UUID, and this process among the device's."""
        uuid = str(self._cuda.get_device_properties(self._device).uuid)
        try:
            device = driver.device(uuid)
        except LookupError:
            self._notes.append("device bytes are unknown: NVML does not know the device that torch uses")
            return
        memory, seen = device.memory(), before.get(device.uuid)
        sampler = Sampler(device, seen)
        sampler.identify(self._probe)
        if sampler.accounting is None:
            why = "it was not seen before the job" if fresh else "CUDA was in use before the meter"
            if memory is None:
                why = "it does not tell this device's memory"
            self._notes.append(f"device bytes are unknown: NVML does not show this process, and {why}")
            return
        self._sampler = sampler
        if sampler.accounting == "process":
            self._notes.append("device bytes are this process' own, as NVML counts them")
        else:
            assert seen is not None
            assert seen.used is not None
            self._notes.append(
                "device bytes are the device's change since before the job (NVML does not show this process, as in many"
                f" containers): {size(seen.used)} of others was subtracted, and whatever others took or"
                " gave back meanwhile counts as this job's"
            )
        if memory is not None and memory.reserved is None:
            self._notes.append("this driver (before 510) counts what it reserves for itself as used")
        self._count_context()

    def _probe(self) -> Callable[[], None]:
        """Takes device memory through the allocator, in a segment of its own; gives what returns it to the driver."""
        held = [self._cuda.caching_allocator_alloc(PROBE_BYTES, self._device)]
        self._cuda.synchronize(self._device)

        def release() -> None:
            self._cuda.caching_allocator_delete(held.pop())
            self._release()

        return release

    def _cap(self, budget: int) -> None:
        free, total = self._cuda.mem_get_info(self._device)
        if self._context is None or self._sampler is None:
            self._notes.append(
                f"the budget of {size(budget)} is not enforced: NVML does not tell what lies outside PyTorch"
            )
            return
        usable = self._usable(total)
        others = usable - free - self._context
        if budget > usable or (budget > free + self._context and others < SLACK_BYTES):
            self._notes.append(
                f"the budget of {size(budget)} is not enforced: this device offers {size(usable)}, so running out of"
                " memory here says nothing about that budget"
            )
            return
        if budget > free + self._context:
            raise ConfigurationError(
                f"budget: {size(budget)} cannot be had: other processes hold {size(others)} of this device's"
                f" {size(usable)}; end them, or set a budget of at most {size(free + self._context)}",
                field="budget",
            )
        allowed = budget - self._context
        if allowed <= 0:
            raise ConfigurationError(
                f"budget: {size(budget)} is less than the {size(self._context)} that CUDA takes before any tensor",
                field="budget",
            )
        self._allowed = budget
        self._hold()

    def _hold(self) -> None:
        """Lowers what the allocator may reserve to the budget less what now lies outside it, where that is less: kernels and
        libraries go on loading after the cap was set."""
        if self._allowed is None or self._budget is None or self._context is None:
            return
        allowed = max(0, self._budget - self._context)
        if allowed < self._allowed:
            # torch multiplies by this total, whatever the driver offers.
            whole = self._cuda.get_device_properties(self._device).total_memory
            self._cuda.set_per_process_memory_fraction(allowed / whole, self._device)
            self._allowed = allowed

    def _usable(self, total: int) -> int:
        """What an idle device offers to processes: its memory less what the driver keeps."""
        assert self._sampler is not None
        told = self._sampler.device.memory()
        return total if told is None else min(total, told.total - (told.reserved or 0))

    def _cap_note(self) -> str:
        assert self._allowed is not None
        assert self._budget is not None
        assert self._context_at_start is not None
        outside = self._budget - self._allowed
        grown = max(0, outside - self._context_at_start)
        managed = f", {size(self._managed)} of managed memory (paged optimizer state)" if self._managed else ""
        return (
            f"verified: PyTorch's allocator was held to {size(self._allowed)}: {size(self._budget)} of budget less"
            f" {size(outside)} for the CUDA context, kernels and libraries ({size(grown)} of them loaded while the job ran, and"
            f" the cap followed at the end of a phase). Not emulated: how a smaller card's driver would place segments{managed}"
        )

    def _count_context(self, *, inside_a_step: bool = False) -> None:
        """To be called while the device is idle. Inside a step, whose time is taken, only where a reading is due."""
        if self._sampler is None:
            return
        try:
            held = self._sampler.read_if_due() if inside_a_step else self._sampler.read()
        except Exception as error:  # NVML's, of a GPU that is lost: what was measured so far stays
            self._sampler.failure = f"{type(error).__name__}: {error}"
            return
        if held is not None:
            self._context = max(0, held - of(self._stats(), "reserved", "current"))
            self._hold()

    def _device_peak_here(self, reserved_peak: int) -> int | None:
        """The device's peak in this stretch. Between two samples a segment may come and go: at the peak of what was
        reserved, the device held at least that and the context that was there from the start."""
        if self._sampler is None:
            return None
        certain = None if self._context_at_start is None else reserved_peak + self._context_at_start
        peak = highest(self._sampler.peak_bytes, certain)
        self._device_peak = highest(self._device_peak, peak)
        return peak

    def _fold(self) -> dict[str, int]:
        """The peaks since the last reset by kind; the job's are raised to them."""
        stats = self._stats()
        here = {kind: of(stats, kind, "peak") for kind in KINDS}
        self._peaks = {kind: max(self._peaks[kind], here[kind]) for kind in KINDS}
        self._managed = highest(self._managed, managed_bytes())
        return here

    def _reset(self) -> None:
        self._cuda.reset_peak_memory_stats(self._device)
        if self._sampler is not None:
            self._sampler.reset()

    def _release(self) -> None:
        """Leaves the allocator as it was found: cuBLAS's workspace is the job's to allocate."""
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        self._cuda.empty_cache()
        self._cuda.synchronize(self._device)

    def _stats(self) -> dict[str, Any]:
        """The allocator's own dictionary: `memory_stats` would flatten and sort it, at every phase border."""
        return self._cuda.memory_stats_as_nested_dict(self._device)


def load_matrix_products(device: torch.device) -> None:
    """One matrix product in fp32 and one in half precision on `device`, so that cuBLAS and its kernels are loaded."""
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    for dtype in (torch.float32, half):
        square = torch.ones(256, 256, device=device, dtype=dtype)
        square @ square
    torch.cuda.synchronize(device)


def managed_bytes() -> int | None:
    """Bytes of bitsandbytes' paged optimizer states (cudaMallocManaged: on the device or on the host, as the driver
    likes).

    bitsandbytes 0.50 keeps every such tensor in `GlobalPageManager.paged_tensors`, marked `is_paged`. None where the
    job does not use bitsandbytes.
    """
    functional = sys.modules.get("bitsandbytes.functional")
    if functional is None:
        return None
    paged = functional.GlobalPageManager.get_instance().paged_tensors
    return sum(tensor.nbytes for tensor in paged if getattr(tensor, "is_paged", False))


def highest(*counts: int | None) -> int | None:
    """The largest of what is known."""
    return max((count for count in counts if count is not None), default=None)


def of(stats: dict[str, Any], kind: str, figure: str) -> int:
    """`current` or `peak` bytes of one kind; 0 before the allocator's first allocation."""
    return stats.get(f"{kind}_bytes", {}).get("all", {}).get(figure, 0)


def size(count: int) -> str:
    """Bytes for people, in binary units."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
