"""The pytest plugin: `@pytest.mark.limit_vram("24GiB")`, the fixture `vram`, and `--vram-results FOLDER`.

torch, and all else of vrambench, is imported when a test uses one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vrambench.bench.watch.ledger import Ledger, watch

MARK = "limit_vram"
LEDGER = pytest.StashKey["Ledger"]()
WATCHING = pytest.StashKey["watch"]()
TOLD = 'write @pytest.mark.limit_vram("24GiB"), with card="rtx-4090" where the size does not say which'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("vrambench").addoption(
        "--vram-results",
        metavar="FOLDER",
        type=Path,
        help="Store what the tests with limit_vram or vram take, as a run that `vrambench baseline` and `check` read.",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{MARK}(limit, card=None): fails where the test takes more of a GPU's memory than `limit`"
    )


@pytest.fixture
def vram(request: pytest.FixtureRequest) -> Ledger:
    """The ledger of the test's memory: `with vram.phase("learn")`; complete when the test has ended."""
    return request.node.stash[LEDGER]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """The test's fixtures are watched as well: they are where models are made."""
    mark = item.get_closest_marker(MARK)
    if mark is None and "vram" not in getattr(item, "fixturenames", ()):
        return (yield)
    watching = item.stash[WATCHING] = _watching(mark)
    item.stash[LEDGER] = watching.__enter__()
    try:
        return (yield)
    except BaseException as error:
        del item.stash[WATCHING]
        watching.__exit__(type(error), error, error.__traceback__)
        _store(item, item.stash[LEDGER], error)
        raise


def _watching(mark: pytest.Mark | None) -> watch:
    from vrambench.bench.watch.ledger import watch
    from vrambench.methods.errors import ConfigurationError, UnknownValue

    given = mark.kwargs if mark else {}
    for name in given:
        if name not in ("limit", "card"):
            pytest.fail(str(UnknownValue("limit_vram", name, ("limit", "card"))), pytrace=False)
    if mark and (len(mark.args) + ("limit" in given) != 1):
        pytest.fail(f"limit_vram takes one limit: {TOLD}", pytrace=False)
    limit = (mark.args or (given.get("limit"),))[0] if mark else None
    if mark and limit is None:
        pytest.fail(f"limit_vram: None limits nothing: {TOLD}", pytrace=False)
    try:
        return watch(limit, given.get("card"))
    except ConfigurationError as error:
        wrong = str(error)
    pytest.fail(f"limit_vram: {wrong}", pytrace=False)  # outside of the handler, whose error would be told as well


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    watching = item.stash.get(WATCHING, None)
    if watching is None:
        return (yield)
    del item.stash[WATCHING]
    ledger = item.stash[LEDGER]
    try:
        result = yield
    except BaseException as error:
        watching.__exit__(type(error), error, error.__traceback__)
        _store(item, ledger, error)
        raise
    watching.__exit__(None, None, None)
    if not ledger.used:
        item.warn(pytest.PytestWarning(f"{item.nodeid} used nothing on the device: there is nothing to limit"))
    _store(item, ledger)
    if not ledger.fits:
        pytest.fail(f"{item.nodeid} takes too much: {ledger}", pytrace=False)
    item.add_report_section("call", "vram", str(ledger))
    return result


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Where nothing was called (--setup-only), the watch ends here."""
    watching = item.stash.get(WATCHING, None)
    if watching is not None:
        del item.stash[WATCHING]
        watching.__exit__(None, None, None)


def _store(item: pytest.Item, ledger: Ledger, error: BaseException | None = None) -> None:
    """A test that was skipped, or fails as it is expected to, has no result; one that failed else has, and `check` fails by it."""
    folder = item.config.getoption("--vram-results")
    expected = isinstance(error, pytest.skip.Exception | pytest.xfail.Exception) or (
        error is not None and item.get_closest_marker("xfail") is not None
    )
    if folder is not None and (error or ledger.used) and not expected:
        from vrambench.bench.watch.stored import store

        store(folder, item.nodeid, ledger, error)


def pytest_sessionstart(session: pytest.Session) -> None:
    """What a run before left in the folder goes: a test that is gone has no result."""
    folder = session.config.getoption("--vram-results")
    if folder is not None and not hasattr(session.config, "workerinput"):
        from vrambench.bench.watch.stored import begin
        from vrambench.methods.errors import ConfigurationError

        try:
            begin(folder)
        except ConfigurationError as error:
            raise pytest.UsageError(str(error)) from None
