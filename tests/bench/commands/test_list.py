"""`vrambench list`: everything that can be named, filtered by a word."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.plan.validity import RULES
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CARDS
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.workload import FIELDS


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("models", [*PRESETS]),
        ("cards", [*CARDS]),
        ("fields", [*FIELDS]),
        ("values", [name for registry in AXES.values() for name in registry]),
        ("rules", [rule.id for rule in RULES]),
    ],
)
def test_a_list_has_all_there_is(what: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what, "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == names
    assert main(["list", what]) == 0
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == names


def test_a_word_leaves_the_lines_that_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "cards", "409"]) == 0
    assert capsys.readouterr().out == "rtx-4090: memory 24 GB; usable 23.6 GiB; compute capability 8.9\n"
    assert main(["list", "cards", "40"]) == 0
    numbers = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"rtx-4090", "a100-40gb", "l40s"} < set(numbers)
    assert "h200" not in numbers, "a number within another is none"


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_word_that_no_line_has_is_a_mistake(as_json: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "cards", "gtx", *as_json]) == 2
    assert capsys.readouterr() == ("", f"error: list cards: none of {len(CARDS)} has 'gtx'\n")
    assert main(["list", "fields", "batch_szie", *as_json]) == 2
    assert capsys.readouterr().err.endswith(" has 'batch_szie'; did you mean 'batch_size'?\n")


def test_an_unknown_list_is_told_with_those_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "model"]) == 2
    said = "error: list: 'model' is not one of models, cards, fields, values, rules; did you mean 'models'?\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("what", ["models", "cards", "fields"])
def test_what_needs_no_torch_is_told_without(what: str) -> None:
    code = f"import sys; from vrambench.bench.commands.app import main; main(['list', {what!r}]); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False"
