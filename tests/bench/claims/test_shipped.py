"""The claims that are shipped: every seed is there, and each gives a verdict or says why it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from vrambench.bench.claims.answer import Ran, answer
from vrambench.bench.claims.cells import cells_of, on_cpu
from vrambench.bench.claims.file import default_claims, load_claims
from vrambench.bench.plan.validity import check
from vrambench.bench.results.store import RunFolder
from vrambench.methods.device import Kind

ROOT = Path(__file__).parents[3]
FILE = ROOT / "claims.yaml"
CLAIMS = load_claims(FILE)
SEEDS = (
    "weights-bytes adamw-8-bytes lora-2x-slower 20b-on-24gb shared-reference three-steps int8-halves remax-memory remax-speed "
    "remax-fits sft-7b-80gb remax-reward galore-82.5 galore-7b-24gb layerwise zero-offload target-modules"
)


def test_every_seed_claim_is_there() -> None:
    for seed in SEEDS.split():
        assert [name for name in CLAIMS.claims if name == seed or name.startswith(f"{seed}-")], seed


def test_the_file_here_is_taken_before_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_claims() == FILE
    (tmp_path / "claims.yaml").touch()
    assert default_claims() == Path("claims.yaml")


@pytest.mark.parametrize("name", CLAIMS.claims)
def test_a_claims_cells_can_run(name: str) -> None:
    claim = CLAIMS.claims[name]
    kinds: list[tuple[Kind, dict]] = [
        ("cuda", dict(cells_of(claim, claim.cells)) if claim.cells else {}),
        ("cpu", dict(on_cpu(claim))),
    ]
    for kind, cells in kinds:
        for cell, several in cells.items():
            found = check(several[0], kind)
            assert [one.rule for one in found if one.kind == "reject"] == [], f"{cell} on {kind}"
    assert bool(claim.cells) is not bool(claim.not_here)
    if claim.formula and not claim.formula.predictable:
        assert claim.source
    if claim.on_cpu:
        assert claim.formula
        assert not claim.formula.predictable, "a prediction tells it without a run"


@pytest.mark.slow
def test_predictions_give_a_verdict_or_say_why_not() -> None:
    """One cell each of a few quick ones, in this process; docs/claims.md holds them all."""
    from vrambench.bench.predict.forecast import Predictor
    from vrambench.bench.predict.many import outcome

    few = CLAIMS.only(
        ["weights-bytes-half", "target-modules-llama", "remax-memory-gpt2", "three-steps", "lora-2x-slower"]
    )
    predictor = Predictor("")
    answers = answer(few, predict=lambda cells: {cell.id: outcome(predictor, cell.flat(), None) for cell in cells})
    found = {one.claim.id: one for one in answers}
    assert [list(found[name].verdicts) for name in list(found)[:2]] == [["reproduced"], ["reproduced"]]
    memory = found["remax-memory-gpt2"].predicted
    assert memory
    assert memory.value == pytest.approx(0.17, abs=0.01)
    assert all(one.verdicts or one.reason for one in answers)


@pytest.mark.parametrize(
    ("folder", "claim", "value", "verdict"),
    [
        ("nvidia-h100/claims", "remax-memory-gpt2", 0.162, "refuted"),
        ("nvidia-h100/claims", "remax-speed-gpt2", 0.511, "refuted"),
        ("nvidia-h100/claims", "galore-7b-24gb", True, "reproduced"),
        ("nvidia-h100/claims", "galore-7b-22.72", 22.66e9, "reproduced"),
        ("nvidia-h200/claims", "qlora-7b-5gb", 4.82e9, "reproduced"),
        ("nvidia-h200/20b", "20b-on-24gb", False, "refuted"),
        ("nvidia-h200/first/20b", "20b-on-24gb", False, "refuted"),
    ],
)
def test_runs_on_gpus_answer_claims(folder: str, claim: str, value: float, verdict: str) -> None:
    store = RunFolder.open(ROOT / "results" / folder)
    (one,) = answer(CLAIMS.only([claim]), [Ran.of(folder, store.info, store.results())])
    (found,) = one.measured
    assert found.verdict == verdict
    assert found.value == pytest.approx(value, rel=0.01)
    assert found.where.startswith("NVIDIA H")
