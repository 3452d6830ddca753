"""The pages' parts that come from the code: tables in config.md, schema/, and what the examples of README.md and docs/*.md print.

    .venv/bin/python docs/pages.py                 writes config.md's tables and the JSON Schemas in schema/
    .venv/bin/python docs/pages.py --examples      and runs the examples, whose output it writes into the pages

A table stands between `<!-- NAME -->` and `<!-- end -->`. An example is a console block: a command after `$`, and what it prints. A
first or last line `...` stands for what is left out: of the rest as many lines are shown as the page has.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrambench.bench.gate.baseline import Baseline
from vrambench.bench.gate.check import Check
from vrambench.bench.plan.told import PlanTold
from vrambench.bench.plan.validity import RULES
from vrambench.bench.predict.answer import FitTold, MenuTold
from vrambench.bench.results.records import Result
from vrambench.bench.results.run_info import RunInfo
from vrambench.methods.axes import AXES
from vrambench.methods.cards import CARDS
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.registry import AxisValue
from vrambench.methods.workload import FIELDS, Workload
from vrambench.reports.text.lists import default, described

ROOT = Path(__file__).resolve().parents[1]
DOCS = (
    "questions",
    "fit",
    "explain",
    "config-files",
    "recipes",
    "run",
    "report",
    "numbers",
    "config",
    "gate",
    "own-code",
    "gpu",
)
PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in DOCS)))
CONFIG = ROOT / "docs" / "config.md"
MAIN = "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"


@dataclass(frozen=True)
class Example:
    """A command of a page, on one line and without its comment, and the lines below it."""

    command: str
    output: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command, comments=True)

    @property
    def is_ours(self) -> bool:
        """Whether it calls vrambench."""
        return Path(self.words[0]).name == "vrambench"

    @property
    def repeats(self) -> bool:
        """Whether it prints the same wherever it is run: predictions and plans do, but for how long they took."""
        return self.is_ours and self.words[1] in ("fit", "plan")


def blocks(text: str, language: str) -> Iterator[str]:
    """What stands in the page's fenced blocks of a language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def examples(text: str) -> Iterator[Example]:
    """The examples of a page."""
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = re.sub(r" *\\\n *", " ", part).partition("\n")
            yield Example(command, tuple(output.splitlines()))


def run(example: Example, folder: Path) -> list[str]:
    """What an example prints in `folder`: stderr where it is a mistake, else stdout; without trailing blanks."""
    command = [sys.executable, "-P", "-c", MAIN, *example.words[1:]]
    environment = os.environ | {"COLUMNS": "132"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=errors, timeout=600).returncode
        said = errors if code == 2 else out
        said.seek(0)
        text = said.read()
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@contextlib.contextmanager
def playground() -> Iterator[Path]:
    """A folder in which examples run: with matrix.yaml, tests, and the files that pages show."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for linked in ("matrix.yaml", "tests"):
            (folder / linked).symlink_to(ROOT / linked)
        for page in PAGES:
            for language in ("python", "yaml"):
                for block in blocks(page.read_text(), language):
                    titled = re.match(r"# (\S+\.(?:py|yaml))\n", block)
                    if titled:
                        (folder / titled[1]).write_text(block)
        yield folder


def cut(printed: Sequence[str], shown: Sequence[str]) -> list[str]:
    """Of what was printed as much as the page shows."""
    if shown[0] == "...":
        return ["...", *printed[len(printed) - len(shown) + 1 :]]
    if shown[-1] == "...":
        return [*printed[: len(shown) - 1], "..."]
    return list(printed)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def axes() -> str:
    rows = []
    for axis, registry in AXES.items():
        for name, value in registry.values().items():
            runs = f"; on CUDA alone ({value.cuda_only})" if value.cuda_only else ""
            options = f"`{value.options.namespace}`" if value.options else ""
            rows.append([axis, f"`{name}`", value.summary + runs, options])
    each = "Each optimizer is also `NAME_layerwise`: a parameter steps as soon as its gradient is there, which frees the gradient."
    return table(("axis", "value", "what it is", "options"), rows) + f"\n\n{each}"


def users(uses: Callable[[AxisValue], bool]) -> str:
    """The built-in values that use something, by axis."""
    found = {
        axis: [name for name, value in registry.values().items() if uses(value)] for axis, registry in AXES.items()
    }
    return "; ".join(f"{axis} {', '.join(names)}" for axis, names in found.items() if names)


def fields() -> str:
    rows = [
        [f"`{name}`", default(Workload, name), users(lambda value, name=name: name in value.fields) or "all", said]  # type: ignore[misc]
        for name in FIELDS
        if (said := described(Workload, name))
    ]
    return table(("field", "default", "used by", "meaning"), rows)


def options() -> str:
    """A table for each namespace."""
    kinds = {value.options: None for registry in AXES.values() for value in registry.values().values() if value.options}
    tables = []
    for kind in kinds:
        rows = [
            [f"`{kind.namespace}.{name}`", default(kind, name), described(kind, name)] for name in kind.model_fields
        ]
        used = users(lambda value, kind=kind: value.options is kind)  # type: ignore[misc]
        words = table(("option", "default", "meaning"), rows) if rows else f"`{kind.namespace}`: {inspect.getdoc(kind)}"
        tables.append(f"Of {used}:\n\n{words}")
    return "\n\n".join(tables)


def rules() -> str:
    return table(("rule", "kind", "reason"), [[f"`{rule.id}`", rule.kind, rule.reason] for rule in RULES])


def models() -> str:
    rows = [
        [f"`{name}`", one.architecture, one.published or "ours, for tests and smoke runs", one.read or ""]
        for name, one in PRESETS.items()
    ]
    return table(("preset", "model type", "whose shape it is", "read"), rows)


def cards() -> str:
    def size(nbytes: int | None, unit: int, digits: int) -> str:
        return "" if nbytes is None else f"{nbytes / unit:.{digits}f}"

    rows = []
    for card in CARDS.values():
        low, high = card.outside_bytes or (None, None)
        outside = "" if low is None else f"{size(low, 2**20, 0)} to {size(high, 2**20, 0)}"
        capability = ".".join(map(str, card.capability))
        rows.append([f"`{card.name}`", capability, size(card.usable_bytes, 2**30, 2), outside, card.source])
    return table(("card", "compute capability", "usable, GiB", "outside the allocator, MiB", "source"), rows)


TABLES = {"axes": axes, "fields": fields, "options": options, "rules": rules, "models": models, "cards": cards}


SCHEMAS = {
    **{"result": Result, "run": RunInfo, "baseline": Baseline, "check": Check},
    **{"plan": PlanTold, "fit": FitTold, "menu": MenuTold},
}
"""What is written or printed as JSON, and the record behind it."""


def schema(name: str) -> str:
    """The JSON Schema of one of them, as docs/schema holds it."""
    told = SCHEMAS[name].model_json_schema(mode="serialization" if name == "check" else "validation")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | told, indent=1) + "\n"


def with_tables(text: str) -> str:
    """The page with its tables as the code has them."""

    def written(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", written, text, flags=re.S)


def with_output(text: str, folder: Path) -> str:
    """The page with what its examples print now, those that print the same wherever they are run."""
    for example in examples(text):
        if example.output and example.repeats:
            print(example.command, flush=True)
            shown, now = "\n".join(example.output), "\n".join(cut(run(example, folder), example.output))
            text = text.replace(f"\n{shown}\n```", f"\n{now}\n```")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the pages' parts that come from the code.")
    parser.add_argument("--examples", action="store_true", help="run the examples, and write what they print")
    chosen = parser.parse_args()
    CONFIG.write_text(with_tables(CONFIG.read_text()))
    for name in SCHEMAS:
        (ROOT / "docs" / "schema" / f"{name}.json").write_text(schema(name))
    if chosen.examples:
        with playground() as folder:
            for page in PAGES:
                page.write_text(with_output(page.read_text(), folder))


if __name__ == "__main__":
    main()
