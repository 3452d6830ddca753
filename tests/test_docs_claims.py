"""docs/claims.py: the committed page has the rows of claims.yaml, what runs measured of them, and commands that would run."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import claims
import pages
import pytest
import typer
import yaml

from vrambench.bench.claims.answer import answer
from vrambench.bench.claims.cells import cells_of
from vrambench.bench.claims.file import load_claims
from vrambench.bench.commands.app import command_line
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.many import outcome

PAGE = claims.PAGE.read_text()


def columns(page: str) -> dict[str, list[str]]:
    """The table's cells by the claim's id."""
    found = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| [")]
    return {re.match(r"\[([^]]*)\]", line[0])[1]: line for line in found}  # type: ignore[index]


def test_the_committed_page_has_the_files_claims_and_what_was_measured() -> None:
    """It is written by `python docs/claims.py`: whoever changes claims writes it again."""
    rendered = claims.render(lambda cells: {})
    ours, theirs = columns(PAGE), columns(rendered)
    assert list(ours) == list(theirs)
    for name, line in theirs.items():
        assert ours[name][:2] == line[:2], name
        assert ours[name][3] == line[3], name

    def without_predictions(page: str) -> list[str]:
        parts = page.partition("## One by one")
        return [line for line in (parts[0].partition("## Verdicts")[0] + parts[2]).splitlines() if "redict" not in line]

    assert without_predictions(PAGE) == without_predictions(rendered)


def test_every_claim_of_the_page_has_a_verdict_or_says_why_not() -> None:
    details = {part.partition("\n")[0]: part for part in PAGE.split("\n### ")[1:]}
    for name, line in columns(PAGE).items():
        verdict = line[4]
        assert re.match(r"reproduced|partly|refuted|not measured here", verdict), name
        if verdict == "not measured here":
            last = details[name].rstrip().splitlines()[-1]
            assert re.search(
                r"[Nn]ot sure whether|run on a GPU does|[Tt]hey are|[Nn]o result|presets|[Cc]annot|eeds", last
            ), last


@pytest.mark.parametrize("name", ["weights-bytes-int8", "remax-memory-gpt2", "target-modules-llama"])
def test_the_page_has_todays_predictions(name: str) -> None:
    pins = dict(line.split("==") for line in (pages.ROOT / "constraints.txt").read_text().lower().split())
    for package in ("torch", "transformers", "peft", "bitsandbytes"):
        if version(package).partition("+")[0] != pins[package]:
            pytest.skip(f"{package} {version(package)} is not the pinned one")
    predictor = Predictor("")
    (one,) = answer(
        load_claims(claims.FILE).only([name]),
        claims.runs_in(claims.RESULTS),
        lambda cells: {cell.id: outcome(predictor, cell.flat(), None) for cell in cells},
    )
    assert claims.row(one) in PAGE.splitlines()


def test_commands_of_the_page_are_ours() -> None:
    commands: Any = typer.main.get_command(command_line())
    found = list(pages.examples(PAGE))
    assert len(found) > 3
    for example in found:
        first, *rest = example.words[1:]
        commands.commands[first].make_context(first, rest)


def test_the_pages_own_claim_can_be_run(tmp_path: Path) -> None:
    (block,) = pages.blocks(PAGE, "yaml")
    path = tmp_path / "claims.yaml"
    path.write_text(block)
    (claim,) = load_claims(path).claims.values()
    assert {name: cell.workload.gradient_checkpointing for name, (cell,) in cells_of(claim, claim.cells).items()} == {
        "whole": False,
        "less": True,
    }
    assert yaml.safe_load(block)["claims"]
