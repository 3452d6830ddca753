"""What a prediction leaves out, and when its verdict is `unsure` for that."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vrambench.bench.predict.band import Band, Miss
from vrambench.bench.predict.forecast import Predictor, doubted
from vrambench.bench.predict.tracing.trace import ALLOC
from vrambench.bench.predict.unmodelled import unmodelled
from vrambench.bench.results.forecast import Unmodelled
from vrambench.methods.cell import Cell, resolve

AXES = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
PREDICTOR = Predictor()


def cell(optimizer: str = "adamw_torch", **settings: Any) -> Cell:
    return resolve(
        AXES | {"optimizer": optimizer}, {"model": "tiny", "prompt_tokens": 4, "response_tokens": 4} | settings
    )


def test_an_axis_value_says_what_nobody_can_tell_of_it() -> None:
    whole, randomized = cell("galore_adamw"), cell("galore_adamw", galore={"svd": "randomized"})
    needed = PREDICTOR.forecast(whole).memory.device_bytes
    assert needed
    forecast = PREDICTOR.forecast(whole, 3 * needed // 2)
    assert (forecast.verdict, forecast.fits, forecast.stored_verdict.verdict) == ("unsure", True, "unsure")
    assert "cuSOLVER" in forecast.unmodelled[0].reason
    assert PREDICTOR.forecast(whole, 3 * needed).verdict == "fits", "as much again has room, too"
    assert PREDICTOR.forecast(whole, needed // 2).verdict == "does not fit"
    assert PREDICTOR.forecast(randomized, 3 * needed // 2).unmodelled == ()


def test_operators_of_unread_libraries_are_named() -> None:
    trace = PREDICTOR.simulation(cell()).trace
    assert unmodelled(cell(), trace) == ()
    first = next(event for event in trace.events if event.kind == ALLOC)
    other = dataclasses.replace(trace, events=[*trace.events, first._replace(operator="somebodys.kernel.default")])
    assert unmodelled(cell(), other) == (Unmodelled(reason="what somebodys.kernel.default take inside themselves"),)


@pytest.mark.parametrize(("share", "verdict"), [(0.4, "fits"), (0.6, "unsure")])
def test_a_published_job_that_was_missed_makes_its_kind_unsure_within_what_it_took(share: float, verdict: str) -> None:
    needed = PREDICTOR.forecast(cell()).memory.device_bytes
    assert needed
    forecast = PREDICTOR.forecast(cell(), 3 * needed // 2)
    plain = forecast.model_copy(update={"verdict": "fits", "band_bytes": 0, "unmodelled": ()})
    told = doubted(plain, (), Band(0.0, "", (Miss("t4-7b", share),)))
    assert told.verdict == verdict
    (left_out,) = told.unmodelled
    assert left_out.nbytes == round(share * needed)
    assert left_out.reason.startswith("t4-7b of docs/accuracy.md")


NO_BAND = Band(0.0, "", ())
LESS, MORE, EITHER = (
    Unmodelled(reason="a key", nbytes=n, less=less) for n, less in ((0, True), (None, False), (None, True))
)


@pytest.mark.parametrize(
    ("share", "left_out", "verdict", "told"),
    [
        (0.9, LESS, "unsure", True),
        (0.9, EITHER, "unsure", True),
        (0.9, MORE, "does not fit", True),
        (0.4, LESS, "does not fit", True),
        (1.5, LESS, "tight", False),
        (1.5, EITHER, "unsure", True),
    ],
)
def test_what_may_save_memory_makes_a_refusal_unsure_as_far_as_half_of_all(
    share: float, left_out: Unmodelled, verdict: str, told: bool
) -> None:
    needed = PREDICTOR.forecast(cell()).memory.device_bytes
    assert needed
    forecast = PREDICTOR.forecast(cell(), round(share * needed)).model_copy(update={"band_bytes": 0})
    found = doubted(forecast, (left_out,), NO_BAND)
    assert (found.verdict, found.fits, bool(found.unmodelled)) == (verdict, share > 1, told)
