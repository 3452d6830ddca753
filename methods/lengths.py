"""Lengths of sequences, with their shares: as they are written, and as a file of a user's data has them.

parse_lengths({256: 0.5, 1024: 0.5})            as the workload's field `lengths` holds them
parse_lengths("lengths.txt")                    the same, of a file's sequences
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from errno import EINVAL
from pathlib import Path
from typing import Any

from vrambench.methods.errors import shown

SHORTEST, LONGEST = 2, 2_000_000
"""Tokens of a sequence: one alone has nothing to predict."""

_WHOLE = re.compile(r"-?\d{1,4000}", re.ASCII)
"""A whole number, of no more digits than Python reads."""


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
        length = int(key) if isinstance(key, str) and _WHOLE.fullmatch(key) else key
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
    """Shares by length of a file's sequences: in a .jsonl file each line holds `input_ids` or `length`, in any other a number.
    Sequences of no token or one are left out, as TRL drops them: nothing is predicted of them."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError(EINVAL, "it is not a regular file")  # a pipe would be waited for, and a device has no end
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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
            if length not in (0, 1):
                _check_length(length)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} line {number}: {error}") from None
        counts[length] += length >= SHORTEST
    counts = +counts
    if not counts:
        raise ValueError(f"{str(path)!r} has no sequence of {SHORTEST} tokens or more")
    return {length: counts[length] / counts.total() for length in sorted(counts)}


def _number(line: str) -> int:
    text = line.strip()
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a whole number of tokens")
    return int(text)


def _length_of(line: str) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown(line)} is not JSON ({error.msg})") from None
    if not isinstance(record, dict) or not ("input_ids" in record or "length" in record):
        raise ValueError(f"{shown(record)} has neither input_ids, a list, nor length")
    tokens = record.get("input_ids")
    if tokens is None:
        return record["length"]
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ValueError(f"input_ids is {shown(tokens)}, and must be the token ids of one sequence, a list of numbers")
    if record.get("length", len(tokens)) != len(tokens):
        raise ValueError(f"length is {shown(record['length'])}, and input_ids has {len(tokens)} tokens")
    return len(tokens)


def _check_length(length: object) -> None:
    if isinstance(length, bool) or not isinstance(length, int):
        raise ValueError(f"{shown(length)} is not a whole number of tokens")
    if not SHORTEST <= length <= LONGEST:
        told = f"{length:,}" if abs(length) < 10**15 else shown(length)
        raise ValueError(f"a sequence of {told} tokens; one has at least {SHORTEST} and at most {LONGEST:,}")


def truncated(lengths: Mapping[int, float], limit: int) -> dict[int, float]:
    """Shares of lengths of which none is more than `limit`."""
    shares: defaultdict[int, float] = defaultdict(float)
    for length, share in sorted(lengths.items()):
        shares[min(length, limit)] += share
    return dict(shares)
