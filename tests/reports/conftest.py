"""What several tests of the report need."""

from __future__ import annotations

import pytest

from tests.reports import made
from vrambench.reports.page.html import render


@pytest.fixture(scope="session")
def large_page() -> str:
    """A report of 500 cells and one that was not run."""
    return render([made.matrix(500)])


@pytest.fixture(scope="session")
def hostile_page() -> str:
    """A report in which every text is hostile."""
    return render([made.hostile_run()])
