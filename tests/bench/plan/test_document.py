"""YAML with its lines: what is read, where an error stands, and what a text may come to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrambench.bench.plan import document
from vrambench.bench.plan.configs.files import load as load_config
from vrambench.bench.plan.document import MOST_BYTES, as_yaml, load, parse, parse_value
from vrambench.bench.plan.matrix import load_matrix
from vrambench.methods.errors import ConfigurationError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"512": 0.5, "4096": 0.5}, "{512: 0.5, 4096: 0.5}"),
        ({"007": 1}, "{'007': 1}"),
        ({"a": 1, "5": 2}, "{'5': 2, a: 1}"),
        ({}, "{}"),
    ],
)
def test_lengths_are_written_without_quotes_and_read_the_same(value: object, text: str) -> None:
    assert as_yaml(value) == text
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda path: None, "No such file or directory"), (lambda path: path.mkdir(), "Is a directory")],
)
def test_unreadable_file(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "matrix.yaml"
    make(path)
    with pytest.raises(ConfigurationError, match=f"matrix.yaml: cannot be read: {reason}"):
        load_matrix(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matrix.yaml")
    with pytest.raises(ConfigurationError, match=r"matrix.yaml: is not a regular file$"):
        load_matrix(tmp_path / "matrix.yaml")


@pytest.mark.parametrize("name", ["sft.json", "sft.yaml"])
def test_nor_one_that_is_given_as_a_trainers_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigurationError, match=rf"{name}: is not a regular file$"):
        load_config(tmp_path / name)


def test_a_trainers_file_without_end_is_read_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "sft.json").write_text(" " * (MOST_BYTES + 1))
    with pytest.raises(ConfigurationError, match=r"sft.json: has more than 262,144 bytes$"):
        load_config(tmp_path / "sft.json")


def test_what_a_shell_has_opened_is_read() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as file:
        file.write("a: 1\n")
        file.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
        assert load(Path(f"/dev/fd/{reading}")).data == {"a": 1}


def tenfold(first: str, wrap: str) -> str:
    """Nine levels of ten aliases each."""
    levels = [f"a{n}: &a{n} {wrap.replace('X', ', '.join([f'*a{n - 1}'] * 10))}\n" for n in range(1, 10)]
    return f"a0: &a0 {first}\n" + "".join(levels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 500 + "]" * 500, "more than 30 lists or mappings inside each other"),
        ("- " * 5000, "more than 30 lists or mappings inside each other"),
        ("a: " + "9" * 5000, "a number of 5,000 characters; at most 100"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 characters; at most 100"),
        ("a: 1" + ":1" * 5000, "a number of 10,001 characters; at most 100"),
        (tenfold("[x, x]", "[X]"), "more than 100,000 values, counting what aliases repeat"),
        (tenfold("{x: 1}", "{<<: [X]}"), "more than 100,000 values, counting what aliases repeat"),
        ("a: {<<: &b {<<: *b}}", "'<<' merges mappings (*name of one, or a list of them)"),
        ("a: " + "x" * 2**18, "more than 262,144 characters"),
    ],
)
def test_what_a_file_comes_to_is_bounded(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^x.yaml:\d+: " + re.escape(said) + "$"):
        parse(text, "x.yaml")


ROOT = Path(__file__).parents[3]
WRITTEN = [ROOT / "matrix.yaml", ROOT / "claims.yaml", *sorted((ROOT / "tests/bench/plan").rglob("*.y*ml"))]


def test_libyaml_reads_as_pyyaml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> object:
        try:
            found = parse(path.read_text(), path.name)
        except (ConfigurationError, UnicodeDecodeError) as error:
            return str(error)
        return found.data, found.lines

    both = [read(path) for path in WRITTEN]
    monkeypatch.setattr(document, "_LOADERS", (document.Loader,))
    assert [read(path) for path in WRITTEN] == both
    assert sum(isinstance(one, str) for one in both) > 5, "none of them has a mistake"


class TestLocated:
    def test_lines_of_keys_and_items(self) -> None:
        document = parse("a:\n  - 1\n  - b: 2\n    c: 3\n", "x.yaml")
        assert document.data == {"a": [1, {"b": 2, "c": 3}]}
        assert document.where("a", 1, "c") == "x.yaml:4: "

    def test_what_is_not_written_stands_where_its_owner_does(self) -> None:
        assert parse("a:\n  b: {c: 1}\n", "x.yaml").line("a", "b", "missing", 3) == 2

    def test_merge_keys_give_way_to_written_ones_and_earlier_ones(self) -> None:
        text = "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\nboth: {<<: [*one, *two], a: 0}\n"
        assert parse(text, "x.yaml").data["both"] == {"a": 0, "b": 1, "c": 2}

    def test_a_byte_order_mark_is_not_part_of_the_first_key(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
        assert load(tmp_path / "x.yaml").data == {"a": 1}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 0.001),
            ("5E4", 50000.0),
            ("4", 4),
            ("true", True),
            ("none", "none"),
            ("null", None),
            ("[a, b]", ["a", "b"]),
        ],
    )
    def test_values(self, text: str, value: object) -> None:
        assert parse_value(text) == value

    @given(st.text(max_size=60))
    def test_any_text_is_read_or_explained(self, text: str) -> None:
        try:
            document = parse(text, "x.yaml")
        except ConfigurationError as error:
            assert str(error).startswith("x.yaml:")  # noqa: PT017 - either way is right, a crash is not
        else:
            assert document.name == "x.yaml"


def test_a_number_too_near_to_0_is_not_taken_for_0() -> None:
    assert parse_value("0e-400") == 0
    with pytest.raises(ValueError, match="'1e-400' is too near to 0 for a floating-point number"):
        parse_value("1e-400")
