"""A model of PyTorch's CUDA caching allocator: what a stream of allocations and frees makes of a GPU's memory, without a GPU.

    allocator = Allocator(AllocatorSettings.parse("expandable_segments:True"), capacity_bytes=24 * 2**30)
    handle = allocator.malloc(3 * 2**20)
    allocator.free(handle)
    allocator.stats.reserved.peak, allocator.block_map()

`settings` reads PYTORCH_ALLOC_CONF, `blocks` holds the records, `model` is the allocator, `driver` stands between it and the card,
`expandable` has its growing segments, `maps` its blocks as records; `replay` runs a recorded or predicted stream of events through
it. `snapshot` reads and writes torch's recordings, `beginning` works out how one began, `recorded` what it shows by itself, and
`comparison` replays it. The rules are those of torch 2.5 to 2.14's native backend
(c10/cuda/CUDACachingAllocator.cpp, whose functions the docstrings name as `C++: name`), each read there, and every number is
the one that torch.cuda.memory_stats would give.
"""

from vrambench.bench.allocator.blocks import AllocatorStats, Block, DeviceOutOfMemory, Segment, Stat
from vrambench.bench.allocator.model import Allocator
from vrambench.bench.allocator.replay import Event, ReplayOutOfMemory, ReplayResult, replay
from vrambench.bench.allocator.settings import AllocatorSettings

__all__ = [
    "Allocator",
    "AllocatorSettings",
    "AllocatorStats",
    "Block",
    "DeviceOutOfMemory",
    "Event",
    "ReplayOutOfMemory",
    "ReplayResult",
    "Segment",
    "Stat",
    "replay",
]
