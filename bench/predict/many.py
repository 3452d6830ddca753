"""Predictions for many cells, in processes of their own unless the caller lends his.

    outcomes = predict_all(cells, tell=lambda done, total: ...)
    outcomes[cell.id].forecast, outcomes[cell.id].reason

In a run never in the caller's own process: importing PEFT, bitsandbytes or DeepSpeed initialises CUDA, and a run's parent must
hold nothing on the device that it measures. Each process keeps one predictor, and takes neighbouring cells, which are the
most alike.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from vrambench.bench.measure.collector import collector_held
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.alloc_conf import AllocConf, read
from vrambench.bench.predict.cache import Cache
from vrambench.bench.predict.kept import about_forecast, read_forecast
from vrambench.bench.predict.quiet import hush
from vrambench.bench.processes import deaf_to_interrupts, fresh_start, kill
from vrambench.bench.results.forecast import Outcome, Unmodelled
from vrambench.methods.called import card_of
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from vrambench.bench.predict.forecast import Predictor

PROCESSES = 2
CHUNK = 4
"""Cells that a process is given at once: enough to use again what it learned, few enough to show progress."""
NewPool = Callable[[int, "str | None", "tuple[Unmodelled, ...]", "Cache | None"], Executor]
"""How a pool is made: of so many processes, which predict with these settings of Predictor's."""
WORTH_A_PROCESS = 8
"""With no more cells than this, a second process costs more in imports than it saves."""


def predict_all(
    cells: Sequence[Cell],
    card: str | None = None,
    *,
    processes: int = PROCESSES,
    alloc_conf: str | None = None,
    left_out: tuple[Unmodelled, ...] = (),
    cache: Cache | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    pool: NewPool | None = None,
    here: bool = False,
) -> dict[str, Outcome]:
    """Each cell's outcome under its own budget, by the cell's id. `card`: the card's name, where the budget was given as one.
    `alloc_conf`, `left_out`, `cache`: see Predictor. `tell` is called with how many cells are done, and of how many. `pool`
    makes what `predicted` is called in, where that is not processes of this machine. `here`: this process measures nothing, and
    predicts few cells itself. Whatever goes wrong with a cell is its outcome's reason."""
    distinct = {cell.id: cell for cell in cells}
    if not distinct:
        return {}
    conf = read(alloc_conf)  # a mistake in it is told here, once
    outcomes = kept_outcomes(distinct.values(), card, conf, left_out, cache) if cache else {}
    asked = [cell for cell in distinct.values() if cell.id not in outcomes]
    chunks = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
    used = min(processes, len(chunks)) if len(asked) > WORTH_A_PROCESS else 1
    tell(len(outcomes), len(distinct))
    if not asked:
        return outcomes
    if here and pool is None and len(asked) <= WORTH_A_PROCESS:
        for cell, one in _one_by_one(asked, card, alloc_conf, left_out, cache):
            outcomes[cell.id] = one
            tell(len(outcomes), len(distinct))
        return outcomes
    with (
        fresh_start(),
        _open(pool or new_pool, used, alloc_conf, left_out, cache) as opened,
    ):  # it starts one of its own, too
        with deaf_to_interrupts():
            futures = {opened.submit(predicted, [cell.flat() for cell in chunk], card): chunk for chunk in chunks}
        left: set[Future[list[Outcome]]] = set(futures)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = futures[future]
                outcomes |= dict(zip([cell.id for cell in chunk], _outcomes(future, len(chunk)), strict=True))
            tell(len(outcomes), len(distinct))
    return outcomes


def _one_by_one(
    cells: Iterable[Cell],
    card: str | None,
    alloc_conf: str | None,
    left_out: tuple[Unmodelled, ...],
    cache: Cache | None,
) -> Iterator[tuple[Cell, Outcome]]:
    """Each cell with its outcome, made in this process."""
    from vrambench.bench.predict.forecast import Predictor

    hush()
    predictor = Predictor(alloc_conf, left_out, cache)
    with frozen() as freezes:
        for cell in cells:
            yield cell, outcome(predictor, cell.flat(), card)
            if freezes:
                gc.freeze()  # what libraries made, too


@contextlib.contextmanager
def frozen() -> Iterator[bool]:
    """What is there is left out of collections, unless a caller has frozen something: 0.2 s less for each prediction. Gives whether
    it is."""
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        yield freezes
    finally:
        if freezes:
            gc.unfreeze()


def kept_outcomes(
    cells: Iterable[Cell], card: str | None, conf: AllocConf, left_out: tuple[Unmodelled, ...], cache: Cache
) -> dict[str, Outcome]:
    """The outcomes that were kept, by the cells' ids; see `predict_all`, and Predictor for `conf`."""
    found = {}
    for cell in cells:
        budget = cell.workload.budget
        with contextlib.suppress(ConfigurationError):  # of a model that cannot be read: a process says so
            asked = about_forecast(cell, budget, CARDS[card] if card else card_of(budget), conf, left_out)
            if asked and (kept := read_forecast(cache, asked)):
                found[cell.id] = Outcome(forecast=kept.forecast)
    return found


def _outcomes(future: Future[list[Outcome]], count: int) -> list[Outcome]:
    try:
        return future.result()
    except BrokenExecutor:
        return [Outcome(reason="the process that predicted it ended")] * count


@contextlib.contextmanager
def _open(
    new: NewPool, processes: int, alloc_conf: str | None, left_out: tuple[Unmodelled, ...], cache: Cache | None
) -> Iterator[Executor]:
    """A pool whose processes end with the block, whether they are done or not."""
    pool = new(processes, alloc_conf, left_out, cache)
    try:
        yield pool
    except BaseException:
        end(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def new_pool(
    processes: int, alloc_conf: str | None, left_out: tuple[Unmodelled, ...], cache: Cache | None
) -> ProcessPoolExecutor:
    """Processes for `predicted`, which start as they are needed."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=begin, initargs=(alloc_conf, left_out, cache))


def end(pool: Executor) -> None:
    """Ends the pool's processes, whatever they do."""
    running = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in running:
        kill(process)


_predictor: Predictor | None = None  # one for each process of the pool, which has no other place to keep it


def begin(alloc_conf: str | None, left_out: tuple[Unmodelled, ...], cache: Cache | None) -> None:
    """What a process does before its first prediction: no GPU is touched."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.dup2(2, 1)  # libraries that print do so where a parent's --json document is not
    hush()
    with collector_held(collect=False):  # which takes a second of imports
        import torch

        from vrambench.bench.predict.forecast import Predictor

    torch.set_num_threads(1)
    gc.freeze()
    global _predictor
    _predictor = Predictor(alloc_conf, left_out, cache)


def predictor_here() -> Predictor:
    """The one of this process of the pool."""
    assert _predictor is not None
    return _predictor


def predicted(flats: Sequence[dict[str, Any]], card: str | None) -> list[Outcome]:
    """The outcomes of cells given as in result files; runs in a process of the pool."""
    outcomes = []
    for flat in flats:
        outcomes.append(outcome(predictor_here(), flat, card))
        gc.freeze()  # what is there by now, the libraries made and keep: the next cell's collections take 0.2 s less
    return outcomes


def outcome(predictor: Predictor, flat: dict[str, Any], card: str | None) -> Outcome:
    """The outcome of one cell, given as in result files. Whatever a prediction raises is its reason: the others go on."""
    try:
        return Outcome(forecast=predictor.forecast(from_flat(flat), card=CARDS[card] if card else None))
    except Exception as error:
        return Outcome(reason=why(error))


def why(error: Exception) -> str:
    """Why there is no prediction, in one line where the error is none of ours."""
    if isinstance(error, ConfigurationError | NotPredicted):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
