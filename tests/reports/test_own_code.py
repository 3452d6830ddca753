"""A report of tests that were watched: each is held to its own limit, and none is compared with another."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from tests.reports.made import GIB, result
from vrambench.bench.results.records import Memory, OutOfMemory, Result, Status
from vrambench.reports.page.html import render
from vrambench.reports.page.views.verdict import headline, verdict
from vrambench.reports.report import Report
from vrambench.reports.rows import Run
from vrambench.reports.sizes import verdicts
from vrambench.reports.summary import summary
from vrambench.reports.text.terminal import summary_lines


def watched(name: str, device: int, limit: int | None, status: Status = "ok") -> Result:
    """A test's result, as `--vram-results` stores it."""
    return result(
        hashlib.sha256(name.encode()).hexdigest()[:12],
        name=name,
        cell={"test": name, "card": None, "budget": limit},
        status=status,
        reason=None if status == "ok" else "1 GiB predicted at the peak, in learn",
        source="predicted",
        oom=OutOfMemory(where="device") if status == "oom" else None,
        memory=Memory(allocated_bytes=device // 2, reserved_bytes=device // 2, device_bytes=device),
    )


TESTS = (
    watched("test_a.py::test_small", GIB, GIB // 2, "oom"),
    watched("test_a.py::test_fits", GIB, 8 * GIB),
    watched("test_a.py::test_free", GIB, None),
)


def test_the_headline_counts_the_tests_that_kept_their_own_limit() -> None:
    report = Report([Run("", results=TESTS)])
    assert headline(report, summary(report)) == ("1 of 2", "cells fit their budgets", "fit")
    assert not verdict(report).lines, "tests do not do the same work"


def test_the_terminal_names_no_smallest_of_tests() -> None:
    lines = summary_lines(TESTS)
    assert lines[1] == "1 of the 2 whose device memory is known fit their budgets (1 predicted)."
    assert not [line for line in lines if "smallest" in line or line.startswith(":")]


def test_without_a_limit_it_says_that_there_was_none() -> None:
    (said,) = summary_lines([TESTS[2]])[1:]
    assert said == (
        "No budget was set, so this report does not say whether the cells fit. Cells are compared by their peak of device memory."
    )


@pytest.mark.parametrize("status", ["error", "crashed"])
def test_what_a_test_took_until_it_failed_is_no_verdict(status: Status) -> None:
    report = Report([Run("", results=(watched("test_a.py::test_raises", GIB, 8 * GIB, status),))])
    (row,) = report.rows
    assert row.verdict.fit == "unknown"
    assert not verdicts(row)
    assert dataclasses.asdict(summary(report))["known"] == 0


def test_many_limits_are_told_by_the_least_and_the_most() -> None:
    tests = [watched(f"test_a.py::test_{number}", GIB, number * GIB) for number in range(2, 9)]
    run = Run("own", {"device": "predicted"}, tuple(tests))
    assert "budgets of 2 GiB to 8 GiB" in render([run])


def test_the_title_tells_what_was_measured_from_what_was_predicted() -> None:
    measured = Run("here", {"device": "cpu", "environment": {"cpu": {"model": "AMD EPYC"}}}, TESTS)
    predicted = Run("own", {"device": "predicted", "cells": [{"budget": 24 * GIB}]}, TESTS)
    assert "<title>vrambench: AMD EPYC; predicted for a card of 24 GiB</title>" in render([predicted, measured])
