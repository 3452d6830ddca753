"""A ledger in a notebook: one piece of HTML with bars, the timeline and the table."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import vrambench
from vrambench.bench.watch.figure import HEIGHT, OTHER, WIDTH, bands, followed, spans
from vrambench.bench.watch.ledger import Ledger

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="predicted where there is no CUDA")
KIB = 1024
WEIGHTS = 2 * 256 * KIB
HOSTILE = "<script>alert('&')</script>\x1b\u2028"


@pytest.fixture
def ledger() -> Ledger:
    with vrambench.watch("24GiB") as found:
        model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)).cuda()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            with found.phase(HOSTILE):
                model(torch.randn(4, 256, device="cuda")).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return found


def test_it_is_well_formed_loads_nothing_and_names_are_text(ledger: Ledger) -> None:
    html = ledger._repr_html_()
    page = ElementTree.fromstring(html)
    assert not [one for one in page.iter() if one.tag in ("script", "link", "img", "iframe", "foreignObject")]
    assert not [name for one in page.iter() for name in one.attrib if name in ("src", "href") or name.startswith("on")]
    assert "http" not in html
    assert "url(" not in html
    titles = [one.text for one in page.iter("title")]
    assert "<script>alert('&')</script>\ufffd\u2028, step 0" in titles
    assert ledger.verdict() in [one.text for one in page.iter("p")]


def test_bars_say_what_was_live_at_the_peak_and_at_most(ledger: Ledger) -> None:
    page = ElementTree.fromstring(ledger._repr_html_())
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in page.find("table") or ()]
    told = {name: (here, most) for name, _, here, most in rows[1:]}
    assert rows[0][2:] == ["at the peak", "at most"]
    assert told["Sequential weights"] == ("512 KiB", "512 KiB")
    assert told["Sequential optimizer"] == ("1 MiB", "1 MiB")
    assert told["Sequential gradients"] == ("512 KiB", "512 KiB")
    order = [" ".join(filter(None, (share.role, share.kind))) for share in ledger.at_peak]
    assert [row[0] for row in rows[1 : len(order) + 1]] == [name.replace("_", " ") for name in order]


def test_the_timeline_has_the_peak_however_few_moments_it_shows(ledger: Ledger) -> None:
    trace = ledger._tracer.trace
    for most in (1, 7, 10_000):
        found, highest = followed(trace, ledger.peak_event, most)
        assert len(found) <= most + 1
        assert max(sum(moment.live.values()) for moment in found) == trace.peak_bytes()
        at_peak = next(moment for moment in found if moment.event == ledger.peak_event)
        assert sum(at_peak.live.values()) == ledger.memory.requested_bytes
        assert highest["Sequential weights"] == WEIGHTS
        assert highest["Sequential optimizer"] >= 2 * WEIGHTS


def test_bands_lie_on_each_other_up_to_the_top(ledger: Ledger) -> None:
    trace = ledger._tracer.trace
    found, highest = followed(trace, ledger.peak_event)
    made = bands(found, [name for name, _ in highest.most_common(2)], len(trace.events))
    assert [band.name for band in made][-1] == OTHER
    corners = [tuple(map(float, pair.split(","))) for band in made for pair in band.points.split()]
    assert min(y for _, y in corners) == 0
    assert max(y for _, y in corners) == HEIGHT
    assert 0 <= min(x for x, _ in corners) <= max(x for x, _ in corners) <= WIDTH
    half = len(found)
    for lower, upper in pairwise(made):
        assert lower.points.split()[:half] == upper.points.split()[half:][::-1]


def test_phases_follow_each_other_without_gaps(ledger: Ledger) -> None:
    found = spans(ledger._tracer.trace)
    assert [one.name.rpartition(",")[0] or one.name for one in found].count("optimizer_step") == 2
    assert all(before.end <= after.begin for before, after in pairwise(found))


def test_without_cuda_in_the_code_there_is_one_sentence() -> None:
    with vrambench.watch() as ledger:
        pass
    page = ElementTree.fromstring(ledger._repr_html_())
    assert [one.text for one in page.iter("p")] == ["nothing was used on the device"]
    assert not list(page.iter("table"))
    assert not list(page.iter("svg"))
