"""What fits cards of each size."""

from __future__ import annotations

import pytest

from tests.reports import made
from vrambench.bench.results.records import Memory, PredictedVerdict, Result
from vrambench.methods.cards import CARDS
from vrambench.reports.rows import Row, rows_of
from vrambench.reports.sizes import CAPACITIES, SIZES, smallest, verdicts

GIB = made.GIB


def row(result: Result) -> Row:
    (one,) = rows_of([made.run_of([result])])
    return one


def predicted(gib: float, *, budget: int = 24 * GIB, verdict: str = "fits", band: int = 0) -> Result:
    memory = Memory(device_bytes=int(gib * GIB))
    told = PredictedVerdict(verdict=verdict, budget_bytes=budget, band_bytes=band, band_basis="made")  # type: ignore[arg-type]
    return made.result(source="predicted", cell=made.cell(budget=budget), memory=memory, predicted_verdict=told)


def test_capacities_are_those_of_the_cards_that_are_known() -> None:
    usable = [card.usable_bytes for card in CARDS.values() if card.marked_bytes == 24 * GIB and card.usable_bytes]
    assert CAPACITIES[24] == (min(usable), max(usable))
    assert 7 * GIB < CAPACITIES[8][0] == CAPACITIES[8][1] < 8 * GIB, "no figure is known: less what a driver keeps"
    assert [least for least, _ in CAPACITIES.values()] == sorted(least for least, _ in CAPACITIES.values())


def test_a_measured_cell_fits_where_it_took_no_more() -> None:
    found = verdicts(row(made.full("a1", device=10 * GIB)))
    assert found == {8: "does not fit", **dict.fromkeys((12, 16, 24, 40, 48, 80), "fits")}


def test_where_only_some_cards_of_a_size_have_room_it_is_tight() -> None:
    least, most = CAPACITIES[16]
    found = verdicts(row(made.full("a1", device=(least + most) // 2)))
    assert (found[12], found[16], found[24]) == ("does not fit", "tight", "fits")


def test_what_is_cached_can_be_given_back() -> None:
    memory = Memory(device_bytes=13 * GIB, reserved_bytes=12 * GIB, active_bytes=10 * GIB)
    found = verdicts(row(made.result(memory=memory)))
    assert (found[8], found[12], found[16]) == ("does not fit", "tight", "fits")


def test_a_prediction_fits_beyond_its_band_only() -> None:
    least, _ = CAPACITIES[40]
    within = predicted(least / GIB - 1, budget=80 * GIB, band=2 * GIB)
    assert verdicts(row(within))[40] == "tight"
    assert verdicts(row(predicted(least / GIB - 3, budget=80 * GIB, band=2 * GIB)))[40] == "fits"


@pytest.mark.parametrize("verdict", ["fits", "tight", "unsure", "does not fit"])
def test_under_its_own_budget_a_cell_has_its_own_verdict(verdict: str) -> None:
    assert verdicts(row(predicted(20, verdict=verdict)))[24] == verdict


def test_what_ran_out_of_memory_fits_no_smaller_card_and_is_not_known_on_larger_ones() -> None:
    found = verdicts(row(next(one for one in made.one_of_each_status() if one.status == "oom")))
    assert found == dict.fromkeys((8, 12, 16, 24), "does not fit")


def test_what_never_started_is_not_known() -> None:
    assert verdicts(row(made.result(status="invalid"))) == {}
    assert verdicts(row(made.result(memory=Memory(allocated_bytes=GIB)))) == {}


def test_more_room_is_never_worse() -> None:
    order = ("does not fit", "unsure", "tight", "fits")
    for gib in range(1, 100):
        for result in (
            made.full("a1", device=gib * GIB),
            predicted(gib, verdict="fits" if gib < 23 else "does not fit", band=GIB),
        ):
            found = [order.index(fit) for fit in verdicts(row(result)).values()]
            assert found == sorted(found), gib


def test_the_smallest_card() -> None:
    assert smallest(row(made.full("a1", device=10 * GIB))) == 12
    assert smallest(row(made.full("a1", device=100 * GIB))) is None
    assert list(verdicts(row(made.full("a1")))) == list(SIZES)
