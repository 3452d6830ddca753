"""The page's views, top to bottom. Each is a file of this folder, which ends in its `VIEW`: adding one is a file and its line here
(and a template, where it is not charts)."""

from __future__ import annotations

from importlib import import_module

from vrambench.reports.page.view import View

ORDER = (
    "verdict",
    "changes",
    "pairs",
    "cells",
    "tradeoff",
    "heatmap",
    "ledger",
    "timeline",
    "learning",
    "equal_work",
    "claims",
    "environment",
)

VIEWS: tuple[View, ...] = tuple(import_module(f"{__name__}.{name}").VIEW for name in ORDER)
