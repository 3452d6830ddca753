"""Optimizers by name: each trains, takes its options, and holds the bytes that its name promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from vrambench.methods.algorithms.trainer_learner import names_of_transformers
from vrambench.methods.errors import EXPLAINED, ConfigurationError, UnknownValue
from vrambench.methods.job import Job
from vrambench.methods.optimizers import OPTIMIZERS, trainable
from vrambench.methods.optimizers.galore import randomized_svd
from vrambench.methods.optimizers.targets import target_weights

MakeJob = Callable[..., Job]
CPU = [name for name, value in OPTIMIZERS.values().items() if not value.cuda_only]
LAYERWISE = [
    f"{name}_layerwise"
    for name in ("adamw_torch", "adamw_bnb_8bit", "adafactor", "galore_adafactor", "apollo_adamw", "muon")
]
"""Some of them: that every one steps as its plain one does is shown in test_optimizer_updates.py."""
RATES = {
    "rmsprop": 1e-3,
    "rmsprop_bnb": 1e-3,
    "rmsprop_bnb_8bit": 1e-3,
    "rmsprop_bnb_32bit": 1e-3,
    "muon": 2e-2,
    "sgd": 0.5,
    "schedule_free_sgd": 1.0,
}
"""Those that are not AdamW's, under which an optimizer learns."""

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def settings_of(name: str) -> dict[str, Any]:
    """What `name` needs to learn something in a few steps."""
    value = OPTIMIZERS.get(name)
    plain = name.removesuffix("_layerwise")
    settings: dict[str, Any] = {"optimizer": name, "learning_rate": RATES.get(plain, 5e-3)}
    if value.projects_gradients:
        assert value.options is not None
        settings |= {"learning_rate": 2e-2, value.options.namespace: {"rank": 16}}
    if value.layerwise or "sgd" in name:
        settings |= {"max_grad_norm": 0}
    return settings


@pytest.fixture(autouse=True)
def packages_are_there(request: pytest.FixtureRequest) -> None:
    """A test of an optimizer whose package is not installed is skipped."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if isinstance(name, str) and name in OPTIMIZERS:
        for module in OPTIMIZERS.get(name).requires:
            pytest.importorskip(module)


def state_of(job: Job) -> list[torch.Tensor]:
    learner = job.roles["policy"].learner
    assert learner is not None
    return list(learner.optimizer_state())


def stored_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def test_every_name_that_transformers_takes_is_here_or_is_answered() -> None:
    """An alias is the same optimizer; nothing else is offered as if it were what was asked for."""
    from transformers.training_args import OptimizerNames

    names = {name.value for name in OptimizerNames}
    assert names_of_transformers() == names
    assert set(OPTIMIZERS) - names == {"muon"}, "which torch has"
    for name in names:
        if name in OPTIMIZERS:
            assert OPTIMIZERS.get(name).layerwise == name.endswith("_layerwise")
            continue
        with pytest.raises(UnknownValue) as caught:
            OPTIMIZERS.get(name)
        said = str(caught.value)
        if name == "adamw_8bit":
            assert "; did you mean 'adamw_bnb_8bit'? " in said
        else:
            assert EXPLAINED[name].startswith("transformers has it, and it is not here; ")
            assert f"; {EXPLAINED[name]}" in said


@pytest.mark.parametrize("name", [*CPU, *LAYERWISE])
def test_each_one_trains(job: MakeJob, name: str) -> None:
    made = job(batch_size=8, prompt_tokens=8, response_tokens=8, **settings_of(name))
    losses = [float(made.step(index)["loss"]) for index in range(15)]
    assert losses[-1] < losses[0] - 0.5, losses


@pytest.mark.parametrize("name", [name for name, value in OPTIMIZERS.values().items() if value.options])
def test_its_options_arrive(job: MakeJob, name: str) -> None:
    value = OPTIMIZERS.get(name)
    assert value.options is not None
    namespace = value.options.namespace
    asked = {
        "adafactor": {"clip_threshold": 2.0, "decay_rate": -0.5, "beta1": 0.7},
        "galore_adafactor": {"clip_threshold": 2.0, "decay_rate": -0.5, "beta1": 0.7},
        "lion": {"betas": (0.8, 0.9)},
        "ademamix": {"betas": (0.8, 0.9, 0.99), "alpha": 3.0, "t_alpha": 7, "t_beta3": 8, "eps": 1e-5},
        "rmsprop_bnb": {"alpha": 0.5, "eps": 1e-5},
        "sgd": {"momentum": 0.5, "dampening": 0.0, "nesterov": True},
        "rmsprop": {"alpha": 0.5, "eps": 1e-5, "momentum": 0.5, "centered": True},
        "adagrad": {"lr_decay": 0.5, "eps": 1e-5},
        "muon": {"betas": (0.8, 0.9), "eps": 1e-5},
        "stable_adamw": {"betas": (0.8, 0.9), "eps": 1e-5, "decouple_lr": True, "max_lr": 0.5, "kahan_sum": False},
        "schedule_free_adamw": {"betas": (0.8, 0.9), "eps": 1e-5, "r": 1.0, "weight_lr_power": 1.0, "warmup_steps": 3},
        "schedule_free_sgd": {"momentum": 0.5, "r": 1.0, "weight_lr_power": 1.0, "warmup_steps": 3},
    }.get(namespace, {"betas": (0.8, 0.9), "eps": 1e-5})
    said = {namespace: asked | {"weight_decay": 0.25}}
    made = job(optimizer=name, learning_rate=0.125, max_grad_norm=0, **said)
    optimizer: Any = made.roles["policy"].learner._optimizer  # type: ignore[union-attr]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.25}
    told = {
        "rmsprop_bnb": lambda group: group | {"alpha": group["betas"][0]},
        "stable_adamw": lambda group: group | {"betas": (group["beta1"], group["beta2"])},
    }.get(namespace, dict)
    for group in optimizer.param_groups:
        if "ns_steps" not in group:  # Muon's own
            assert {key: told(group)[key] for key in asked} == asked
        assert float(group["lr"]) == 0.125
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    everything = trainable(made.roles["policy"].module)
    assert len(held) == len(everything)
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in everything}


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused"])
@pytest.mark.parametrize(("precision", "per_weight"), [("fp32", 8), ("bf16", 4), ("bf16_amp", 8)])
def test_adamw_keeps_two_moments_of_the_weights_type(job: MakeJob, name: str, precision: str, per_weight: int) -> None:
    made = job(optimizer=name, precision=precision)
    made.step(0)
    parameters = trainable(made.roles["policy"].module)
    steps = 4 * len(parameters)
    assert stored_bytes(state_of(made)) == per_weight * sum(p.numel() for p in parameters) + steps


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_8_bit_moments_take_two_bytes_from_4096_elements_on(job: MakeJob, name: str) -> None:
    made = job(optimizer=name)
    made.step(0)
    learner: Any = made.roles["policy"].learner
    large = small = 0
    embedding = made.roles["policy"].module.get_parameter("model.model.embed_tokens.weight")
    for parameter, state in learner._optimizer.state.items():
        moments = [state["state1"], state["state2"]]
        if parameter.numel() >= 4096 and parameter is not embedding:
            large += 1
            scales = [state["absmax1"], state["absmax2"]]
            assert {moment.dtype for moment in moments} == {torch.uint8}
            assert stored_bytes(moments) == 2 * parameter.numel()
            assert stored_bytes(scales) == 2 * 4 * -(-parameter.numel() // 256)
        else:
            small += 1
            assert {moment.dtype for moment in moments} == {torch.float32}
            assert stored_bytes(moments) == 8 * parameter.numel()
    assert large
    assert small
    weights = trainable(made.roles["policy"].module)
    rest = stored_bytes(state_of(made)) - 8 * embedding.numel()
    ratio = rest / (sum(parameter.numel() for parameter in weights) - embedding.numel())
    assert 2.0 < ratio < 2.6  # norms keep 32 bits here, two tables of 1 KiB, a small model


@pytest.mark.parametrize(("name", "device"), [("adamw_bnb_8bit", "cpu"), ("galore_adamw_8bit", "meta")])
def test_what_another_optimizer_asked_bitsandbytes_for_is_not_ours(job: MakeJob, name: str, device: str) -> None:
    """A Trainer that ran in this process before left its wishes in the common manager, by number of group and parameter."""
    from bitsandbytes.optim import GlobalOptimManager

    expected = job(optimizer=name, device=device)
    expected.step(0)
    everything = {(group, index): {"optim_bits": 32} for group in range(3) for index in range(50)}
    with mock.patch.object(GlobalOptimManager.get_instance(), "index2config", everything):
        made = job(optimizer=name, device=device)
        made.step(0)
    assert stored_bytes(state_of(made)) == stored_bytes(state_of(expected))


def test_adafactor_keeps_rows_and_columns(job: MakeJob) -> None:
    made = job(optimizer="adafactor")
    made.step(0)
    learner: Any = made.roles["policy"].learner
    for parameter, state in learner._optimizer.state.items():
        kept = {
            key: tuple(value.shape) for key, value in state.items() if isinstance(value, torch.Tensor) and value.ndim
        }
        if parameter.ndim == 2:
            assert kept == {
                "exp_avg_sq_row": (parameter.shape[0],),
                "exp_avg_sq_col": (parameter.shape[1],),
            }
        else:
            assert kept == {"exp_avg_sq": tuple(parameter.shape)}


def test_galore_keeps_its_moments_in_rank_rows_or_columns(job: MakeJob) -> None:
    made = job(optimizer="galore_adamw", galore={"rank": 8})
    made.step(0)
    learner: Any = made.roles["policy"].learner
    targets = {id(weight) for weight in target_weights(made.roles["policy"].module, "all-linear", "galore")}
    assert len(targets) == 14
    for parameter, state in learner._optimizer.state.items():
        shape = tuple(state["exp_avg"].shape)
        assert shape == tuple(state["exp_avg_sq"].shape)
        if id(parameter) not in targets:
            assert shape == tuple(parameter.shape)
            assert "projector" not in state
            continue
        out, inputs = parameter.shape
        assert shape == ((out, 8) if out >= inputs else (8, inputs))
        assert tuple(state["projector"].ortho_matrix.shape) == ((8, inputs) if out >= inputs else (out, 8))


@pytest.mark.parametrize("shape", [(96, 40), (40, 96), (40, 40)])
def test_a_randomized_svd_is_nearly_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u @ torch.diag(s * torch.linspace(0, -6, 40).exp()) @ vh  # a spectrum that falls, as gradients' do
    rank = 10
    u, s, vh = randomized_svd(matrix, rank)
    assert (u.shape, s.shape, vh.shape) == ((shape[0], rank + 8), (rank + 8,), (rank + 8, shape[1]))
    eye = torch.eye(rank, dtype=matrix.dtype)
    torch.testing.assert_close(u[:, :rank].mT @ u[:, :rank], eye)
    torch.testing.assert_close(vh[:rank] @ vh[:rank].mT, eye)
    exact = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(s[:rank], exact[:rank], rtol=1e-3, atol=0)
    best = exact[rank:].square().sum().sqrt()
    for miss in (matrix - u[:, :rank] @ (u[:, :rank].mT @ matrix), matrix - (matrix @ vh[:rank].mT) @ vh[:rank]):
        assert best <= miss.norm() * (1 + 1e-9)
        assert miss.norm() < best * 1.01


@pytest.mark.parametrize("name", ["galore_adamw", "galore_adamw_layerwise"])
def test_galore_learns_with_randomized_projectors_of_the_same_shape(job: MakeJob, name: str) -> None:
    settings = settings_of(name) | {"galore": {"rank": 16, "svd": "randomized"}}
    svd = torch.linalg.svd
    made = job(batch_size=8, prompt_tokens=8, response_tokens=8, **settings)
    losses = [float(made.step(index)["loss"]) for index in range(15)]
    assert losses[-1] < losses[0] - 0.5, losses
    assert torch.linalg.svd is svd, "torch's own is back in its place"
    whole = job(batch_size=8, prompt_tokens=8, response_tokens=8, **settings_of(name))
    whole.step(0)
    assert sorted(state.shape for state in state_of(made)) == sorted(state.shape for state in state_of(whole))


def names_of(module: nn.Module, weights: list[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(weight)] for weight in weights]


@pytest.mark.parametrize("model", ["tiny", "tiny-gpt2", "tiny-opt", "tiny-neox", "tiny-mistral"])
def test_all_linear_is_every_block_s_linear_layers_without_the_head(job: MakeJob, model: str) -> None:
    module = job(model=model, algorithm="ppo").roles["policy"].module
    names = names_of(module, target_weights(module, "all-linear", "galore"))
    blocks = {"tiny": 7, "tiny-mistral": 7, "tiny-gpt2": 4, "tiny-opt": 6, "tiny-neox": 4}
    assert len(names) == len(set(names)) == 2 * blocks[model]
    assert not [name for name in names if "head" in name or "embed" in name or "norm" in name]
    assert all(module.get_parameter(name).ndim == 2 for name in names)


def test_a_list_names_parts_of_modules(job: MakeJob) -> None:
    module = job().roles["policy"].module
    names = names_of(module, target_weights(module, ("mlp", "layers.0.self_attn.q"), "galore"))
    assert len(names) == 2 * 3 + 1
    assert all("mlp" in name or name.endswith("layers.0.self_attn.q_proj.weight") for name in names)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_prog"], "'q_prog' is in the name of no linear layer that is trained; did you mean 'q_proj'?"),
        (["mlp", "nowhere"], "'nowhere' is in the name of no linear layer that is trained \\(there are"),
        ([], r"\(\) names no linear layer that is trained"),
    ],
)
def test_targets_that_are_not_there_are_an_error(job: MakeJob, targets: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        job(optimizer="galore_adamw", galore={"target_modules": targets})
    assert caught.value.field == "galore.target_modules"


def test_galore_on_frozen_layers_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="names no linear layer that is trained"):
        target_weights(nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), "all-linear", "galore")


@pytest.mark.parametrize("name", ["galore_adamw", "galore_adamw_layerwise"])
def test_galore_decays_every_weight_but_norms(job: MakeJob, name: str) -> None:
    settings = {"optimizer": name, "max_grad_norm": 0, "learning_rate": 0.1}
    plain = job(**settings, galore={"rank": 4})
    decayed = job(**settings, galore={"rank": 4, "weight_decay": 0.5})
    plain.step(0)
    decayed.step(0)
    without = dict(plain.roles["policy"].module.named_parameters())
    for part, ours in decayed.roles["policy"].module.named_parameters():
        kept = 1 if "norm" in part else 1 - 0.1 * 0.5
        torch.testing.assert_close(ours.detach(), without[part].detach() * kept)


def test_galore_scales_its_targets_alone(job: MakeJob) -> None:
    """`scale` multiplies what comes back from the projection, so twice the scale is twice the step of the targets."""
    steps = []
    for scale in (0.25, 0.5):
        made = job(optimizer="galore_adamw", max_grad_norm=0, galore={"rank": 4, "scale": scale})
        module = made.roles["policy"].module
        before = [parameter.detach().clone() for parameter in module.parameters()]
        made.step(0)
        targets = {id(weight) for weight in target_weights(module, "all-linear", "galore")}
        steps.append([(id(p) in targets, p.detach() - b) for p, b in zip(module.parameters(), before, strict=True)])
    for (target, half), (_, whole) in zip(*steps, strict=True):
        torch.testing.assert_close(whole, half * 2 if target else half, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["galore_adamw_8bit", "galore_adamw_8bit_layerwise"])
def test_8_bit_galore_is_not_given_positions_that_mean_something_else(job: MakeJob, name: str) -> None:
    """galore_torch passes percentile_clipping and block_wise, which bitsandbytes 0.50 reads as max_unorm and skip_zeros."""
    made = job(optimizer=name, max_grad_norm=0)
    optimizer: Any = made.roles["policy"].learner._optimizer  # type: ignore[union-attr]
    parts = list(optimizer._optimizers.values()) if name.endswith("layerwise") else [optimizer]
    for part in parts:
        for group in part.param_groups:
            config = part.get_config(0, 0, group)
            assert (config["max_unorm"], config["skip_zeros"], config["optim_bits"]) == (0.0, False, 8)
            assert config["min_8bit_size"] == 4096
    ranks = [group.get("rank") for part in parts for group in part.param_groups]
    assert ranks.count(128) == (14 if name.endswith("layerwise") else 1)


class Unread(dict[int, Any]):
    """bitsandbytes' pid2config as versions before 0.50 have it: nobody looks into it when a state is made."""

    def __contains__(self, key: object) -> bool:
        return False


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_embeddings_keep_32_bit_moments_as_under_transformers_trainer(job: MakeJob, name: str, older: bool) -> None:
    made = job(optimizer=name, algorithm="ppo", value="separate")
    if older:
        for role in ("policy", "value"):
            optimizer: Any = made.roles[role].learner._optimizer  # type: ignore[union-attr]
            optimizer.mng.pid2config = Unread()
    made.step(0)
    for role in ("policy", "value"):
        learner: Any = made.roles[role].learner
        module: Any = made.roles[role].module
        for part in module.modules():
            if isinstance(part, nn.Embedding):
                assert learner._optimizer.state[part.weight]["state1"].dtype == torch.float32
            elif isinstance(part, nn.Linear) and part.weight.numel() >= 4096:
                assert learner._optimizer.state[part.weight]["state1"].dtype == torch.uint8
