"""README.md, CONTRIBUTING.md and docs: every command is one that would run, every link and file is there, tables are the code's,
and examples print what the pages say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pages
import pytest
import typer
from pages import PAGES, Example, blocks, cut, examples, playground, run, with_tables

import vrambench
from vrambench.bench.commands.app import command_line, main
from vrambench.methods.cell import option_namespaces
from vrambench.methods.workload import Workload
from vrambench.reports.text.lists import LISTS, described

ROOT = Path(__file__).parents[1]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
LINKED = TEXTS | {f"docs/{name}.md": (ROOT / "docs" / f"{name}.md").read_text() for name in ("accuracy", "claims")}
EXAMPLES = [
    pytest.param(one, id=f"{name}: {one.command[:60]}") for name, text in TEXTS.items() for one in examples(text)
]
PRINTING = [
    pytest.param(one, id=f"{name}: {one.command[:60]}")
    for name, text in TEXTS.items()
    for one in examples(text)
    if one.output and one.repeats
]
INLINE = [
    (name, command)
    for name, text in TEXTS.items()
    for command in re.findall(r"(?<!`)`((?:vrambench|make|pytest|tests/gpu/\w+(?:\.py)?) [^`]+)`", text)
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with playground() as made:
        yield made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where predictions of all examples are kept, as a reader has it who tries one after the other."""
    return tmp_path_factory.mktemp("cache")


def check(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the command could be run as it stands, in `folder`."""
    example = Example(command, ())
    first, *rest = example.words
    name = Path(first).name
    if example.is_ours:
        monkeypatch.chdir(folder)
        check_ours(rest)
    elif name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif first == "tests/gpu/run":
        done = subprocess.run(
            [sys.executable, ROOT / first, *rest, "--plan"], capture_output=True, text=True, cwd=folder
        )
        assert done.returncode == 0, done.stderr
    elif name in ("python", "pytest") or (ROOT / first).is_file():
        named = [word for word in [first, *rest] if re.match(r"(bench|docs|methods|reports|tests)/", word)]
        assert [word for word in named if not (ROOT / word.partition("::")[0]).exists()] == []
        assert named or rest[:2] == ["-m", "pytest"]
    else:
        assert name in ("git", "cd", "tar"), f"what is {name}?"


SAID_TO_IT = ("device", "predict", "no_cache", "sort", "as_json")
"""Options of the command itself, which the planning of its cells is not given."""


def check_ours(words: list[str]) -> None:
    """That each option is known and has a value of its kind, and that the selectors come to cells."""
    commands: Any = typer.main.get_command(command_line())
    assert words[0] in commands.commands, words
    if words[0] == "list":
        assert words[1] in LISTS
    context = commands.commands[words[0]].make_context(words[0], words[1:])
    planning = {one.name: one for one in commands.commands["plan"].params}
    typed = []
    for name, value in context.params.items():
        if value is not None and name in planning and name not in SAID_TO_IT:
            option = [] if name == "matrix" else [planning[name].opts[0]]
            for one in value if isinstance(value, list | tuple) else [value]:
                typed += [*option, str(one)]
    if not typed:  # a folder, or whatever a matrix holds
        return
    device = context.params.get("device") or ("cpu" if "smoke" in words else "cuda")
    planned = "cuda" if device in ("auto", "predicted") else device
    assert main(["plan", *typed, "--device", planned, "--no-predict", "--json"]) == 0


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_command_in_a_block_would_run(
    example: Example, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if example.output[:1] and example.output[0].startswith("error: "):
        monkeypatch.chdir(folder)
        assert main(example.words[1:]) == 2
        assert capsys.readouterr().err.splitlines() == list(example.output)
    else:
        check(example.command, folder, monkeypatch)


@pytest.mark.parametrize(("page", "command"), INLINE)
def test_a_command_in_a_sentence_would_run(
    page: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(command, folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("example", PRINTING)
def test_an_example_prints_what_the_page_shows(
    example: Example, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it prints depends on these versions alone; where it is another, `python docs/pages.py --examples` writes it."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split())
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        if version(name).partition("+")[0] != pins[name]:
            pytest.skip(f"{name} {version(name)} is not the pinned one")
    monkeypatch.setenv("VRAMBENCH_CACHE", str(cache))
    printed = in_this_process(example, folder, monkeypatch, capfd)
    assert timeless(cut(printed, example.output)) == timeless(list(example.output))


@pytest.mark.parametrize(
    "example", [one for one in PRINTING if {"smoke", "gradient_checkpoint=true"} & set(one.values[0].words)]
)
def test_in_a_process_of_its_own_it_prints_the_same(example: Example, folder: Path) -> None:
    """As `docs/pages.py --examples` runs it: what it answers, or what is wrong with it."""
    assert cut(run(example, folder), example.output) == list(example.output)


def in_this_process(
    example: Example, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> list[str]:
    """What `pages.run` gives, without a process that imports all anew."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "132")
    capfd.readouterr()
    code = main(example.words[1:])
    out, errors = capfd.readouterr()
    return [line.rstrip() for line in (errors if code == 2 else out).strip("\n").splitlines()]


def timeless(lines: list[str]) -> list[str]:
    return [re.sub(r"predicted in .+? after", "predicted in a while after", line) for line in lines]


def test_python_on_the_pages_uses_public_names() -> None:
    code = [block for text in TEXTS.values() for block in blocks(text, "python")]
    assert len([block for block in code if "import vrambench" in block]) == 3
    for block in code:
        compile(block, "page", "exec")
        for name in re.findall(r"vrambench\.(\w+)", block):
            assert hasattr(vrambench, name), name


def test_tables_are_as_the_code_has_them() -> None:
    """Else `.venv/bin/python docs/pages.py` writes them."""
    text = TEXTS["docs/config.md"]
    assert sorted(re.findall(r"<!-- (\w+) -->\n\S", text)) == sorted(pages.TABLES)
    assert with_tables(text) == text


def test_every_field_and_option_has_a_sentence() -> None:
    for kind in (Workload, *option_namespaces().values()):
        for name in kind.model_fields:
            assert described(kind, name).endswith("."), f"{kind.__name__}.{name}"


def anchors(text: str) -> set[str]:
    """A page's headings, as GitHub names them in addresses."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", LINKED[page]):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_are_named_are_there(page: str) -> None:
    """In sentences and in tables; <gpu>, * and {a,b} stand for any."""
    text = re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.M | re.S)
    for name in re.findall(r"`((?:bench|docs|methods|reports|results|tests)/[\w./<>*-]*)`", text):
        pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
        assert list(ROOT.glob(pattern)), name
