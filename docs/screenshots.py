"""Writes the pictures of the report that README shows: docs/report-*.webp.

    python docs/screenshots.py FOLDER         of the run in FOLDER, say one of `vrambench run --device predicted --profile 24gb`

Needs Chromium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from tests.reports.browser import Browser  # noqa: E402
from vrambench.bench.commands.report import write_report  # noqa: E402

WIDTH = 1200
MOST_BYTES = 150_000
PICTURES = {"verdict": ("verdict", 405), "cells": ("cells", 640), "ledger": ("ledger", 760)}
"""By name: the section, and the pixels of it that are shown."""
DRAWN = "[...document.querySelectorAll('#{0} .chart')].slice(0, 1).every((chart) => 'living' in chart.dataset)"


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, Browser(width=WIDTH, height=1000) as browser:
        page = Path(scratch) / "report.html"
        write_report([folder], page)
        browser.open(page)
        for name, (section, height) in PICTURES.items():
            browser.evaluate(f"document.getElementById('{section}').scrollIntoView({{ behavior: 'instant' }})")
            browser.wait_for(DRAWN.format(section))
            top = browser.evaluate(f"document.getElementById('{section}').getBoundingClientRect().top + scrollY")
            clip = {"x": 0, "y": top, "width": WIDTH, "height": height, "scale": 1}
            picture = browser.picture(format="webp", quality=82, clip=clip, captureBeyondViewport=True)
            assert len(picture) < MOST_BYTES, name
            (DOCS / f"report-{name}.webp").write_bytes(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
