"""What runs in a cell's own process: settles in, measures the cell, and reports to the parent.

The parent sees two things: a board in shared memory, which says without a system call in which phase the job is, and a pipe,
through which comes what each step gave, and the whole sample at the end (`messages.py`).
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import sys
import time
from contextlib import nullcontext
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vrambench.bench.run.executor import Order, Spot
from vrambench.bench.run.lifetime import adopt_orphans, end_with_parent

if TYPE_CHECKING:
    from vrambench.bench.measure.meters import Meter
    from vrambench.bench.measure.recording import Recording
    from vrambench.methods.device import Device

BOARD_BYTES = 128


def write_board(board: Any, phase: str, step: int | None, peak_bytes: int | None) -> None:
    """Writes where the job is."""
    text = f"{phase}\t{'' if step is None else step}\t{'' if peak_bytes is None else peak_bytes}"
    board.value = text.encode()[: BOARD_BYTES - 1]


def read_board(board: Any) -> Spot:
    """Reads where the job is; a board that was being written while it was read says less, never something wrong."""
    parts = bytes(board.value).decode(errors="replace").split("\t")
    if len(parts) != 3:
        return Spot(_word(parts[0]))
    return Spot(_word(parts[0]), _number(parts[1]), _number(parts[2]))


def _word(text: str) -> str | None:
    return text if text.isprintable() and text else None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def settle(log: Path) -> None:
    """Makes this process a job's: dies with its parent, prints into its log, is the first to go when the host's memory runs out."""
    os.setsid()
    end_with_parent(os.getppid())  # before the server is let go: until then it lives
    _let_the_server_go()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when a job ends
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    faulthandler.enable(file=sys.stderr)
    # Modules come from where they are installed; `load_attribute` alone looks into the current directory, and last.
    here = os.getcwd()  # noqa: PTH109
    sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]


class _Forgiving(io.FileIO):
    """A file that a full disk does not make fail: what a job prints must not end it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _stream(handle: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(_Forgiving(handle, "w", closefd=False), line_buffering=True, write_through=True)


def _let_the_server_go() -> None:
    """The server of multiprocessing's forkserver lives while anybody holds a certain pipe, and hands that pipe to every job: a job
    that hangs would keep it alive after the run itself had died. Without it the server dies with the run, and the job with it."""
    server: Any = getattr(forkserver, "_forkserver", None)
    handle = getattr(server, "_forkserver_alive_fd", None)
    if handle is not None:
        os.close(handle)
        server._forkserver_alive_fd = None


def work(order: Order, threads: int, board: Any, pipe: Connection) -> None:
    """Takes one sample and sends it; a process' entry point. `threads` for PyTorch on the CPU (0: its own choice)."""
    began = time.perf_counter()
    settle(order.log)
    if order.visible is not None:  # CUDA has not begun: no server of jobs begins it
        os.environ["CUDA_VISIBLE_DEVICES"] = order.visible
    from vrambench.bench.measure.measurement import Measurement
    from vrambench.bench.measure.progress import Progress
    from vrambench.bench.run.messages import send
    from vrambench.methods.cell import from_flat
    from vrambench.methods.device import get_device

    cell = from_flat(order.cell)
    print(f"{cell.id} {cell.name} on {order.device}", flush=True)
    device = get_device(order.device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    meter = make_meter(cell.workload.own_budget, device)

    recording: Recording | None = None

    def listen(phase: str, step: int | None) -> None:
        write_board(board, phase, step, meter.peak_bytes())
        if recording:
            recording.enter(phase, step)

    def save(progress: Progress) -> None:
        send(pipe.fileno(), progress)

    started = time.perf_counter() - began
    measurement = Measurement(cell, device, meter, listen=listen, save=save, saved=order.saved)
    if order.recording is not None:
        from vrambench.bench.measure.recording import Recording

        recording = Recording(order.recording, measurement.job)
    try:
        with recording or nullcontext():
            sample = measurement.run()
    finally:
        meter.stop()
    if recording:
        sample = recording.added_to(sample)
    seconds = {"start": started} | sample.seconds
    send(pipe.fileno(), sample.model_copy(update={"seconds": seconds}))
    pipe.close()


def make_meter(budget_bytes: int, device: Device) -> Meter:
    """The device's meter, with the budget enforced: on CUDA as a cap on the allocator, on the CPU as a limit on this process."""
    if device.kind == "cuda":
        from vrambench.bench.measure.meters.cuda import CudaMeter

        return CudaMeter(device.torch, budget_bytes)
    from vrambench.bench.measure.meters.cpu import CpuMeter
    from vrambench.bench.measure.meters.host import limit_host_memory

    limit_host_memory(budget_bytes)
    return CpuMeter()


def prepare(value: tuple[str, str], log: str) -> None:
    """Runs one axis value's `prepare` (axis, name), which may compile or download; a process' entry point."""
    settle(Path(log))
    from vrambench.methods.axes import AXES

    axis, name = value
    AXES[axis].get(name).prepare()
