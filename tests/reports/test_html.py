"""The page: complete, self-contained, escaped, small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reports import made
from vrambench.bench.results.records import (
    Learning,
    Memory,
    OutOfMemory,
    Parameters,
    Phase,
    Result,
    RoleBytes,
    Sample,
    Throughput,
)
from vrambench.bench.results.store import RunFolder
from vrambench.methods.errors import ConfigurationError
from vrambench.reports.page.charts import Chart
from vrambench.reports.page.html import json_for_script, render, write_report
from vrambench.reports.rows import Run


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inside.append((self.elements[-1][0], data))


def plain(charts: Sequence[Chart]) -> list[str]:
    """Stands for the drawings, where a test is not about them."""
    return ["<svg></svg>"] * len(charts)


@pytest.fixture(scope="module")
def page() -> str:
    more = [{"id": "bbbbbbbbbbb1", "name": "later", **made.cell(seed=1)}]
    return render([made.run_of(made.one_of_each_status(), more_cells=more, corrupted=("cells/x.json",))])


@pytest.mark.slow
def test_every_cell_and_status_is_on_the_page(page: str) -> None:
    bodies = [attributes["id"] for tag, attributes in Page(page).elements if tag == "tbody" and "id" in attributes]
    assert bodies == [f"c{place}" for place in range(9)]
    for status in ("ok", "oom", "invalid", "pruned", "timeout", "crashed", "error", "not-run"):
        assert f's-{status}"' in page
    for reason in ("CUDA out of memory", "8-bit weights cannot train", "not a finite number", "cells/x.json"):
        assert reason in page


def test_the_page_loads_nothing(page: str) -> None:
    for tag, attributes in Page(page).elements:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
    style = "".join(text for tag, text in Page(page).inside if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert not re.findall(
        r"https?://(?!www\.w3\.org/)", re.sub(r"vega\.github\.io/schema", "", page).replace("https:///", "")
    )


def test_the_policy_allows_our_own_code_by_its_hash_and_nothing_else(page: str) -> None:
    found = Page(page)
    policy = next(attributes["content"] for tag, attributes in found.elements if attributes.get("http-equiv"))
    assert policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    runnable = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, re.DOTALL)
    assert len(runnable) == 2
    for code in runnable:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in policy
    assert not any(name == "style" or name.startswith("on") for _, attributes in found.elements for name in attributes)


def test_a_generator_says_whose_page_it_is(page: str) -> None:
    assert 'name="generator" content="vrambench ' in page[:4096]


def test_the_charts_are_drawn_without_javascript(page: str) -> None:
    drawn = re.findall(r'<div class="chart" id="chart-(\w+)" role="img" aria-label="[^"]+"><svg ', page)
    assert drawn == ["cards", "tradeoff", "ledger", "phases", "timeline", "loss", "reward"]
    assert ">undefined<" not in page, "what a drawing places by a cell's name has it"


@pytest.mark.slow
def test_hostile_text_stays_text(hostile_page: str) -> None:
    page = hostile_page
    found = Page(page)
    scripts = [attributes.get("type") for tag, attributes in found.elements if tag == "script"]
    assert scripts == ["application/json", "text/plain", "text/plain", None]
    assert not any("onerror" in attributes or "onmouseover" in attributes for _, attributes in found.elements)
    assert "<img" not in page
    assert "{{ 7*7 }}" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert any(text in label for label in data["labels"] for text in made.HOSTILE[:1])


@given(st.text() | st.dictionaries(st.text(), st.text()))
def test_json_in_a_script_reads_back_and_cannot_leave_it(data: object) -> None:
    text = json_for_script(data)
    assert json.loads(text) == data
    assert not set(text) & set("<>&\u2028\u2029")


def test_what_is_not_known_is_never_a_number() -> None:
    known = next(one for one in made.one_of_each_status() if one.status == "ok")
    page = render([made.run_of([made.result(status="ok"), known])], draw=plain)
    shown = re.findall(r'data-key="(\w+)"', page)
    body = page[page.index('<tbody id="c0">') : page.index('<tr class="more">')]
    measured = len(shown) - shown.index("allocated")
    assert measured >= 6
    assert re.findall(r"<td>([^<]*)", body)[-measured:] == ["–"] * measured


def test_what_no_cell_has_is_no_column() -> None:
    page = render([made.run_of([made.result(status="ok")])], draw=plain)
    assert re.findall(r'data-key="(\w+)"', page) == ["status"]


def test_what_never_varies_is_said_once_and_is_no_column() -> None:
    page = render([made.run_of([made.full("a1"), made.full("a2", precision="nf4")])], draw=plain)
    assert re.findall(r'data-key="(\w+)"', page)[:2] == ["status", "precision"]
    told = page[page.index("Every cell: ") : page.index('<form id="filters"')]
    assert re.findall(r">([\w.]+) <b>", told)[:5] == ["adapter", "optimizer", "offload", "algorithm", "model"]


counts = st.none() | st.integers(0, 2**45)
numbers = st.none() | st.floats(0, 1e12)
curves = st.lists(st.none() | st.floats(-1e300, 1e300), max_size=6).map(tuple)
memories = st.builds(Memory, **dict.fromkeys(Memory.model_fields, counts))
roles = st.dictionaries(
    st.sampled_from(["policy", "reference", "value"]),
    st.builds(
        RoleBytes,
        weights_bytes=st.integers(0, 2**40),
        gradients_bytes=st.integers(0, 2**40),
        optimizer_bytes=st.integers(0, 2**40),
        shares=st.none() | st.just("policy"),
    ),
)
phases = st.lists(
    st.builds(
        Phase,
        name=st.sampled_from(["load", "learn", "rollout"]),
        step=st.none() | st.integers(0, 3),
        seconds=st.floats(0, 1e6),
        allocated_bytes=counts,
        reserved_bytes=counts,
        device_bytes=counts,
    ),
    max_size=4,
).map(tuple)
samples: dict[str, Any] = {
    "status": st.sampled_from(["ok", "oom", "invalid", "pruned", "timeout", "crashed", "error"]),
    "reason": st.none() | st.text(max_size=20),
    "phase": st.none() | st.just("learn"),
    "source": st.none() | st.sampled_from(["measured", "predicted", "verified"]),
    "oom": st.none()
    | st.builds(OutOfMemory, where=st.sampled_from(["device", "host"]), asked_bytes=counts, missing_bytes=counts),
    "signal": st.none() | st.just("SIGKILL"),
    "memory": memories,
    "phases": phases,
    "roles": roles,
    "throughput": st.builds(
        Throughput,
        step_seconds=st.lists(st.floats(0, 1e6), max_size=3).map(tuple),
        train_tokens_per_second=numbers,
        generated_tokens_per_second=numbers,
        samples_per_second=numbers,
        energy_joules=numbers,
    ),
    "learning": st.builds(Learning, loss=curves, reward=curves, kl=curves),
    "parameters": st.none() | st.just(Parameters(total=2, trainable=1)),
    "seconds": st.dictionaries(st.sampled_from(["load", "total"]), st.floats(0, 1e9)),
    "notes": st.lists(st.text(max_size=9), max_size=2).map(tuple),
}
cells = st.fixed_dictionaries(
    {},
    optional={
        **{axis: st.sampled_from(values) for axis, values in made.AXES.items()},
        "budget": st.none() | st.integers(1, 2**40),
        "seed": st.integers(0, 2),
        "ppo": st.none() | st.dictionaries(st.sampled_from(["epochs", "clip"]), st.none() | st.integers(1, 4)),
    },
)
results = st.builds(
    Result,
    **samples,
    id=st.uuids().map(lambda one: one.hex[:12]),
    name=st.text(max_size=30),
    cell=cells,
    rule=st.none() | st.just("a-rule"),
    predicted=st.none() | memories,
    samples=st.lists(st.builds(Sample, **samples), max_size=2).map(tuple),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(results, max_size=4), st.booleans())
def test_any_results_make_a_page(found: list[Result], bare: bool) -> None:
    run = Run("run", {}, tuple(found)) if bare else made.run_of(found)
    text = render([run], draw=plain)
    assert text.count("<tbody id=") == len(found)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(results, min_size=1, max_size=3))
def test_any_results_can_be_drawn(found: list[Result]) -> None:
    assert "</html>" in render([made.run_of(found)])


@pytest.mark.slow
def test_five_hundred_cells_stay_under_two_megabytes(large_page: str) -> None:
    assert large_page.count("<tbody id=") == 501
    assert len(large_page.encode()) < 2_000_000


@pytest.mark.slow
def test_a_run_folder_becomes_a_file(tmp_path: Path) -> None:
    run = made.run_of([made.full("a1"), made.full("a2", seed=1)])
    folder = RunFolder(tmp_path / "first")
    folder.acquire()
    folder.write_info({key: value for key, value in run.info.items() if key != "schema"})
    for one in run.results:
        folder.write_result(one)
    (folder.cells / "a2.json").write_text("{ torn")
    folder.release()
    out = tmp_path / "report.html"
    write_report([folder.path], out)
    text = out.read_text(encoding="utf-8")
    assert "<title>vrambench: NVIDIA GeForce RTX 4090</title>" in text
    assert "cells/a2.json" in text
    assert 's-unreadable"' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "report.html"]


@pytest.mark.slow
def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        folder = RunFolder(tmp_path / parent / "run")
        folder.acquire()
        folder.write_info({"device": "cpu", "repeat": 1, "cells": []})
        folder.write_result(made.full("a1"))
        folder.release()
    out = tmp_path / "report.html"
    write_report([tmp_path / "a" / "run", tmp_path / "b" / "run"], out)
    assert f"{tmp_path / 'a' / 'run'}" in out.read_text(encoding="utf-8")


def test_a_folder_that_is_no_runs_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(ConfigurationError, match=r"no run\.json"):
        write_report([tmp_path], out)
    assert out.read_text() == "old"
