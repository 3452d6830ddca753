"""Model types that are unlike most: each of these once ended in a traceback, or in a sentence about something else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from tests.bench.predict.test_equality import differences, traced
from vrambench.bench.plan.validity import check
from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.simulate import Simulator
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.kv_cache import cache_for, unable_to_decode
from vrambench.methods.models.config import model_config, shortened
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import trunk
from vrambench.methods.models.policy import Policy

CPU, META = get_device("cpu"), get_device("meta")
LARGE = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def written(kind: str, folder: Path, **more: Any) -> str:
    (folder / "config.json").write_text(json.dumps(tiny(kind) | more))
    return str(folder)


def cell_of(model: str, **said: Any) -> Cell:
    axes = {name: said.pop(name, value) for name, value in LARGE.items()}
    return resolve(axes, {"model": model, "prompt_tokens": 6, "response_tokens": 2, "batch_size": 2} | said)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("musicgen", "has an encoder"),
        ("xlnet", "reads in both directions"),
        ("xlm", "reads in both directions"),
        ("cpmant", "reads what it is given in both directions"),
        ("gemma4_assistant", "drafts for another model"),
        ("prophetnet", "scores tokens from states of its n-gram streams"),
    ],
)
def test_it_is_refused_for_what_it_is(kind: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"is a {kind}, which {said}"):
        model_config(written(kind, tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", "gemma4"])
def test_a_padding_token_stays_and_nobody_looks_for_it(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"pad_token_id": 7} if kind == "gpt2" else {}
    model: Any = load_model(cell_of(written(kind, tmp_path, **more)).setup, CPU, seed=0)
    padding = model.config.get_text_config().pad_token_id
    assert padding is not None
    logging.disable(logging.NOTSET)
    states = trunk(model)(input_ids=torch.full((1, 4), padding), use_cache=False).last_hidden_state
    assert torch.isfinite(states).all()
    assert "attention_mask" not in caplog.text


def test_what_initialises_a_module_s_layers_leaves_quantised_ones_alone(tmp_path: Path) -> None:
    job = Job(cell_of(written("gemma3", tmp_path), precision="nf4"), CPU)
    job.load()
    kinds = {type(module).__name__ for module in job.roles["policy"].module.modules()}
    assert "Linear4bit" in kinds


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("bert", {"is_decoder": False}, "with is_decoder: true in its config.json it is a decoder"),
        (
            "bart",
            {"is_encoder_decoder": True},
            "with is_encoder_decoder: false in its config.json it is its decoder alone",
        ),
    ],
)
def test_what_is_a_decoder_only_where_it_is_told_so_says_how(
    kind: str, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        model_config(written(kind, tmp_path, **more))
    assert model_config(written(kind, tmp_path)).model_type == kind


@pytest.mark.parametrize(
    "kind", ["modernbert-decoder", "bert", "roberta", "electra", "bart", "openai-gpt", "inkling_text"]
)
def test_log_probabilities_are_transformers_whatever_lies_below_the_head(kind: str, tmp_path: Path) -> None:
    """Layers between trunk and head, positions that begin late, a decoder in a wrapper, weights that only their class fills."""
    more = {"logits_mup_width_multiplier": 2.0, "unpadded_vocab_size": 255} if kind == "inkling_text" else {}
    cell = cell_of(written(kind, tmp_path, **more), precision="fp32", attention="eager")
    model: Any = load_model(cell.setup, CPU, seed=0)
    tokens = torch.randint(3, 255, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(input_ids=tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
        ours = Policy(model)(tokens, 1).logprobs
    assert torch.allclose(ours, theirs.gather(-1, tokens[:, 1:, None]).squeeze(-1), rtol=1e-4, atol=1e-5)
    real, simulated = traced(cell, CPU), traced(cell, replace(META, stands_for="cpu"))
    assert not differences(cell, real, simulated)


@pytest.mark.parametrize("loss", ["chunked_nll", "liger"])
def test_a_loss_that_reads_the_head_alone_is_refused_where_layers_lie_before_it(loss: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"would leave out the layers before it \(cls\): take loss: scored, or nll"
    ):
        Predictor("").simulation(cell_of(written("bert", tmp_path), loss=loss))


@pytest.mark.parametrize(("kind", "attention"), [("deepseek_v32", "sdpa"), ("doge", "sdpa"), ("hy_v4", "eager")])
def test_tokens_that_a_layer_picks_are_picked_by_sdpa_or_eager(kind: str, attention: str, tmp_path: Path) -> None:
    name = written(kind, tmp_path)
    assert cell_of(name).workload.attention == attention
    refused = check(cell_of(name, attention="flash"), "cuda")
    assert any("picks or weighs the tokens" in finding.reason for finding in refused if finding.kind == "reject")
    cell = cell_of(name, precision="fp32", attention="eager")
    real, simulated = traced(cell, CPU), traced(cell, replace(META, stands_for="cpu"))
    assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes()
    if kind != "doge":  # whose product of one row lies otherwise on the CPU: 128 bytes
        assert not differences(cell, real, simulated)


def test_positions_that_begin_late_leave_fewer(tmp_path: Path) -> None:
    name = written("roberta", tmp_path, max_position_embeddings=34, pad_token_id=1)
    for tokens, rejected in ((32, False), (33, True)):
        cell = cell_of(name, prompt_tokens=tokens - 2, precision="fp32")
        assert ("too-long" in {finding.rule for finding in check(cell, "cuda")}) == rejected
        if not rejected:
            job = Job(cell, CPU)
            job.load()
            job.step(0)


def test_a_quantised_model_says_so_to_layers_that_would_read_a_weight(tmp_path: Path) -> None:
    cell = cell_of(written("jamba", tmp_path), precision="nf4", adapter="lora", lora_target_modules="all-linear")
    assert Predictor("").simulation(cell).parameters.trainable > 0
    job = Job(cell, CPU)
    job.load()
    assert torch.isfinite(torch.as_tensor(job.step(0)["loss"]))


@pytest.mark.parametrize(
    ("kind", "precision", "said"),
    [
        ("gemma3n_text", "nf4", "take precision: bf16, or altup_coef_clip: null"),
        ("xlstm", "bf16", "take precision: fp32"),
    ],
)
def test_what_no_weights_of_that_type_can_run_says_what_does(
    kind: str, precision: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^model: its architecture \({kind}\) .*{said}"):
        Predictor("").simulation(cell_of(written(kind, tmp_path), precision=precision, adapter="lora"))


@pytest.mark.parametrize("kind", ["dbrx", "jetmoe"])
def test_sizes_that_depend_on_values_are_not_predicted_and_say_so(kind: str, tmp_path: Path) -> None:
    said = "depend on values, such as which tokens an expert gets, and the simulated device has none: `vrambench run` measures it$"
    with pytest.raises(NotPredicted, match=said):
        Predictor("").simulation(cell_of(written(kind, tmp_path)))


def test_a_name_that_peft_gives_experts_may_be_no_parameter(tmp_path: Path) -> None:
    cell = cell_of(written("hunyuan_v1_moe", tmp_path), adapter="lora", lora_target_modules="all-linear")
    assert Predictor("").simulation(cell).parameters.trainable > 0


def test_products_by_groups_get_no_adapter(tmp_path: Path) -> None:
    cell = cell_of(written("deepseek_v4", tmp_path), adapter="lora", lora_target_modules="all-linear")
    adapted: Any = load_model(cell.setup, META, seed=0)
    targets = {name.rpartition(".")[2] for name in adapted.targeted_module_names}
    assert "o_b_proj" in targets
    assert "o_a_proj" not in targets


def test_a_cache_of_its_own_is_told_before_anything_is_generated(tmp_path: Path) -> None:
    said = unable_to_decode(model_config(written("minimax", tmp_path)))
    assert said == "keeps a cache of its own (MiniMaxCache), so nothing is generated with it (SFT works)"


def test_a_decoder_without_its_encoder_has_a_cache_for_each_of_its_layers(tmp_path: Path) -> None:
    config = model_config(written("blenderbot", tmp_path, encoder_layers=2, decoder_layers=5))
    assert len(cache_for(config, 8).layers) == 5
    whole = Predictor("").simulation(cell_of(written("blenderbot", tmp_path, encoder_layers=9, decoder_layers=4)))
    with torch.device("meta"):
        model: Any = load_model(cell_of(str(tmp_path)).setup, META, seed=0)
    assert whole.parameters.total == sum(one.numel() for one in model.parameters())


def test_the_trunk_is_below_the_head_where_the_base_has_another_name(tmp_path: Path) -> None:
    model: Any = load_model(cell_of(written("llama4_text", tmp_path)).setup, META, seed=0)
    assert trunk(model) is model.model
    assert trunk(model.model) is model.model


def test_a_limit_without_end_does_not_stop_the_comparison_of_layers(tmp_path: Path) -> None:
    config = model_config(written("granitemoehybrid", tmp_path))
    assert config.time_step_limit[1] == float("inf")
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    assert shortened(config, replace(META, layers=4)).num_hidden_layers == 4


def test_a_model_inside_without_layers_of_its_own_is_no_hindrance(tmp_path: Path) -> None:
    cell = cell_of(written("phi4_multimodal", tmp_path))
    assert Simulator().run(cell).parameters.total > 0


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("deepseek_v3", "bf16"),
        ("ernie4_5_moe", "bf16"),
        ("inkling2_text", "bf16"),
        ("gpt_oss", "fp16"),
        ("bert", "nf4"),
        ("deepseek_v32", "nf4"),
        ("gpt2", "nf4"),
    ],
)
def test_every_tensor_is_of_the_type_that_from_pretrained_reads_it_in(
    kind: str, precision: str, tmp_path: Path
) -> None:
    """Some stay in fp32 whatever is asked for, and quantisers leave these and the head alone."""
    cell = cell_of(written(kind, tmp_path), precision=precision, adapter="lora")
    ours: Any = load_model(cell.setup, CPU, adapter=False, seed=0)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), dtype=torch.bfloat16)
    made.save_pretrained(tmp_path / "weights")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "weights",
        dtype=torch.float16 if precision == "fp16" else torch.bfloat16,
        quantization_config=four_bits if precision == "nf4" else None,
    )

    def types(model: Any) -> dict[str, torch.dtype]:
        return {name: one.dtype for named in (model.named_parameters(), model.named_buffers()) for name, one in named}

    assert types(ours) == types(theirs)
