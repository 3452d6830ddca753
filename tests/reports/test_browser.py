"""The page in a browser, from disk, with the network off."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reports import made
from tests.reports.browser import CHROMIUM, Browser
from vrambench.bench.results.records import BlockMap, BlockName
from vrambench.reports.page.html import render
from vrambench.reports.page.views.cells import PAGE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

DRAW_ALL = """(async () => {
  for (const chart of document.querySelectorAll(".chart")) {
    chart.scrollIntoView({ behavior: "instant" });
    while (!("living" in chart.dataset)) await new Promise((resolve) => setTimeout(resolve, 20));
  }
})()"""
HOVER = """document.querySelector("#chart-tradeoff .mark-symbol.role-mark path").dispatchEvent(
  new MouseEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }))"""
TIMED_SORT = """(() => {
  const began = performance.now();
  document.querySelector("th[data-key=device] button").click();
  document.body.offsetHeight;
  return performance.now() - began;
})()"""
VISIBLE = "[...document.querySelectorAll('#table > tbody')].filter((body) => !body.hidden)"
STATUSES = f"{VISIBLE}.map((body) => body.rows[0].cells[0].textContent.trim())"


def column(key: str) -> str:
    """JavaScript for what the visible rows show in a column."""
    place = f"document.querySelector('th[data-key={key}]').cellIndex"
    return f"{VISIBLE}.map((body) => body.rows[0].cells[{place}].textContent.trim())"


def enter(field: str, value: str) -> str:
    """JavaScript that gives a filter its value as a user would."""
    event = "new Event('input', { bubbles: true })"
    return (
        f"(() => {{ const f = document.querySelector('{field}'); f.value = '{value}'; f.dispatchEvent({event}); }})()"
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ppo = made.full("c1", device=2**34, rate=500, algorithm="ppo")
    results = [*made.one_of_each_status(), ppo, made.full("c2", rate=2000, seed=3)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render([made.run_of(results)]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


def clean(browser: Browser, page: Path) -> bool:
    """Nothing went wrong, and nothing but the page itself was asked for."""
    addresses = {address.partition("#")[0] for address in browser.requests}
    return browser.problems == [] and addresses <= {page.resolve().as_uri(), "about:blank"}


def draw_all(browser: Browser) -> None:
    browser.evaluate(DRAW_ALL)
    browser.wait_for("[...document.querySelectorAll('.chart')].every((chart) => 'living' in chart.dataset)")


@pytest.mark.slow
def test_columns_sort_both_ways_with_what_is_unknown_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    click = "document.querySelector('th[data-key=device] button').click()"
    original = browser.evaluate(STATUSES)
    browser.evaluate(click)
    unknown = ["–"] * 6
    assert browser.evaluate(column("device")) == ["12 GiB", "12 GiB", "16 GiB", "23.5 GiB", *unknown]
    assert browser.evaluate("document.querySelector('th[data-key=device]').ariaSort") == "ascending"
    browser.evaluate(click)
    assert browser.evaluate(column("device")) == ["23.5 GiB", "16 GiB", "12 GiB", "12 GiB", *unknown]
    assert browser.evaluate("document.querySelector('th[data-key=device]').ariaSort") == "descending"
    browser.evaluate(click)
    assert browser.evaluate(STATUSES) == original
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 0
    assert clean(browser, page)


def test_the_keyboard_sorts_too(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('th[data-key=tokens] button').focus()")
    browser.press("Enter", 13)
    assert browser.evaluate(column("tokens"))[:4] == ["500", "1,000", "2,000", "3,000"]


def test_filters_keep_what_fits_and_count_live(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate(enter("[name=q]", "FINITE number"))
    assert browser.evaluate(STATUSES) == ["error"]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 10 cells shown, 0 of them ok"
    browser.evaluate("document.querySelector('[type=reset]').click()")
    browser.wait_for(f"{VISIBLE}.length === 10")
    browser.evaluate("document.querySelector('[name=status][value=oom]').click()")
    browser.evaluate("document.querySelector('[name=status][value=ok]').click()")
    assert browser.evaluate(STATUSES) == ["ok", "ok", "oom", "ok", "ok"]
    browser.evaluate(enter("select[name=algorithm]", "ppo"))
    assert browser.evaluate(STATUSES) == ["ok"]
    count = "document.querySelector('[name=status][value={}]').parentElement.querySelector('output').textContent"
    assert [browser.evaluate(count.format(status)) for status in ("ok", "timeout", "oom")] == ["1", "1", "0"]


def test_the_address_holds_the_state(browser: Browser, page: Path) -> None:
    browser.open(page, "#status=ok&sort=-tokens")
    assert browser.evaluate(column("tokens")) == ["3,000", "2,000", "1,000", "500"]
    browser.evaluate("document.querySelector('th[data-key=host_rss] button').click()")
    assert browser.evaluate("location.hash") == "#status=ok&sort=host_rss"


def test_details_open_whole(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.querySelectorAll('.details').length") == 0
    browser.evaluate("document.querySelector('#c0 input').focus()")
    browser.press(" ", 32)
    assert browser.evaluate("document.querySelector('#c0 .more').getClientRects().length") == 1
    command = browser.evaluate("document.querySelector('#c0 code').textContent")
    assert command == (
        "vrambench run --precision bf16 --adapter lora --optimizer adamw_torch --offload none --algorithm sft --profile 24gb"
    )
    assert browser.evaluate("document.querySelector('#c1 .more').getClientRects().length") == 0


def test_a_link_leads_to_its_cell(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('#verdict a').click()")
    browser.wait_for("document.querySelector('tbody:target input')?.checked === true")


def test_a_dash_says_what_it_stands_for(browser: Browser, page: Path) -> None:
    browser.open(page)
    at = "document.querySelector('#c5').rows[0].cells[document.querySelector('th[data-key=device]').cellIndex]"
    browser.evaluate(f"{at}.dispatchEvent(new MouseEvent('mouseover', {{ bubbles: true }}))")
    assert browser.evaluate(f"{at}.title").startswith("not measured: ")


def test_charts_live_and_follow_the_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    draw_all(browser)
    points = "document.querySelectorAll('#chart-tradeoff .mark-symbol.role-mark path').length"
    assert browser.evaluate(points) == 4 + 3  # with the fronts' rings
    labels = "[...document.querySelectorAll('#chart-ledger .role-axis-label text')]"
    bars = f"{labels}.map((label) => label.textContent).filter((text) => text.includes('torch'))"
    assert len(browser.evaluate(bars)) == 4
    browser.evaluate(enter("select[name=algorithm]", "ppo"))
    browser.wait_for(f"{points} === 2")
    browser.wait_for(f"{bars}.length === 1")
    assert clean(browser, page)


def test_a_square_of_the_map_leads_to_its_cells(browser: Browser, page: Path) -> None:
    browser.open(page)
    squares = "[...document.querySelectorAll('#map td button')]"
    heads = browser.evaluate("[...document.querySelectorAll('#map thead th')].map((head) => head.textContent)")
    assert heads == ["precision \\ algorithm", "sft", "ppo", "remax"]
    assert browser.evaluate(f"{squares}[0].textContent") == "12 GiB", "the smallest of its cells that are ok"
    browser.evaluate(enter("#pair [name=measure]", "tokens"))
    assert browser.evaluate(f"{squares}[0].textContent") == "2,000", "the fastest"
    browser.evaluate(f"{squares}[1].focus()")
    browser.press("Enter", 13)
    browser.wait_for(f"{VISIBLE}.length === 2")
    assert set(browser.evaluate(column("algorithm"))) == {"ppo"}
    assert browser.evaluate("location.hash") == "#precision=bf16&algorithm=ppo"
    assert clean(browser, page)


def test_sentences_and_legends_follow_the_filter(browser: Browser, page: Path) -> None:
    browser.open(page)
    draw_all(browser)
    front = "document.getElementById('front').textContent"
    figure = "document.querySelector('#figure b').textContent"
    legend = "[...document.querySelectorAll('#chart-tradeoff .role-legend-label text')].map((text) => text.textContent)"
    assert browser.evaluate(front).startswith("3 cells of 4 lie on their algorithm's Pareto front")
    assert browser.evaluate(figure) == "4 of 6"
    assert browser.evaluate(legend) == ["ppo", "sft", "bf16", "fp32"]
    browser.evaluate(enter("select[name=precision]", "fp32"))
    assert browser.evaluate(front).startswith("1 cell of 1 lie on")
    assert browser.evaluate(figure) == "1 of 2"
    browser.wait_for(f"JSON.stringify({legend}) === JSON.stringify(['sft', 'fp32'])")
    assert clean(browser, page)


def test_a_cell_is_shown_over_its_phases(browser: Browser, page: Path) -> None:
    browser.open(page)
    draw_all(browser)
    browser.evaluate("document.querySelector('#c8 input').click()")
    browser.wait_for("document.querySelector('#c8 .over') !== null")
    browser.evaluate("document.querySelector('#c8 .over').click()")
    label = browser.evaluate("document.querySelector('#live caption span').textContent")
    assert label == browser.evaluate("document.querySelector('#which select').selectedOptions[0].textContent")
    assert "ppo" in label
    parts = browser.evaluate("[...document.querySelectorAll('#live tbody th')].map((head) => head.textContent)")
    assert parts[0] == "policy weights"
    labels = "[...document.querySelectorAll('#chart-timeline .role-axis-label text')].map((text) => text.textContent)"
    browser.wait_for(f"{labels}.includes('3 optimizer_step')")
    assert clean(browser, page)


@pytest.mark.slow
def test_a_recorded_cell_shows_where_its_blocks_lay(tmp_path: Path) -> None:
    name = BlockName(used=True, role="policy", kind="weights")
    blocks = BlockMap(names=(BlockName(), name), segments=(((1, 15 * made.GIB), (0, 5 * made.GIB)),))
    path = tmp_path / "recorded.html"
    results = [made.full("c1").model_copy(update={"blocks": blocks}), made.full("c2", seed=1)]
    path.write_text(render([made.run_of(results)]), encoding="utf-8")
    pieces = "document.querySelectorAll('#chart-blocks .mark-rect.role-mark path').length"
    hidden = "document.querySelector('#chart-blocks').parentElement.hidden"
    with Browser() as browser:
        browser.open(path)
        draw_all(browser)
        assert browser.evaluate(pieces) == 20
        assert browser.evaluate(hidden) is False
        browser.evaluate(enter("#which [name=cell]", "1"))
        browser.wait_for(hidden)
        browser.evaluate(enter("#which [name=cell]", "0"))
        browser.wait_for(f"!{hidden} && {pieces} === 20")
        assert clean(browser, path)


def test_a_command_can_be_copied(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('#c0 input').click()")
    browser.evaluate("document.querySelector('#c0 .copy').click()")
    browser.wait_for("document.querySelector('#c0 .copy').textContent === 'copied'")
    assert browser.evaluate("getSelection().toString()").startswith("vrambench run --precision bf16")


def test_a_chart_is_saved_as_a_picture(browser: Browser, page: Path) -> None:
    browser.open(page)
    draw_all(browser)
    browser.evaluate("HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href]; }")
    browser.evaluate("document.querySelector('figure:has(#chart-ledger) figcaption button').click()")
    browser.wait_for("'saved' in window")
    name, address = browser.evaluate("saved")
    picture = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert name == "vrambench-ledger.png"
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") > 1000, "pixels across"
    assert clean(browser, page)


def test_a_card_can_be_filtered_by(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate(enter("select[name=card]", "12"))
    assert browser.evaluate(column("gb12")) == ["≈", "≈"]


def test_a_chart_tells_about_a_point(browser: Browser, page: Path) -> None:
    browser.open(page)
    draw_all(browser)
    browser.evaluate(HOVER)
    browser.wait_for("document.getElementById('vg-tooltip-element')?.textContent.includes('adamw_torch') === true")
    assert clean(browser, page)


@pytest.mark.slow
def test_hostile_text_runs_nowhere(hostile_page: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(hostile_page, encoding="utf-8")
    with Browser() as browser:
        browser.open(path)
        draw_all(browser)
        browser.evaluate("document.querySelectorAll('#table input').forEach((box) => box.click())")
        browser.evaluate(HOVER)
        browser.wait_for("document.getElementById('vg-tooltip-element') !== null")
        assert browser.evaluate("'hacked' in window") is False
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a long word is broken"
        assert (
            browser.evaluate(
                "document.querySelectorAll('.details img, #vg-tooltip-element script, .details script').length"
            )
            == 0
        )
        assert clean(browser, path)


def test_without_javascript_all_is_there(page: Path) -> None:
    with Browser(javascript=False) as browser:
        browser.open(page)
        assert browser.evaluate(f"{VISIBLE}.length") == 10
        assert browser.evaluate("document.querySelectorAll('.chart > svg').length") == 7
        assert browser.evaluate("document.querySelectorAll('.details code').length") == 10
        assert browser.evaluate("getComputedStyle(document.getElementById('filtering')).display") == "none"
        assert browser.evaluate("getComputedStyle(document.querySelector('#c0 .more')).display") == "none"
        browser.evaluate("document.querySelector('#c0 input').click()")
        assert browser.evaluate("getComputedStyle(document.querySelector('#c0 .more')).display") == "table-row"
        assert clean(browser, page)


def test_dark_pages_have_light_text_in_charts(page: Path) -> None:
    with Browser(dark=True) as browser:
        browser.open(page)
        colour = browser.evaluate("getComputedStyle(document.querySelector('.chart text')).fill")
        assert min(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")) > 120


PAPER = 1046
"""Pixels (96 to an inch) across A4 laid sideways, without its margins of 1 cm."""
CUT = f"""[...document.querySelectorAll("main *, header *")].filter((one) => {{
  const box = one.getBoundingClientRect();
  return box.width && box.height && !one.closest("svg svg") && (box.right > {PAPER} + 1 || box.left < -1);
}}).map((one) => `${{one.tagName}} ${{one.className?.baseVal ?? one.className}} ${{one.closest("section")?.id}}`)"""
HIDDEN = """[...document.querySelectorAll("main .scroll, main .chart")]
  .filter((one) => one.scrollHeight > one.clientHeight + 1 && getComputedStyle(one).overflowY !== "visible")
  .map((one) => one.className)"""


@pytest.mark.slow
def test_on_paper_all_charts_and_the_whole_table_are_there(large_page: str, tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    path.write_text(large_page, encoding="utf-8")
    with Browser() as browser:
        browser.open(path)
        browser.printed(PAPER)
        assert (
            browser.evaluate("[...document.querySelectorAll('.chart')].filter((one) => !one.querySelector('svg'))")
            == []
        )
        assert browser.evaluate("document.querySelectorAll('.chart').length") >= 6
        assert browser.evaluate(CUT) == []
        assert browser.evaluate(HIDDEN) == []
        small = "parseFloat(getComputedStyle(document.querySelector('#table td')).fontSize)"
        assert browser.evaluate(small) >= 7, "a point is a pixel and a third: 5.3 points can still be read"
        label = "getComputedStyle(document.querySelector('#table tbody th'), '::after').content"
        browser.printed(700)  # browsers ask for another width than the paper's before they lay a page out on it
        assert browser.evaluate(label) == "none"
        browser.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {VISIBLE}.length; }})")
        assert browser.pdf().startswith(b"%PDF")
        assert browser.evaluate("window.printed") == 501
        assert browser.evaluate(f"{VISIBLE}.length") == PAGE


@pytest.mark.parametrize("width", [360, 500])
def test_a_narrow_window_scrolls_the_table_not_the_page(width: int, page: Path) -> None:
    with Browser(width=width) as browser:
        browser.open(page)
        draw_all(browser)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("javascript", [True, False])
def test_on_a_phone_the_first_chart_and_the_best_cells_are_whole(javascript: bool, page: Path) -> None:
    """Phones show no bar by which a reader would see that there is more."""
    with Browser(width=390, javascript=javascript) as browser:
        browser.open(page)
        if javascript:
            draw_all(browser)
        for place in ("#chart-cards", ".scroll:has(.best)"):
            whole = f"[...document.querySelectorAll('{place}')].map((one) => one.scrollWidth <= one.clientWidth)"
            assert browser.evaluate(whole) == [True], place


def test_on_a_phone_the_filters_are_folded(page: Path) -> None:
    """What they leave is told all the same."""
    with Browser(width=360) as browser:
        browser.open(page)
        assert browser.evaluate("document.querySelector('#filters select').checkVisibility()") is False
        assert browser.evaluate("document.getElementById('count').checkVisibility()") is True
        browser.evaluate("document.querySelector('#filtering summary').click()")
        assert browser.evaluate("document.querySelector('#filters select').checkVisibility()") is True


def test_on_a_phone_a_row_that_is_scrolled_sideways_says_which_cell_it_is(page: Path) -> None:
    said = "getComputedStyle(document.querySelector('#table tbody th'), '::after').content"
    for width, shown in ((360, True), (1280, False)):
        with Browser(width=width) as browser:
            browser.open(page)
            label = browser.evaluate("document.querySelector('#table tbody input').ariaLabel").removeprefix(
                "Details of "
            )
            assert browser.evaluate(said) == (f'"{label}"' if shown else "none")


@pytest.mark.slow
def test_five_hundred_cells_are_quick(large_page: str, tmp_path: Path) -> None:
    """Generous against a busy machine: what is meant is a second."""
    path = tmp_path / "large.html"
    path.write_text(large_page, encoding="utf-8")
    with Browser() as browser:
        assert browser.open(path) < 5000
        assert browser.evaluate(TIMED_SORT) < 2000
        assert browser.evaluate(f"{VISIBLE}.length") == PAGE
        browser.evaluate("document.querySelector('#beyond button').click()")
        assert browser.evaluate(f"{VISIBLE}.length") == 2 * PAGE
        last = f"{VISIBLE}[{2 * PAGE - 1}]"
        browser.evaluate(f"{last}.querySelector('input').click()")
        browser.wait_for(f"{last}.querySelector('.details code')?.textContent.startsWith('vrambench run') === true")
