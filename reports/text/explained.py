"""What `explain` says on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

from vrambench.bench.allocator.explained import Explained, Live, Needed
from vrambench.reports import units
from vrambench.reports.text.answers import print_rows
from vrambench.reports.text.terminal import Output, plain

MOST_PLACES = 20
"""Places that are told one by one; the others together."""
WORTH = 0.01
"""Share of the memory that settings must save to be recommended."""


def print_explained(one: Explained, name: str, out: TextIO) -> None:
    """What was in use, what was not, and what other settings would have needed, of one device of the recording called `name`."""
    console = Output(out)
    for line in _moment(one, name):
        console.tell(line)
    print_rows(("in use", "blocks", "largest", "asked for at"), _rows(one.live, "other place"), out)
    if all(live.where is None for live in one.live):
        console.tell("no stacks were recorded: torch.cuda.memory._record_memory_history(stacks='python') records them")
    if one.called:
        print_rows(("in use", "blocks", "largest", "called"), _rows(one.called, "other name"), out)
    others = [
        (plain(_settings(needed)), units.size(needed.reserved_bytes), units.size(needed.least_bytes))
        for needed in one.others
    ]
    print_rows(("PYTORCH_ALLOC_CONF", "reserved", "least needed"), others, out)
    for line in _advice(one):
        console.tell(line)


def _rows(lives: Sequence[Live], others: str) -> Sequence[Sequence[str]]:
    """A line each; what goes beyond MOST_PLACES together in one."""
    rows = [
        (units.size(live.nbytes), f"{live.blocks:,}", units.size(live.largest_bytes), plain(_where(live)))
        for live in lives
    ]
    rest = lives[MOST_PLACES:]
    if rest:
        nbytes, largest = sum(live.nbytes for live in rest), max(live.largest_bytes for live in rest)
        told = units.plural(len(rest), others)
        rows[MOST_PLACES:] = [(units.size(nbytes), f"{sum(live.blocks for live in rest):,}", units.size(largest), told)]
    return rows


def _moment(one: Explained, name: str) -> Iterator[str]:
    most = units.size(one.recorded.reserved_bytes)
    yield f"{name}, device {one.device}, {one.entries:,} entries under {_settings(one.others[0])}: {most} reserved at the most"
    if one.ran_out:
        left = f", the card had {units.size(one.ran_out.left_bytes)} left" if one.ran_out.left_bytes is not None else ""
        asked = f"{units.size(one.ran_out.asked_bytes)} were asked for"
        asked += f" at {plain(one.ran_out.where)}" if one.ran_out.where else ""
        asked += f", called {plain(one.ran_out.called)}" if one.ran_out.called else ""
        yield f"memory ran out: {asked}{left}"
    when = "then" if one.ran_out else "when most was in use"
    when += f", in {plain(one.part)}" if one.part else ""
    unused = one.unused
    lay = f"{units.size(unused.nbytes)} lay unused, in {units.plural(unused.blocks, 'block')} of at most"
    yield (
        f"{when}: {units.size(one.requested_bytes)} in use, {units.size(one.reserved_bytes)} reserved; {lay} "
        f"{units.size(unused.largest_bytes)}"
    )
    if one.left_out:
        yield one.left_out
    if not one.exact:
        yield "the model of the allocator puts some blocks elsewhere than this GPU did: what lay unused is the model's"


def _where(live: Live) -> str:
    before = "before the recording began" if live.before else ""
    if live.where is None:
        return ", ".join(filter(None, (f"blocks of {units.size(live.largest_bytes)}", before)))
    return ", ".join(filter(None, (live.where, before)))


def _settings(needed: Needed) -> str:
    return needed.settings.text() or "PyTorch's defaults"


def _advice(one: Explained) -> Iterator[str]:
    """What to set, where it would have helped."""
    recorded, *others = one.others
    yield (
        "reserved: on a card without a limit; least needed: what a card must give at the least, where cached memory goes back to "
        "the driver whenever more is asked for, which takes time"
    )
    best = min(others, key=lambda needed: needed.least_bytes, default=None)
    if best is None or best.least_bytes > (1 - WORTH) * recorded.least_bytes:
        yield "no setting compared here would have needed 1 % less"
        return
    saved = recorded.least_bytes - best.least_bytes
    told = f"{units.size(saved)} less"
    if one.given_bytes is not None:
        told = "it would have run" if best.least_bytes <= one.given_bytes else f"{told}, and would have run out as well"
    yield f"export PYTORCH_ALLOC_CONF={best.settings.text()}    # {told} (PYTORCH_CUDA_ALLOC_CONF before torch 2.9)"
