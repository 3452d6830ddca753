"""The caching allocator once more, slow and plain: every segment is a list of blocks that is scanned from end to end.

Shares no code with the model that it checks, and none of its ideas for speed: no free lists, no links, no merging on the way
(cached neighbours are joined by a pass over the whole segment).
"""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 2**20


@dataclass
class Part:
    """state: used, pending, cached, or hole (addresses of an expandable segment without memory)."""

    address: int
    size: int
    state: str = "cached"
    requested: int = 0
    events: set[int] = field(default_factory=set)
    streams: set[int] = field(default_factory=set)


@dataclass
class Slab:
    base: int
    size: int
    stream: int
    small: bool
    granule: int  # 0: from cudaMalloc
    parts: list[Part]

    def join(self) -> None:
        joined: list[Part] = []
        for part in self.parts:
            if joined and part.state == joined[-1].state and part.state in ("cached", "hole"):
                joined[-1].size += part.size
            else:
                joined.append(part)
        self.parts = joined


class NoMemory(Exception):
    pass


class NaiveAllocator:
    def __init__(
        self,
        *,
        capacity: int | None = None,
        allowed: int | None = None,
        expandable: bool = False,
        max_split: int | None = None,
        non_split_rounding: int = 20 * MIB,
        large_segment: int = 20 * MIB,
        space: int = 2**42,
        first_address: int = 2**52,
    ) -> None:
        self.capacity, self.allowed, self.expandable, self.space = capacity, allowed, expandable, space
        self.max_split, self.non_split_rounding, self.large_segment = max_split, non_split_rounding, large_segment
        self.slabs: list[Slab] = []
        self.next_address = first_address
        self.retries = 0
        self.finished: set[tuple[int, int]] = set()
        self.clock = 0
        self.recorded: list[tuple[int, int, Part]] = []  # number, stream, part: one per event
        self.done_until: dict[int, int] = {}

    # figures, each by adding everything up
    def figures(self) -> tuple[int, int, int, int]:
        parts = [part for slab in self.slabs for part in slab.parts]
        requested = sum(part.requested for part in parts if part.state in ("used", "pending"))
        allocated = sum(part.size for part in parts if part.state == "used")
        active = allocated + sum(part.size for part in parts if part.state == "pending")
        return requested, allocated, active, self.reserved()

    def reserved(self) -> int:
        return sum(part.size for slab in self.slabs for part in slab.parts if part.state != "hole")

    def layout(self) -> list[tuple[int, int, str, int]]:
        """(address, size, state, requested) of everything that has memory, by address."""
        parts = [part for slab in self.slabs for part in slab.parts if part.state != "hole"]
        return sorted(
            (part.address, part.size, part.state, part.requested if part.state in ("used", "pending") else 0)
            for part in parts
        )

    def malloc(self, nbytes: int, stream: int) -> int:
        self.see_events()
        size = 512
        while size < nbytes:
            size += 512
            if nbytes - size > 10**6:  # the same, sooner
                size += (nbytes - size) // 512 * 512
        small = size <= MIB
        found = self.best_fit(size, stream, small)
        if found is None:
            asked = self.asked(size)
            found = self.from_driver(size, asked, stream, small)
            if found is None and self.release_oversize(size, stream, small):
                found = self.from_driver(size, asked, stream, small)
            if found is None:
                self.empty_cache()
                self.retries += 1
                found = self.from_driver(size, asked, stream, small)
            if found is None:
                raise NoMemory
        slab, part = found
        rest = part.size - size
        fine = small or self.expandable
        split = rest >= 512 if fine else rest > MIB and (self.max_split is None or size < self.max_split)
        if split:
            slab.parts.insert(slab.parts.index(part) + 1, Part(part.address + size, rest))
            part.size = size
        part.state, part.requested, part.streams, part.events = "used", nbytes, set(), set()
        slab.join()
        return part.address

    def asked(self, size: int) -> int:
        if size <= MIB:
            return 2 * MIB
        if size < 10 * MIB:
            return self.large_segment
        whole = size // (2 * MIB) * 2 * MIB
        return whole if whole == size else whole + 2 * MIB

    def best_fit(self, size: int, stream: int, small: bool) -> tuple[Slab, Part] | None:
        cached = [
            (part.size, part.address, slab, part)
            for slab in self.slabs
            if slab.stream == stream and slab.small == small
            for part in slab.parts
            if part.state == "cached" and part.size >= size
        ]
        if not cached:
            return None
        cached.sort(key=lambda entry: entry[:2])
        best = cached[0]
        for other in cached[1:]:
            if self.reach(other[2], other[3]) < self.reach(best[2], best[3]):
                best = other
            else:
                break
        if self.max_split is not None:
            if size < self.max_split <= best[0]:
                return None
            if size >= self.max_split and best[0] >= size + self.non_split_rounding:
                return None
        return best[2], best[3]

    def reach(self, slab: Slab, part: Part) -> int:
        index = slab.parts.index(part)
        after = slab.parts[index + 1] if index + 1 < len(slab.parts) else None
        return part.size + (after.size if after is not None and after.state == "hole" else 0)

    def from_driver(self, size: int, asked: int, stream: int, small: bool) -> tuple[Slab, Part] | None:
        if self.allowed is not None and self.reserved() + asked > self.allowed:
            return None
        if self.expandable:
            return self.expand(size, stream, small)
        if self.capacity is not None and self.reserved() + asked > self.capacity:
            return None
        part = Part(self.next_address, asked)
        slab = Slab(self.next_address, asked, stream, small, 0, [part])
        self.next_address += asked + (-asked) % (2 * MIB)
        self.slabs.append(slab)
        return slab, part

    def expand(self, size: int, stream: int, small: bool) -> tuple[Slab, Part] | None:
        slab, begin = self.room(size, stream, small)
        # The memory from `begin` on: every hole in the first `size` bytes is filled, granule by granule, first to last.
        while True:
            part = next(part for part in slab.parts if part.address <= begin < part.address + part.size)
            if part.state == "cached" and part.size - (begin - part.address) >= size:
                return slab, part
            hole = next(part for part in slab.parts if part.state == "hole" and part.address + part.size > begin)
            wanted = min(begin + size - hole.address, hole.size)
            granules = -(-wanted // slab.granule) * slab.granule
            if self.capacity is not None and self.reserved() + granules > self.capacity:
                return None
            if granules < hole.size:
                rest = Part(hole.address + granules, hole.size - granules, "hole")
                slab.parts.insert(slab.parts.index(hole) + 1, rest)
                hole.size = granules
            hole.state = "cached"
            slab.join()

    def room(self, size: int, stream: int, small: bool) -> tuple[Slab, int]:
        holes = [
            (part.address, slab, index)
            for slab in self.slabs
            if slab.granule and slab.stream == stream and slab.small == small
            for index, part in enumerate(slab.parts)
            if part.state == "hole"
        ]
        for _, slab, index in sorted(holes, key=lambda entry: entry[0]):
            if index and slab.parts[index - 1].state == "cached":
                index -= 1
            space = 0
            for part in slab.parts[index:]:
                if part.state not in ("cached", "hole"):
                    break
                space += part.size
            if space >= size:
                return slab, slab.parts[index].address
        granule = 2 * MIB if small else self.large_segment
        space = -(-self.space // granule) * granule
        slab = Slab(self.next_address, space, stream, small, granule, [Part(self.next_address, space, "hole")])
        self.next_address += space + (-space) % (2 * MIB)
        self.slabs.append(slab)
        return slab, slab.base

    def release_oversize(self, size: int, stream: int, small: bool) -> bool:
        if self.max_split is None:
            return False
        wanted = max(size, self.max_split)
        oversize = sorted(
            (
                (slab.parts[0].size, slab.base, slab)
                for slab in self.slabs
                if slab.stream == stream
                and slab.small == small
                and not slab.granule
                and len(slab.parts) == 1
                and slab.parts[0].state == "cached"
                and slab.parts[0].size >= self.max_split
            ),
            key=lambda entry: entry[:2],
        )
        for entry in oversize:
            if entry[0] >= wanted:
                self.slabs.remove(entry[2])
                return True
        released = 0
        for entry in reversed(oversize):
            if released >= wanted:
                break
            self.slabs.remove(entry[2])
            released += entry[0]
        return released >= wanted

    def find(self, address: int) -> tuple[Slab, Part]:
        return next(
            (slab, part)
            for slab in self.slabs
            for part in slab.parts
            if part.address == address and part.state in ("used", "pending")
        )

    def free(self, address: int) -> None:
        slab, part = self.find(address)
        part.state = "pending" if part.streams else "cached"
        for stream in part.streams:
            self.clock += 1
            self.recorded.append((self.clock, stream, part))
            part.events.add(self.clock)
        part.streams = set()
        slab.join()

    def record_stream(self, address: int, stream: int) -> None:
        slab, part = self.find(address)
        if slab.stream != stream:
            part.streams.add(stream)

    def synchronize(self, stream: int) -> None:
        self.done_until[stream] = self.clock

    def see_events(self, *, all_of_them: bool = False) -> None:
        for number, stream, part in list(self.recorded):
            if all_of_them or number <= self.done_until.get(stream, 0):
                self.recorded.remove((number, stream, part))
                part.events.discard(number)
                if not part.events:
                    part.state = "cached"
        for slab in self.slabs:
            slab.join()

    def empty_cache(self) -> None:
        self.see_events(all_of_them=True)
        for slab in list(self.slabs):
            if not slab.granule:
                if len(slab.parts) == 1 and slab.parts[0].state == "cached":
                    self.slabs.remove(slab)
                continue
            if all(part.state == "hole" for part in slab.parts):
                continue  # never mapped: there to be used
            pieces: list[Part] = []
            for part in slab.parts:
                begin = slab.base + -(-(part.address - slab.base) // slab.granule) * slab.granule
                end = slab.base + (part.address + part.size - slab.base) // slab.granule * slab.granule
                if part.state != "cached" or begin >= end:
                    pieces.append(part)
                    continue
                if part.address < begin:
                    pieces.append(Part(part.address, begin - part.address))
                pieces.append(Part(begin, end - begin, "hole"))
                if end < part.address + part.size:
                    pieces.append(Part(end, part.address + part.size - end))
            slab.parts = pieces
            slab.join()
            if len(slab.parts) == 1 and slab.parts[0].state == "hole":
                self.slabs.remove(slab)
