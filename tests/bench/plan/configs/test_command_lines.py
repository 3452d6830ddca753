"""Command lines as --config: TRL's own, and scripts behind what starts them."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.plan.configs import read
from vrambench.bench.plan.configs.keys import Chosen
from vrambench.bench.plan.plan import Plan, select
from vrambench.bench.plan.selection import Selection
from vrambench.methods.errors import ConfigurationError


def planned(source: str, form: str | None = None) -> Plan:
    """The plan of the command line on CUDA."""
    return select(read(source, Chosen(), form), Selection(), "cuda")


@pytest.mark.parametrize(
    "started",
    [
        "accelerate launch trl sft",
        "accelerate launch --num_processes 8 --multi_gpu examples/scripts/sft.py",
        "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 --master_port 29501 sft.py",
        "python -u -m trl.scripts.sft",
        "deepspeed --num_gpus=2 sft.py",
    ],
)
def test_what_starts_a_script_changes_no_cell(started: str) -> None:
    words = "--model_name_or_path gpt2 --max_length 128 --per_device_train_batch_size 3"
    assert planned(f"{started} {words}").cells == planned(f"trl sft {words}").cells


@pytest.mark.parametrize(
    ("started", "told"),
    [
        ("accelerate launch --num_processes 8 sft.py", {"--num_processes": 8}),
        ("accelerate launch --multi_gpu --num_processes=1 sft.py", {"--multi_gpu": True}),
        ("accelerate launch --use_fsdp sft.py", {"--use_fsdp": True}),
        ("torchrun --nproc-per-node gpu --master_port 29501 sft.py", {"--nproc-per-node": "gpu"}),
        ("deepspeed --num_gpus=2 sft.py", {"--num_gpus": 2}),
        ("accelerate launch --num_processes 1 sft.py", {}),
        ("python sft.py", {}),
    ],
)
def test_several_gpus_are_told_to_be_not_modelled(started: str, told: dict[str, Any]) -> None:
    """Each holds the gradients once more, in buckets, or a part of the model: nobody knows from here."""
    config = read(f"{started} --model_name_or_path gpt2 --max_length 128", Chosen()).config
    assert config is not None
    assert {one.key: one.value for one in config.keys if one.kind == "not modelled"} == told
    assert [one.reason for one in config.left_out] == [
        f"{option}: several GPUs, or a wrapping that is made for them: one GPU is predicted, without it"
        for option in told
    ]


def test_a_script_of_another_name_is_told_by_its_keys() -> None:
    words = "python train.py --model_name_or_path gpt2 --num_generations 4 --max_completion_length 32"
    (one,) = planned(words, "trl-grpo").cells
    assert one.cell.algorithm == "grpo"
    with pytest.raises(
        ConfigurationError, match=r"^train.py: may be a file of trl-grpo or trl-rloo, .* --config-format"
    ):
        planned(words)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "accelerate launch --config_file zero3.yaml sft.py",
            "--config_file is accelerate's: leave it out, and say to the trainer what it says of precision or DeepSpeed (--bf16 "
            "true, --deepspeed FILE)",
        ),
        ("accelerate launch", "accelerate starts a script, and there is none (a name that ends in .py)"),
        ("python", "python starts a script, and there is none (a name that ends in .py)"),
        (
            "PYTORCH_ALLOC_CONF=expandable_segments:True python sft.py",
            "PYTORCH_ALLOC_CONF is told by --alloc-conf expandable_segments:True",
        ),
        ("axolotl train own.yml", "give the file that it reads: --config own.yml"),
        ("accelerate launch -m axolotl.cli.train a.yml", "give the file that it reads: --config a.yml"),
        ("tune run lora --config llama3/8B", "give the file that it reads (tune cp writes it): --config FILE"),
        ("python sft.py gpt2", "'gpt2' is no option"),
    ],
)
def test_what_is_not_read_is_told_with_what_to_give(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", typed, "--no-predict", "--device", "cuda"]) == 2
    assert capsys.readouterr().err == f"error: --config {typed}: {said}\n"


def test_a_program_is_no_file_and_a_command_line_has_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "train.sh", "--device", "cuda"]) == 2
    assert (
        "train.sh: is a program, which is not run; give the trainer's file, or its command" in capsys.readouterr().err
    )
    typed = "python sft.py --model_name_or_path gpt2 --max_length many"
    assert main(["plan", "--config", typed, "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: sft.py: max_length: 'many'")


def test_an_option_without_a_value_is_told_to_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "trl sft --max_length --model_name_or_path", "--device", "cuda"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.rpartition(": ")[0] for line in told] == [
        "error: trl sft: without a value, max_length",
        "error: trl sft: without a value, model_name_or_path: model: true",
    ]
