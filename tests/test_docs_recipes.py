"""docs/recipes.md: what each row of its table says can be set, as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from vrambench.bench.commands.app import main
from vrambench.methods.cell import option_namespaces
from vrambench.methods.workload import FIELDS

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
LINES = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(), re.M)[1:]
USUAL = [
    {
        "--precision": precision,
        "--adapter": "lora",
        "--optimizer": "adamw_torch",
        "--offload": "none",
        "--algorithm": one,
    }
    for one, precision in product(("sft", "dpo", "grpo", "ppo"), ("bf16", "nf4"))
]
"""Cells that people ask for. A row holds if it can be set in one of them; what only another cell has, the row names."""
NAMES = {*FIELDS, *(f"{name}.{field}" for name, kind in option_namespaces().items() for field in kind.model_fields)}


def said(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def commands(here: str) -> Iterator[list[str]]:
    """What a row's right column sets: each text of options, and its last value again as each bare one that follows."""
    last: list[str] = []
    for text in said(here):
        if text.startswith("--"):
            last = shlex.split(text)
            yield last
        elif text not in NAMES:
            yield [*last[:-1], re.sub(r"[^=]+$", text, last[-1])]


def verdicts(words: list[str], capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """What is told of the words in each usual cell: `valid`, or what is wrong."""
    for usual in USUAL:
        cell = [word for pair in usual.items() if pair[0] not in words for word in pair]
        code = main(["plan", "--profile", "24gb", "--device", "cuda", "--no-predict", "--json", *cell, *words])
        out, error = capsys.readouterr()
        if code:
            yield error
        else:
            (planned,) = json.loads(out)["cells"]
            yield "valid" if planned["verdict"] == "valid" else str(planned["findings"])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FILE, with lengths, and FILE.jsonl, with pairs."""
    (tmp_path / "FILE").write_text("512\n1024\n")
    (tmp_path / "FILE.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("here", [here for _, here in LINES if "`--" in here])
def test_what_a_row_says_can_be_set(here: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(here):
        told = []
        for verdict in verdicts(words, capsys):
            told.append(verdict)
            if verdict == "valid":
                break
        assert told[-1] == "valid", (words, told)


@pytest.mark.parametrize(("theirs", "here"), LINES)
def test_names_of_a_row_are_fields_and_options(theirs: str, here: str) -> None:
    names = [name for name in said(here) if re.fullmatch(r"\w+\.\w+", name)]
    if "the same name" in here:
        names += said(theirs)
    if "and so on" in here and (space := re.search(r"--set (\w+)\.", here)):
        names += [f"{space[1]}.{name}" for name in said(theirs)]
    if "`--" not in here:
        names += said(here)
    assert set(names) <= NAMES
    assert names or "`--" in here
