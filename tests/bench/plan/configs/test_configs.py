"""People's configurations: how each key is read, the cell that it comes to, and what is said of those that cannot be read.

Beside each file in `files/` stands what is printed of it, and its cell; `python tests/bench/plan/configs/test_configs.py` writes
these anew. Long, since it is one table for six formats.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands import early
from vrambench.bench.commands.app import main
from vrambench.bench.commands.shared import Mistakes
from vrambench.bench.plan.configs import FORMATS, read
from vrambench.bench.plan.configs.draft import Draft
from vrambench.bench.plan.configs.files import load
from vrambench.bench.plan.configs.keys import Chosen, Given
from vrambench.bench.plan.plan import Plan, select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import Workload
from vrambench.reports.text.config import print_config

FILES = Path(__file__).parent / "files"
LENGTH = {"names": ("model", "max_length"), "set": ("max_length=512",), "model": "qwen2.5-0.5b"}
"""What the command line says where a file knows of neither model nor data."""
ENGINE = {"axes": {"adapter": "none", "algorithm": "sft", "precision": "bf16", "optimizer": "adamw_torch_fused"}}
MORE: dict[str, dict[str, Any]] = {
    "transformers-full.json": LENGTH,
    "transformers-bnb.yaml": LENGTH,
    "transformers-galore.yaml": LENGTH,
    "deepspeed-zero1.json": LENGTH | {"axes": {"adapter": "none", "algorithm": "sft"}},
    "deepspeed-zero2-offload.json": LENGTH | {"axes": {"adapter": "lora", "algorithm": "dpo"}},
    "deepspeed-zero2-auto.json": LENGTH
    | ENGINE
    | {"names": ("model", "batch_size", "max_length"), "set": ("batch_size=2", "max_length=512")},
    "deepspeed-zero3-auto.json": LENGTH
    | ENGINE
    | {"names": ("model", "batch_size", "max_length"), "set": ("batch_size=2", "max_length=512")},
    "deepspeed-zero3-axolotl.json": LENGTH
    | ENGINE
    | {"names": ("model", "batch_size", "max_length"), "set": ("batch_size=2", "max_length=512")},
    "trl-sft-qlora.yaml": {"format": "trl-sft"},
    "trl-grpo.yaml": {"format": "trl-grpo"},
}
GOOD = sorted(path.name for path in FILES.glob("*.*") if path.suffix != ".txt")
BAD = sorted(path.name for path in (FILES / "bad").glob("*.*") if path.suffix != ".txt")


def planned(source: str, *, names: tuple[str, ...] = (), format: str | None = None, **selected: Any) -> Plan:
    """The plan of the configuration on CUDA."""
    matrix = read(source, Chosen(selected.get("axes", {}), names), format)
    return select(matrix, Selection(**selected), "cuda")


def told(name: str, plan: Plan) -> str:
    """What is printed of the file, and what its one cell says that is not as usual."""
    assert plan.config is not None
    out = io.StringIO()
    print_config(plan.config, out)
    (one,) = plan.cells
    cell, rule = one.cell, one.rejection
    usual, work = Workload().flat(), cell.workload.flat()
    said = [f"  {key}: {json.dumps(value)}" for key, value in work.items() if value not in (None, usual.get(key))]
    printed = "\n".join(line.rstrip() for line in out.getvalue().splitlines()).replace(str(FILES / name), name)
    return "\n".join([printed, cell.name + (f": invalid by {rule.rule}" if rule else ""), *said, ""])


@pytest.mark.parametrize("name", GOOD)
def test_a_file_is_read_as_people_publish_it(name: str) -> None:
    plan = planned(str(FILES / name), **MORE.get(name, {}))
    assert told(name, plan) == (FILES / f"{name}.txt").read_text()


def complaint(name: str) -> str:
    """What is said of a file that cannot be read, or that no cell can be made of."""
    messages: Sequence[str]
    try:
        matrix = early.load(None, selection := Selection(config=str(FILES / "bad" / name)))
        with pytest.raises(ConfigurationError) as caught:
            select(matrix, selection, "cuda")
        messages = [caught.value.message]
    except Mistakes as error:
        messages = error.messages
    assert not any("\n" in one for one in messages)
    return "".join(one.replace(str(FILES / "bad") + "/", "") + "\n" for one in messages)


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_told_by_key_and_line(name: str) -> None:
    assert complaint(name) == (FILES / "bad" / f"{name}.txt").read_text()


def test_each_format_has_three_files() -> None:
    for form in FORMATS:
        family = form.name.partition("-")[0]
        assert sum(name.startswith(family) for name in GOOD) >= 3


def test_reading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from vrambench.bench.plan.configs import read; from vrambench.bench.plan.configs.keys import Chosen\n"
        f"read({str(FILES / 'trl-dpo.yaml')!r}, Chosen())\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestCommandLine:
    def test_it_overrules_the_file_and_says_so(self) -> None:
        plan = planned(
            str(FILES / "trl-dpo.yaml"),
            names=("batch_size", "lora_r"),
            axes={"optimizer": "sgd"},
            set=("batch_size=3", "lora_r=4"),
        )
        (cell,) = [one.cell for one in plan.cells]
        assert (cell.optimizer, cell.workload.batch_size, cell.workload.lora_r) == ("sgd", 3, 4)
        assert plan.config is not None
        read_as = {one.key: one.told for one in plan.config.keys}
        assert read_as["per_device_train_batch_size"] == "batch_size: 2 (the command line says otherwise)"
        assert read_as["gradient_accumulation_steps"] == "gradient_accumulation_steps: 8"

    def test_a_length_may_be_any(self) -> None:
        (one,) = planned(str(FILES / "trl-dpo.yaml"), names=("max_length",), set=("max_length=32",)).cells
        assert (one.cell.workload.max_length, one.cell.workload.prompt_tokens) == (32, 1)

    def test_a_precision_changes_what_autocast_is_over(self) -> None:
        for precision, autocast in (("nf4", "bf16"), ("bf16", "bf16"), ("bf16_amp", None)):
            plan = planned(str(FILES / "trl-dpo.yaml"), axes={"precision": precision})
            (cell,) = [one.cell for one in plan.cells]
            assert (cell.precision, cell.workload.autocast) == (precision, autocast)
        assert cell.adapter == "lora"

    def test_the_algorithm_tells_which_trainer_is_meant(self) -> None:
        matrix = read(str(FILES / "trl-grpo.yaml"), Chosen({"algorithm": "rloo"}))
        assert matrix.config is not None
        assert matrix.config.format == "trl-rloo"

    @pytest.mark.parametrize(
        ("typed", "format"),
        [("sft", "trl-sft"), ("trl_dpo", "trl-dpo"), ("reward", "trl-reward"), ("grpo", "trl-grpo")],
    )
    def test_a_file_that_fits_several_trainers_is_that_algorithm_s(
        self, typed: str, format: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "x.yaml"
        file.write_text("model_name_or_path: gpt2\nmax_length: 512\nlearning_rate: 1.0e-5\nuse_peft: true\n")
        if typed == "grpo":
            file.write_text("model_name_or_path: gpt2\nmax_completion_length: 512\nnum_generations: 4\n")
        config = read(str(file), Chosen({"algorithm": typed})).config
        assert config is not None
        assert config.format == format
        by_name = read(str(file), Chosen(), format.replace("-", "_")).config
        assert by_name is not None
        assert by_name.format == format

    @pytest.mark.parametrize(
        ("name", "algorithm", "read_as"),
        [
            (
                "llama-factory-lora-sft.yaml",
                "ppo",
                {
                    "stage": ("used", "algorithm: sft (the command line says otherwise)"),
                    "per_device_train_batch_size": ("used", "batch_size: 1, micro_rollout_batch_size: 1"),
                    "cutoff_len": ("without effect", "max_length: 2048; this job does not use it"),
                    "lora_rank": ("used", "lora_r: 8"),
                },
            ),
            (
                "bad/llama-factory-kto.yaml",
                "dpo",
                {
                    "stage": (
                        "not modelled",
                        "algorithm: dpo, as the command line says, loss: nll; "
                        "its trainer of pairs makes a copy of all logits in fp32",
                    )
                },
            ),
            ("axolotl-qlora.yml", "dpo", {"sequence_len": ("used", "max_length: 4096, prompt_tokens: 2048")}),
            ("trl-grpo.yaml", "ppo", {"num_generations": ("without effect", "")}),
            (
                "torchtune-lora.yaml",
                "ppo",
                {"tokenizer.max_seq_len": ("without effect", ""), "batch_size": ("used", "batch_size: 2")},
            ),
            (
                "torchtune-lora.yaml",
                "dpo",
                {"tokenizer.max_seq_len": ("used", "max_length: 2048, prompt_tokens: 1024")},
            ),
        ],
    )
    def test_what_is_said_of_a_key_is_true_of_the_cell(
        self, name: str, algorithm: str, read_as: dict[str, tuple[str, str]]
    ) -> None:
        plan = planned(str(FILES / name), axes={"algorithm": algorithm}, format=MORE.get(name, {}).get("format"))
        assert plan.config is not None
        assert plan.warnings == ()
        keys = {one.key: (one.kind, one.told) for one in plan.config.keys}
        assert {key: keys[key] for key in read_as} == read_as
        whole = algorithm in ("sft", "dpo", "reward")
        told = plan.config.format == "llama-factory"  # its max_new_tokens, or that one's default
        assert [one.name for one in plan.config.taken if one.told.endswith("_tokens=512)")] == (
            [] if whole else ["prompt_tokens"] if told else ["prompt_tokens", "response_tokens"]
        )
        assert any(one.name == "max_length" for one in plan.config.taken) == whole

    def test_trl_s_own_is_read(self, tmp_path: Path) -> None:
        words = "--model_name_or_path gpt2 --lora-r 4 --use_peft --lora_target_modules c_attn c_proj --max_length=128 --bf16 False"
        (one,) = planned(f"trl sft {words}").cells
        work = one.cell.workload
        assert (one.cell.precision, one.cell.adapter, work.lora_r, work.max_length) == ("fp32", "lora", 4, 128)
        assert work.lora_target_modules == ("c_attn", "c_proj")
        file = tmp_path / "x.yaml"
        file.write_text("model_name_or_path: gpt2\nmax_length: 64\nper_device_train_batch_size: 3\n")
        (one,) = planned(f"trl dpo --config {shlex.quote(str(file))} --max_length 32").cells
        assert (one.cell.algorithm, one.cell.workload.max_length, one.cell.workload.batch_size) == ("dpo", 32, 3)

    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            (["--config", "trl kto"], "--config trl: 'kto' is not one of sft, dpo, reward, grpo, rloo"),
            (["--config", "trl sft gpt2"], "--config trl sft gpt2: 'gpt2' is no option"),
            (["--config", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
            (
                ["--config", "trl sft", "--config-format", "trl-stf"],
                "--config-format: 'trl-stf' is not one of transformers, trl-sft,",
            ),
            (["m.yaml", "--config", "x.yaml"], "--config x.yaml: takes the place of the matrix m.yaml; leave one out"),
            (
                ["--config", "x.yaml", "--precision", "bf16,nf4"],
                "--precision bf16,nf4: with --config, an axis has one value",
            ),
        ],
    )
    def test_what_is_wrong_is_told(
        self,
        typed: list[str],
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["plan", *typed, "--no-predict", "--device", "cuda"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "elsewhere", "doubted"),
    [
        ("", int(0.3 * 24 * 2**30), {"use_vllm"}),
        ("vllm_mode: colocate\nvllm_gpu_memory_utilization: 0.25\n", 6 * 2**30, {"use_vllm"}),
        (
            "vllm_gpu_memory_utilization: 0.25\nvllm_enable_sleep_mode: true\n",
            6 * 2**30,
            {"use_vllm", "vllm_enable_sleep_mode"},
        ),
        ("vllm_mode: server\nvllm_gpu_memory_utilization: 0.25\n", None, {"use_vllm"}),
    ],
)
def test_vllm_s_share_of_the_card_is_held_beside_the_job(
    lines: str, elsewhere: int | None, doubted: set[str], tmp_path: Path
) -> None:
    file = tmp_path / "grpo.yaml"
    file.write_text(f"model_name_or_path: gpt2\nuse_vllm: true\n{lines}")
    plan = planned(str(file), axes={"adapter": "lora"}, format="trl-grpo")
    assert plan.config is not None
    assert {(one.nbytes, one.less) for one in plan.config.left_out} == {(0, True)}, (
        "more is predicted than the job takes"
    )
    assert {one.key for one in plan.config.keys if one.kind == "not modelled"} == doubted
    assert [one.cell.workload.reserved_elsewhere for one in plan.cells] == [elsewhere]


@pytest.mark.parametrize(
    ("lines", "typed", "told"),
    [
        ("", (), None),
        ("prediction_loss_only: false\n", (), "true, as without compute_metrics"),
        ("prediction_loss_only: true\n", (), "prediction_loss_only: true"),
        ("prediction_loss_only: false\n", ("prediction_loss_only",), ""),
    ],
)
def test_an_evaluation_without_metrics_is_taken_for_granted(
    lines: str, typed: tuple[str, ...], told: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(f"model_name_or_path: gpt2\nmax_length: 64\neval_strategy: steps\n{lines}")
    plan = planned(str(file), format="trl-sft", names=typed, set=tuple(f"{name}=false" for name in typed))
    assert plan.config is not None
    assert {one.key: one.told for one in plan.config.keys}.get("prediction_loss_only") == told
    assert [one.cell.workload.prediction_loss_only for one in plan.cells] == [not typed]
    taken = [one.told for one in plan.config.taken if one.told.startswith("no compute_metrics")]
    assert len(taken) == (not typed and "true" not in lines)


def test_trl_reads_quoted_values_as_an_argument_parser_does(tmp_path: Path) -> None:
    """TrlParser makes a file's values the defaults of its options, and argparse reads texts among those by the options' types."""
    file = tmp_path / "x.yaml"
    text = "max_length: {q}128{q}\npacking: {q}False{q}\nlearning_rate: {q}1e-4{q}\nlora_alpha: {q}32{q}\nuse_peft: {q}true{q}\n"
    cells = []
    for quote in ("'", '"', ""):
        file.write_text("model_name_or_path: gpt2\nrun_name: '01'\n" + text.format(q=quote))
        cells += [one.cell for one in planned(str(file), format="trl-sft").cells]
    assert cells[0] == cells[1] == cells[2]
    work = cells[0].workload
    assert (work.max_length, work.packing, work.learning_rate, work.lora_alpha) == (128, "none", 1e-4, 32)
    file.write_text("model_name_or_path: gpt2\nmax_length: 'many'\n")
    with pytest.raises(ConfigurationError, match=r"x.yaml:2: max_length: 'many' is not a whole number"):
        planned(str(file), format="trl-sft")


TRL_LORA = "model_name_or_path: gpt2\nuse_peft: true\nlora_dropout: 0.1\n"
FACTORY = "model_name_or_path: gpt2\ntemplate: default\nlora_dropout: 0.1\nbf16: true\n"
AXOLOTL = "base_model: gpt2\nadapter: lora\nlora_dropout: 0.1\nlora_target_linear: true\nbf16: true\n"


@pytest.mark.parametrize(
    ("format", "text", "share", "doubted"),
    [
        ("trl-sft", TRL_LORA, 0.1, False),
        ("trl-dpo", TRL_LORA, 0.0, False),
        ("trl-dpo", TRL_LORA + "disable_dropout: false\n", 0.1, False),
        ("trl-dpo", TRL_LORA + "use_dora: true\n", 0.0, True),
        ("trl-reward", TRL_LORA, 0.0, False),
        ("trl-grpo", TRL_LORA, 0.1, False),
        ("trl-grpo", TRL_LORA + "disable_dropout: true\n", 0.0, False),
        ("llama-factory", FACTORY + "stage: sft\n", 0.1, False),
        ("llama-factory", FACTORY + "stage: dpo\n", 0.0, False),
        ("llama-factory", FACTORY + "stage: rm\n", 0.1, False),
        ("axolotl", AXOLOTL, 0.1, False),
        ("axolotl", AXOLOTL + "rl: dpo\n", 0.0, False),
    ],
)
def test_dropout_is_off_where_the_trainer_switches_it_off(
    format: str, text: str, share: float, doubted: bool, tmp_path: Path
) -> None:
    file = tmp_path / "trained.yaml"
    file.write_text(text)
    plan = planned(str(file), format=format)
    assert plan.config is not None
    assert {one.cell.workload.lora_dropout for one in plan.cells} == {share}
    kinds = {one.key: one.kind for one in plan.config.keys}
    assert kinds["lora_dropout"] == ("not modelled" if doubted else "used")


@pytest.mark.parametrize(("size", "kind"), [(2, "without effect"), (16, "not modelled")])
def test_a_reference_that_reads_more_at_a_time_is_not_modelled(size: int, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text(f"model_name_or_path: gpt2\nprecompute_ref_log_probs: true\nprecompute_ref_batch_size: {size}\n")
    config = planned(str(file), axes={"adapter": "lora"}, format="trl-dpo").config
    assert config is not None
    assert {one.key: one.kind for one in config.keys}["precompute_ref_batch_size"] == kind
    assert len(config.left_out) == (kind == "not modelled")


@pytest.mark.parametrize("share", ["1.5", "0", "true", "30%"])
def test_a_share_of_the_card_that_is_none_is_a_mistake(share: str, tmp_path: Path) -> None:
    file = tmp_path / "grpo.yaml"
    file.write_text(f"model_name_or_path: gpt2\nuse_vllm: true\nvllm_gpu_memory_utilization: {share}\n")
    with pytest.raises(
        ConfigurationError,
        match=r"grpo.yaml:3: vllm_gpu_memory_utilization: .* is no share of a card's memory, as 0.3 is",
    ):
        planned(str(file), axes={"adapter": "lora"}, format="trl-grpo")


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_what_is_not_modelled_may_decide(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--model", "tiny", "--set", "max_length=64", "--budget", "1100MiB", "--device", "cuda", "--json"]
    typed = typed if command == "plan" else [one for one in typed if one not in ("--device", "cuda")]
    assert main([command, "--config", str(FILES / "transformers-galore.yaml"), *typed]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verdict"] if command == "fit" else document["cells"][0]["fit"]) == "unsure"
    keys = {one["key"]: one["read"] for one in document["config"]["keys"]}
    assert (keys["torch_compile"], keys["optim"], keys["max_steps"]) == ("not modelled", "used", "without effect")


@pytest.mark.parametrize(
    ("format", "slip", "meant"),
    [
        ("trl-sft", "per_device_train_batchsize: 1", "per_device_train_batch_size"),
        ("trl-sft", "lora_rank: 4", "lora_r"),
        ("trl-sft", "micro_batch_size: 4", "per_device_train_batch_size"),
        ("axolotl", "sequence_length: 64", "sequence_len"),
        ("axolotl", "cutoff_len: 64", "sequence_len"),
        ("llama-factory", "lora_r: 64", "lora_rank"),
    ],
)
def test_a_slip_of_a_key_that_is_used_always_leaves_it_unsure(
    format: str, slip: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"learning_rate: 1.0e-4\n{slip}\n")
    typed = ["fit", "--config", str(file), "--config-format", format, "--model", "tiny", "--json"]
    for budget, code in (("80GiB", 0), ("450MiB", 1)):
        assert main([*typed, "--budget", budget]) == code
        document = json.loads(capsys.readouterr().out)
        assert (document["verdict"], document["fits"]) == ("unsure", code == 0)
    (key,) = [one for one in document["config"]["keys"] if one["read"] == "not modelled"]
    assert key["told"].endswith(f"; did you mean {meant!r}?")
    assert main([*typed, "--budget", "80GiB", "--advise", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["advice"] == []
    said = "advice: none is looked for, since this may be another job than yours; first mend "
    (ending,) = [note for note in document["notes"] if note.startswith(said)]
    assert slip.partition(":")[0] in ending


BASES = {
    "transformers": "transformers-galore.yaml",
    "trl-sft": "trl-sft-qlora.yaml",
    "trl-dpo": "trl-dpo.yaml",
    "trl-grpo": "trl-grpo.yaml",
    "deepspeed": "deepspeed-zero2-offload.json",
    "axolotl": "axolotl-qlora.yml",
    "llama-factory": "llama-factory-qlora.yaml",
    "torchtune": "torchtune-lora.yaml",
}
"""A good file of each format."""


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("value", [[1], {"a": 1}, 3, -1, "x", True], ids=str)
def test_no_key_s_value_is_more_than_a_configuration_error(name: str, value: object) -> None:
    form = next(one for one in FORMATS if one.name == name)
    document = load(FILES / BASES[name])
    for key in sorted(form.table.used):
        section, _, inner = key.partition(".")
        held = document.data.get(section) if form.flat and inner else None
        data = document.data | ({section: {**(held or {}), inner: value}} if inner else {key: value})
        axes = {"adapter": "lora", "algorithm": "sft"} if name == "deepspeed" else {}
        with contextlib.suppress(ConfigurationError):
            changed = replace(document, data=data)
            draft = Draft(
                Given(form.flat(changed) if form.flat else changed, form.table), Chosen(axes, ("model", "max_length"))
            )
            form.draft(draft)
            draft.done(form.name, form.called)


@pytest.mark.parametrize("text", ["", " \n", "{}"])
@pytest.mark.parametrize("name", ["x.yaml", "x.json"])
def test_an_empty_file_is_said_to_be(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"is empty; a configuration has keys$"):
        read(str(file), Chosen())


def test_json_of_thousands_of_brackets_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ConfigurationError, match=r"inside each other$"):
        read(str(file), Chosen())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\n",
            "is accelerate's, which says how processes",
        ),
        (
            "model: Qwen/Qwen3-0.6B\nmodel_class: llm\ntemplate: qwen3\nkernel_config: null\nmicro_batch_size: 1\n",
            "its keys are those of no format that is known here",
        ),
    ],
)
def test_a_file_of_something_else_is_no_trainer_s(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        read(str(file), Chosen({}, ("model",)))


def test_sizes_that_deepspeed_leaves_open_are_of_the_model_s_hidden_size(tmp_path: Path) -> None:
    """As transformers fills them in, of whichever model the command line names."""
    config = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    auto = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    (tmp_path / "z3.json").write_text(json.dumps({"zero_optimization": config | dict.fromkeys(auto, "auto")}))
    file = tmp_path / "trl.yaml"
    file.write_text("model_name_or_path: EleutherAI/gpt-neox-20b\nmax_length: 64\npacking: false\ndeepspeed: z3.json\n")
    for hidden, more in ((6144, {}), (768, {"names": ("model",), "model": "gpt2"})):
        plan = planned(str(file), **more)
        (one,) = plan.cells
        sizes = [hidden * hidden, int(0.9 * hidden * hidden), 10 * hidden]
        assert [one.cell.workload.options["zero"][name] for name in auto] == sizes
        assert plan.config is not None
        told = {read.key: read.told for read in plan.config.keys}
        assert told[f"z3.json: zero_optimization.{auto[0]}"] == f"zero.{auto[0]}: {hidden**2}, by the hidden size"


def test_a_deepspeed_file_is_found_from_the_current_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "z3.json").write_text(
        '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}'
    )
    (tmp_path / "train").mkdir()
    file = tmp_path / "train" / "full.yaml"
    file.write_text("model_name_or_path: gpt2\nstage: sft\nfinetuning_type: full\ndeepspeed: deep/z3.json\n")
    monkeypatch.chdir(tmp_path)
    (one,) = planned(str(file)).cells
    assert one.cell.offload == "zero3_optimizer"


@pytest.mark.parametrize(("typed", "optimizer"), [({}, "adamw_torch_fused"), ({"optimizer": "sgd"}, "sgd")])
def test_deepspeed_s_optimizer_trains_whatever_the_trainer_s_file_says(
    typed: dict[str, str], optimizer: str, tmp_path: Path
) -> None:
    (tmp_path / "z2.json").write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}')
    for name, lines in (
        ("axolotl.yml", "base_model: gpt2\nmicro_batch_size: 1\noptimizer: paged_adamw_8bit\n"),
        ("trl.yaml", "model_name_or_path: gpt2\nmax_length: 64\npacking: false\noptim: paged_adamw_8bit\n"),
    ):
        (tmp_path / name).write_text(f"{lines}deepspeed: z2.json\n")
        plan = planned(str(tmp_path / name), axes=typed)
        assert [one.cell.optimizer for one in plan.cells] == [optimizer]
        assert plan.config is not None
        told = {one.key: one.told for one in plan.config.keys}
        assert told["optimizer" if name == "axolotl.yml" else "optim"] == "optimizer.type takes its place"
        assert told["z2.json: optimizer.type"].startswith("optimizer: adamw_torch_fused")


def test_a_key_of_another_version_and_one_that_says_nothing_leave_nothing_out(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model_name_or_path: gpt2\nbeta: 0.1\nmax_prompt_length: 256\nsomething_new: null\n")
    config = read(str(file), Chosen(), "trl-dpo").config
    assert config is not None
    assert {one.key: one.kind for one in config.keys if one.key not in ("model_name_or_path", "beta")} == {
        "max_prompt_length": "without effect",
        "something_new": "without effect",
    }
    assert config.left_out == ()
    grpo = read(str(file), Chosen(), "trl-grpo").config
    assert grpo is not None
    assert {one.key: one.told for one in grpo.keys}["max_prompt_length"] == "prompt_tokens: 256"


@pytest.mark.parametrize(
    ("lines", "loss"),
    [
        ("", "nll"),
        ("plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n", "cut_cross_entropy"),
        (
            "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\ncut_cross_entropy: false\n",
            "nll",
        ),
        ("plugins: [axolotl.integrations.liger.LigerPlugin]\n", "nll"),
        ("plugins: axolotl.integrations.liger.LigerPlugin\nliger_fused_linear_cross_entropy: true\n", "liger"),
    ],
)
def test_axolotl_s_plugin_for_cut_cross_entropy_asks_for_it(lines: str, loss: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yml"
    file.write_text(f"base_model: gpt2\nmicro_batch_size: 1\nsequence_len: 512\nbf16: true\n{lines}")
    plan = planned(str(file))
    assert [one.cell.workload.loss for one in plan.cells] == [loss]
    assert plan.config is not None
    read_as = {one.key: one.kind for one in plan.config.keys}
    assert read_as.get("plugins") == (
        None if not lines else "used" if loss == "cut_cross_entropy" else "without effect"
    )


def test_rollouts_are_llama_factory_s_where_the_command_line_names_ppo(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "model_name_or_path: Qwen/Qwen2.5-0.5B\nstage: ppo\nfinetuning_type: lora\nbf16: true\nmax_new_tokens: 512\n"
        "per_device_train_batch_size: 2\ngradient_accumulation_steps: 4\nppo_buffer_size: 3\nppo_epochs: 2\n"
    )
    (one,) = planned(str(file), axes={"algorithm": "ppo"}).cells
    work = one.cell.workload
    assert (work.response_tokens, work.batch_size, work.micro_rollout_batch_size, work.rollout_batch) == (512, 2, 2, 24)
    assert one.cell.flat()["ppo"]["epochs"] == 2


def test_a_layerwise_optimizer_of_llama_factory_clips_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "model_name_or_path: Qwen/Qwen2.5-0.5B\nstage: sft\nfinetuning_type: full\npure_bf16: true\n"
        "use_galore: true\ngalore_layerwise: true\n"
    )
    (one,) = planned(str(file)).cells
    assert (one.cell.optimizer, one.cell.workload.max_grad_norm) == ("galore_adamw_layerwise", 0)
    assert one.rejection is None


@pytest.mark.parametrize(
    ("lines", "optimizer", "options"),
    [
        ("use_galore: true\n", "galore_adamw", {"rank": 16, "scale": 2.0, "target_modules": "all-linear"}),
        (
            "use_galore: true\ngalore_layerwise: true\noptim: adamw_8bit\ngalore_target: mlp, self_attn\ngalore_rank: 128\n",
            "galore_adamw_8bit_layerwise",
            {"rank": 128, "target_modules": ["mlp", "self_attn"], "proj_type": "std"},
        ),
        (
            "use_galore: true\noptim: adafactor\ngalore_target: q_proj\ngalore_proj_type: right\n",
            "galore_adafactor",
            {"rank": 16, "target_modules": ["q_proj"], "proj_type": "right"},
        ),
        (
            "use_apollo: true\noptim: adamw_torch\napollo_rank: 1\napollo_scale_type: tensor\napollo_target: mlp\n",
            "apollo_adamw",
            {"rank": 1, "scale": 32.0, "scale_type": "tensor", "target_modules": ["mlp"]},
        ),
    ],
)
def test_llama_factory_projects_gradients_by_the_form_of_optim(
    lines: str, optimizer: str, options: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"model_name_or_path: Qwen/Qwen2.5-0.5B\nfinetuning_type: full\npure_bf16: true\n{lines}")
    plan = planned(str(file), format="llama-factory")
    (one,) = plan.cells
    assert one.cell.optimizer == optimizer
    kind = one.cell.optimizer_value.options
    assert kind is not None
    assert one.cell.workload.options[kind.namespace].items() >= options.items()
    assert plan.config is not None
    keys = {read.key: read for read in plan.config.keys}
    assert {keys[line.partition(":")[0]].kind for line in lines.splitlines()} == {"used"}
    assert plan.left_out == ()
    if "layerwise" in optimizer:
        assert one.cell.workload.max_grad_norm == 0
        assert keys["galore_layerwise"].told.endswith("max_grad_norm: 0")
        assert "max_grad_norm" not in keys["optim"].told


def test_llama_factory_s_sft_loss_of_pairs_takes_nothing_more(tmp_path: Path) -> None:
    """It is made of the log-probabilities that the other loss has (train/dpo/trainer.py)."""
    file = tmp_path / "x.yaml"
    file.write_text("model_name_or_path: gpt2\nstage: dpo\nfinetuning_type: full\nbf16: true\npref_ftx: 0.1\n")
    config = planned(str(file), format="llama-factory").config
    assert config is not None
    assert {one.key: one.kind for one in config.keys}["pref_ftx"] == "without effect"


def test_what_llama_factory_cannot_project_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    text = "model_name_or_path: gpt2\nfinetuning_type: full\nuse_galore: true\n"
    file.write_text(f"{text}optim: adamw_torch_fused\n")
    with pytest.raises(
        ConfigurationError, match=r"x.yaml:4: optim: 'adamw_torch_fused' has no projected form.*adamw_torch"
    ):
        planned(str(file), format="llama-factory")
    (one,) = planned(str(file), format="llama-factory", axes={"optimizer": "galore_adamw"}).cells
    assert one.cell.optimizer == "galore_adamw"
    file.write_text(f"{text}galore_proj_type: full\n")
    plan = planned(str(file), format="llama-factory")
    assert [one.reason.partition(":")[0] for one in plan.left_out] == ["galore_proj_type"]


if __name__ == "__main__":
    for good in GOOD:
        (FILES / f"{good}.txt").write_text(told(good, planned(str(FILES / good), **MORE.get(good, {}))))
    for bad in BAD:
        (FILES / "bad" / f"{bad}.txt").write_text(complaint(bad))
