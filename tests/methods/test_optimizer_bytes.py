"""What every optimizer keeps of a matrix, and which parameters it groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from tests.methods.test_optimizer_updates import MakeCell, matrices, net, stepped
from vrambench.methods.offload.learner import tensors_in
from vrambench.methods.optimizers import OPTIMIZERS, undecayed

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

BYTES: dict[str, Callable[[Tensor], float]] = {
    "sgd": lambda one: 0,
    **dict.fromkeys(("lion_32bit", "rmsprop_bnb", "schedule_free_sgd"), lambda one: 4 * one.numel()),
    **dict.fromkeys(("rmsprop", "adagrad"), lambda one: 4 * one.numel() + 4),
    **dict.fromkeys(("paged_adamw_32bit", "schedule_free_adamw"), lambda one: 8 * one.numel()),
    "adamw_torch": lambda one: 8 * one.numel() + 4,
    "ademamix": lambda one: 12 * one.numel(),
    "stable_adamw": lambda one: 8 * one.numel() + 4,
    "lion_8bit": lambda one: one.numel() + one.numel() / 256 * 4,
    "ademamix_8bit": lambda one: 3 * one.numel() + one.numel() / 256 * 12,
    "adamw_torch_8bit": lambda one: 2 * (one.numel() + one.numel() / 256 * 4 + 1024) + 4,
    "adamw_torch_4bit": lambda one: 2 * (one.numel() / 2 + one.numel() / 256 * 4 + 64) + 4,
    "muon": lambda one: 4 * one.numel(),
    "apollo_adamw": lambda one: 3 * 4 * 8 * 96 - 4 * 8 * 48 + 4,
    "galore_adafactor": lambda one: 4 * (8 + 96) + 4 * 48 * min(one.shape) + 4,
}
"""What a weight of a hidden layer, 96 by 48 or 48 by 96 in fp32, should keep; projected ones with rank 8. An 8-bit optimizer of
bitsandbytes has two tables for all; a projector of an fp32 gradient keeps the whole factor; single numbers have 4 bytes."""


@pytest.mark.parametrize("name", BYTES)
def test_a_matrix_keeps_the_bytes_that_the_name_promises(cell: MakeCell, name: str) -> None:
    for module in OPTIMIZERS.get(name).requires:
        pytest.importorskip(module)
    options = {"rank": 8} if OPTIMIZERS.get(name).projects_gradients else {}
    module, optimizer = stepped(cell, name, options, steps=1)
    for path in matrices(module):
        one = module.get_parameter(path)
        kept = {key: value for key, value in optimizer.state[one].items() if not key.startswith("qmap")}
        storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors_in(kept)}
        assert sum(storages.values()) == BYTES[name](one), path


def test_names_that_are_not_decayed_are_transformers_trainer_s() -> None:
    """And those of layers that are norms by their class alone."""
    from transformers import Trainer

    module = nn.ModuleDict(
        {"lm": net(), "scale": nn.LayerNorm(4), "normal": nn.Linear(4, 4), "q_norm": nn.Linear(4, 4)}
    )
    decayed = Trainer.get_decay_parameter_names(None, module)
    spared = undecayed(module)
    assert {name for name, one in module.named_parameters() if one not in spared} == set(decayed)


def test_without_weight_decay_there_is_one_group(cell: MakeCell) -> None:
    value = OPTIMIZERS.get("adamw_torch")
    groups = value.groups(net(), cell().workload)
    assert [len(group["params"]) for group in groups] == [len(list(net().parameters()))]
    groups = value.groups(net(), cell(adamw={"weight_decay": 0.1}).workload)
    assert [(len(group["params"]), group.get("weight_decay")) for group in groups] == [(3, None), (5, 0.0)]
