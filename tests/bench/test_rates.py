"""Rates of a job whose optimizer decomposes its matrices now and then, against arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from vrambench.bench.measure.measurement import Measurement
from vrambench.bench.measure.meters.cpu import CpuMeter
from vrambench.bench.measure.rates import Decompositions, Timed, throughput
from vrambench.methods.device import get_device


def timed(*seconds: float, rollouts: tuple[float, ...] = (), energy: tuple[float | None, ...] = ()) -> Timed:
    return Timed(seconds, rollouts, energy, train_tokens=[100] * len(seconds), generated_tokens=40, samples=10)


def test_rates_are_the_median_steps() -> None:
    rates = throughput(timed(1.0, 4.0, 2.0, rollouts=(0.5, 0.1, 0.8)), None)
    assert (rates.train_tokens_per_second, rates.samples_per_second) == (50.0, 5.0)
    assert rates.generated_tokens_per_second == 80.0
    assert rates.train_tokens_per_second_without_svd is None
    assert rates.step_seconds == (1.0, 4.0, 2.0)


def test_tokens_of_unequal_steps_are_those_of_the_median_rate() -> None:
    """60 tokens in 1 s, 100 in 2 s, 320 in 4 s: 60 a second in the median."""
    unequal = Timed((1.0, 2.0, 4.0), (), (), train_tokens=[60, 100, 320], generated_tokens=0, samples=2)
    assert throughput(unequal, None).train_tokens_per_second == pytest.approx(60.0)


def test_without_timed_steps_nothing_is_known() -> None:
    rates = throughput(timed(energy=()), None)
    assert set(rates.model_dump(exclude={"step_seconds"}).values()) == {None}
    assert throughput(timed(1.0, 2.0, energy=(3.0, None)), None).energy_joules is None
    assert throughput(timed(1.0, 2.0, energy=(3.0, 4.0)), None).energy_joules == 7.0


@pytest.mark.parametrize(
    ("warmup", "svd", "per_step", "gap", "each"),
    [
        (2, {0: 60.0}, 1, 200, 60.0),  # all in warm-up
        (2, {0: 90.0, 3: 60.0}, 1, 3, 60.0),  # one in the timed steps, which counts alone
        (0, {0: 60.0}, 1, 200, 60.0),  # the only one is timed
        (0, {0: 60.0, 1: 50.0, 2: 40.0}, 1, 1, 50.0),  # in every step
        (1, {0: 120.0, 1: 100.0, 2: 100.0, 3: 100.0}, 4, 2, 50.0),  # twice in every step
        (1, {0: 60.0}, 4, 200, 60.0),  # several optimizer steps in one
    ],
)
def test_a_step_holds_its_share_of_the_decompositions(
    warmup: int, svd: dict[int, float], per_step: int, gap: int, each: float
) -> None:
    seconds = [1.0 + svd.get(step, 0.0) for step in range(warmup, warmup + 3)]
    found = Decompositions(svd, gap, per_step, warmup, warmup + 3)
    assert found.each_seconds == each
    assert found.share_seconds == each * per_step / gap
    rates = throughput(timed(*seconds), found)
    assert rates.train_tokens_per_second_without_svd == pytest.approx(100.0)
    assert rates.train_tokens_per_second == pytest.approx(100 / (1 + each * per_step / gap))
    assert rates.samples_per_second == pytest.approx(10 / (1 + each * per_step / gap))
    assert rates.step_seconds == tuple(seconds)
    note = found.note()
    assert note is not None
    assert f"each takes {each:.4g} s, once in {gap} optimizer steps" in note
    assert ("all in warm-up" in note) == (not set(svd) & set(range(warmup, warmup + 3)))


def test_a_decomposition_that_was_not_seen_leaves_the_rate_unknown() -> None:
    found = Decompositions({}, 200, 1, 1, 4)
    rates = throughput(timed(1.0, 1.0, 1.0), found)
    assert (rates.train_tokens_per_second, rates.train_tokens_per_second_without_svd) == (None, 100.0)
    assert found.note() is None


@pytest.mark.parametrize(
    ("optimizer", "algorithm", "per_step"),
    [("galore_adamw", "sft", 1), ("galore_adamw_layerwise", "sft", 1), ("galore_adamw", "ppo", 4)],
)
def test_a_short_jobs_rate_holds_what_fell_into_its_warm_up(
    plan: Any, optimizer: str, algorithm: str, per_step: int
) -> None:
    """A gap of 200 and three steps: no timed step decomposes anything."""
    settings = {"ppo": {"epochs": 4}} if algorithm == "ppo" else {}
    planned = plan(
        {"optimizer": optimizer, "algorithm": algorithm},
        max_grad_norm=0.0,
        galore={"rank": 4},
        value="head",
        **settings,
    )
    made = Measurement(planned.cell, get_device("cpu"), CpuMeter())
    sample = made.run()
    assert sample.status == "ok", sample.reason
    assert made._optimizer_steps == 3 * per_step
    (svd,) = [phase for phase in sample.phases if phase.name == "svd"]
    assert svd.step == 0
    rates, tokens = sample.throughput, 2 * 8
    assert rates.train_tokens_per_second is not None
    assert rates.train_tokens_per_second_without_svd is not None
    share = tokens / rates.train_tokens_per_second - tokens / rates.train_tokens_per_second_without_svd
    assert share == pytest.approx(svd.seconds * per_step / 200)
    assert [note for note in sample.notes if "all in warm-up" in note]


def test_other_optimizers_have_one_rate(plan: Any) -> None:
    sample = Measurement(plan().cell, get_device("cpu"), CpuMeter()).run()
    assert sample.throughput.train_tokens_per_second is not None
    assert sample.throughput.train_tokens_per_second_without_svd is None
    assert not [note for note in sample.notes if "decomposition" in note]
