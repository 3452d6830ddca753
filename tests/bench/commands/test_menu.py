"""`vrambench fit MODEL`: the usual recipes for a model, each as `fit` says it of the cell, with how far it goes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.schemas import validate
from vrambench.bench.commands.app import main
from vrambench.bench.commands.early import load
from vrambench.bench.commands.menu import is_menu, named
from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.selection import Selection
from vrambench.bench.predict import many
from vrambench.bench.predict.cache import Cache
from vrambench.bench.predict.fit import fit
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.kept import about_menu, read_menu
from vrambench.bench.predict.menu import PlannedRow, plan_menu, predict_menu
from vrambench.methods.models.presets import PRESETS

MATRIX = "workload: {model: tiny, steps: 3, batch_size: 2, prompt_tokens: 24, response_tokens: 8}\n"


@pytest.fixture(autouse=True)
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matrix.yaml").write_text(MATRIX)


def planned(**selectors: Any) -> list[PlannedRow]:
    return plan_menu(load_matrix(Path("matrix.yaml")), Selection(**{"model": "tiny", **selectors}))


def recipes(**axes: str) -> list[tuple[str, str]]:
    return [(row.recipe, row.planned.name) for row in planned(axes=axes)]


def test_the_recipes_are_cells_of_sft() -> None:
    assert recipes() == [
        ("full", "bf16 none adamw_torch_fused none sft"),
        ("full, 8-bit Adam", "bf16 none adamw_bnb_8bit none sft"),
        ("GaLore", "bf16 none galore_adamw_8bit_layerwise none sft"),
        ("LoRA", "bf16 lora adamw_torch_fused none sft"),
        ("QLoRA", "nf4 lora paged_adamw_8bit none sft"),
    ]
    assert all(row.planned.cell.workload.gradient_checkpointing for row in planned())


def test_a_named_axis_narrows_them() -> None:
    for precision in ("nf4", "nf4,fp16"):
        assert recipes(precision=precision) == [("QLoRA", "nf4 lora paged_adamw_8bit none sft")]
    assert [name for name, _ in recipes(adapter="none")] == ["full", "full, 8-bit Adam", "GaLore"]
    assert recipes(optimizer="lion_8bit", algorithm="sft,dpo") == [
        (recipe, f"{cell} lion_8bit none {algorithm}")
        for algorithm in ("sft", "dpo")
        for recipe, cell in (("full", "bf16 none"), ("LoRA", "bf16 lora"), ("QLoRA", "nf4 lora"))
    ]
    assert recipes(adapter="dora", precision="nf4") == [("QLoRA", "nf4 dora paged_adamw_8bit none sft")]


def test_a_row_s_command_gives_its_cell_again(capsys: pytest.CaptureFixture[str]) -> None:
    for row in planned(budget="2GiB", set=("lora_r=8",)):
        words = shlex.split(row.command)[1:]
        assert main(["plan", *words[1:], "--device", "cuda", "--no-predict", "--json"]) == 0
        (cell,) = json.loads(capsys.readouterr().out)["cells"]
        assert cell["id"] == row.planned.id
        assert ("lora_r=8" in words) == (row.planned.cell.adapter == "lora")


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["460MiB", "500MiB"])
def test_a_row_is_what_fit_says_of_its_cell(budget: str) -> None:
    rows = planned(budget=budget, axes={"adapter": "lora"})
    found = predict_menu({budget: rows}, Predictor())
    assert len(found) == 2
    for one in found:
        cell = one.cell
        assert one.forecast is not None
        alone = fit(cell, maximum="batch_size")
        assert one.forecast.memory == alone.forecast.memory
        assert one.forecast.verdict == alone.forecast.verdict
        assert one.batch is not None
        assert one.batch == alone.max[0]


@pytest.mark.slow
def test_several_budgets_are_columns_and_a_row_that_a_rule_forbids_comes_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "tiny", "--budget", "1MiB,2GiB", "--precision", "fp16", "--no-cache"]) == 0
    out = capsys.readouterr().out
    assert "1MiB" in out.splitlines()[1]
    assert "2GiB" in out.splitlines()[1]
    (command,) = re.findall(r"^all about full, 8-bit Adam: (vrambench fit --precision fp16 .*)$", out, re.M)
    assert "--budget 2GiB" in command
    table = [re.split("  +", line.strip())[0] for line in out.splitlines() if re.search("(invalid|MiB)  ", line)]
    assert table[-1] == "full", out
    assert "full, 8-bit Adam" in table
    assert "full, fp16 none adamw_torch_fused none sft: invalid by the rule fp16-full-adamw: " in out


def test_where_nothing_fits_the_nearest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("model_name_or_path: tiny\nmax_length: 32\nuse_peft: true\n")
    assert (
        main(["fit", "--config", str(file), "--config-format", "trl-sft", "--budget", "1MiB,2MiB", "--no-cache"]) == 1
    )
    out = capsys.readouterr().out
    assert re.search(
        r"^nothing fits; nearest is .* lora .* sft, which lacks \d+ MiB on 2MiB: vrambench fit ", out, re.M
    )


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["tiny", "--max", "btch_size"], "--max: 'btch_size' is not one of batch_size, "),
        (["qwen3-8"], "'qwen3-8' is neither a matrix (a YAML file) nor a model"),
        (
            ["qwen3-9b"],
            "'qwen3-9b' is neither a matrix (a YAML file) nor a model: a preset (qwen3-8b, qwen3-4b, qwen3-32b, qwen3-14b; "
            "vrambench list models tells all), a hub id or a folder with config.json; did you mean 'qwen3-8b'?",
        ),
        (["tiny", "--max", "batch"], "--max: 'batch' is not one of batch_size, "),
        (["tiny", "--max", "batch_size"], "--max batch_size: it is answered for one cell"),
        (["tiny", "--model", "gpt2"], "--model gpt2: the model is 'tiny' already"),
        (["tiny", "--only", "precision=nf4"], "--only precision=nf4: recipes are narrowed by"),
        (["tiny", "--budget", "2GiB,2GiB"], "--budget 2GiB,2GiB: name each once"),
        (["tiny", "--budget", "4090,rtx-4090"], "--budget 4090,rtx-4090: name each once"),
        (["tiny", "--budget", ""], "--budget '': names no size and no card"),
        ([""], "'' is neither a matrix (a YAML file) nor a model"),
        (["--config", ""], "--config '': names no file"),
        (["tiny", "--config-format", "trl-sft"], "--config-format trl-sft: says what the file of --config is"),
    ],
)
def test_what_is_no_question_is_told_in_a_line(
    typed: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *typed]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")


def test_a_configuration_is_one_cell_under_several_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("model_name_or_path: tiny\nmax_length: 32\nuse_peft: true\nsequence_len: 4\n")
    typed = ["fit", "--config", str(file), "--config-format", "trl-sft", "--optimizer", "sgd", "--no-cache", "--json"]
    assert main([*typed, "--budget", "1GiB,4GiB"]) == 0
    printed = capsys.readouterr()
    said = re.findall(r"\d of 2: (.*)$", printed.err, re.M)
    assert sorted(said) == [f"bf16_amp lora sgd none sft on {budget}: unsure" for budget in ("1GiB", "4GiB")]
    several = json.loads(printed.out)
    assert main([*typed, "--budget", "4GiB"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["budget"]) for row in several["rows"]] == [
        ("bf16_amp lora sgd none sft", "1GiB"),
        ("bf16_amp lora sgd none sft", "4GiB"),
    ]
    assert {row["device_bytes"] for row in several["rows"]} == {one["predicted"]["device_bytes"]}
    assert {row["verdict"] for row in several["rows"]} == {one["verdict"]} == {"unsure"}  # of a key that is not known
    assert several["config"] == one["config"]


def test_a_model_beside_a_configuration_takes_the_place_of_its_own() -> None:
    assert not is_menu("tiny", Selection(model="tiny", config="own.yaml", budget="1GiB"))
    assert is_menu("tiny", Selection(model="tiny", budget="1GiB"))


def test_what_is_wrong_with_each_budget_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "tiny", "--budget", "1GiB,4900,p40", "--set", "batch_sise=2"]) == 2
    told = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["--set batch_sise=2", "--budget 4900", "--budget p40"]


def test_a_slip_of_the_model_is_told_with_all_other_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "qwen3-8", "--budget", "4900", "--precision", "nf5", "--set", "batch_sise=2"]) == 2
    told = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert told[0].startswith("'qwen3-8' is neither a matrix (a YAML file) nor a model")
    assert told[1:] == ["--precision nf5", "--set batch_sise=2", "--budget 4900"]


def test_a_model_with_five_axes_and_a_file_are_answered_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    axes = "--precision fp32 --adapter none --optimizer adamw_torch --offload none --algorithm sft --no-cache --json"
    told = []
    for what in (["tiny"], ["--model", "tiny"], ["matrix.yaml"]):
        assert main(["fit", *what, *axes.split()]) == 0
        told.append({**json.loads(capsys.readouterr().out), "seconds": 0})
    assert told[0] == told[1] == told[2]


def test_a_process_of_the_pool_has_a_predictor_of_its_own() -> None:
    with pytest.raises(AssertionError):
        many.predictor_here()


def test_a_model_that_cannot_be_read_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["fit", str(tmp_path / "empty"), "--budget", "24GiB"]) == 2
    said = f"model: '{tmp_path / 'empty'}' cannot be read: there is no config.json in it"
    assert capsys.readouterr().err == f"error: --model {tmp_path / 'empty'}: {said}\n"


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that are simulated in this process, by name."""
    names: list[str] = []
    simulation = Predictor.simulation

    def counted(self: Predictor, cell: Any, *args: Any, **how: Any) -> Any:
        names.append(cell.name)
        return simulation(self, cell, *args, **how)

    monkeypatch.setattr(Predictor, "simulation", counted)
    return names


@pytest.mark.slow
def test_the_same_menu_is_told_again_without_predictions(
    tmp_path: Path, predicted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    PRESETS["tiny"].config().save_pretrained(folder)
    (tmp_path / "matrix.yaml").write_text(MATRIX.replace("tiny", "tiny, budget: 540MiB"))
    asked = ["fit", "./own", "--precision", "nf4"]
    assert main(asked) == 0
    first = capsys.readouterr()
    assert "./own, batch_size 2, 32 tokens; 540 MiB is the budget of matrix.yaml (--budget names a card" in first.out
    assert first.err == "1 of 1: QLoRA, nf4 lora paged_adamw_8bit none sft: tight\n"
    assert predicted
    predicted.clear()
    assert main(asked) == 0
    assert capsys.readouterr() == (first.out, "")
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    validate("menu", told)
    assert not predicted
    assert [row["recipe"] for row in told["rows"]] == ["QLoRA"]
    assert told["rows"][0]["longest_sequence"]["value"] > 32
    assert told["rows"][0]["command"].startswith("vrambench fit --precision nf4 --adapter lora ")
    path, selection = named("./own", Selection(axes={"precision": "nf4"}))
    question = about_menu([load(path, selection, recipes=True)], selection, alloc_conf=None)
    assert read_menu(Cache.usual(), question)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 352}))
    assert read_menu(Cache.usual(), question) is None


def test_a_hub_id_is_a_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["fit", "nobody/has-such-a-model", "--budget", "24GiB"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model: 'nobody/has-such-a-model' ")
