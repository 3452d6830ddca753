"""What is said of a trainer's file where a rule forbids its cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.plan.blame import to_blame
from vrambench.bench.plan.configs import read
from vrambench.bench.plan.configs.keys import Chosen
from vrambench.bench.plan.plan import select
from vrambench.bench.plan.selection import Selection

INT8 = (
    "model_name_or_path: gpt2\nmax_length: 64\npacking: false\nuse_peft: true\nload_in_8bit: true\ndeepspeed: z3.json\n"
)
SHORT = "model_name_or_path: gpt2\nuse_peft: true\nloss_type: nll\n"


def write_zero3(folder: Path) -> None:
    said = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    folder.joinpath("z3.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("text", "format", "blamed"),
    [
        (INT8, "trl-sft", {"z3.json:1: zero_optimization.stage: offload", "x.yaml:5: load_in_8bit: precision"}),
        (SHORT, "llama-factory", {"x.yaml:1: model_name_or_path: model", "x.yaml: without cutoff_len: max_length"}),
    ],
)
def test_the_keys_that_bring_a_cell_under_its_rule_are_found(
    text: str, format: str, blamed: set[str], tmp_path: Path
) -> None:
    write_zero3(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    matrix = read(str(tmp_path / "x.yaml"), Chosen(), format)
    (one,) = select(matrix, Selection(), "cuda").cells
    told = [line.replace(f"{tmp_path}/", "") for line in to_blame(one, matrix, Selection())]
    assert {line.partition(" is ")[0] for line in told} == blamed
    assert one.rejection is not None
    assert all(line.endswith(f", without which {one.rejection.rule} would not hold") for line in told)


def test_what_the_command_line_says_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"{SHORT}cutoff_len: 512\n")
    matrix = read(str(tmp_path / "x.yaml"), Chosen({}, ("max_length",)), "llama-factory")
    selection = Selection(set=("max_length=1500",))
    (one,) = select(matrix, selection, "cuda").cells
    told = [line.replace(f"{tmp_path}/", "") for line in to_blame(one, matrix, selection)]
    assert [line.partition(" is ")[0] for line in told] == ["x.yaml:1: model_name_or_path: model"]


def test_fit_says_how_the_file_was_read_before_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_zero3(tmp_path)
    file = tmp_path / "x.yaml"
    file.write_text(INT8)
    asked = ["fit", "--config", str(file), "--config-format", "trl-sft", "--budget", "24GiB", "--no-cache"]
    assert main(asked) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{file}: read as TRL's SFTConfig (trl-sft)")
    assert "by its defaults: algorithm: sft" in printed.out
    rule, *keys = printed.err.splitlines()
    assert rule.startswith(
        "error: int8 lora adamw_torch_fused zero3_optimizer sft: invalid on CUDA by the rule zero3-int8"
    )
    assert len(keys) == 2
    assert main([*asked, "--json"]) == 2
    assert capsys.readouterr().out == ""
