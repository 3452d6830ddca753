"""What of a quantised model is in fp32: as PEFT's own function leaves it, by name, and what that makes of activations and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import prepare_model_for_kbit_training
from torch import nn

from tests.methods.conftest import small_cell
from vrambench.bench.measure.ledger import role_bytes
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.load import load_model
from vrambench.methods.models.parts import layer_stacks
from vrambench.methods.models.upcast import HALF

MakeJob = Callable[..., Job]
MODELS = ("tiny", "tiny-gpt2", "tiny-neox", "tiny-opt")


def base(precision: str, model: str = "tiny", device: str = "cpu", **settings: Any) -> nn.Module:
    """The quantised model before any adapter."""
    cell = small_cell(precision=precision, adapter="lora", model=model, **settings)
    return load_model(cell.setup, get_device(device), adapter=False, seed=0)


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_all_is_what_peft_casts(precision: str, model: str) -> None:
    theirs = prepare_model_for_kbit_training(base(precision, model), use_gradient_checkpointing=False)
    assert dtypes(base(precision, model, fp32_modules="all")) == dtypes(theirs)
    assert dtypes(base(precision, model, fp32_modules="all", device="meta")) == dtypes(theirs)
    assert set(dtypes(theirs).values()) == {torch.float32, {"int8": torch.int8, "nf4": torch.uint8}[precision]}


@pytest.mark.parametrize(
    ("which", "cast"),
    [
        (["norms"], {"transformer.h.0.ln_1.weight", "transformer.h.1.ln_2.bias", "transformer.ln_f.weight"}),
        (["embeddings"], {"transformer.wte.weight", "transformer.wpe.weight"}),
        (["head"], {"transformer.wte.weight"}),
    ],
)
def test_parts_of_gpt2_whose_head_is_its_embedding(which: list[str], cast: set[str]) -> None:
    found = dtypes(base("nf4", "tiny-gpt2", fp32_modules=which, autocast="bf16"))
    assert {name for name in found if name in cast and found[name] == torch.float32} == cast
    plain = dtypes(base("nf4", "tiny-gpt2"))
    changed = {name for name in found if found[name] != plain[name]}
    assert all(name.split(".")[-2].startswith("ln_") == (which == ["norms"]) for name in changed)


def test_the_stream_between_layers_and_what_checkpoints_keep_is_fp32(job: MakeJob) -> None:
    seen: dict[str, set[torch.dtype]] = {}
    for which in ("none", "all"):
        made = job(precision="nf4", adapter="lora", fp32_modules=which, gradient_checkpointing=True)
        (stack,) = layer_stacks(made.roles["policy"].module)
        found = seen.setdefault(which, set())
        for layer in stack.layers:
            layer.register_forward_pre_hook(lambda module, args, found=found: found.add(args[0].dtype))
        made.step(0)
    assert seen == {"none": {torch.bfloat16}, "all": {torch.float32}}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_weights_grow_by_two_bytes_for_each_parameter_that_is_cast(job: MakeJob, precision: str, device: str) -> None:
    def weights(which: str) -> tuple[int, int]:
        made = job(precision=precision, adapter="lora", fp32_modules=which, device=device)
        halves = sum(one.numel() for one in made.parameters() if one.dtype in HALF)
        return role_bytes(made, {})["policy"].weights_bytes, halves

    (plain, halves), (cast, left) = weights("none"), weights("all")
    assert halves > 0 == left
    assert cast - plain == 2 * halves


@pytest.mark.parametrize("said", ["some", ["norm"], [], "norms,heads", 3])
def test_what_is_no_part_of_a_model_is_one_sentence(said: object) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^fp32_modules: .*must be none, all or a list of norms, embeddings, head"
    ):
        small_cell(precision="nf4", adapter="lora", fp32_modules=said)


def test_parts_have_one_order_and_one_may_be_named_alone() -> None:
    def cell(said: object) -> str:
        return small_cell(precision="nf4", adapter="lora", autocast="bf16", fp32_modules=said).id

    assert cell("head, norms") == cell(["norms", "head"])
    assert cell("norms") == cell(["norms"])
