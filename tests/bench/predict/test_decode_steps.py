"""Decode steps that are left out: where sizes grow, what is put in is what tracing them all would have shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.bench.predict.conftest import OfLayers
from vrambench.bench.allocator import AllocatorSettings
from vrambench.bench.predict.replay import Replay
from vrambench.bench.predict.simulate import Simulation, Simulator
from vrambench.bench.predict.tracing.decode_steps import NotRegular, with_all_steps
from vrambench.bench.predict.tracing.trace import ALLOC, BEGIN, END, FREE, Event, Place, Trace
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import Device

SIMULATOR = Simulator()
MIB = 2**20
NOWHERE = Place(None, None, None, None, "")


def cell(**more: Any) -> Cell:
    axes = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none", "algorithm": "remax"}
    work: dict[str, Any] = {"model": "tiny", "prompt_tokens": 5, "response_tokens": 20, "rollout_batch": 4}
    for name, value in more.items():
        (axes if name in axes else work)[name] = value
    return resolve(axes, work)


def every_step(made: Cell, monkeypatch: pytest.MonkeyPatch) -> Simulation:
    def all_of(self: Device, items: Any) -> Iterator[Any]:
        return iter(items)

    with monkeypatch.context() as patch:
        patch.setattr(Device, "growing", all_of)
        return SIMULATOR.run(made)


def described(trace: Trace) -> list[tuple[Any, ...]]:
    """The trace with idents by order of appearance."""
    numbers: dict[int, int] = {}
    for event in trace.events:
        if event.kind == ALLOC:
            numbers[event.ident] = len(numbers)
    return [
        (
            event.kind,
            numbers.get(event.ident),
            event.nbytes,
            event.operator if event.kind == ALLOC else "",
            event.ident in trace.hidden,
            trace.owners.get(event.ident),
        )
        for event in trace.events
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp32", "attention": "math"},
        {"precision": "bf16_amp"},
        {"precision": "fp32", "model": "tiny-mistral", "attention": "math", "algorithm": "ppo"},
        {"precision": "fp32", "response_tokens": 4, "attention": "math"},
    ],
)
def test_sizes_that_grow_are_those_of_every_step(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have no more layers than are traced: with every step put in, every event is to be there."""
    monkeypatch.setattr("vrambench.bench.predict.tracing.decode_steps.block_class", lambda nbytes: (0, nbytes))
    made = cell(**more)
    all_steps = every_step(made, monkeypatch)
    simulated = SIMULATOR.run(made)
    assert simulated.notes == ()
    assert described(simulated.trace) == described(all_steps.trace)


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp32", "model": "llama-3.2-3b", "attention": "math", "rollout_batch": 16},
        {"precision": "bf16_amp", "model": "gpt2", "algorithm": "ppo", "rollout_batch": 16},
        {"model": "mistral-7b"},
    ],
)
def test_the_allocator_reserves_what_it_does_with_every_step_and_layer(
    more: dict[str, Any], of_layers: OfLayers, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_layers("mistral-7b", 8) if more["model"] == "mistral-7b" else more["model"]
    made = cell(prompt_tokens=64, response_tokens=32, **more | {"model": model})
    whole = Replay(every_step(made, monkeypatch).trace, AllocatorSettings())
    few = Replay(SIMULATOR.run(made).trace, AllocatorSettings())
    assert (few.allocated_bytes, few.reserved_bytes) == (whole.allocated_bytes, whole.reserved_bytes)
    assert few.phases == whole.phases


def step(number: int, *events: tuple[int, int, int]) -> list[Event]:
    marks = Event(BEGIN, -1, number, "", NOWHERE), Event(END, -1, 0, "", NOWHERE)
    return [marks[0], *(Event(kind, ident, nbytes, "", NOWHERE) for kind, ident, nbytes in events), marks[1]]


def test_a_step_may_free_what_the_one_before_it_made() -> None:
    before = Event(ALLOC, 0, 8, "", NOWHERE)
    first = step(1, (ALLOC, 1, 10 * MIB), (FREE, 0, 0))
    last = step(4, (ALLOC, 2, 40 * MIB), (FREE, 1, 0))
    trace = Trace([before, *first, *last, Event(FREE, 2, 0, "", NOWHERE)])
    made = with_all_steps(trace, trace)
    assert [(event.kind, event.ident, event.nbytes) for event in made.events] == [
        (ALLOC, 0, 8),
        *((ALLOC, 1, 10 * MIB), (FREE, 0, 0)),
        *((ALLOC, 3, 20 * MIB), (FREE, 1, 0)),
        *((ALLOC, 4, 30 * MIB), (FREE, 3, 0)),
        *((ALLOC, 2, 40 * MIB), (FREE, 4, 0)),
        (FREE, 2, 0),
    ]


def test_only_steps_that_grow_out_of_their_blocks_are_put_in() -> None:
    first = step(1, (ALLOC, 1, 10 * MIB), (FREE, 1, 0))
    last = step(41, (ALLOC, 2, 20 * MIB), (FREE, 2, 0))
    trace = Trace([*first, *last])
    sizes = [event.nbytes / MIB for event in with_all_steps(trace, trace).events if event.kind == ALLOC]
    assert sizes == [10, 10.25, 12.25, 14.25, 16.25, 18.25, 20]


def test_steps_of_one_size_stay_left_out() -> None:
    trace = Trace([*step(1, (ALLOC, 1, 10), (FREE, 1, 0)), *step(9, (ALLOC, 2, 10), (FREE, 2, 0))])
    assert [event.kind for event in with_all_steps(trace, trace).events] == [ALLOC, FREE, ALLOC, FREE]


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([(ALLOC, 2, 40)], "a decode step has 2 events, the last one 1"),
        ([(ALLOC, 2, 41), (FREE, 2, 0)], "is another in the last one"),
        ([(ALLOC, 2, 40), (ALLOC, 3, 40)], "is another in the last one"),
        ([(ALLOC, 2, 40), (FREE, 0, 0)], "frees what is no step's"),
    ],
)
def test_steps_that_do_not_repeat_are_refused(last: list[tuple[int, int, int]], message: str) -> None:
    first = step(1, (ALLOC, 1, 10), (FREE, 1, 0))
    trace = Trace([Event(ALLOC, 0, 8, "", NOWHERE), *first, *step(4, *last)])
    with pytest.raises(NotRegular, match=message):
        with_all_steps(trace, trace)


def test_what_outlives_the_next_step_is_refused() -> None:
    trace = Trace([*step(1, (ALLOC, 1, 10)), *step(4, (ALLOC, 2, 40))])
    with pytest.raises(NotRegular, match="1 allocations of a decode step outlive the next one"):
        with_all_steps(trace, trace)


def test_a_rollout_that_does_not_repeat_is_predicted_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(trace: Trace, traced: Trace) -> Trace:
        raise NotRegular("no step is like another")

    monkeypatch.setattr("vrambench.bench.predict.simulate.with_all_steps", refuse)
    simulated = SIMULATOR.run(cell())
    assert simulated.notes == ("of decoding, only the first and the last step are followed (no step is like another)",)
    assert {event.kind for event in simulated.trace.events} & {BEGIN, END} == set()
    assert Replay(simulated.trace, AllocatorSettings()).reserved_bytes


def test_what_a_repeated_layer_hands_on_is_refused() -> None:
    def of(ident: int) -> Trace:
        before = Event(ALLOC, 0, 8, "", NOWHERE)
        first = step(1, (ALLOC, ident, 10 * MIB), (FREE, 0, 0))
        return Trace([before, *first, *step(4, (ALLOC, 2, 40 * MIB), (FREE, ident, 0))])

    assert with_all_steps(of(1), of(1)).events
    with pytest.raises(NotRegular, match="frees what a repeated layer made in the step before"):
        with_all_steps(of(101), of(1))
