"""Predictions for many cells, in processes of their own.

    outcomes = predict_all(cells, tell=lambda done, total: ...)
    outcomes[cell.id].forecast, outcomes[cell.id].reason

Never in the caller's own process: importing PEFT, bitsandbytes or DeepSpeed initialises CUDA, and a run's parent must
hold nothing on the device that it measures. Each process keeps one predictor, and takes neighbouring cells, which are the
most alike.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.alloc_conf import read
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.quiet import hush
from vrambench.bench.processes import deaf_to_interrupts, fresh_start
from vrambench.bench.results.forecast import Outcome, Unmodelled
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from concurrent.futures import Executor

PROCESSES = 2
CHUNK = 4
"""Cells that a process is given at once: enough to use again what it learned, few enough to show progress."""
WORTH_A_PROCESS = 8
"""With no more cells than this, a second process costs more in imports than it saves."""


def predict_all(
    cells: Sequence[Cell],
    card: str | None = None,
    *,
    processes: int = PROCESSES,
    alloc_conf: str | None = None,
    left_out: tuple[Unmodelled, ...] = (),
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Outcome]:
    """Each cell's outcome under its own budget, by the cell's id. `card`: the card's name, where the budget was given as one.
    `alloc_conf`, `left_out`: see Predictor. `tell` is called with how many cells are done, and of how many. Whatever goes
    wrong with a cell is its outcome's reason."""
    distinct = list({cell.id: cell for cell in cells}.values())
    chunks = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
    outcomes: dict[str, Outcome] = {}
    if not chunks:
        return outcomes
    read(alloc_conf)  # a mistake in it is told here, once
    used = min(processes, len(chunks)) if len(distinct) > WORTH_A_PROCESS else 1
    tell(0, len(distinct))
    with fresh_start(), _pool(used, alloc_conf, left_out) as pool:  # the pool starts a process of its own, too
        with deaf_to_interrupts():
            futures = {pool.submit(_predict, [cell.flat() for cell in chunk], card): chunk for chunk in chunks}
        left: set[Future[list[Outcome]]] = set(futures)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = futures[future]
                outcomes |= dict(zip([cell.id for cell in chunk], _outcomes(future, len(chunk)), strict=True))
            tell(len(outcomes), len(distinct))
    return outcomes


def _outcomes(future: Future[list[Outcome]], count: int) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool:
        return [Outcome(reason="the process that predicted it ended")] * count


@contextlib.contextmanager
def _pool(processes: int, alloc_conf: str | None, left_out: tuple[Unmodelled, ...]) -> Iterator[Executor]:
    """Processes that end with the block, whether they are done or not."""
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(alloc_conf, left_out),
    )
    try:
        yield pool
    except BaseException:
        running = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_predictor: Predictor | None = None  # one for each process of the pool, which has no other place to keep it


def _begin(alloc_conf: str | None, left_out: tuple[Unmodelled, ...]) -> None:
    """What a process does before its first prediction: no GPU is touched."""
    import torch

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.dup2(2, 1)  # libraries that print do so where a parent's --json document is not
    hush()
    torch.set_num_threads(1)
    global _predictor
    _predictor = Predictor(alloc_conf, left_out)


def _predict(flats: Sequence[dict[str, Any]], card: str | None) -> list[Outcome]:
    """Runs in a process of the pool."""
    assert _predictor is not None
    outcomes = []
    for flat in flats:
        outcomes.append(outcome(_predictor, flat, card))
        gc.freeze()  # what is there by now, the libraries made and keep: the next cell's collections take 0.2 s less
    return outcomes


def outcome(predictor: Predictor, flat: dict[str, Any], card: str | None) -> Outcome:
    """The outcome of one cell, given as in result files. Whatever a prediction raises is its reason: the others go on."""
    try:
        return Outcome(forecast=predictor.forecast(from_flat(flat), card=CARDS[card] if card else None))
    except (ConfigurationError, NotPredicted) as error:
        return Outcome(reason=str(error))
    except Exception as error:
        return Outcome(
            reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
        )
