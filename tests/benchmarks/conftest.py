"""What timed tests have in common."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def drawn_by_one_process() -> None:
    """Each report by a process of its own, whose start is part of what is timed."""
