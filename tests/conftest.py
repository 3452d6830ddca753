"""What tests all over the tree share."""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import importlib.util
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "tests", derandomize=True, deadline=None
)  # the same on every machine, however busy
hypothesis.settings.load_profile("tests")

# pytest, Rich and Typer print otherwise where these are set: tests see one form everywhere.
for _name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "FORCE_COLOR", "NO_COLOR", "COLUMNS"):
    os.environ.pop(_name, None)

sys.dont_write_bytecode = False
"""Containers often set PYTHONDONTWRITEBYTECODE. To rewrite and compile every test file anew takes each process 10 s of a CPU."""

_NUMBERS = itertools.count()
ROOT = Path(__file__).resolve().parents[1]
MANY_MODULES = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="files, and the tests in each, in an order made from SEED"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with many tests come first, so that of several processes none has much left when the others are done; with
    --shuffle, any. A file's tests stay together, since what its fixtures hold is made anew for each run of them."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    groups = list(files.values())
    seed = config.getoption("shuffle")
    if seed is None:
        groups.sort(key=len, reverse=True)
    else:
        chance = random.Random(seed)
        chance.shuffle(groups)
        for group in groups:
            chance.shuffle(group)
    items[:] = itertools.chain.from_iterable(groups)


class _Permanent:
    """What collections leave out. Every job and every trace collects first, and libraries are 0.3 s of looking each time."""

    def __init__(self) -> None:
        self._modules = 0

    def settle(self) -> None:
        """All that is there from now on, garbage excepted."""
        gc.collect()
        gc.freeze()
        self._modules = len(sys.modules)

    def settle_imported(self) -> None:
        """And what has been imported since, if that was much."""
        if len(sys.modules) > self._modules + MANY_MODULES:
            self.settle()


@pytest.fixture(scope="session")
def _permanent() -> _Permanent:
    return _Permanent()


@pytest.fixture(scope="module", autouse=True)
def _left_out_of_collections(_permanent: _Permanent) -> None:
    """What is there before a file's tests: libraries, and thousands of tests."""
    _permanent.settle()


@pytest.fixture(autouse=True)
def _imported_left_out_of_collections(_permanent: _Permanent) -> None:
    """What the tests before have imported."""
    _permanent.settle_imported()


@pytest.fixture(scope="module", autouse=True)
def _products_are_quick() -> Iterator[None]:
    """In files whose tests multiply."""
    if "torch" not in sys.modules:
        yield
        return
    from tests.products import quick_products

    with quick_products():
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> None:
    """By the processes that tests start, and end so: those of a shell's background job ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> Iterator[None]:
    """In the processes that tests start: two threads on two busy cores wait for each other for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_once() -> Iterator[None]:
    """By the first of the processes that tests start: each would compile all our files, 0.7 s of a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each test's predictions are its own, and none is the user's."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{next(_NUMBERS)}"  # made once something is kept
    monkeypatch.setenv("VRAMBENCH_CACHE", str(folder))


@pytest.fixture(scope="session")
def _drawer() -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """As `drawing.ask`, of one process for all tests, which is started for the first. An error is told by a process of its own."""
    from vrambench.reports.page import drawing

    code, alone = drawing.CODE, drawing.ask
    started: list[subprocess.Popen[str]] = []

    def ask(line: str) -> subprocess.CompletedProcess[str]:
        if code != drawing.CODE:  # a test's
            return alone(line)
        if not started:
            words, pipe = [sys.executable, "-P", "-c", code], subprocess.PIPE
            started.append(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True))
        drawer = started[-1]
        assert drawer.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=drawer.stdin, flush=True)
            if answer := drawer.stdout.readline():
                return subprocess.CompletedProcess(drawer.args, 0, answer, "")
        started.pop().communicate()
        return alone(line)

    yield ask
    for drawer in started:
        drawer.communicate()


@pytest.fixture(scope="module", autouse=True)
def drawn_by_one_process(_drawer: Callable[[str], subprocess.CompletedProcess[str]]) -> Iterator[None]:
    """What tests draw in their own process: to start vl-convert's JavaScript for each report takes 0.5 s of a CPU."""
    from vrambench.reports.page import drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "ask", _drawer)
        yield


@pytest.fixture
def packed(_own_cache: None) -> None:
    """What draws reports is packed for the processes that a test starts: each would pack it anew, for 2 s of a CPU."""
    from vrambench.reports.page import drawing

    drawing.keep(drawing.bundle())


@pytest.fixture(autouse=True)
def _own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test imports from a folder of its own, no later test finds: whoever once looked for a user's module there goes on
    looking, and so do the processes that he starts."""
    yield
    made = str(tmp_path_factory.getbasetemp())
    if any(entry.startswith(made) for entry in sys.path):
        sys.path[:] = [entry for entry in sys.path if not entry.startswith(made)]
        own = [name for name, one in sys.modules.items() if str(getattr(one, "__file__", "")).startswith(made)]
        for name in own:
            del sys.modules[name]


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Loads a script of the repository, by its path there, as a module."""

    def load(path: str) -> ModuleType:
        name = "vrambench_" + path.removesuffix(".py").replace("/", "_")
        loader = importlib.machinery.SourceFileLoader(name, str(ROOT / path))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        loader.exec_module(module)
        return module

    return load
