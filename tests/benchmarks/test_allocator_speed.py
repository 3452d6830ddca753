"""What the allocator model costs: events a second, on a stream that is harder on it than a training job's.

    make benchmark

Sizes from 16 B to 64 MiB, up to 2000 tensors at once, freed in any order, so that free lists stay long. A real trace (a loop over
layers) frees what it allocated last and runs faster. One pass: `replay` makes a second one for the map at the peak.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from vrambench.bench.allocator import Allocator, AllocatorSettings, Event
from vrambench.bench.allocator.replay import _Run

EVENTS = 200_000


def random_events(count: int) -> list[Event]:
    chance = random.Random(0)
    events: list[Event] = []
    live: list[int] = []
    for number in range(count):
        if live and (len(live) > 2000 or chance.random() < 0.48):
            index = chance.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            events.append(("free", live.pop(), 0, 0))
        else:
            live.append(number)
            events.append(("alloc", number, int(2 ** chance.uniform(4, 26)), 0))
    return events


def layered_events(count: int) -> list[Event]:
    """Steps of forward and backward through 32 layers: activations kept, workspaces freed at once."""
    events: list[Event] = []
    number = 0
    while len(events) < count:
        kept = []
        for layer in range(32):
            for size in (32 << 20, 96 << 20, 512 + layer, 4 << 20):
                number += 1
                events.append(("alloc", number, size, 0))
                kept.append(number)
            number += 1
            events += [("alloc", number, 64 << 20, 0), ("free", number, 0, 0)]
        events += [("free", each, 0, 0) for each in reversed(kept)]
    return events[:count]


@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "max_split_size_mb:32"])
@pytest.mark.parametrize("make", [random_events, layered_events])
def test_seconds_per_million_events(benchmark: Any, make: Any, settings: str) -> None:
    events = make(EVENTS)
    parsed = AllocatorSettings.parse(settings)

    def run() -> Allocator:
        once = _Run(Allocator(parsed), ())
        once.through(events)
        return once.allocator

    allocator = benchmark.pedantic(run, rounds=3)
    assert allocator.stats.reserved.peak >= allocator.stats.allocated.peak > 0
    if benchmark.stats is not None:  # None where benchmarks are switched off
        seconds = benchmark.stats.stats.min
        benchmark.extra_info["events_per_second"] = EVENTS / seconds
        benchmark.extra_info["seconds_per_million_events"] = seconds * 1e6 / EVENTS
        print(f"\n{make.__name__} {settings or 'default'}: {EVENTS / seconds:,.0f} events/s")
