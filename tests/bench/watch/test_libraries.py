"""Libraries on the simulated device: weights come onto it, nothing is written, tokens are generated to the greatest length."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import vrambench
from vrambench.bench.watch.cuda import NotFollowed

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="predicted where there is no CUDA")

MIB = 1024**2
CONFIG = LlamaConfig(
    vocab_size=4096,
    hidden_size=640,
    intermediate_size=1280,
    num_hidden_layers=3,
    num_attention_heads=2,
    tie_word_embeddings=False,
    dtype="float32",
)


def nbytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("device_map", ["cuda", "auto", 0, {"": 0}, {"": "cuda:0"}])
def test_weights_are_loaded_onto_it(device_map: Any, saved: Path) -> None:
    with vrambench.watch("24GiB") as ledger:
        model = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map)
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
        buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert ledger.memory.requested_bytes == nbytes(model) + buffers
    assert ledger.memory.reserved_bytes == pytest.approx(nbytes(model), rel=0.1), (
        "a block that transformers asks for first"
    )


def test_what_has_no_room_stays_on_the_cpu_as_on_cuda(saved: Path) -> None:
    with vrambench.watch("24GiB") as ledger:
        taken = torch.zeros(23 * 1024 + 450, MIB, dtype=torch.uint8, device="cuda")
        model = AutoModelForCausalLM.from_pretrained(saved, device_map="auto")
        where = {parameter.device.type for parameter in model.parameters()}
        with torch.no_grad():
            assert model(torch.zeros(1, 4, dtype=torch.long, device="cuda")).logits.device.type == "cuda"
        del taken
    assert where == {"cuda", "meta"}, "of those that are on the CPU, layers hold what has no memory"
    assert ledger.fits


QLORA = """
import sys, torch, vrambench
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
assert "bitsandbytes" not in sys.modules
with vrambench.watch("24GiB") as ledger:
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=quantized, device_map={"": 0})
    from bitsandbytes.optim import PagedAdamW8bit
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    optimizer = PagedAdamW8bit([one for one in model.parameters() if one.requires_grad])
    tokens = torch.zeros(2, 8, dtype=torch.long, device="cuda")
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
from bitsandbytes.functional import quantize_4bit
print(sum(one.nbytes for one in ledger.at_peak if one.kind == "weights"), quantize_4bit(torch.randn(64, 64))[0].device)
"""


@pytest.mark.slow
def test_bitsandbytes_that_is_imported_there_works_there_and_after(saved: Path) -> None:
    done = subprocess.run([sys.executable, "-c", QLORA, str(saved)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    requested, device = done.stdout.split()
    assert 0 < int(requested) < 0.75 * nbytes(LlamaForCausalLM(CONFIG)), (
        "layers in four bits, embeddings and head as they were"
    )
    assert device == "cpu"


def test_files_are_read_onto_it(tmp_path: Path) -> None:
    weights = {"first": torch.zeros(256, 1024), "second": torch.zeros(256, 1024)}
    torch.save(weights, tmp_path / "weights.pt")
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    reads: list[Callable[[], dict[str, torch.Tensor]]] = [
        lambda: torch.load(tmp_path / "weights.pt", map_location="cuda"),
        lambda: torch.load(tmp_path / "weights.pt", map_location=torch.device("cuda", 0)),
        lambda: safetensors.torch.load_file(tmp_path / "weights.safetensors", device="cuda"),
    ]
    for read in reads:
        with vrambench.watch() as ledger:
            found = read()
            assert {tensor.device.type for tensor in found.values()} == {"cuda"}
            del found
            torch.zeros(1024, 1024, device="cuda")
        assert ledger.memory.allocated_bytes == 2 * 1024**2 * 2, "freed before what comes next"


def test_nothing_is_written_and_what_is_there_stays(tmp_path: Path) -> None:
    model = peft.get_peft_model(LlamaForCausalLM(CONFIG), peft.LoraConfig(target_modules=["q_proj"]))
    before = tmp_path / "weights"
    before.write_text("of an earlier training")
    with vrambench.watch():
        model.to("cuda")
        for write in (
            lambda: torch.save(model.state_dict(), before),
            lambda: safetensors.torch.save_file({"one": torch.zeros(2, device="cuda")}, before),
            lambda: model.save_pretrained(tmp_path / "adapter"),
            lambda: model.get_base_model().save_pretrained(tmp_path / "model"),
        ):
            with pytest.warns(UserWarning, match="writes nothing: what is on the simulated device has no values"):
                write()
        torch.save({"step": 3, "seen": torch.ones(2)}, tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "weights"]
    assert before.read_text() == "of an earlier training"
    assert torch.load(tmp_path / "state")["step"] == 3


def test_a_trainers_checkpoints_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    rows = [{"input_ids": list(range(16)), "labels": list(range(16))} for _ in range(4)]
    with vrambench.watch():
        told = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            max_steps=2,
            save_steps=1,
            save_total_limit=1,
            report_to=[],
            logging_nan_inf_filter=False,
        )
        trainer = Trainer(LlamaForCausalLM(CONFIG), told, train_dataset=rows)
        with pytest.warns(UserWarning, match=r"Trainer._save_checkpoint\(\) writes nothing"):
            trainer.train()
        with pytest.warns(UserWarning, match=r"Trainer.save_model\(\) writes nothing"):
            trainer.save_model(str(tmp_path / "final"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 10, "num_return_sequences": 2}])
def test_tokens_are_generated_to_the_greatest_length(options: dict[str, Any]) -> None:
    model = LlamaForCausalLM(CONFIG)
    with vrambench.watch() as ledger:
        model.to("cuda")
        prompts = torch.zeros(2, 5, dtype=torch.long, device="cuda")
        with ledger.phase("rollout"):
            tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=7, **options)
        assert tokens.shape == (2 * options.get("num_return_sequences", 1), 12)
        with pytest.raises(NotFollowed, match="a beam search decides by values"):
            model.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=7, num_beams=2, do_sample=False
            )
        with pytest.raises(RuntimeError, match="has no values"):
            assert tokens.any()
    assert {phase.name for phase in ledger.phases} >= {"load", "rollout"}
