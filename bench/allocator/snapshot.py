"""Torch's file of what its CUDA allocator did: read, checked, and written.

    torch.cuda.memory._record_memory_history(context=None)      # on a GPU, before the job
    torch.cuda.memory._dump_snapshot("job.pickle")              # after it

In: such a file, gzip'd or not, the dictionary in it (`torch.cuda.memory._snapshot()`), or the bare list of segments that
`torch.cuda.memory_snapshot()` gives. Out: a `Snapshot`, whose every number has been checked; `vrambench.bench.allocator.comparison`
replays it. The other way round, `snapshot_of` writes what a simulated allocator did in torch's form, for pytorch.org/memory_viz.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, NotRequired

from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from vrambench.bench.allocator.blocks import Segment
from vrambench.bench.allocator.model import Allocator
from vrambench.bench.allocator.settings import UNLIMITED, AllocatorSettings
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.validated import complaint

CONF_KEYS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
DEFAULT_POOL = (0, 0)
"""Other pools are private: those of CUDA graphs and of torch.cuda.MemPool."""

Bytes = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Whole = Annotated[int, Field(strict=True)]


class RawBlock(BaseModel):
    size: Annotated[Bytes, Field(gt=0)]
    requested_size: Bytes | None = None
    state: str
    frames: Any = ()
    user_metadata: Any = ""


class RawSegment(BaseModel):
    device: Whole = 0
    address: Bytes
    total_size: Annotated[Bytes, Field(gt=0)]
    stream: Whole
    segment_type: str
    segment_pool_id: tuple[Whole, Whole] = DEFAULT_POOL
    is_expandable: bool = False
    blocks: list[RawBlock]


class RawEntry(TypedDict):
    """No model: there may be millions, and a dictionary is checked five times as fast. `addr` is missing where memory ran out."""

    action: str
    addr: NotRequired[Bytes]
    size: Bytes
    stream: Whole
    pool_id: NotRequired[tuple[Whole, Whole]]
    device_free: NotRequired[Bytes]
    frames: NotRequired[Any]
    user_metadata: NotRequired[Any]
    time_us: NotRequired[Any]


class RawSettings(BaseModel):
    """`max_split_size` is -1, or all bits set, where there is none."""

    PYTORCH_CUDA_ALLOC_CONF: str | None = None
    PYTORCH_ALLOC_CONF: str | None = None
    max_split_size: Whole | None = None
    expandable_segments: bool | None = None


class RawAnnotation(BaseModel):
    device: Whole = 0
    time_us: Whole = 0
    stage: str = ""
    name: str = ""


class Snapshot(BaseModel):
    """What a file holds and the model needs, under torch's names; a segment's blocks tile it. One trace for each device."""

    segments: list[RawSegment]
    device_traces: list[list[RawEntry]]
    allocator_settings: RawSettings = RawSettings()
    external_annotations: list[RawAnnotation] = []

    @classmethod
    def of(cls, snapshot: Snapshot | Mapping[str, Any] | Sequence[Any]) -> Snapshot:
        """Raises ConfigurationError that names the first field that is wrong."""
        if isinstance(snapshot, Snapshot):
            return snapshot
        if isinstance(snapshot, list):
            snapshot = {"segments": snapshot, "device_traces": []}
        if not isinstance(snapshot, Mapping):
            raise ConfigurationError(
                f"snapshot: holds {reprlib.repr(snapshot)}, and what torch.cuda.memory._dump_snapshot writes holds a mapping"
            )
        try:
            checked = cls.model_validate(snapshot)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(["snapshot", *map(str, first["loc"])])
            told = (
                "is not there" if first["type"] == "missing" else f"{reprlib.repr(first['input'])}: {complaint(first)}"
            )
            raise ConfigurationError(f"{place}: {told}", field=place) from None
        for segment in checked.segments:
            held = sum(block.size for block in segment.blocks)
            if held != segment.total_size:
                raise ConfigurationError(
                    f"snapshot: the blocks of the segment at {segment.address} hold {held} bytes of its {segment.total_size}"
                )
        return checked

    def settings(self) -> AllocatorSettings:
        """The allocator's settings when the snapshot was taken; torch's defaults where it holds none."""
        stored = self.allocator_settings
        settings = AllocatorSettings.parse(stored.PYTORCH_CUDA_ALLOC_CONF or stored.PYTORCH_ALLOC_CONF or "")
        most = settings.max_split_bytes if stored.max_split_size is None else stored.max_split_size
        expandable = stored.expandable_segments
        return replace(
            settings,
            expandable_segments=settings.expandable_segments if expandable is None else expandable,
            max_split_bytes=most if 0 <= most < UNLIMITED else UNLIMITED,
        )


OTHER_OPCODES = (
    "REDUCE BUILD INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID EMPTY_SET ADDITEMS FROZENSET BYTEARRAY8"
)
"""Names of pickle's opcodes that could call or build anything but containers, numbers and text."""


OTHERS = {
    b"{": "this is JSON",
    b"[": "this is JSON",
    b"PK": "this is what torch.save writes, or another zip archive",
}
"""What files begin with that are taken for recordings."""


class _PlainUnpickler(pickle._Unpickler):
    """Reads containers, numbers and text.

    This is Python's own implementation, about 6 MB a second. The faster one in C takes memory for as many objects as a file says
    that it will name, and it cannot be told which opcodes to leave out.
    """

    dispatch: ClassVar = pickle._Unpickler.dispatch.copy()
    for name in OTHER_OPCODES.split():
        del dispatch[getattr(pickle, name)[0]]

    def find_class(self, module: str, name: str) -> Any:
        raise ConfigurationError(f"snapshot: holds {module}.{name}; only plain containers, numbers and text are read")


def read_snapshot(source: Path | bytes) -> Snapshot:
    """What a dump of torch.cuda.memory._dump_snapshot holds. Raises ConfigurationError for anything else, and runs nothing that a
    pickle might want to run."""
    if isinstance(source, Path) and not source.is_file():
        raise ConfigurationError(f"{source}: is neither a recording's file nor a run's folder")
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        if found := next((what for begun, what in OTHERS.items() if data.lstrip()[:2].startswith(begun)), None):
            raise ConfigurationError(f"snapshot: {found}; torch.cuda.memory._dump_snapshot writes a pickle")
        loaded = _PlainUnpickler(io.BytesIO(data)).load()
    except ConfigurationError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, EOFError) or re.search("exhausted|truncated", str(error)):
            raise ConfigurationError(
                "snapshot: ends in the middle; it was not written, or not copied, to its end"
            ) from None
        raise ConfigurationError(
            "snapshot: is not the pickle that torch.cuda.memory._dump_snapshot writes, or is damaged"
        ) from error
    return Snapshot.of(loaded)


Frames = Sequence[Mapping[str, Any]]
"""A stack as torch records it, innermost frame first: `filename`, `line` and `name` of each."""


class Asked(NamedTuple):
    """Who asked for a block: the stack, and a text (torch: `torch.cuda.memory._set_memory_metadata`)."""

    frames: Frames = ()
    metadata: str = ""


class Span(NamedTuple):
    """A part of the trace that has a name, from `begin` to `end` by the recording's clock, in microseconds."""

    name: str
    begin: int
    end: int


def snapshot_of(
    allocator: Allocator, device: int = 0, asked: Sequence[Asked] = (), spans: Sequence[Span] = ()
) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot()` would give after the same work on CUDA `device`; needs an allocator that records.
    `asked`: of each alloc in order, and at last of the request that found no memory. Times are the entries' numbers, as
    microseconds."""
    assert allocator.trace is not None, "the allocator was made with record=True"
    traces: list[list[dict[str, Any]]] = [[] for _ in range(device + 1)]
    unknown, requests = Asked(), iter(asked)
    holders: dict[int, Asked] = {}
    taken: list[dict[str, Any]] = []
    for time, (action, address, nbytes, stream) in enumerate(allocator.trace):
        key = "device_free" if action == "oom" else "addr"
        entry = {"action": action, key: address, "size": nbytes, "stream": stream, "time_us": time}
        entry |= {"compile_context": "N/A", "pool_id": DEFAULT_POOL}
        traces[device].append(entry)
        taken.append(entry)
        if action in ("segment_alloc", "segment_map"):  # taken for the request that comes next
            continue
        who = next(requests, unknown) if action in ("alloc", "oom") else holders.get(address, unknown)
        if action == "alloc":
            holders[address] = who
        elif action == "free_completed":
            holders.pop(address, None)
        for each in taken:
            each |= {"frames": who.frames, "user_metadata": who.metadata}
        taken.clear()
    settings = allocator.settings
    unlimited = settings.max_split_bytes == UNLIMITED
    return {
        "segments": [_raw_segment(segment, device, holders) for segment in allocator.block_map()],
        "device_traces": traces,
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": settings.text(),
            "max_split_size": -1 if unlimited else settings.max_split_bytes,
            "garbage_collection_threshold": settings.garbage_collection_threshold,
            "expandable_segments": settings.expandable_segments,
        },
        "external_annotations": [
            {"device": device, "time_us": time, "stage": stage, "name": span.name}
            for span in spans
            for stage, time in (("START", span.begin), ("END", span.end))
        ],
    }


def _raw_segment(segment: Segment, device: int, holders: Mapping[int, Asked]) -> dict[str, Any]:
    def total(*states: str) -> int:
        return sum(block.size for block in segment.blocks if block.state in states)

    return {
        "device": device,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": total("active_allocated"),
        "active_size": total("active_allocated", "active_pending_free"),
        "requested_size": sum(block.requested for block in segment.blocks),
        "stream": segment.stream,
        "segment_type": segment.pool,
        "segment_pool_id": (0, 0),
        "is_expandable": segment.expandable,
        "frames": [],
        "blocks": [
            {
                "address": segment.address + block.offset,
                "size": block.size,
                "requested_size": block.requested,
                "state": block.state,
                "frames": who.frames,
                "user_metadata": who.metadata,
            }
            for block in segment.blocks
            for who in [holders.get(segment.address + block.offset, Asked())]
        ],
    }
