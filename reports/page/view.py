"""What a view of the page is: its data, as records that can be looked at without rendering, and what renders them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vrambench.reports.page.charts import Chart
from vrambench.reports.report import Report


@dataclass(frozen=True)
class View:
    """`data` gives what `template`, a file in `templates/`, renders, or None where the report has nothing to show here."""

    id: str
    title: str
    template: str
    data: Callable[[Report], Any]


@dataclass(frozen=True)
class ChartsData:
    """A view that is charts, with what must be said beside them. Its template is `charts.html`. `text_id`: of the text's element,
    where the script says it anew for what is shown."""

    charts: tuple[Chart, ...]
    text: str = ""
    remarks: tuple[str, ...] = ()
    text_id: str = ""
