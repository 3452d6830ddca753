"""claims.yaml: every mistake is told with its line, its claim, its field and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrambench.bench.claims.cells import cells_of, on_cpu, planned
from vrambench.bench.claims.file import load_claims
from vrambench.methods.errors import ConfigurationError

GOOD = """\
common: {precision: bf16, adapter: none, optimizer: adamw_torch, offload: none, steps: 2}
claims:
  less:
    claim: ReMax takes half
    source: a paper
    common: {model: tiny, prompt_tokens: 8}
    cells:
      ppo: {algorithm: ppo, ppo: {epochs: 2}}
      remax: {algorithm: remax}
    formula: 1 - remax.device_bytes / ppo.device_bytes
    claimed: 50 %
    reproduced: [40, null]
    assumed: batch 1
    cpu: {precision: fp32, prompt_tokens: 4, ppo.kl_coef: 0.1, seeds: 3}
  later:
    claim: not told here
    source: the same
    claimed: 2 x
    not_here: it needs eight cards
"""


def written(folder: Path, text: str = GOOD, old: str = "", new: str = "") -> Path:
    assert old in text
    path = folder / "claims.yaml"
    path.write_text(text.replace(old, new, 1) if old else text)
    return path


def test_a_claims_cells_have_what_was_said_of_them(tmp_path: Path) -> None:
    claims = load_claims(written(tmp_path)).claims
    claim = claims["less"]
    cells = cells_of(claim, claim.cells)
    (ppo,), (remax,) = cells["ppo"], cells["remax"]
    assert (ppo.algorithm, remax.algorithm, ppo.precision) == ("ppo", "remax", "bf16")
    assert (ppo.workload.prompt_tokens, ppo.workload.steps, ppo.workload.options["ppo"]["epochs"]) == (8, 2, 2)
    there = on_cpu(claim)
    assert [cell.workload.seed for cell in there["ppo"]] == [0, 1, 2]
    assert (there["ppo"][0].precision, there["ppo"][0].workload.prompt_tokens) == ("fp32", 4)
    assert there["ppo"][0].workload.options["ppo"]["kl_coef"] == 0.1
    assert there["ppo"][0].workload.options["ppo"]["epochs"] == 2, "a cell's own setting stays"
    assert (claim.claimed.reproduced, claim.assumed) == ((40, None), "batch 1")
    assert claims["later"].not_here == "it needs eight cards"
    assert not claims["later"].cells


def test_what_is_run_is_each_cell_once(tmp_path: Path) -> None:
    claims = load_claims(written(tmp_path))
    assert [one.name for one in planned(claims, "cuda")] == [
        "bf16 none adamw_torch none ppo less.ppo",
        "bf16 none adamw_torch none remax less.remax",
    ]
    names = [one.name for one in planned(claims, "cpu")]
    assert names[:2] == [
        "fp32 none adamw_torch none ppo less.ppo seed=0",
        "fp32 none adamw_torch none ppo less.ppo seed=1",
    ]
    assert len(names) == len(set(names)) == 6
    with pytest.raises(ConfigurationError, match="none of these claims is measured on a CPU"):
        planned(claims.only(["later"]), "cpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    claim: ReMax", "    clam: ReMax", "3: claims.less.claim: is missing"),
        ("    formula: 1", "    formla: 1", "10: claims.less.formla: no such key; did you mean 'formula'?"),
        ("claims:", "claim:", "1: claims: is missing"),
        ("    claimed: 50 %\n", "    claimed: 50 gb\n", "11: claims.less.claimed: '50 gb': 'gb' is no unit; did you mean 'GB'"),
        ("    claimed: 50 %\n    reproduced: [40, null]\n", "    claimed: fits\n",
         "11: claims.less.claimed: 'fits' is fits or not, and the formula gives a number"),
        ("    claimed: 50 %\n", "    claimed: [1]\n", "11: claims.less.claimed: "),
        ("ppo.device_bytes", "ppo.device_byte", "10: claims.less.formula: the value of ppo: 'device_byte' is unknown"),
        ("ppo.device_bytes", "ppoo.device_bytes", "10: claims.less.formula: 'ppoo' is not one of ppo, remax; did you mean 'ppo'?"),
        ("remax.device_bytes /", "2 /", "9: claims.less.cells.remax: the formula asks nothing of it"),
        ("      remax: {", "      re-max: {", "9: claims.less.cells.re-max: 're-max' can be no cell's name"),
        ("reproduced: [40, null]", "reproduced: [40, 30]",
         "11: claims.less.claimed: an interval is [least, most], not [40.0, 30.0]"),
        ("reproduced: [40, null]", "reproduced: [40]", "12: claims.less.reproduced"),
        ("    formula: 1 - remax.device_bytes / ppo.device_bytes\n", "",
         "3: claims.less.formula: lacks a value (or say in `not_here`"),
        ("seeds: 3", "seeds: none", "14: claims.less.cpu.seeds: 'none': must be a whole number from 1 to 100"),
        ("prompt_tokens: 8}", "algorithm: [ppo]}", "6: claims.less.common.algorithm: ['ppo'] is not the name of a value"),
        ("not_here: it", "cells: {a: {}}\n    not_here: it", "19: claims.later.cells: `not_here` says that nothing is asked here"),
        ("  later:", "  less:", "15: 'less' is written twice (first on line 3)"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, GOOD, old, new)
    with pytest.raises(ConfigurationError) as error:
        load_claims(path)
    assert error.value.message.startswith(f"{path}:{message}"), error.value.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompt_tokens: 8", "promt_tokens: 8", "6: claims.less.common: unknown field 'promt_tokens'; did you mean"),
        ("algorithm: remax", "algorithm: remaks", "9: claims.less.cells.remax.algorithm: 'remaks' is not one of"),
        ("steps: 2", "steps: 0", "1: common.steps: 0: must be at least 1"),
        ("adapter: none, ", "", "3: claims.less: its cells have no adapter"),
        ("{algorithm: remax}", "{algorithm: remax, value: separate}",
         "9: claims.less.cells.remax.value: no cell here uses it"),
        ("prompt_tokens: 8", "lora_r: 8", "6: claims.less.common.lora_r: no cell here uses it (adapter lora, "),
        ("epochs: 2", "epoch: 2", "8: claims.less.cells.ppo.ppo.epoch: no such field"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_cell_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path, GOOD, old, new)
    claim = load_claims(path).claims["less"]
    with pytest.raises(ConfigurationError) as error:
        cells_of(claim, claim.cells)
    assert error.value.message.startswith(f"{path}:{message}"), error.value.message


def test_a_claim_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    claims = load_claims(written(tmp_path))
    with pytest.raises(ConfigurationError, match="--only: 'les' is not one of less, later; did you mean 'less'"):
        claims.only(["les"])
    assert list(claims.only(["later"]).claims) == ["later"]
