"""What vl-convert gives, in a process of its own, and what is kept of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vrambench.reports.page import drawing

SPEC = {"data": {"values": [{"name": "é", "size": 3}]}, "mark": "bar", "encoding": {"x": {"field": "size"}}}
SAYS_ANEW = """print('["packed anew"]')"""
"""Code of a process that packs nothing, and takes no 2 s for it: what is kept of it does not depend on what it is."""


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    drawing.bundle.cache_clear()
    yield
    drawing.bundle.cache_clear()


def test_each_specification_has_its_drawing_in_order() -> None:
    first, second = drawing.drawings([SPEC, SPEC | {"mark": "point"}])
    assert "mark-rect" in first
    assert "mark-symbol" in second
    assert drawing.drawings([]) == []


def test_what_cannot_be_drawn_says_why() -> None:
    with pytest.raises(drawing.NotDrawn, match="drawing ended with exit code 1: "):
        drawing.drawings([SPEC | {"mark": "no mark"}])


def test_the_javascript_is_packed_once_and_a_damaged_file_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    code = drawing.bundle()
    assert "vegaEmbed" in code
    (kept,) = Path(os.environ["VRAMBENCH_CACHE"]).iterdir()
    assert kept.name.startswith("vega-")
    packed = kept.read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "CODE", "raise AssertionError")
        drawing.bundle.cache_clear()
        assert drawing.bundle() == code
    kept.write_bytes(packed[: len(packed) // 2])
    monkeypatch.setattr(drawing, "CODE", SAYS_ANEW)
    drawing.bundle.cache_clear()
    assert drawing.bundle() == "packed anew"
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "CODE", "raise AssertionError")
        drawing.bundle.cache_clear()
        assert drawing.bundle() == "packed anew"


def test_where_nothing_can_be_kept_the_javascript_is_packed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRAMBENCH_CACHE", "/dev/null/cache")
    monkeypatch.setattr(drawing, "CODE", SAYS_ANEW)
    assert drawing.bundle() == "packed anew"
