"""`vrambench fit MODEL`: the usual recipes for a model on a card, or on several.

path, selection = named(text, selection)      what the positional argument of fit is
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vrambench.bench.commands.early import load
from vrambench.bench.commands.shared import EXIT_DOES_NOT_FIT, say_how_many, stdout_kept_clean
from vrambench.methods.cards import card_called
from vrambench.methods.errors import ConfigurationError, did_you_mean, shown
from vrambench.methods.workload import AXIS_NAMES

if TYPE_CHECKING:
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.predict.cache import Cache


def named(text: str | None, selection: Selection) -> tuple[Path | None, Selection]:
    """The matrix file, and the selection with the model: what `text` is of the two. A file is a matrix, and so is what
    is called like one. Raises ConfigurationError where it is neither."""
    from vrambench.methods.models.presets import PRESETS

    if text is None:
        return None, selection
    path = Path(text)
    is_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.suffix.startswith(".y")
    if (path.exists() and not path.is_dir()) or path.suffix in (".yaml", ".yml") or _blank(text, selection):
        return path, selection
    if text not in PRESETS and not path.is_dir() and not is_hub_id:
        raise ConfigurationError(
            f"{shown(text)} is neither a matrix (a YAML file) nor a model (a preset, a hub id or a folder with config.json)"
            f"{did_you_mean(text, PRESETS)}",
            field="model",
        )
    if selection.model is not None:
        raise ConfigurationError(f"--model {selection.model}: the model is {shown(text)} already", field="model")
    return None, replace(selection, model=text)


def _blank(text: str, selection: Selection) -> bool:
    """Whether `--set batch_size 4` was typed, of which `load` says what was probably meant."""
    return any("=" not in one for one in (*selection.set, *selection.only))


def is_menu(text: str | None, selection: Selection) -> bool:
    """Whether recipes or several budgets are asked for, and not one cell."""
    model = text is not None and selection.model == text
    return (model and set(selection.axes) != set(AXIS_NAMES)) or "," in (selection.budget or "")


def print_menu(
    path: Path | None, selection: Selection, *, alloc_conf: str | None, strict: bool, as_json: bool, cache: Cache | None
) -> int:
    """Prints the menu; gives the exit code: 0 where something fits, even if tightly (not with `strict`), else 1."""
    budgets = [one.strip() for one in (selection.budget or "").split(",")] if selection.budget else [None]
    if len(set(budgets)) < len(budgets) or "" in budgets:
        raise ConfigurationError(f"--budget {selection.budget}: name each once, with single commas", field="budget")
    matrices = [load(path, replace(selection, budget=budget)) for budget in budgets]
    with stdout_kept_clean() as out, ExitStack() as stack:
        from vrambench.bench.predict.many import end, new_pool
        from vrambench.bench.predict.quiet import hush
        from vrambench.bench.processes import fresh_start

        hush()
        stack.enter_context(fresh_start())
        pool = new_pool(1, alloc_conf, (), cache)
        stack.callback(end, pool)
        pool.submit(int)  # its imports, while those of this process are made

        from vrambench.bench.predict.fit import has_bf16
        from vrambench.bench.predict.forecast import Predictor
        from vrambench.bench.predict.menu import document, plan_menu, predict_menu
        from vrambench.methods.models.config import model_config

        if selection.model is not None:
            model_config(selection.model, field="model")  # what cannot be read is said once, and not by every row
        planned = {}
        for matrix, budget in zip(matrices, budgets, strict=True):
            chosen = replace(selection, budget=budget)
            planned[budget] = plan_menu(matrix, chosen, bf16=has_bf16(card_called(budget)))

        def tell(done: int, total: int) -> None:
            say_how_many(done, total, "answers")

        rows = predict_menu(planned, Predictor(alloc_conf, cache=cache), pool, tell)
        if as_json:
            print(json.dumps(document(rows) | {"read_as": list(selection.read_as)}, indent=1), file=out)
        else:
            from vrambench.reports.text.menu import print_menu as print_rows

            print_rows(rows, out)
    fits = any(row.forecast and (row.forecast.verdict == "fits" if strict else row.fits) for row in rows)
    return 0 if fits else EXIT_DOES_NOT_FIT
