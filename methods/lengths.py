"""Lengths of sequences, with their shares: as they are written, and as a file of a user's data has them.

parse_lengths({256: 0.5, 1024: 0.5})            as the workload's field `lengths` holds them
parse_lengths("lengths.txt")                    the same, of a file's sequences
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vrambench.methods.errors import shown

SHORTEST, LONGEST = 2, 2_000_000
"""Tokens of a sequence: one alone has nothing to predict."""


def parse_lengths(value: object) -> dict[int, float] | None:
    """Shares by length, shortest first, of a mapping {tokens: share} or of a file (see `read_lengths`)."""
    if value is None:
        return None
    if isinstance(value, str):
        return read_lengths(Path(value))
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{shown(value)} is neither a mapping of tokens to shares ({{256: 0.5, 1024: 0.5}}) nor a file of lengths"
        )
    shares: dict[int, float] = {}
    for key, share in value.items():
        length = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key
        _check_length(length)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(
                f"the share of {length} tokens is {shown(share)}, and must be a number above 0 and at most 1"
            )
        if length in shares:
            raise ValueError(f"{length} tokens are named twice")
        shares[length] = float(share)
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(f"its shares come to {sum(shares.values()):g}, and must come to 1")
    return dict(sorted(shares.items()))


def read_lengths(path: Path) -> dict[int, float]:
    """Shares by length of a file's sequences: in a .jsonl file each line holds `input_ids` or `length`, in any other a number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(
            f"{str(path)!r} cannot be read: {reason}; give a file with a length on each line, or a mapping "
            "({256: 0.5, 1024: 0.5})"
        ) from error
    counts: Counter[int] = Counter()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            length = _length_of(line) if path.suffix == ".jsonl" else _number(line)
            _check_length(length)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} line {number}: {error}") from None
        counts[length] += 1
    if not counts:
        raise ValueError(f"{str(path)!r} is empty")
    return {length: counts[length] / counts.total() for length in sorted(counts)}


def _number(line: str) -> int:
    text = line.strip()
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{shown(text)} is not a whole number of tokens")
    return int(text)


def _length_of(line: str) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown(line)} is not JSON ({error.msg})") from None
    if isinstance(record, dict) and isinstance(record.get("input_ids"), list):
        return len(record["input_ids"])
    if isinstance(record, dict) and "length" in record:
        return record["length"]
    raise ValueError(f"{shown(record)} has neither input_ids, a list, nor length")


def _check_length(length: object) -> None:
    if isinstance(length, bool) or not isinstance(length, int):
        raise ValueError(f"{shown(length)} is not a whole number of tokens")
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(f"a sequence of {length} tokens; one has at least {SHORTEST} and at most {LONGEST:,}")


def truncated(lengths: Mapping[int, float], limit: int) -> dict[int, float]:
    """Shares of lengths of which none is more than `limit`."""
    shares: defaultdict[int, float] = defaultdict(float)
    for length, share in sorted(lengths.items()):
        shares[min(length, limit)] += share
    return dict(shares)
