"""What a report takes: seconds to write it, and until a browser has run its scripts, for 500 and 5,000 cells.

    make benchmark ARGS="-k report -s"

The cells are copies of measured ones with ids and seeds of their own. Meant are a second for 500 cells, three for 5,000.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.reports.browser import CHROMIUM, Browser
from vrambench.bench.commands.report import write_report

MEASURED = Path(__file__).parents[2] / "results" / "nvidia-h200" / "measured"


def copied(folder: Path, count: int) -> Path:
    """A run folder of `count` cells."""
    info = json.loads((MEASURED / "run.json").read_text())
    planned = info["cells"]
    info["cells"] = []
    (folder / "cells").mkdir(parents=True)
    for number in range(count):
        cell = planned[number % len(planned)]
        result = json.loads((MEASURED / "cells" / f"{cell['id']}.json").read_text())
        seed = number // len(planned)
        changed = {"id": f"{number:012x}", "name": f"{cell['name']} seed={seed}"}
        info["cells"].append(cell | changed | {"seed": seed})
        written = result | changed | {"cell": result["cell"] | {"seed": seed}}
        (folder / "cells" / f"{number:012x}.json").write_text(json.dumps(written))
    (folder / "run.json").write_text(json.dumps(info))
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("count", [500, 5000])
def test_seconds_of_a_report(count: int, benchmark: Any, tmp_path: Path) -> None:
    folder, out = copied(tmp_path / "run", count), tmp_path / "report.html"
    before = os.times()
    benchmark.pedantic(lambda: write_report([folder], out), rounds=1, iterations=1)
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    with Browser() as browser:
        opened = min(browser.open(out) for _ in range(3)) / 1000
    megabytes = out.stat().st_size / 1e6
    benchmark.extra_info |= {"opened_seconds": opened, "megabytes": megabytes, "cpu_seconds": busy}
    print(f"\n{count} cells: {busy:.1f} CPU s to write, {megabytes:.2f} MB, {opened:.2f} s to open")
