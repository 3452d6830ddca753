"""The cells as a data frame, Markdown, CSV and Parquet."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.reports import made
from tests.reports.test_pairs import folder_of
from vrambench.bench.commands.app import main
from vrambench.methods.errors import ConfigurationError
from vrambench.reports import tables
from vrambench.reports.report import Report

GIB = made.GIB


@pytest.fixture
def report() -> Report:
    return Report([made.run_of(made.one_of_each_status())])


def test_every_cell_is_a_line_with_numbers_as_stored(report: Report) -> None:
    found = tables.frame(report)
    assert list(found["status"]) == [row.status for row in report.rows]
    assert found["device_bytes"].dtype == "Int64"
    assert found["device_bytes"][0] == 12 * GIB
    assert found["device_bytes"][2] is pd.NA, "what is not known is not a number"
    assert (found["fits_12gb"][0], found["fits_16gb"][0]) == ("tight", "fits"), "of 12 GiB one is cached"
    assert found["reason"][3] == "int8-full: 8-bit weights cannot train"
    assert found["set.batch_size"][0] == 1
    assert found["command"][0].startswith("vrambench run --precision bf16 ")


def test_csv_and_parquet_read_back(report: Report, tmp_path: Path) -> None:
    found = tables.frame(report)
    again = pd.read_csv(io.StringIO(found.to_csv(index=False)))
    assert list(again["id"]) == list(found["id"])
    assert again["reserved_bytes"].iloc[0] == 11 * GIB
    pytest.importorskip("pyarrow")
    tables.write_parquet(report, tmp_path / "cells.parquet")
    assert pd.read_parquet(tmp_path / "cells.parquet")["device_bytes"].iloc[0] == 12 * GIB


def test_parquet_loads_as_a_data_set_of_several_runs(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    files = [str(tmp_path / "none.parquet"), str(tmp_path / "each.parquet")]
    forbidden = made.result("b1", cell=made.cell(precision="int8"), status="invalid", rule="int8-full", reason="no")
    tables.write_parquet(Report([made.run_of([forbidden])]), Path(files[0]))
    tables.write_parquet(report, Path(files[1]))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    kinds = {name: feature.dtype for name, feature in loaded.features.items()}
    assert set(kinds.values()) == {"large_string", "int64", "float64", "bool"}, "no column is of no type, or nested"
    assert {name for name, kind in kinds.items() if name.endswith("_bytes")} == {
        name for name, kind in kinds.items() if kind == "int64" and not name.startswith("set.")
    } - {"num_alloc_retries"}
    assert (kinds["train_tokens_per_second"], kinds["set.lora_alpha"]) == ("float64", "float64"), "whole or not"
    assert (kinds["set.batch_size"], kinds["set.gradient_checkpointing"]) == ("int64", "bool")
    assert (kinds["managed_bytes"], kinds["set.adamw.betas"]) == ("int64", "large_string")
    assert loaded["status"][:2] == ["invalid", "ok"]
    assert loaded["device_bytes"][:2] == [None, 12 * GIB]
    assert loaded["train_tokens_per_second"][1] == 1000.0


def test_without_pyarrow_parquet_is_one_sentence(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match="needs pyarrow, which is not installed; `pip install pyarrow`"):
        tables.write_parquet(report, tmp_path / "cells.parquet")


def test_markdown_holds_names_as_text() -> None:
    text = tables.markdown(Report([made.run_of([made.full("a1", name="a|b\nc"), made.full("a2", precision="nf4")])]))
    lines = text.splitlines()
    assert lines[0].startswith("Every cell: adapter lora, optimizer adamw_torch")
    assert lines[2].startswith("| cell | status | budget | headroom |")
    assert lines[4].startswith("| a\\|b c | ok | fits | +12 GiB |")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "one", [made.full("a1"), made.full("a2", seed=1)])
    return tmp_path


def test_the_command_writes_tables(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "one", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["report", "one", "-o", "cells.md"]) == 0
    assert capsys.readouterr().out == "wrote cells.md\n"
    assert Path("cells.md").read_text().startswith("Every cell: ")
    assert main(["report", "one", "--format", "table"]) == 0
    assert "2 cells: 2 ok" in capsys.readouterr().out
    assert main(["report", "one", "-o", "cells.md"]) == 2
    assert capsys.readouterr().err == (
        "error: -o cells.md: is there already, and is no report of ours; --force replaces it\n"
    )


def test_the_table_goes_on_with_what_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "one", "-o", "base.json"]) == 0
    assert main(["report", "one", "--format", "table", "--baseline", "base.json"]) == 0
    assert "2 cells: 2 as before" in capsys.readouterr().out
    assert main(["report", "one", "--format", "csv", "--baseline", "base.json"]) == 2
    assert capsys.readouterr().err == "error: --baseline: goes with one run, and --format html or table\n"
    assert main(["report", "one", "--baseline", "nowhere.json"]) == 3
