"""The allocator's options, as PYTORCH_ALLOC_CONF (or, read first where both are set, PYTORCH_CUDA_ALLOC_CONF) writes them.

    AllocatorSettings.parse("max_split_size_mb:128,roundup_power2_divisions:[256:1,512:2,1024:4,>:8]")

Options that move no device memory (those of pinned host memory, of locks, of graph capture) are checked by name and left
out. What the model does not know, another backend, is refused rather than ignored.
Source: torch 2.13's c10/core/AllocatorConfig.h and .cpp, c10/cuda/CUDAAllocatorConfig.h.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vrambench.methods.errors import ConfigurationError, UnknownValue, brief

MIB = 2**20
MIN_BLOCK_BYTES = 512
"""Every block is a multiple of this (C++: kMinBlockSize)."""
SMALL_BYTES = MIB
"""The largest request of the small pool (C++: kSmallSize), and what a large block may keep as its unsplit tail."""
SMALL_SEGMENT_BYTES = 2 * MIB
MIN_OWN_SEGMENT_BYTES = 10 * MIB
"""From here on a request gets a segment of its own size (C++: kMinLargeAlloc) ..."""
LARGE_ROUNDING_BYTES = 2 * MIB
"""... rounded up to this (C++: kRoundLarge)."""
UNLIMITED = sys.maxsize
MOST = 2**64 - 1
"""C++: ConfigTokenizer::toSizeT."""

INTERVALS = 16
"""Powers of two from 1 MiB to 64 GiB, each with its own number of divisions; below and above, the first and the last."""

ENVIRONMENT = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The first that is set counts, the others are not read (C++: CUDAAllocatorConfig::instance)."""

WITHOUT_EFFECT = (
    "release_lock_on_cudamalloc",
    "release_lock_on_hipmalloc",
    "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register",
    "pinned_num_register_threads",
    "pinned_use_background_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_free_catch_all",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
    "graph_capture_record_stream_reuse",
    "throw_on_cudamalloc_oom",
)
MODELLED = (
    "backend",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "roundup_power2_divisions",
    "garbage_collection_threshold",
    "expandable_segments",
    "large_segment_size_mb",
    "per_process_memory_fraction",
)


@dataclass(frozen=True, slots=True)
class AllocatorSettings:
    """Sizes in bytes; the defaults are torch's. `roundup_power2_divisions` is empty, or holds one number per interval."""

    max_split_bytes: int = UNLIMITED
    max_non_split_rounding_bytes: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = ()
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    large_segment_bytes: int = 20 * MIB
    memory_fraction: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Reads `key:value,key:[a:b,c:d]`; spaces do not count. Raises ConfigurationError (UnknownValue for an unknown option).

        As in torch, a later value of an option replaces an earlier one; limits between options are checked at the end.
        """
        settings = cls()
        for option, value in _pairs(text):
            settings = _apply(settings, option, value)
        least = settings.large_segment_bytes
        for option, size in (
            ("max_split_size_mb", settings.max_split_bytes),
            ("max_non_split_rounding_mb", settings.max_non_split_rounding_bytes),
        ):
            if size < least and option in text:
                raise _error(option, f"{size // MIB} is too small; the least is {least // MIB}, a large segment's size")
        return settings

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> AllocatorSettings:
        """The settings that a process with this `environment` would have."""
        return cls.parse(next((environment[name] for name in ENVIRONMENT if name in environment), ""))

    def text(self) -> str:
        """What `parse` reads these settings from; only what differs from torch's defaults."""
        default = AllocatorSettings()
        intervals = ",".join(f"{1 << index}:{number}" for index, number in enumerate(self.roundup_power2_divisions))
        options = {
            "large_segment_size_mb": (self.large_segment_bytes // MIB, default.large_segment_bytes // MIB),
            "max_split_size_mb": (self.max_split_bytes // MIB, UNLIMITED // MIB),
            "max_non_split_rounding_mb": (
                self.max_non_split_rounding_bytes // MIB,
                default.max_non_split_rounding_bytes // MIB,
            ),
            "roundup_power2_divisions": (f"[{intervals}]", "[]"),
            "garbage_collection_threshold": (self.garbage_collection_threshold, default.garbage_collection_threshold),
            "expandable_segments": (self.expandable_segments, default.expandable_segments),
            "per_process_memory_fraction": (self.memory_fraction, default.memory_fraction),
        }
        return ",".join(f"{option}:{value}" for option, (value, usual) in options.items() if value != usual)

    def rounded(self, nbytes: int) -> int:
        """The size of the block that serves `nbytes` (C++: round_size, roundup_power2_next_division).

        Multiples of 512 B; with divisions d > 1 and more than 512 * d bytes, the next of d equal steps between two powers
        of two: 1200 with 4 divisions is 1280 (of 1024, 1280, 1536, 1792, 2048).
        """
        if self.roundup_power2_divisions and nbytes >= MIN_BLOCK_BYTES:
            exponent = nbytes.bit_length() - 1
            divisions = self.roundup_power2_divisions[min(max(exponent - 20, 0), INTERVALS - 1)]
            if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions:
                step = (1 << exponent) // divisions
                return -(-nbytes // step) * step
        return -(-max(nbytes, 1) // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES

    def segment_bytes(self, size: int) -> int:
        """The segment asked of the driver for a block of `size` bytes (C++: get_allocation_size)."""
        if size <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if size < MIN_OWN_SEGMENT_BYTES:
            return self.large_segment_bytes
        return -(-size // LARGE_ROUNDING_BYTES) * LARGE_ROUNDING_BYTES


def _pairs(text: str) -> list[tuple[str, str]]:
    """`a:1,b:[2:3,4:5]` -> [("a", "1"), ("b", "[2:3,4:5]")]."""
    pairs = []
    rest = "".join(text.split())
    while rest:
        option, colon, rest = rest.partition(":")
        if "=" in option:
            raise _error(option.partition("=")[0], f"write {option.replace('=', ':', 1)}, with a colon")
        if option not in MODELLED and option not in WITHOUT_EFFECT:
            raise UnknownValue("PYTORCH_ALLOC_CONF", option, MODELLED + WITHOUT_EFFECT)
        if not colon or not rest:
            raise _error(option, "a value is missing: write option:value")
        if rest.startswith("["):
            value, bracket, rest = rest.partition("]")
            if not bracket:
                raise _error(option, "the closing bracket ']' is missing")
            value += bracket
            if rest and not rest.startswith(","):
                raise _error(option, f"a comma must follow ']', not {rest!r}")
            rest = rest[1:]
        else:
            value, _, rest = rest.partition(",")
        pairs.append((option, value))
    return pairs


def _apply(settings: AllocatorSettings, option: str, value: str) -> AllocatorSettings:
    match option:
        case "backend":
            if value != "native":
                raise _error(option, f"{value!r} is not modelled; only PyTorch's own allocator is, native")
        case "max_split_size_mb":
            return replace(settings, max_split_bytes=min(_integer(option, value) * MIB, UNLIMITED))
        case "max_non_split_rounding_mb":
            return replace(settings, max_non_split_rounding_bytes=min(_integer(option, value) * MIB, UNLIMITED))
        case "large_segment_size_mb":
            size = _integer(option, value) * MIB
            if size <= MIN_OWN_SEGMENT_BYTES:
                raise _error(option, f"{value} is too small; it must be more than {MIN_OWN_SEGMENT_BYTES // MIB}")
            return replace(settings, large_segment_bytes=size)
        case "roundup_power2_divisions":
            return replace(settings, roundup_power2_divisions=_divisions(option, value))
        case "garbage_collection_threshold":
            return replace(settings, garbage_collection_threshold=_share(option, value, least=0.0, most=1.0))
        case "per_process_memory_fraction":
            return replace(
                settings, memory_fraction=_share(option, value, least=-1e-300, most=math.nextafter(1.0, 2.0))
            )
        case "expandable_segments":
            if value not in ("True", "False"):
                raise UnknownValue(f"PYTORCH_ALLOC_CONF.{option}", value, ["True", "False"])
            return replace(settings, expandable_segments=value == "True")
    return settings


def _divisions(option: str, value: str) -> tuple[int, ...]:
    """`4` for every interval, or `[256:1,512:2,>:8]`: MiB (a power of two) -> divisions (a power of two, or 0 for none).

    The first entry also holds below its interval, `>` from the interval after the last one named; those between are 0.
    """
    if not value.startswith("["):
        return (_power_of_two(option, value),) * INTERVALS
    divisions = [0] * INTERVALS
    index = None
    for entry in value[1:-1].split(","):
        boundary, colon, text = entry.partition(":")
        if not colon:
            raise _error(option, f"{entry!r} is not of the form MiB:divisions")
        number = 0 if text == "0" else _power_of_two(option, text)
        if boundary == ">":
            after = 1 if index is None else index + 1
            divisions[after:] = [number] * (INTERVALS - after)
            continue
        first, index = index is None, min(_power_of_two(option, boundary).bit_length() - 1, INTERVALS - 1)
        if first:
            divisions[:index] = [number] * index
        divisions[index] = number
    return tuple(divisions)


def _power_of_two(option: str, value: str) -> int:
    number = _integer(option, value)
    if number < 1 or number & (number - 1):
        raise _error(option, f"{value} is not a power of two")
    return number


def _integer(option: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise _error(option, f"{value!r} is not a whole number")
    if len(value) > len(str(MOST)) or int(value) > MOST:
        raise _error(option, f"{brief(value)} is more than torch reads, {MOST}")
    return int(value)


def _share(option: str, value: str, *, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        raise _error(option, f"{value!r} is not a number") from None
    if not least < number < most:
        raise _error(option, f"{value} is not between 0 and 1")
    return number


def _error(option: str, message: str) -> ConfigurationError:
    field = f"PYTORCH_ALLOC_CONF.{option}"
    return ConfigurationError(f"{field}: {message}", field=field)
