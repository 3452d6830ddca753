"""The pytest plugin, in projects that never heard of vrambench: a small transformers model in a plain loop, without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pages
import pytest
import torch
from pages import blocks

from tests import forked
from vrambench.bench.gate.baseline import baseline_of, read_baseline, write_baseline
from vrambench.bench.gate.check import check
from vrambench.bench.results.store import RunFolder

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="predicted where there is no CUDA")

LOOP = """
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def model():
    config = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16)


def train(model, tokens):
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        ids = torch.randint(0, 512, (4, tokens), device="cuda")
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {loss.item():.3f}")
"""


THERE_ALREADY = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""pytest cannot rewrite the plugin's asserts where it is forked from what has imported vrambench; it has none."""


def ran(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_training.py").write_text(LOOP + tests)
    words = ["-m", "pytest", "--strict-markers", "-q", *options]
    if any(option.startswith("-n") for option in options):  # then pytest starts its own processes, and imports little
        return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    return forked.run([*words, *THERE_ALREADY], folder)


BROKEN = """
@pytest.fixture
def broken():
    raise ValueError("no such batch")
"""
PASSES = """
@pytest.mark.limit_vram("1GiB")
def test_training_fits(model, vram):
    with vram.phase("epoch"):
        train(model, 64)
"""


@pytest.mark.slow
def test_a_loop_passes_and_fails_by_its_limit_in_processes_whose_results_are_one_run(tmp_path: Path) -> None:
    found = ran(
        tmp_path,
        PASSES
        + """
@pytest.mark.limit_vram("530MiB")
class TestLong:
    @pytest.mark.parametrize("tokens", [8, 2048])
    def test_tokens(self, model, vram, tokens):
        with vram.phase("epoch"):
            train(model, tokens)
""",
        *("-n2", "--vram-results", "run"),
    )
    assert "1 failed, 2 passed" in found.stdout, found.stdout
    assert "over 530 MiB" in found.stdout
    assert "at the peak, in epoch" in found.stdout
    assert "LlamaForCausalLM activations" in found.stdout
    assert "test_training.py:" in found.stdout
    assert "loss nan" in found.stdout
    results = {result.name: result for result in RunFolder.open(tmp_path / "run").results()}
    ran_in_it = ["TestLong::test_tokens[2048]", "TestLong::test_tokens[8]", "test_training_fits"]
    assert sorted(results) == [f"test_training.py::{name}" for name in ran_in_it]
    peaks = {name: results[f"test_training.py::{name}"].memory.allocated_bytes or 0 for name in ran_in_it}
    assert peaks["TestLong::test_tokens[2048]"] > peaks["test_training_fits"] > peaks["TestLong::test_tokens[8]"] > 0


def test_a_test_that_uses_nothing_and_one_with_a_bad_limit_are_told(tmp_path: Path) -> None:
    found = ran(
        tmp_path,
        """
@pytest.mark.limit_vram("1GiB")
def test_nothing():
    pass


@pytest.mark.limit_vram("24GiBB")
def test_bad():
    pass


@pytest.mark.limit_vram(None)
def test_none():
    pass


@pytest.mark.limit_vram("1GiB", crd="rtx-3090")
def test_misspelt():
    pass
""",
    )
    assert "used nothing on the device" in found.stdout
    assert found.stdout.count("did you mean '24GiB'") == 1, "not as the error behind another"
    assert "During handling" not in found.stdout
    assert "limit_vram: None limits nothing: write @pytest.mark" in found.stdout
    assert "did you mean 'card'" in found.stdout
    assert "1 passed, 1 warning, 3 errors" in found.stdout


def test_results_are_a_run_that_baseline_and_check_read(tmp_path: Path) -> None:
    assert ran(tmp_path, PASSES, "--vram-results", "before").returncode == 0
    before = RunFolder.open(tmp_path / "before")
    assert [test.cell["budget"] for test in before.results()] == [2**30], "the test's limit"
    write_baseline(baseline_of(before), tmp_path / "baseline.json")
    baseline = read_baseline(tmp_path / "baseline.json")
    assert ran(tmp_path, PASSES, "--vram-results", "same").returncode == 0
    assert check(baseline, RunFolder.open(tmp_path / "same")).exit_code == 0
    assert ran(tmp_path, PASSES.replace("64", "96"), "--vram-results", "more").returncode == 0
    grown = check(baseline, RunFolder.open(tmp_path / "more"))
    assert grown.exit_code == 1
    assert [cell.name for cell in grown.of("regressed")] == ["test_training.py::test_training_fits"]


def test_a_test_that_ends_by_an_error_is_a_failure_of_the_run(tmp_path: Path) -> None:
    assert ran(tmp_path, PASSES, "--vram-results", "before").returncode == 0
    write_baseline(baseline_of(RunFolder.open(tmp_path / "before")), tmp_path / "baseline.json")
    in_its_call = PASSES.replace("train(model, 64)", "raise ValueError('no such batch')")
    in_its_fixture = PASSES.replace("(model, vram)", "(model, vram, broken)") + BROKEN
    for number, tests in enumerate((in_its_call, in_its_fixture)):
        assert ran(tmp_path, tests, "--vram-results", str(number)).returncode == 1
        checked = check(read_baseline(tmp_path / "baseline.json"), RunFolder.open(tmp_path / str(number)))
        assert checked.exit_code != 0
        (failed,) = checked.of("failed")
        assert "ValueError: no such batch" in (failed.reason or "")


def test_a_folder_that_cannot_be_is_told_by_its_option(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    assert "--vram-results: train.py cannot be made" in ran(tmp_path, PASSES, "--vram-results", "train.py").stderr


def test_a_test_that_is_skipped_or_fails_as_expected_has_no_result(tmp_path: Path) -> None:
    skipped, failing = (PASSES.replace("train(model, 64)", f"pytest.{name}('not here')") for name in ("skip", "xfail"))
    marked = PASSES.replace("train(model, 64)", "assert False").replace(
        "@pytest.mark.limit", "@pytest.mark.xfail\n@pytest.mark.limit"
    )
    assert "xfail" in marked
    for number, tests in enumerate((skipped, failing, marked)):
        assert ran(tmp_path, tests, "--vram-results", str(number)).returncode == 0
        assert list(RunFolder.open(tmp_path / str(number)).results()) == []


def test_a_test_that_is_only_set_up_leaves_no_watch_open(tmp_path: Path) -> None:
    done = ran(tmp_path, PASSES + PASSES.replace("test_training_fits", "test_it_again"), "--setup-only")
    assert done.returncode == 0, done.stdout


def test_a_run_of_cells_is_not_overwritten(tmp_path: Path) -> None:
    ran(tmp_path, PASSES, "--vram-results", "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"profile": "pytest"', '"profile": "24gb"'))
    found = ran(tmp_path, PASSES, "--vram-results", "run")
    assert "holds a run of cells; name another folder" in found.stderr
    assert list((tmp_path / "run" / "cells").glob("*.json"))


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    (example, *_) = blocks((pages.ROOT / "docs" / "own-code.md").read_text(), "python")
    (tmp_path / "test_training.py").write_text(example)
    found = forked.run(["-m", "pytest", "-q", "-rA", *THERE_ALREADY], tmp_path)
    assert "1 passed" in found.stdout, found.stdout
    assert "within 1 GiB" in found.stdout
