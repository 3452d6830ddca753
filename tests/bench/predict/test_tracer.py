"""The tracer by itself: what it holds, and what it makes of what operators hide."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from vrambench.bench.predict.tracing.hidden import HiddenMemory, Kept
from vrambench.bench.predict.tracing.trace import ALLOC
from vrambench.bench.predict.tracing.tracer import Tracer

RELU = "aten.relu.default"


def test_a_tracer_is_gone_with_its_last_name() -> None:
    """Not by the collector: a simulation freezes what is there when its job is done, its tracer included."""
    module = nn.Linear(4, 4, device="meta")
    gc.disable()
    try:
        tracer = Tracer("meta")
        with tracer:
            tracer.watch("policy", module)
            module(torch.ones(2, 4, device="meta")).sum().backward()
        alive = weakref.ref(tracer)
        del tracer
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("early", [False, True])
def test_what_an_operator_takes_inside_itself_is_given_back(early: bool) -> None:
    """And before its result only where it is said to be taken early."""
    hidden = HiddenMemory({RELU: lambda args, kwargs, result: (7, 0, 5)}, frozenset({RELU} if early else ()))
    with Tracer("meta", hidden=hidden) as tracer:
        held = torch.ones(4, device="meta").relu()
    events = [(event.ident, event.nbytes) for event in tracer.trace.events if event.operator == RELU]
    inside, result = (1, 3) if early else (2, 1)
    made = [(inside, 7), (inside + 1, 5)]
    assert events[:3] == ([*made, (result, 16)] if early else [(result, 16), *made])
    assert [ident for ident, _ in events[3:5]] == [inside, inside + 1]
    assert tracer.trace.hidden == {inside, inside + 1}
    assert held.numel() == 4


def test_what_a_library_keeps_is_kept_once_for_each_thread() -> None:
    hidden = HiddenMemory(
        kept={RELU: (Kept("library", 100),), "aten.threshold_backward.default": (Kept("library", 100),)}
    )
    leaf = torch.ones(4, device="meta", requires_grad=True)
    with Tracer("meta", hidden=hidden) as tracer:
        (leaf.relu() + leaf.relu()).sum().backward()
    kept = [event.place.backward for event in tracer.trace.events if event.kind == ALLOC and event.nbytes == 100]
    assert kept == [False, True]
