"""Adapters beside LoRA, each against PEFT's plain use of it: the same trained weights and outputs, an update that changes nothing
else, learning, and the base where it is off."""

from __future__ import annotations

import functools
import os
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from vrambench.methods.adapters import ADAPTERS
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.config import model_config
from vrambench.methods.models.load import load_model
from vrambench.methods.models.losses import LOSSES
from vrambench.methods.models.parts import Inputs, hidden_states, logits
from vrambench.methods.rollout import GREEDY, generate

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to", "ignore:Note that `r` is not used")

CPU, META = get_device("cpu"), get_device("meta")
THEIRS: dict[str, tuple[type, dict[str, Any]]] = {
    "rslora": (peft.LoraConfig, {"r": 4, "lora_alpha": 8, "use_rslora": True}),
    "ia3": (peft.IA3Config, {}),
    "adalora": (peft.AdaLoraConfig, {"lora_alpha": 8, "total_step": 1000}),
    "vera": (peft.VeraConfig, {}),
    "oft": (peft.OFTConfig, {}),
    "prompt_tuning": (peft.PromptTuningConfig, {"num_virtual_tokens": 20}),
}
"""How PEFT alone is told."""
RATES = {"rslora": 1e-2, "ia3": 5e-2, "adalora": 3e-2, "vera": 5e-2, "oft": 1e-2, "prompt_tuning": 0.3}
"""With which each learns something in 15 steps."""
ARCHITECTURES = ("tiny", "tiny-gpt2", "tiny-neox")
PAIRS = [(adapter, model) for adapter in THEIRS for model in ARCHITECTURES if (adapter, model) != ("oft", "tiny-gpt2")]


def cell_of(adapter: str, precision: str = "fp32", algorithm: str = "sft", **settings: Any) -> Cell:
    axes = {"precision": precision, "adapter": adapter, "optimizer": "adamw_torch", "offload": "none"}
    usual = {"lora_r": 4, "lora_alpha": 8, "batch_size": 4, "prompt_tokens": 8, "response_tokens": 8}
    return resolve(axes | {"algorithm": algorithm}, usual | settings)


def by_peft(adapter: str, name: str, dtype: torch.dtype) -> Any:
    kind, said = THEIRS[adapter]
    base = AutoModelForCausalLM.from_config(model_config(name), dtype=dtype)
    return get_peft_model(base, kind(task_type="CAUSAL_LM", **said))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def tokens_of(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 12), generator=torch.Generator().manual_seed(0))


def logits_of(model: nn.Module) -> torch.Tensor:
    return logits(model, hidden_states(model, Inputs(tokens_of())))


def disturb(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)


@pytest.mark.parametrize("device", [CPU, META], ids=lambda device: device.kind)
@pytest.mark.parametrize(("adapter", "name"), PAIRS)
def test_what_is_trained_is_what_peft_trains(adapter: str, name: str, device: Any) -> None:
    ours = load_model(cell_of(adapter, "bf16", model=name).setup, device, seed=0)
    theirs = by_peft(adapter, name, torch.bfloat16)
    assert {label: (each.shape, each.dtype) for label, each in trained(ours).items()} == {
        label: (each.shape, each.dtype) for label, each in trained(theirs).items()
    }
    assert sum(each.numel() for each in trained(ours).values()) == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("adapter", "name"), PAIRS)
def test_it_gives_what_peft_gives(adapter: str, name: str) -> None:
    ours: Any = load_model(cell_of(adapter, model=name).setup, CPU, seed=0)
    theirs = by_peft(adapter, name, torch.float32)
    disturb(ours)
    theirs.load_state_dict(ours.state_dict())
    given = theirs(input_ids=tokens_of()).logits[:, -tokens_of().shape[1] :]
    torch.testing.assert_close(logits_of(ours), given, rtol=1e-5, atol=1e-5)


def computing_in_fp32(adapter: str, precision: str, name: str) -> Cell:
    more = {"compute_dtype": "fp32"} if precision in ("int8", "nf4") else {}
    return cell_of(adapter, precision, model=name, **more)


@functools.cache
def of_the_base(precision: str, name: str) -> torch.Tensor:
    """Logits of the model on which no adapter is."""
    setup = computing_in_fp32("rslora", precision, name).setup
    return logits_of(load_model(setup, CPU, seed=0, adapter=False)).detach()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "nf4"])
@pytest.mark.parametrize(("adapter", "name"), PAIRS)
def test_switched_off_it_is_the_base_and_trained_it_is_not(adapter: str, name: str, precision: str) -> None:
    model: Any = load_model(computing_in_fp32(adapter, precision, name).setup, CPU, seed=0)
    expected = of_the_base(precision, name)
    if adapter != "prompt_tuning":
        torch.testing.assert_close(logits_of(model), expected)
    disturb(model)
    assert not torch.allclose(logits_of(model), expected, atol=0.01)
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("loss", ["scored", "nll", "chunked_nll"])
def test_the_loss_of_virtual_tokens_is_pefts(name: str, loss: str) -> None:
    ours: Any = load_model(cell_of("prompt_tuning", model=name).setup, CPU, seed=0)
    theirs = by_peft("prompt_tuning", name, torch.float32)
    theirs.load_state_dict(ours.state_dict())
    labels = tokens_of()
    labels[:, 0] = -100  # which PEFT would have the last virtual token predict
    expected = theirs(input_ids=tokens_of(), labels=labels).loss
    torch.testing.assert_close(LOSSES[loss].mean(ours, Inputs(tokens_of())), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_virtual_tokens_stay_in_a_rollouts_cache(name: str) -> None:
    """The same greedy tokens as PEFT generates, and the same log-probabilities as a pass over the whole sequence gives."""
    ours: Any = load_model(cell_of("prompt_tuning", model=name).setup, CPU, seed=0)
    theirs = by_peft("prompt_tuning", name, torch.float32).eval()
    theirs.load_state_dict(ours.state_dict())
    made = generate(ours, tokens_of(), 6, GREEDY, CPU)
    torch.testing.assert_close(logits(ours, hidden_states(ours, Inputs(made)))[:, 11:-1].argmax(-1), made[:, 12:])
    one = tokens_of()[:1]
    mask = torch.ones_like(one)
    said = theirs.generate(input_ids=one, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert said[0, -6:].tolist() == made[0, -6:].tolist()


@pytest.mark.parametrize("algorithm", ["sft", "ppo"])
@pytest.mark.parametrize("adapter", THEIRS)
def test_a_step_changes_the_adapter_and_nothing_else(adapter: str, algorithm: str) -> None:
    job = Job(cell_of(adapter, algorithm=algorithm, rollout_batch=4, learning_rate=1e-2), CPU)
    job.load()
    model = job.roles["policy"].module.model  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    job.step(0), job.step(1)
    its = set(trained(model))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= its
    assert len(changed) > len(its) / 2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("adapter", "rate"),
    [("rslora", 1e-2), ("ia3", 5e-2), ("adalora", 3e-2), ("vera", 5e-2), ("oft", 1e-2), ("prompt_tuning", 5e-2)],
)
def test_it_learns(adapter: str, rate: float, seed: int) -> None:
    settings = {"lora_target_modules": "all-linear", "learning_rate": rate, "seed": seed, "batch_size": 8}
    job = Job(cell_of(adapter, **settings, adalora={"orth_reg_weight": 0.1}), CPU)
    job.load()
    losses = [float(job.step(0)["loss"]) for _ in range(15)]  # the same sequences each time
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapter", THEIRS)
def test_checkpointing_changes_no_gradient(adapter: str, reentrant: bool) -> None:
    gradients = []
    for checkpointing in ({}, {"gradient_checkpointing": True, "use_reentrant": reentrant}):
        model = load_model(cell_of(adapter, model="tiny", **checkpointing).setup, CPU, seed=0)
        disturb(model)
        logits_of(model).square().mean().backward()
        gradients.append({name: each.grad for name, each in trained(model).items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_fp32_is_the_adapters_type_whatever_the_base_is() -> None:
    """VeRA's projections, which are buffers, and what nobody trains included."""
    for adapter in THEIRS:
        for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            model = load_model(cell_of(adapter, "fp16", adapter_dtype=dtype).setup, CPU, seed=0)
            its = [
                (name, each)
                for name, each in (*model.named_parameters(), *model.named_buffers())
                if ".default" in name and each.is_floating_point()
            ]
            assert its
            assert {each.dtype for _, each in its} == {expected}, adapter


def test_rslora_is_lora_with_use_rslora_whatever_the_field_says() -> None:
    one, other = cell_of("rslora", use_rslora=False), cell_of("lora", use_rslora=True)
    assert one.workload.use_rslora is None
    assert "lora_target_parameters" in ADAPTERS.get("rslora").fields
    first, second = (load_model(cell.setup, CPU, seed=0) for cell in (one, other))
    assert all(torch.equal(each, trained(second)[name]) for name, each in trained(first).items())
    disturb(first), disturb(second)
    torch.testing.assert_close(logits_of(first), logits_of(second))


def test_vera_keeps_its_projections_once_as_weights() -> None:
    from vrambench.bench.measure.ledger import role_bytes

    held = []
    for adapter in ("vera", "ia3"):
        job = Job(cell_of(adapter, lora_target_modules="all-linear", vera={"r": 64}), CPU)
        job.load()
        model = job.roles["policy"].module
        its = sum(each.nbytes for each in trained(model).values())
        held.append(role_bytes(job, {})["policy"].weights_bytes - its)
    assert held[0] - held[1] == 64 * (176 + 176) * 4  # the widest input and the widest output are the MLP's


def test_adalora_allocates_as_peft_does() -> None:
    """The same updates as in PEFT's own forward pass with labels, followed by update_and_allocate after each optimizer step."""
    options = {"total_step": 8, "tinit": 1, "tfinal": 2, "init_r": 6, "target_r": 2}
    cell = cell_of("adalora", model="tiny", learning_rate=1e-2, max_grad_norm=0, adalora=options, loss="nll")
    job = Job(cell, CPU)
    job.load()
    ours: Any = job.roles["policy"].module.model  # type: ignore[union-attr]
    base = AutoModelForCausalLM.from_config(model_config("tiny"), dtype=torch.float32)
    theirs: Any = get_peft_model(base, peft.AdaLoraConfig(task_type="CAUSAL_LM", lora_alpha=8, **options))
    theirs.load_state_dict(ours.state_dict())
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(name in trained(ours))
    adamw = cell.optimizer_value.build(theirs, cell.workload)
    for index in range(8):
        tokens = job.data.sequences(index, 4, 16)
        loss = theirs(input_ids=tokens, labels=tokens).loss
        loss.backward()
        adamw.step()
        theirs.base_model.update_and_allocate(index)
        adamw.zero_grad()
        torch.testing.assert_close(job.step(index)["loss"], loss.detach())
    for name, parameter in trained(theirs).items():
        torch.testing.assert_close(trained(ours)[name], parameter, msg=name)
    ranks = [int((each != 0).sum()) for name, each in trained(ours).items() if "lora_E" in name]
    assert sum(ranks) == options["target_r"] * len(ranks)


ANY: dict[str, dict[str, Any]] = {
    "peft:LoraConfig": {"r": 4},
    "peft:BOFTConfig": {},
    "peft:AdaptionPromptConfig": {"adapter_len": 4, "adapter_layers": 2},
    "peft:C3AConfig": {"block_size": 32},
    "peft:DeloraConfig": {"r": 4},
    "peft:FourierFTConfig": {"n_frequency": 50},
    "peft:HRAConfig": {},
    "peft:LNTuningConfig": {},
    "peft:LoHaConfig": {"r": 4},
    "peft:LoKrConfig": {"r": 4},
    "peft:MissConfig": {"r": 4},
    "peft:OSFConfig": {},
    "peft:PromptEncoderConfig": {"num_virtual_tokens": 5, "encoder_hidden_size": 16},
    "peft:RandLoraConfig": {"r": 8},
    "peft:RoadConfig": {"group_size": 32},
    "peft:ShiraConfig": {"r": 4},
    "peft:TinyLoraConfig": {"u": 4},
    "peft:TrainableTokensConfig": {"token_indices": [1, 2, 3]},
    "peft:VBLoRAConfig": {"vector_length": 16},
    "peft:WaveFTConfig": {"n_frequency": 10},
}


@pytest.mark.parametrize("adapter", ANY)
def test_any_other_adapter_trains_and_is_the_base_where_it_is_off(adapter: str) -> None:
    cell = cell_of(adapter, peft=ANY[adapter], learning_rate=1e-2)
    base = logits_of(load_model(cell.setup, CPU, seed=0, adapter=False))
    job, environment = Job(cell, CPU), dict(os.environ)
    job.load()
    assert dict(os.environ) == environment
    model = job.roles["policy"].module.model  # type: ignore[union-attr]
    its = {name for name, each in model.named_parameters(remove_duplicate=False) if each.requires_grad}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    job.step(0), job.step(1)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= its
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), base)
    kind = getattr(peft, adapter.removeprefix("peft:"))
    options = cell.workload.options["peft"]
    assert {name: options[name] for name in ANY[adapter]} == ANY[adapter]
    if "PromptEncoder" not in adapter:
        with mock.patch.dict(os.environ):  # BOFT's code changes it
            theirs = get_peft_model(
                AutoModelForCausalLM.from_config(model_config("tiny"), dtype=torch.float32),
                kind(task_type="CAUSAL_LM", **ANY[adapter]),
            )
        assert sum(each.numel() for each in trained(model).values()) == theirs.get_nb_trainable_parameters()[0]


def test_what_begins_with_parts_of_the_base_is_not_the_base_when_it_is_off() -> None:
    for init, reference in ((True, "adapter_off"), ("gaussian", "adapter_off"), ("pissa", "copy"), ("olora", "copy")):
        options = {"r": 4, "init_lora_weights": init}
        cell = cell_of("peft:LoraConfig", algorithm="ppo", rollout_batch=4, peft=options)
        assert cell.workload.reference == reference
        model: Any = load_model(cell.setup, CPU, seed=0)
        base = logits_of(load_model(cell.setup, CPU, seed=0, adapter=False))
        with model.disable_adapter():
            off = logits_of(model)
        assert torch.allclose(off, base, atol=1e-4) == (reference == "adapter_off")
        torch.testing.assert_close(logits_of(model), base, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("adapter", "settings", "said"),
    [
        ("adalora", {"adalora": {"target_r": 12}}, r"target_r \(12\) must be less than init_r \(12\)"),
        ("adalora", {"adalora": {"tfinal": 1000}}, r"leave none of total_step \(1000\)"),
        ("oft", {"oft": {"r": 4}}, "exactly one of r and oft_block_size must be 0"),
        ("vera", {"vera": {"rank": 4}}, "vera.rank: no such field"),
        ("ia3", {"lora_target_modules": ["k_porj"]}, "'k_porj' is no layer of the model; did you mean 'k_proj'"),
        ("ia3", {"ia3": {"feedforward_modules": "down_porj"}}, "did you mean 'down_proj'"),
        ("peft:FourierConfig", {}, "did you mean 'peft:FourierFTConfig'"),
        ("peft:VeraConfig", {}, "peft:VeraConfig is adapter vera"),
        ("peft:XLoraConfig", {}, "peft:XLoraConfig mixes adapters that were trained before"),
        ("peft:LoHaConfig", {"peft": {"rnk": 4}}, "peft.rnk: no such field"),
        ("peft:ShiraConfig", {"peft": {"r": 4}}, "cannot be predicted: its update is a sparse tensor"),
        ("peft:FrodConfig", {}, "cannot be predicted: PEFT makes its factors from decompositions"),
        (
            "peft:AdaptionPromptConfig",
            {},
            r"needs peft\.adapter_len and peft\.adapter_layers, which PEFT has no default for$",
        ),
        ("peft:AdaptionPromptConfig", {"peft": {"adapter_len": 4}}, r"needs peft\.adapter_layers, which"),
        (
            "peft:AdaptionPromptConfig",
            {"peft": {"adapter_len": 4, "adapter_layers": 2}, "precision": "bf16"},
            "^adapter_dtype: prompts in torch.float32",
        ),
        ("peft:LNTuningConfig", {"precision": "bf16"}, "^adapter_dtype: norms in torch.float32"),
        ("peft:C3AConfig", {}, "PEFT cannot put it on these layers: The block size should be a factor"),
        ("oft", {"model": "tiny-gpt2"}, r"PEFT cannot put it on these layers: Target module Conv1D"),
        ("peft:LilyConfig", {"model": "tiny-gpt2"}, "PEFT cannot put it on these layers: Lily does not support"),
    ],
)
def test_what_cannot_be_is_one_sentence(adapter: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_model(cell_of(adapter, **settings).setup, META, seed=0)
