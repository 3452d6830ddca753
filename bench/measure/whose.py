"""Whose memory was in use when most was, in each phase of a recorded job: by role and kind, as a prediction tells it.

    found = whose(trace, Told(marks, owners(job), heads(job)))
    found.phases["learn", 3], found.held

In: a device's trace, whose requests are named (recording.py), and what the job told meanwhile. Weights, gradients and optimizer
state are known by their addresses. What passes is called by the place that asked for it, as the predictor calls it (`passing`).
What an operator takes inside itself is told as the module's that is at work: a recording does not tell it apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from vrambench.bench.allocator.comparison import DeviceTrace
from vrambench.bench.allocator.explained import place_of, without_numbers
from vrambench.bench.allocator.snapshot import Asked, Span
from vrambench.bench.results.records import Held, Share
from vrambench.methods.device import MEMORY

LEAST_HELD = 0.001
"""Share of a peak from which on it is told whose memory it is."""
NO_ROLE_YET = ("load", "precompute", "rollout", "score", "evaluate", "save")
"""Phases in which memory is nobody's until a role's module is at work."""

Owner = tuple[str | None, str]
"""Role and kind."""
Asker = tuple[str | None, str, str | None, str, str]
"""Role, kind, phase, module and operator."""


class Mark(NamedTuple):
    """The job entered `phase` of `step` at `time`, in microseconds since 1970; `gradients`: whose it held then, by address."""

    time: int
    phase: str
    step: int | None
    gradients: Mapping[int, str] = {}


class Told(NamedTuple):
    """What the job told: its `marks` in order; role and kind of what it held when the recording ended, by address; and the paths of
    the modules that make logits."""

    marks: Sequence[Mark]
    owners: Mapping[int, Owner]
    heads: AbstractSet[str]


class Whose(NamedTuple):
    """Largest first, little ones left out. `phases`: what was in use at the peak of each phase of each step; `held`: who asked for
    what was in use at the highest of them."""

    phases: dict[tuple[str, int | None], tuple[Share, ...]]
    held: tuple[Held, ...]


@dataclass(slots=True)
class _Block:
    """What one request got. `owner`: whose it is, where an address or a name told that; `passing`: what it is else."""

    nbytes: int
    phase: str | None
    module: str
    asked: Asked
    passing: Owner
    owner: Owner | None = None

    @property
    def of(self) -> Owner:
        return self.owner or self.passing


def passing(phase: str | None, role: str | None, *, outside_layers: bool, backward: bool) -> str:
    """What is called that nobody keeps, by where it was made. `outside_layers`: by no module, or by one that makes logits."""
    if phase in ("optimizer_step", "svd"):
        return "step_temporaries"
    if phase == "save":
        return "save_temporaries"
    if phase == "load":
        return "load_temporaries"
    if role is None:
        return "data"
    if outside_layers:
        return "backward_temporaries" if backward else "logits_and_loss"
    return "activations"


def whose(trace: DeviceTrace, told: Told) -> Whose:
    """Nothing where no request has a name, as before torch 2.11."""
    if not any(asked.metadata for asked in trace.asked):
        return Whose({}, ())
    walk = _Walk(trace, told)
    walk.to_the_end()
    phases = {key: _shares(blocks) for key, blocks in walk.at_peaks()}
    return Whose(phases, _held(walk.highest))


@dataclass
class _Walk:
    """Through the trace once to find whose each block is and when each phase had most, and once more to what was in use then."""

    trace: DeviceTrace
    told: Told
    blocks: list[_Block] = field(default_factory=list)
    """Of each request, in order."""
    peaks: dict[tuple[str, int | None], tuple[int, int]] = field(default_factory=dict)
    """By phase and step: the most bytes, and the number of entries before that moment ended."""
    highest: Sequence[_Block] = ()

    def to_the_end(self) -> None:
        """Every block has its owner then."""
        live = self._before()
        total = sum(block.nbytes for block in live.values())
        naming = _Naming(self.trace, self.told)
        marks, named = list(self.told.marks), _named_spans(self.trace.spans)
        asked = iter(self.trace.asked)
        now: Mark | None = None
        place = 0
        for index, (action, address, nbytes, _) in enumerate(self.trace.entries):
            time = self.trace.times[index]
            while place < len(marks) and marks[place].time <= time:
                now = marks[place]
                place += 1
                naming.enter(now)
                for held, role in now.gradients.items():
                    if held in live:
                        live[held].owner = (role, "gradients")
                self._most(now, total, index)
            if action == "alloc":
                block = naming.block(nbytes, next(asked), _name_at(named, time))
                self.blocks.append(block)
                live[address] = block
                total += nbytes
                self._most(now, total, index + 1)
            elif action == "free_completed" and (gone := live.pop(address, None)):
                total -= gone.nbytes
        for address, owner in self.told.owners.items():
            if address in live:
                live[address].owner = owner

    def _before(self) -> dict[int, _Block]:
        """What was in use when the recording began, by address."""
        return {
            segment.address + block.offset: _Block(block.requested, None, "", Asked(), (None, "data"))
            for segment in self.trace.start.segments
            for block in segment.blocks
            if block.state != "inactive"
        }

    def _most(self, mark: Mark | None, total: int, entries: int) -> None:
        if mark is not None:
            key = mark.phase, mark.step
            if key not in self.peaks or total > self.peaks[key][0]:
                self.peaks[key] = total, entries

    def at_peaks(self) -> Iterator[tuple[tuple[str, int | None], list[_Block]]]:
        """What was in use at the peak of each phase, in the order of the peaks."""
        highest = max((total for total, _ in self.peaks.values()), default=0)
        wanted = sorted(self.peaks.items(), key=lambda one: one[1][1])
        live, blocks, at = self._before(), iter(self.blocks), 0
        for key, (total, entries) in wanted:
            for action, address, _, _ in self.trace.entries[at:entries]:
                if action == "alloc":
                    live[address] = next(blocks)
                elif action == "free_completed":
                    live.pop(address, None)
            at = entries
            found = list(live.values())
            if total == highest and not self.highest:
                self.highest = found
            yield key, found


class _Naming:
    """Whose a new block is, from where the job is and how the request is called."""

    def __init__(self, trace: DeviceTrace, told: Told) -> None:
        self._heads = told.heads
        self._root = next((root for asked in trace.asked if (root := _root(asked))), None)
        self._phase: str | None = None
        self._role: str | None = None

    def enter(self, mark: Mark) -> None:
        self._phase = mark.phase
        if mark.phase in NO_ROLE_YET:
            self._role = None

    def block(self, nbytes: int, asked: Asked, named: str | None) -> _Block:
        """`named`: what the job's own code calls what it allocates now."""
        role, _, module = asked.metadata.partition(": ")[2].partition("/")
        self._role = role or self._role
        # Autograd's engine asks from a thread of its own, whose stack does not begin where the job's does.
        kind = passing(
            self._phase,
            self._role,
            outside_layers=not module or module in self._heads,
            backward=_root(asked) != self._root,
        )
        owner = (self._role, named) if named else None
        return _Block(nbytes, self._phase, without_numbers(module), asked, (self._role, kind), owner)


def _root(asked: Asked) -> tuple[str, str] | None:
    """Where the stack begins."""
    last = asked.frames[-1] if asked.frames else None
    return None if last is None else (str(last.get("filename")), str(last.get("name")))


def _named_spans(spans: Sequence[Span]) -> list[Span]:
    """Stretches in which the job's code says what it allocates (`memory_named`), the last first."""
    found = [span for span in spans if span.name.startswith(MEMORY)]
    return sorted(found, key=lambda span: -span.begin)


def _name_at(spans: list[Span], time: int) -> str | None:
    """What is allocated at `time`, which only grows: `spans` loses those that are over."""
    while spans and spans[-1].end < time:
        spans.pop()
    return spans[-1].name.removeprefix(MEMORY) if spans and spans[-1].begin <= time else None


def _shares(blocks: Sequence[_Block]) -> tuple[Share, ...]:
    sums: Counter[Owner] = Counter()
    for block in blocks:
        sums[block.of] += block.nbytes
    return shares_of(sums)


def _held(blocks: Sequence[_Block]) -> tuple[Held, ...]:
    sums: Counter[Asker] = Counter()
    for block in blocks:
        sums[*block.of, block.phase, block.module, place_of(block.asked.frames) or ""] += block.nbytes
    return held_of(sums)


def shares_of(sums: Counter[Owner], least: float = LEAST_HELD) -> tuple[Share, ...]:
    """Bytes by owner, largest first, without those below the share `least` of all."""
    fewest = least * sums.total()
    return tuple(
        Share(role=role, kind=kind, nbytes=nbytes) for (role, kind), nbytes in sums.most_common() if nbytes >= fewest
    )


def held_of(sums: Counter[Asker]) -> tuple[Held, ...]:
    """Bytes by who asked for them, largest first, without what is little."""
    least = LEAST_HELD * sums.total()
    return tuple(
        Held(role=role, kind=kind, phase=phase, module=module, operator=operator, nbytes=nbytes)
        for (role, kind, phase, module, operator), nbytes in sums.most_common()
        if nbytes >= least
    )
