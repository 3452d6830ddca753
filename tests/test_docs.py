"""docs/accuracy.py: its rows (docs/published.py) are cells that run on CUDA, it renders without predicting, and the committed page
is its own."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import accuracy
import published
import pytest

from vrambench.bench.plan.validity import check
from vrambench.bench.predict.band import bands, kind_of
from vrambench.bench.results.forecast import Forecast, PredictedPhase, Unmodelled
from vrambench.bench.results.records import Memory, Parameters, Share
from vrambench.methods.cards import CARDS, Card
from vrambench.methods.cell import Cell

DOCS = Path(__file__).parents[1] / "docs"
GIB = 2**30
RECORDS = (*published.ROWS, *published.VERDICTS)


JOBS = {record.id: record.job for record in RECORDS}


def forecast(cell: Cell, card: Card) -> Forecast:
    """12 GiB allocated, 14 on the device, whatever the cell."""
    memory = Memory(
        requested_bytes=12 * GIB,
        allocated_bytes=12 * GIB,
        active_bytes=12 * GIB,
        reserved_bytes=13 * GIB,
        device_bytes=14 * GIB,
    )
    budget = card.usable_bytes or 0
    return Forecast(
        budget_bytes=budget,
        verdict="fits" if budget >= 14 * GIB else "does not fit",
        margin_bytes=budget - 14 * GIB,
        band_bytes=0,
        band_basis="",
        memory=memory,
        unlimited_bytes=14 * GIB,
        phases=(
            PredictedPhase(name="learn", step=0, allocated_bytes=1, reserved_bytes=1, device_bytes=1),
            PredictedPhase(name="learn", step=1, allocated_bytes=12 * GIB, reserved_bytes=1, device_bytes=1),
        ),
        roles={},
        parameters=Parameters(total=1, trainable=1),
        limiting_phase="learn",
        limiting_step=1,
        limiting_role="policy",
        at_peak=(Share(role="policy", kind="weights", nbytes=12 * GIB),),
        fragmentation_bytes=GIB,
        host_bytes=0,
        outside="",
        seconds=0.0,
    )


def test_ids_are_unique() -> None:
    ids = [record.id for record in RECORDS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_a_cell_that_runs_on_its_card(name: str) -> None:
    job = JOBS[name]
    card = CARDS[job.card]
    found = check(job.cell(), "cuda", bf16=card.capability >= (8, 0))
    assert [finding.rule for finding in found if finding.kind == "reject"] == []
    assert card.usable_bytes


def test_errors_are_signed_and_in_the_rows_unit() -> None:
    row = next(row for row in published.ROWS if row.id == "torchao-adamw")
    compared = accuracy.Compared(row, forecast(row.job.cell(), CARDS[row.job.card]))
    assert compared.error() == pytest.approx(12 / 51.6 - 1)
    assert compared.error("GB") == pytest.approx(12 * GIB / 51.6e9 - 1)


def test_the_page_says_where_a_published_verdict_is_missed() -> None:
    page = accuracy.render(forecast)
    missed = re.findall(r"^\| (\S+) .*\*\*no\*\* \|$", page, re.M)
    assert missed == [row.id for row in published.VERDICTS if not row.fits]
    assert f"{len(published.VERDICTS) - len(missed)} of {len(published.VERDICTS)} published verdicts" in page
    assert "0 are unsure" in page
    assert "learn 12.00 GiB" in page
    assert page == accuracy.render(forecast)


def test_an_unsure_verdict_is_told_with_its_reason() -> None:
    left_out = Unmodelled(reason="what nobody has read")

    def doubtful(cell: Cell, card: Card) -> Forecast:
        return forecast(cell, card).model_copy(update={"verdict": "unsure", "unmodelled": (left_out,)})

    page = accuracy.render(doubtful)
    assert f"0 of {len(published.VERDICTS)} published verdicts agree, {len(published.VERDICTS)} are unsure" in page
    assert "- t4-7b-nf4-512: unsure, what nobody has read." in page


def test_figures_are_grouped_by_kind_of_job_and_told_to_the_bands(tmp_path: Path) -> None:
    page = accuracy.render(forecast)
    assert "### bf16 with adapter none, fine-tuning, loss nll_4_46, on a model with RMSNorm\n\n| row |" in page
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "accuracy.json").write_text(json.dumps(accuracy.comparison(forecast)))
    found = bands(tmp_path)
    known = [row for row in published.ROWS if row.alike and row.stated]
    assert sum(map(len, found.values())) == len(known)
    row = next(row for row in known if row.id == "trainer-full")
    (one,) = found[kind_of(row.job.cell())]
    assert one.excess == pytest.approx(row.published / (12 * GIB) - 1)


def test_a_figure_of_one_phase_is_compared_with_its_first_step() -> None:
    row = dataclasses.replace(published.ROWS[0], phase="learn")
    assert accuracy.Compared(row, forecast(row.job.cell(), CARDS[row.job.card])).predicted_bytes == 1


def test_the_committed_page_has_the_scripts_rows_and_figures() -> None:
    """It is written by `make accuracy`: whoever changes rows writes it again."""
    page = (DOCS / "accuracy.md").read_text()
    rendered = accuracy.render(forecast)

    def given(text: str) -> list[str]:
        """What does not depend on predictions: each row's name, title, published figure and counter; reasons; headings."""
        cells = [
            " | ".join(line.split(" | ")[:4])
            for line in text.splitlines()
            if re.match(r"\| [a-z]+-?\S* \|.*\?? \|", line)
        ]
        tables = [
            line for line in cells if line.split(" | ")[0].removeprefix("| ") in {row.id for row in published.ROWS}
        ]
        sources = [line for line in text.splitlines() if line.startswith(("#", "- Source"))]
        return [*tables, *sources]

    assert given(page) == given(rendered)
    for record in published.VERDICTS:
        assert f"| {record.id} |" in page
    for row in published.ROWS:
        assert row.why.strip() in page
