"""Lengths in a file: each line is read as it is written, and a line that is none is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.methods.usual import SFT_AXES
from vrambench.methods.cell import from_flat, resolve
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.lengths import read_lengths, truncated


def test_a_number_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("256\n1024\n\n256\n 512 \n")
    assert read_lengths(path) == {256: 0.5, 512: 0.25, 1024: 0.25}


def test_what_has_nothing_to_predict_is_dropped_and_a_byte_order_mark_is_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("\ufeff256\n1\n0\n512\n", encoding="utf-8")
    assert read_lengths(path) == {256: 0.5, 512: 0.5}


def test_json_lines_hold_tokens_or_their_number(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"input_ids": [1, 2, 3], "text": "abc"}\n{"length": 7}\n')
    assert read_lengths(path) == {3: 0.5, 7: 0.5}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "256\nmany\n", "line 2: 'many' is not a whole number of tokens"),
        ("a.txt", "256\n-1\n", "line 2: a sequence of -1 tokens; one has at least 2 and at most 2,000,000"),
        (
            "a.txt",
            "99999999999",
            "line 1: a sequence of 99,999,999,999 tokens; one has at least 2 and at most 2,000,000",
        ),
        ("a.txt", "\n\n", "has no sequence of 2 tokens or more"),
        ("a.txt", "1\n0\n", "has no sequence of 2 tokens or more"),
        (
            "a.jsonl",
            '{"input_ids": [[1, 2, 3], [4, 5]]}\n',
            "line 1: input_ids is [[1, 2, 3], [4, 5]], and must be the token ids of one sequence, a list of numbers",
        ),
        ("a.jsonl", '{"length": 9, "input_ids": [1, 2]}\n', "line 1: length is 9, and input_ids has 2 tokens"),
        ("a.jsonl", '{"length": 5}\n{"len": 5}\n', "line 2: {len: 5} has neither input_ids, a list, nor length"),
        ("a.jsonl", '{"length": 2.5}\n', "line 1: 2.5 is not a whole number of tokens"),
        ("a.jsonl", "5\n", "line 1: 5 has neither input_ids, a list, nor length"),
        ("a.jsonl", "{\n", "line 1: '{' is not JSON (Expecting property name enclosed in double quotes)"),
    ],
)
def test_a_line_that_is_no_length_is_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        resolve(SFT_AXES, {"lengths": str(path)})
    assert str(caught.value).startswith(f"lengths: '{path}' ")
    assert str(caught.value).endswith(said)


def test_a_file_that_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(
            ConfigurationError, match=r"^lengths: .* cannot be read: it is not a regular file; give a file"
        ):
            resolve(SFT_AXES, {"lengths": str(path)})


def test_a_cell_holds_what_the_file_said(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("256\n1024\n")
    cell = resolve(SFT_AXES, {"lengths": str(path)})
    path.unlink()
    assert cell.workload.lengths == {256: 0.5, 1024: 0.5}
    assert from_flat(json.loads(json.dumps(cell.flat()))).id == cell.id


def test_what_is_longer_is_truncated() -> None:
    assert truncated({8: 0.25, 16: 0.25, 64: 0.5}, 16) == {8: 0.25, 16: 0.75}
    work = resolve(SFT_AXES, {"lengths": {8: 0.5, 64: 0.5}, "max_length": 16}).workload
    assert (work.lengths, work.max_length, work.sequence_tokens) == ({8: 0.5, 16: 0.5}, 16, 16)


def test_packing_needs_to_know_how_long_rows_are() -> None:
    with pytest.raises(ConfigurationError, match=r"^max_length: packing bfd needs it"):
        resolve(SFT_AXES, {"lengths": {8: 1.0}, "packing": "bfd"})
    work = resolve(SFT_AXES, {"lengths": {8: 1.0}, "packing": "bfd", "max_length": 20}).workload
    assert (work.max_length, work.sequence_tokens) == (20, 8)
    work = resolve(SFT_AXES, {"lengths": {8: 0.5, 64: 0.5}, "packing": "bfd_split", "max_length": 20}).workload
    assert (work.max_length, work.sequence_tokens, work.lengths) == (20, 20, {8: 0.5, 64: 0.5})
    assert (
        resolve(SFT_AXES, {"lengths": {8: 1.0}, "packing": "wrapped", "max_length": 20}).workload.sequence_tokens == 20
    )


@pytest.mark.parametrize(
    ("settings", "masks"),
    [
        ({"batch_size": 1}, False),
        ({"batch_size": 2}, True),
        ({"batch_size": 1, "eval_batch_size": 2}, True),
        ({"batch_size": 1, "pad_to_multiple_of": 8}, True),
        ({"batch_size": 1, "padding_free": True}, False),
        ({"batch_size": 1, "packing": "bfd", "max_length": 99}, True),
        ({"batch_size": 1, "packing": "wrapped", "max_length": 99}, False),
        ({"batch_size": 2, "lengths": {8: 1.0}}, False),
        ({"batch_size": 2, "lengths": None}, False),
    ],
)
def test_when_a_batch_may_need_a_mask(settings: dict[str, Any], masks: bool) -> None:
    assert resolve(SFT_AXES, {"lengths": {8: 0.5, 64: 0.5}} | settings).workload.masks == masks


def test_batches_with_masks_are_attended_to_as_transformers_would() -> None:
    bf16 = SFT_AXES | {"precision": "bf16"}
    assert resolve(bf16, {"lengths": {8: 0.5, 64: 0.5}}).workload.attention == "sdpa"
    assert resolve(bf16, {}).workload.attention == "flash"
