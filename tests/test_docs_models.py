"""docs/models.py: the committed page is what it would write. All refusals are asked for again; of the models taken, a few."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import models
import pytest
from models import COLUMNS, PAGE, TYPES, YES, Trial, Tried, impersonal, quiet, render
from tiny import tiny

ROOT = Path(__file__).parents[1]
FEW = ("gemma3_text", "qwen3_moe", "granitemoehybrid")
"""With windows, with experts, and with states between tokens; tests of the predictor and of jobs have others."""


@pytest.fixture(scope="module")
def page() -> str:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split())
    if version("transformers") != pins["transformers"]:
        pytest.skip(f"transformers {version('transformers')} is not the pinned one")
    return PAGE.read_text()


def rows(page: str) -> dict[str, list[str]]:
    """The table's cells by model type; a number in them is the sentence that it stands for."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", page, re.M))
    table = re.findall(r"^\| ([\w-]+) \| ((?:yes|no) .*) \|$", page, re.M)
    return {
        name: [re.sub(r"no \((\d+)\)", lambda found: notes[found[1]], cell) for cell in cells.split(" | ")]
        for name, cells in table
    }


def refusals(page: str) -> dict[str, str]:
    """The reason by model type."""
    listed = re.findall(r"^- (.*): ([\w, -]+)\.$", page.partition("## Refused")[2], re.M)
    return {name: reason for reason, names in listed for name in names.split(", ")}


def test_the_page_has_every_model_type_once(page: str) -> None:
    assert sorted([*rows(page), *refusals(page)]) == sorted(TYPES)
    assert not [name for name, cells in rows(page).items() if any("fault: " in cell for cell in cells)]


def test_nine_of_ten_model_types_are_predicted(page: str) -> None:
    predicted = [name for name, cells in rows(page).items() if cells[COLUMNS.index("whole")] == YES]
    assert len(predicted) >= 0.9 * len(TYPES)


def test_the_same_are_refused_for_the_same_reasons(page: str, tmp_path: Path) -> None:
    reasons = {}
    with quiet():
        for name in TYPES:
            trial = Trial(name, tmp_path)
            said = trial.outcome(lambda trial=trial: models.model_config(trial.name))
            if said != YES:
                reasons[name] = impersonal(said)
    assert reasons == refusals(page)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_row_is_what_comes_of_its_type(page: str, name: str, tmp_path: Path) -> None:
    with quiet():
        cells = Trial(name, tmp_path).result().cells
    assert rows(page)[name] == [impersonal(cells[column]) for column in COLUMNS]


def test_sizes_are_told_by_their_names() -> None:
    llama, text = tiny("llama"), tiny("gemma3")["text_config"]
    assert llama == {
        "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    assert (text["model_type"], text["hidden_size"], text["num_hidden_layers"]) == ("gemma3_text", 64, 6)


def test_what_is_not_as_it_should_be_is_a_number_with_a_sentence() -> None:
    good = dict.fromkeys(COLUMNS, YES)
    bad = "lora_target_modules: 'auto' knows no layers of 'b'"
    written = render(
        [Tried("a", cells=good), Tried("b", cells=good | {"lora": bad}), Tried("c", "model: 'c' is a c, which x")]
    )
    assert "| a | yes | yes | yes | yes | yes | yes | yes |" in written
    assert "| b | yes | yes | no (1) | yes | yes | yes | yes |" in written
    assert "\n1. lora_target_modules: 'auto' knows no layers of it\n" in written
    assert "\n- x: c.\n" in written
