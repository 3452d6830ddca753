"""Writes the pictures of the report that README shows, docs/report-*.webp, and docs/own-code-figure.webp: a ledger in a notebook.

    python docs/screenshots.py FOLDER         of the run in FOLDER, as `make run` leaves it on a machine without a GPU
    python docs/screenshots.py                of the ledger alone

Needs Chromium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from tests.reports.browser import Browser  # noqa: E402
from vrambench.bench.commands.report import with_beside, write_report  # noqa: E402

WIDTH = 1200
MOST_BYTES = 150_000
PICTURES = {"verdict": ("verdict", 452), "cells": ("cells", 627), "ledger": ("ledger", 750)}
"""By name: the section, and the pixels of it that are shown."""
DRAWN = "[...document.querySelectorAll('#{0} .chart')].slice(0, 1).every((chart) => 'living' in chart.dataset)"


def notebook() -> None:
    """A small Llama's training, watched without a GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import vrambench

    with vrambench.watch("24GiB", card="rtx-4090") as ledger:
        config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16)
        model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            ids = torch.randint(0, 512, (4, 256), device="cuda")
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with tempfile.TemporaryDirectory() as scratch, Browser(width=820, height=500) as browser:
        page = Path(scratch) / "ledger.html"
        page.write_text(
            f"<!doctype html><meta charset=utf-8><body style='font: 14px sans-serif'>{ledger._repr_html_()}"
        )
        browser.open(page)
        height = browser.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": 790, "height": height, "scale": 1}
        picture = browser.picture(format="webp", quality=82, clip=clip, captureBeyondViewport=True)
        (DOCS / "own-code-figure.webp").write_bytes(picture)


def report(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, Browser(width=WIDTH, height=1000) as browser:
        page = Path(scratch) / "report.html"
        write_report(with_beside([folder]), page)
        browser.open(page, "#sort=device")  # what takes least comes first in the table
        for name, (section, height) in PICTURES.items():
            browser.evaluate(f"document.getElementById('{section}').scrollIntoView({{ behavior: 'instant' }})")
            browser.wait_for(DRAWN.format(section))
            top = browser.evaluate(f"document.getElementById('{section}').getBoundingClientRect().top + scrollY")
            clip = {"x": 0, "y": top, "width": WIDTH, "height": height, "scale": 1}
            picture = browser.picture(format="webp", quality=82, clip=clip, captureBeyondViewport=True)
            assert len(picture) < MOST_BYTES, name
            (DOCS / f"report-{name}.webp").write_bytes(picture)


if __name__ == "__main__":
    notebook()
    for folder in sys.argv[1:]:
        report(Path(folder))
