"""A user's own axis values in cells: their options, their fields, and what is wrong with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.methods.usual import PPO_AXES, SFT_AXES
from vrambench.methods.cell import from_flat, resolve
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.optimizers import OPTIMIZERS


def test_a_user_s_own_value_brings_options_and_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_slow.py").write_text(
        "from typing import ClassVar\n"
        "from vrambench.methods.optimizers import Optimizer\n"
        "from vrambench.methods.registry import Options\n"
        "class Mine(Options):\n"
        "    namespace: ClassVar[str] = 'mine'\n"
        "    speed: int = 1\n"
        "SLOW = Optimizer(summary='mine', make=lambda groups, module, workload: None, options=Mine, fields=('lora_r',))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    axes = SFT_AXES | {"optimizer": "own_slow:SLOW"}
    cell = resolve(axes, {"mine": {"speed": 2}, "lora_r": 3})
    assert cell.workload.options == {"mine": {"speed": 2}}
    assert cell.workload.lora_r == 3
    assert from_flat(cell.flat()) == cell
    with pytest.raises(ConfigurationError, match=r"^mine.speed: 'fast': must be a whole number"):
        resolve(axes, {"mine": {"speed": "fast"}})


@pytest.mark.parametrize(
    ("body", "declared", "said"),
    [
        (
            "namespace = 'ppo'",
            "options=Mine",
            "optimizer: the options Mine have the namespace 'ppo', which is that of PPOOptions; give them another",
        ),
        (
            "namespace = 'steps'",
            "options=Mine",
            "optimizer: the options Mine need a namespace of their own, not 'steps'",
        ),
        ("speed: int = 1", "options=Mine", "optimizer: the options Mine need a namespace of their own, not null"),
        ("namespace = 'mine'\n    speed: int", "options=Mine", "mine.speed: lacks a value"),
        ("namespace = 'mine'", "options=Mine()", "optimizer: 'own_axis:MINE' has options that are no class of "),
        (
            "namespace = 'mine'",
            "fields=('lora_rr',)",
            "optimizer: its value declares the field 'lora_rr', which no workload has; did you mean 'lora_r'?",
        ),
    ],
)
def test_what_a_user_s_own_value_declares_is_checked(
    body: str, declared: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_axis.py").write_text(
        "from vrambench.methods.optimizers import Optimizer\n"
        "from vrambench.methods.registry import Options\n"
        f"class Mine(Options):\n    {body}\n"
        f"MINE = Optimizer(summary='mine', make=lambda groups, module, workload: None, {declared})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_axis", raising=False)
    monkeypatch.setattr(OPTIMIZERS, "_found", {})
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        resolve(SFT_AXES | {"optimizer": "own_axis:MINE"}, {})


def test_two_values_may_share_a_class_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_ppo.py").write_text(
        "from dataclasses import replace\n"
        "from vrambench.methods.algorithms.ppo import PPO\n"
        "MINE = replace(PPO, learning_rate=1e-4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        resolve(PPO_AXES | {"algorithm": "own_ppo:MINE"}, {"ppo": {"epochs": 3}}).workload.options["ppo"]["epochs"] == 3
    )
