"""Every optimizer against its formula: two steps of a small module, by hand, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vrambench.methods.cell import Cell
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.optimizers import OPTIMIZERS, undecayed

MakeCell = Callable[..., Cell]
Reference = Callable[[Tensor, list[Tensor], float], Tensor]
"""From a weight, its gradients step by step and its weight decay: the weight after these steps."""

RATE = 1e-3
DECAY = 0.1
PLAIN = [name for name, value in OPTIMIZERS.values().items() if not value.cuda_only]

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


@pytest.fixture(autouse=True)
def packages_are_there(request: pytest.FixtureRequest) -> None:
    """A test of an optimizer whose package is not installed is skipped."""
    named = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    names = [named] if named else ["muon", "apollo_adamw"]
    for module in {module for name in names for module in OPTIMIZERS.get(name).requires}:
        pytest.importorskip(module)


def net() -> nn.Module:
    """Tensors of fewer and of more than the 4,096 elements from which moments are quantised; a matrix each way."""
    torch.manual_seed(0)
    layer = nn.ModuleDict({"up": nn.Linear(48, 96), "down": nn.Linear(96, 48), "post_norm": nn.LayerNorm(48)})
    return nn.ModuleDict({"embed": nn.Embedding(96, 48), "layers": nn.ModuleList([layer]), "norm": nn.RMSNorm(48)})


def gradients(module: nn.Module, steps: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{name: torch.randn_like(one) for name, one in module.named_parameters()} for _ in range(steps)]


def stepped(make_cell: MakeCell, name: str, options: dict[str, Any], steps: int = 2) -> tuple[nn.Module, Any]:
    """The module after so many steps, and its optimizer."""
    value = OPTIMIZERS.get(name)
    assert value.options is not None
    said = {value.options.namespace: {"weight_decay": DECAY} | options}
    workload = make_cell(optimizer=name, learning_rate=RATE, max_grad_norm=0, **said).workload
    module = net()
    optimizer: Any = value.build(module, workload)
    for each in gradients(module, steps):
        if value.modes:
            optimizer.train()
        torch.stack([(one * each[name]).sum() for name, one in module.named_parameters()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def expected(module: nn.Module, reference: Reference, steps: int = 2) -> dict[str, Tensor]:
    """What `reference` makes of each parameter of a fresh `module`."""
    each = gradients(module, steps)
    spared = undecayed(module)
    return {
        name: reference(
            one.detach().double(), [one_step[name].double() for one_step in each], 0.0 if one in spared else DECAY
        )
        for name, one in module.named_parameters()
    }


def moments(m: Tensor | float, v: Tensor | float, g: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    return betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g.square()


def adamw(
    w: Tensor, gs: list[Tensor], decay: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Tensor:
    """arXiv 1711.05101."""
    m: Any = 0.0
    v: Any = 0.0
    for t, g in enumerate(gs, 1):
        m, v = moments(m, v, g, betas)
        step = m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        w = w * (1 - RATE * decay) - RATE * step
    return w


def lion(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
    """arXiv 2302.06675, algorithm 2, with transformers' betas."""
    m = torch.zeros_like(w)
    for g in gs:
        w = w * (1 - RATE * decay) - RATE * (0.9 * m + 0.1 * g).sign()
        m = 0.999 * m + 0.001 * g
    return w


def ademamix(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
    """arXiv 2409.03137, algorithm 1."""
    m: Any = 0.0
    v: Any = 0.0
    slow: Any = 0.0
    for t, g in enumerate(gs, 1):
        m, v = moments(m, v, g, (0.9, 0.999))
        slow = 0.9999 * slow + 0.0001 * g
        step = (m / (1 - 0.9**t) + 5 * slow) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        w = w * (1 - RATE * decay) - RATE * step
    return w


def sgd(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
    """Nesterov's momentum, as torch.optim.SGD documents it."""
    total: Any = None
    for g in gs:
        g = g + decay * w
        total = g if total is None else 0.9 * total + g
        w = w - RATE * (g + 0.9 * total)
    return w


def rmsprop(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
    v = torch.zeros_like(w)
    for g in gs:
        g = g + decay * w
        v = 0.99 * v + 0.01 * g.square()
        w = w - RATE * g / (v.sqrt() + 1e-8)
    return w


def adagrad(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
    squares = torch.zeros_like(w)
    for g in gs:
        g = g + decay * w
        squares = squares + g.square()
        w = w - RATE * g / (squares.sqrt() + 1e-10)
    return w


def stable_adamw(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
    """arXiv 2304.13013, algorithm 2."""
    m: Any = 0.0
    v: Any = 0.0
    for t, g in enumerate(gs, 1):
        hat = [beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in (0.9, 0.999)]
        m, v = moments(m, v, g, (hat[0], hat[1]))
        rate = RATE / max(1.0, (g.square() / v.clamp(min=1e-16)).mean().sqrt().item())
        w = w * (1 - rate * decay) - rate * m / (v.sqrt() + 1e-8)
    return w


def schedule_free(adaptive: bool, evaluated: bool) -> Reference:
    """arXiv 2405.15682, algorithm 1 and its form for SGD: what is trained (y), or evaluated (x)."""

    def reference(w: Tensor, gs: list[Tensor], decay: float) -> Tensor:
        x, z, v = w, w, torch.zeros_like(w)
        for t, g in enumerate(gs, 1):
            y = 0.1 * z + 0.9 * x
            v = 0.999 * v + 0.001 * g.square()
            step = g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) if adaptive else g
            z = z - RATE * (step + decay * y)
            x = (1 - 1 / t) * x + z / t
        return x if evaluated else 0.1 * z + 0.9 * x

    return reference


FORMULAS: dict[str, tuple[Reference, dict[str, Any]]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"), (adamw, {})),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit"), (lion, {})),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), (ademamix, {})),
    "stable_adamw": (stable_adamw, {}),
    "schedule_free_adamw": (schedule_free(adaptive=True, evaluated=False), {}),
    "schedule_free_sgd": (schedule_free(adaptive=False, evaluated=False), {}),
    "sgd": (sgd, {"momentum": 0.9, "nesterov": True}),
    **dict.fromkeys(("rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit"), (rmsprop, {})),
    "adagrad": (adagrad, {}),
}
QUANTISED: dict[str, tuple[Reference, float]] = {
    **dict.fromkeys(("adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), (adamw, 0.02)),
    "adamw_torch_4bit": (adamw, 0.15),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), (ademamix, 0.02)),
    "rmsprop_bnb_8bit": (rmsprop, 0.02),
}
"""With the median error of a step, in learning rates, that rounding moments may cost."""
SIGNS = {"lion_8bit": lion, "paged_lion_8bit": lion}
"""Whose steps are signs: rounding turns a few."""
PROJECTED = ("galore_adamw", "galore_adafactor", "apollo_adamw", "muon")
OTHERS = ("adafactor",)  # transformers' own, which its tests hold to the paper


def test_every_optimizer_has_a_formula_here() -> None:
    assert sorted(PLAIN) == sorted([*FORMULAS, *QUANTISED, *SIGNS, *PROJECTED, *OTHERS])


@pytest.mark.parametrize("name", FORMULAS)
def test_two_steps_are_the_formula_s(cell: MakeCell, name: str) -> None:
    reference, options = FORMULAS[name]
    module, _ = stepped(cell, name, options)
    for path, weight in expected(net(), reference).items():
        torch.testing.assert_close(module.get_parameter(path).detach().double(), weight, rtol=0, atol=5e-7, msg=path)


@pytest.mark.parametrize("name", QUANTISED)
def test_rounded_moments_step_nearly_as_whole_ones(cell: MakeCell, name: str) -> None:
    reference, most = QUANTISED[name]
    module, _ = stepped(cell, name, {})
    for path, weight in expected(net(), reference).items():
        off = (module.get_parameter(path).detach().double() - weight).abs() / RATE
        if weight.numel() < 4096 or ("embed" in path and "torch" not in name):
            assert off.max() < 1e-3, path
        else:
            assert 1e-4 < off.median() < most, path


@pytest.mark.parametrize("name", SIGNS)
def test_a_rounded_moment_turns_few_signs(cell: MakeCell, name: str) -> None:
    module, _ = stepped(cell, name, {})
    for path, weight in expected(net(), SIGNS[name]).items():
        off = (module.get_parameter(path).detach().double() - weight).abs()
        assert (off > RATE).double().mean() < 0.02, path


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_evaluation_has_the_average_and_training_goes_on_where_it_was(cell: MakeCell, name: str) -> None:
    module, optimizer = stepped(cell, name, {})
    trained = [one.detach().clone() for one in module.parameters()]
    optimizer.eval()
    average = schedule_free(adaptive="adamw" in name, evaluated=True)
    for path, weight in expected(net(), average).items():
        torch.testing.assert_close(module.get_parameter(path).detach().double(), weight, rtol=0, atol=2e-6, msg=path)
    optimizer.train()
    torch.testing.assert_close([one.detach() for one in module.parameters()], trained)


@pytest.mark.parametrize("name", [f"{name}_layerwise" for name in PLAIN])
def test_layerwise_takes_the_same_steps(cell: MakeCell, name: str) -> None:
    """But APOLLO's, whose projectors' seeds go by number of parameter: each is the first of its own optimizer."""
    ours, _ = stepped(cell, name, {})
    plain, _ = stepped(cell, name.removesuffix("_layerwise"), {})
    for path, weight in plain.named_parameters():
        if "apollo" not in name or weight.dim() < 2 or "embed" in path:
            torch.testing.assert_close(ours.get_parameter(path), weight, rtol=0, atol=1e-7, msg=path)


def matrices(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters() if name.endswith(("up.weight", "down.weight"))]


def test_muon_steps_by_what_newton_and_schulz_make_of_singular_values(cell: MakeCell) -> None:
    """kellerjordan.github.io/posts/muon: a polynomial of them, five times. PyTorch computes it in bf16."""
    module, _ = stepped(cell, "muon", {}, steps=1)
    start = net()
    (gradient,) = gradients(start, 1)
    others = expected(start, adamw, steps=1)
    for path in others.keys() - set(matrices(start)):
        torch.testing.assert_close(module.get_parameter(path).detach().double(), others[path], rtol=0, atol=5e-7)
    for path in matrices(start):
        u, s, vh = torch.linalg.svd(gradient[path].double(), full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = gradient[path].shape
        rate = RATE * math.sqrt(max(1, rows / columns))
        weight = start.get_parameter(path).detach().double() * (1 - RATE * DECAY) - rate * u @ s.diag() @ vh
        off = module.get_parameter(path).detach().double() - weight
        assert off.norm() < 0.02 * rate * s.norm()


def test_apollo_scales_channels_as_moments_of_the_projection_say(cell: MakeCell) -> None:
    """arXiv 2412.05270, algorithm 1, with the projectors that it drew. Its eps is added before the bias is corrected."""
    module, optimizer = stepped(cell, "apollo_adamw", {"rank": 8, "eps": 1e-15})
    start = net()
    each = gradients(start, 2)
    others = expected(start, partial(adamw, eps=1e-15))
    for path in others.keys() - set(matrices(start)):
        torch.testing.assert_close(module.get_parameter(path).detach().double(), others[path], rtol=0, atol=2e-6)
    for path in matrices(start):
        projector = optimizer.state[module.get_parameter(path)]["projector"].ortho_matrix.double()
        w = start.get_parameter(path).detach().double()
        tall = w.shape[0] >= w.shape[1]
        assert tuple(projector.shape) == ((8, w.shape[1]) if tall else (w.shape[0], 8))
        m: Any = 0.0
        v: Any = 0.0
        before = None
        for t, g in enumerate((one[path].double() for one in each), 1):
            low = g @ projector.T if tall else projector.T @ g
            m, v = moments(m, v, low, (0.9, 0.999))
            dim = 1 if tall else 0
            scaled = g * ((m / (v.sqrt() + 1e-15)).norm(dim=dim, keepdim=True) / low.norm(dim=dim, keepdim=True))
            norm = scaled.norm()
            if before is not None and norm > 1.01 * before:
                scaled = scaled * (1.01 * before / norm)
            before = scaled.norm()
            w = w - RATE * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * scaled
            w = w * (1 - RATE * DECAY)
        torch.testing.assert_close(module.get_parameter(path).detach().double(), w, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["galore_adamw", "galore_adafactor"])
def test_galore_steps_in_the_largest_singular_directions(cell: MakeCell, name: str) -> None:
    """arXiv 2403.03507, algorithm 2, and Adafactor (arXiv 1804.04235) in its place."""
    module, _ = stepped(cell, name, {"rank": 8, "scale": 0.5})
    start = net()
    each = gradients(start, 2)
    for path in matrices(start):
        w = start.get_parameter(path).detach().double()
        tall = w.shape[0] >= w.shape[1]
        u, _, vh = torch.linalg.svd(each[0][path].double(), full_matrices=False)
        m: Any = 0.0
        v: Any = 0.0
        row: Any = 0.0
        column: Any = 0.0
        for t, g in enumerate((one[path].double() for one in each), 1):
            low = g @ vh[:8].T if tall else u[:, :8].T @ g
            if name == "galore_adamw":
                m, v = moments(m, v, low, (0.9, 0.999))
                step = math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
            else:
                beta = 1 - t**-0.8
                row = beta * row + (1 - beta) * (low.square() + 1e-30).mean(dim=1)
                column = beta * column + (1 - beta) * (low.square() + 1e-30).mean(dim=0)
                step = low / torch.outer(row / row.mean(), column).sqrt()
                step = step / max(1.0, step.square().mean().sqrt().item())
            step = step @ vh[:8] if tall else u[:, :8] @ step
            w = (w - RATE * 0.5 * step) * (1 - RATE * DECAY)
        torch.testing.assert_close(module.get_parameter(path).detach().double(), w, rtol=0, atol=2e-6)


def test_a_package_that_is_not_installed_is_named(cell: MakeCell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrambench.methods.optimizers.find_spec", lambda name: None)
    with pytest.raises(
        ConfigurationError, match=r"^optimizer: it needs the package torch-optimi, which is not installed$"
    ):
        OPTIMIZERS.get("stable_adamw").build(net(), cell(optimizer="stable_adamw").workload)


def test_a_job_trains_schedule_free_weights_and_evaluates_their_average(job: Callable[..., Job]) -> None:
    """As Trainer.training_step and evaluation_loop say it to the optimizer."""
    pytest.importorskip("schedulefree")
    settings = {"optimizer": "schedule_free_sgd", "learning_rate": 0.5, "max_grad_norm": 0, "eval_batch_size": 2}
    made = job(**settings, max_eval_samples=2)
    for index in range(2):
        made.step(index)
    parameters = list(made.roles["policy"].module.parameters())
    trained = [one.detach().clone() for one in parameters]
    made.evaluate()
    assert not torch.equal(parameters[0].detach(), trained[0])
    learner = made.roles["policy"].learner
    assert learner is not None
    learner.train()
    torch.testing.assert_close([one.detach() for one in parameters], trained)
    made.step(2)
