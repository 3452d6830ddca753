"""What becomes of claims, of predictions and results made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.claims.answer import Answer, Ran, answer, answered
from vrambench.bench.claims.cells import cells_of, on_cpu
from vrambench.bench.claims.file import Claims, load_claims
from vrambench.bench.results.forecast import Forecast, Outcome, Unmodelled
from vrambench.bench.results.records import (
    Learning,
    Memory,
    OutOfMemory,
    Parameters,
    PredictedParts,
    PredictedVerdict,
    Result,
    RoleBytes,
    Sample,
    Throughput,
)
from vrambench.methods.cell import Cell
from vrambench.reports.claims import value_words, verdict_words

GIB = 2**30
TEXT = """\
common: {precision: bf16, adapter: none, optimizer: adamw_torch, offload: none, model: tiny, budget: 24GiB}
claims:
  memory:
    claim: ReMax takes half
    source: a paper
    cells: &both {ppo: {algorithm: ppo}, remax: {algorithm: remax}}
    formula: 1 - remax.device_bytes / ppo.device_bytes
    claimed: 50 %
  states:
    claim: AdamW keeps 8 bytes
    source: a paper
    cells: {ppo: {algorithm: ppo}}
    formula: ppo.optimizer_bytes / ppo.parameters + ppo.policy.weights_bytes - ppo.policy.weights_bytes
    claimed: 8 bytes
  runs:
    claim: PPO fits
    source: a paper
    cells: {ppo: {algorithm: ppo}}
    formula: ppo.fits
    claimed: fits
  speed:
    claim: ReMax is twice as fast
    source: a paper
    cells: *both
    formula: ppo.step_seconds / remax.step_seconds
    claimed: 2 x
    cpu: {precision: fp32, seeds: 2}
  learns:
    claim: and learns as much
    source: a paper
    cells: *both
    formula: remax.reward / ppo.reward
    claimed: at least 1 x
  never:
    claim: eight cards
    source: a paper
    claimed: 2 x
    not_here: it needs eight cards
"""
ROLE = RoleBytes(weights_bytes=40, gradients_bytes=40, optimizer_bytes=80)


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    path = tmp_path / "claims.yaml"
    path.write_text(TEXT)
    return load_claims(path)


def forecast(device: int, verdict: str = "fits") -> Forecast:
    left_out = (Unmodelled(reason="what nobody has read"),) if verdict == "unsure" else ()
    return Forecast(
        budget_bytes=24 * GIB, verdict=verdict, margin_bytes=24 * GIB - device, band_bytes=0, band_basis="",
        memory=Memory(device_bytes=device, allocated_bytes=device), phases=(), roles={"policy": ROLE}, unmodelled=left_out,
        parameters=Parameters(total=10, trainable=10), limiting_phase="learn", limiting_step=0, limiting_role=None, at_peak=(),
        fragmentation_bytes=0, host_bytes=0, outside="", seconds=0.0, unlimited_bytes=device,
    )  # type: ignore[arg-type]  # fmt: skip


def predicting(**devices: int | str) -> Callable[[Sequence[Cell]], Mapping[str, Outcome]]:
    """Each algorithm's outcome: bytes of the device that fit, a verdict for 8 GiB, or why there is none."""

    def predict(cells: Sequence[Cell]) -> Mapping[str, Outcome]:
        found: dict[str, Outcome] = {}
        for cell in cells:
            told = devices[cell.algorithm]
            if isinstance(told, int):
                found[cell.id] = Outcome(forecast=forecast(told * GIB))
            elif told in ("tight", "unsure", "does not fit"):
                found[cell.id] = Outcome(forecast=forecast(8 * GIB, told))
            else:
                found[cell.id] = Outcome(reason=told)
        return found

    return predict


def result(cell: Cell, *seconds: float, device: int | None = None, reward: Sequence[float] = (), **more: Any) -> Result:
    """A result with a sample for each of `seconds`, its steps' median."""
    held = {
        "status": "ok",
        "memory": Memory(device_bytes=device and device * GIB),
        "roles": {"policy": ROLE},
        "learning": Learning(reward=tuple(reward)),
        **more,
    }
    samples = tuple(Sample(**held, throughput=Throughput(step_seconds=(one / 2, one, one * 9))) for one in seconds)
    return Result(**held, id=cell.id, name=cell.name, cell=cell.flat(), samples=samples)


def gpu(results: Sequence[Result], name: str = "an H100", usable: int = 80 * GIB) -> Ran:
    info = {"device": "cuda:0", "environment": {"gpu": {"name": name, "usable_bytes": usable}}}
    return Ran.of("first", info, results)


def cells(claims: Claims, name: str) -> dict[str, Cell]:
    claim = claims.claims[name]
    return {cell: several[0] for cell, several in cells_of(claim, claim.cells).items()}


def by_id(answers: Sequence[Answer]) -> dict[str, Answer]:
    return {one.claim.id: one for one in answers}


def test_predictions_are_held_against_claims(claims: Claims) -> None:
    found = by_id(answer(claims, predict=predicting(ppo=8, remax=6)))
    memory = found["memory"].predicted
    assert memory
    assert (memory.value, memory.verdict) == (0.25, "partly")
    assert verdict_words(found["memory"]) == "partly (predicted)"
    states = found["states"].predicted
    assert states
    assert (states.value, states.verdict) == (8, "reproduced")
    assert found["runs"].predicted
    assert value_words(found["runs"].predicted, found["runs"].claim) == "fits: 8 GiB of 24 GiB"


def test_what_no_prediction_tells_says_how_it_is_measured(claims: Claims) -> None:
    found = by_id(answer(claims, predict=predicting(ppo=8, remax=6)))
    assert found["speed"].predicted is None
    assert verdict_words(found["speed"]) == "not measured here"
    assert found["speed"].reason == (
        "no prediction tells it; a run on a GPU does: vrambench run --claims speed, or on a CPU with: "
        "vrambench run --device cpu --claims speed"
    )
    assert "on a CPU" not in (found["learns"].reason or "")
    assert (verdict_words(found["never"]), found["never"].reason) == ("not measured here", "it needs eight cards")


@pytest.mark.parametrize(
    ("told", "words", "reason"),
    [
        ("tight", "fits, tightly: 8 GiB of 24 GiB", None),
        ("does not fit", "does not fit: 8 GiB of 24 GiB", None),
        ("unsure", "–", "ppo: not sure whether it fits: what nobody has read (predicted)"),
        ("it broke", "–", "ppo: it broke (predicted)"),
    ],
)
def test_a_verdict_that_is_not_known_has_its_reason(claims: Claims, told: str, words: str, reason: str | None) -> None:
    (one,) = answer(claims.only(["runs"]), predict=predicting(ppo=told))
    assert one.predicted
    assert value_words(one.predicted, one.claim) == words
    assert one.reason == reason
    assert verdict_words(one) == (
        "not measured here" if reason else "refuted (predicted)" if "not" in told else "reproduced (predicted)"
    )


def test_a_run_on_a_gpu_measures_the_claims_cells(claims: Claims) -> None:
    of = cells(claims, "memory")
    ran = gpu([result(of["ppo"], 3.0, 2.0, 9.0, device=8), result(of["remax"], 2.0, device=4)])
    found = by_id(answer(claims, [ran]))
    assert found["memory"].measured[0].value == 0.5
    assert found["speed"].measured[0].value == 1.5, "medians of samples, of their steps' medians"
    assert verdict_words(found["speed"]) == "partly"
    assert value_words(found["speed"].measured[0], found["speed"].claim) == "1.50 x on an H100"
    assert found["runs"].measured[0].verdict == "reproduced"
    assert [one.claim.id for one in answered(claims, [ran])] == ["memory", "runs", "speed"]


def foretold(cell: Cell, device: int, verdict: Any = "fits", **more: Any) -> Result:
    """The result with a prediction of so many GiB: of a run that predicts, or, with `device_bytes` measured, beside that."""
    told = PredictedVerdict(verdict=verdict, budget_bytes=24 * GIB, band_bytes=0, band_basis="")
    memory = Memory(device_bytes=device * GIB)
    return Result(
        **{"status": "ok", "source": "predicted", "memory": memory, "roles": {"policy": ROLE}, **more},
        id=cell.id, name=cell.name, cell=cell.flat(), predicted=memory, predicted_verdict=told,
    )  # fmt: skip


def predicted_run(results: Sequence[Result]) -> Ran:
    return Ran.of("first", {"device": "predicted"}, results)


def test_a_run_that_predicts_answers_by_its_predictions(claims: Claims) -> None:
    of = cells(claims, "memory")
    both = [foretold(of["ppo"], 8), foretold(of["remax"], 4)]
    found = by_id(answered(claims, [predicted_run(both)]))
    assert set(found) == {"memory", "runs"}
    assert {one.measured for one in found.values()} == {()}
    assert verdict_words(found["memory"]) == "reproduced (predicted)"
    assert found["runs"].predicted
    assert value_words(found["runs"].predicted, found["runs"].claim) == "fits: 8 GiB of 24 GiB"
    assert answered(claims, [predicted_run(both[1:])]) == (), "a claim needs all its cells"
    (asked,) = answer(claims.only(["memory"]), [predicted_run(both)], predicting(ppo=8, remax=6))
    assert asked.predicted
    assert asked.predicted.value == 0.25, "what is predicted now counts, where that is asked for"


@pytest.mark.parametrize(("told", "verdict"), [("tight", "reproduced"), ("does not fit", "refuted"), ("unsure", None)])
def test_a_predicted_results_verdict_says_whether_it_fits(claims: Claims, told: str, verdict: str | None) -> None:
    result = foretold(cells(claims, "runs")["ppo"], 8, told, status="oom" if "not" in told else "ok")
    (one,) = answer(claims.only(["runs"]), [predicted_run([result])])
    assert one.predicted
    assert (one.predicted.verdict, one.predicted.tight) == (verdict, told == "tight")
    if verdict is None:
        assert one.reason == "ppo: not sure whether it fits (predicted)"


def test_a_measured_runs_own_predictions_stand_beside_its_measurements(claims: Claims) -> None:
    of = cells(claims, "memory")
    parts = PredictedParts(roles={"policy": ROLE})
    beside = {"source": "measured", "predicted_parts": parts}
    ppo, remax = (
        foretold(of[name], told, memory=Memory(device_bytes=real * GIB), **beside)
        for name, told, real in (("ppo", 8, 8), ("remax", 7, 4))
    )
    (one,) = answered(claims.only(["memory"]), [gpu([ppo, remax])])
    assert one.verdicts == {"refuted": ["predicted"], "reproduced": ["an H100"]}


def test_cells_are_made_where_a_run_may_hold_them(claims: Claims) -> None:
    """A claim whose axes, model and budget no result has costs no import of torch."""
    held = result(cells(claims, "runs")["ppo"], 1.0, device=8)
    for change, made in (
        ({}, True),
        ({"batch_size": 3}, True),
        ({"budget": 8 * GIB}, False),
        ({"optimizer": "sgd"}, False),
    ):
        (one,) = answer(claims.only(["runs"]), [gpu([held.model_copy(update={"cell": held.cell | change})])])
        assert bool(one.cells) is made, change


def test_verdicts_that_disagree_are_both_told(claims: Claims) -> None:
    of = cells(claims, "memory")
    ran = gpu([result(of["ppo"], 1.0, device=8), result(of["remax"], 1.0, device=7)])
    (one,) = answer(claims.only(["memory"]), [ran], predicting(ppo=8, remax=4))
    assert one.verdicts == {"reproduced": ["predicted"], "refuted": ["an H100"]}
    assert verdict_words(one) == "reproduced (predicted); refuted (an H100)"
    document = one.document()
    assert document["verdict"] is None
    assert document["measured"][0]["told"] == "12.5 %"


def test_a_run_on_a_cpu_measures_its_own_smaller_cells(claims: Claims) -> None:
    claim = claims.claims["speed"]
    there = on_cpu(claim)
    assert {cell.precision for several in there.values() for cell in several} == {"fp32"}
    results = [result(cell, 4.0 + cell.workload.seed) for cell in there["ppo"]]
    results += [result(cell, 2.0 + cell.workload.seed) for cell in there["remax"]]
    (one,) = answer(claims.only(["speed"]), [Ran.of("here", {"device": "cpu"}, results)])
    assert one.measured[0].value == 4.5 / 2.5
    assert value_words(one.measured[0], claim) == "1.80 x on the CPU, at tiny"
    (one,) = answer(claims.only(["speed"]), [Ran.of("here", {"device": "cpu"}, results[1:])])
    assert one.reason == "ppo: the run here has 1 of its 2 cells (the CPU, at tiny)"
    assert not one.verdicts


def test_cells_of_a_cpu_are_none_of_a_gpu(claims: Claims) -> None:
    results = [result(cell, 1.0) for several in on_cpu(claims.claims["speed"]).values() for cell in several]
    (one,) = answer(claims.only(["speed"]), [gpu(results)])
    assert not one.measured


def test_a_run_that_lacks_a_cell_or_ended_badly_says_so(claims: Claims) -> None:
    of = cells(claims, "memory")
    (one,) = answer(claims.only(["memory"]), [gpu([result(of["ppo"], 1.0, device=8)])])
    assert one.reason == "remax: the run first lacks it (an H100)"
    crashed = result(of["remax"], device=1).model_copy(update={"status": "crashed", "reason": "it broke"})
    (one,) = answer(claims.only(["memory"]), [gpu([result(of["ppo"], 1.0, device=8), crashed])])
    assert one.reason == "remax: it ended as crashed: it broke (an H100)"


@pytest.mark.parametrize(
    ("where", "source", "usable", "verdict"),
    [
        ("device", "verified", 16, "refuted"),
        ("device", "measured", 80, "refuted"),
        ("device", "measured", 16, None),  # a smaller card than the budget tells nothing of it
        ("host", "measured", 80, None),
    ],
)
def test_out_of_memory_does_not_fit(claims: Claims, where: Any, source: str, usable: int, verdict: str | None) -> None:
    of = cells(claims, "runs")["ppo"]
    oom = result(of, status="oom", source=source, oom=OutOfMemory(where=where))
    (one,) = answer(claims.only(["runs"]), [gpu([oom], usable=usable * GIB)])
    assert one.measured[0].verdict == verdict


def test_a_reward_is_the_last_quarters_mean(claims: Claims) -> None:
    of = cells(claims, "learns")
    low, high = [0.0, 1, 1, 1, 1, 1, 0.25, 0.25], [0.0, 0, 1, 1, 1, 1, 0.75, 0.25]
    ran = gpu([result(of["ppo"], 1.0, reward=high), result(of["remax"], 1.0, reward=low)])
    (one,) = answer(claims.only(["learns"]), [ran])
    assert one.measured[0].value == 0.25 / 0.5
    nothing = gpu([result(of["ppo"], 1.0, reward=[0.0] * 8), result(of["remax"], 1.0, reward=low)])
    (one,) = answer(claims.only(["learns"]), [nothing])
    assert one.reason == "the formula divides by zero (an H100)"
    unknown = gpu([result(of["ppo"], 1.0), result(of["remax"], 1.0, reward=low)])
    (one,) = answer(claims.only(["learns"]), [unknown])
    assert one.reason == "ppo: reward is not known (an H100)"


def test_a_result_of_an_earlier_version_is_found_by_what_it_says(claims: Claims) -> None:
    of = cells(claims, "runs")["ppo"]
    before = result(of, 1.0, device=8).model_copy(update={"id": "0" * 12})
    (one,) = answer(claims.only(["runs"]), [gpu([before])])
    assert one.measured[0].verdict == "reproduced"
    damaged = before.model_copy(update={"cell": before.cell | {"batch_size": "many"}})
    (one,) = answer(claims.only(["runs"]), [gpu([damaged])])
    assert not one.measured
