"""`vrambench fit MODEL`: the usual recipes for a model on a card, or on several.

path, selection = named(text, selection)      what the positional argument of fit is
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vrambench.bench.commands.early import load
from vrambench.bench.commands.shared import (
    EXIT_DOES_NOT_FIT,
    Mistakes,
    end_progress,
    matrix_again,
    say_progress,
    stdout_kept_clean,
)
from vrambench.methods.called import card_called
from vrambench.methods.errors import ConfigurationError, did_you_mean, shown
from vrambench.methods.workload import AXIS_NAMES

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.predict.answer import Menu, MenuRow
    from vrambench.bench.predict.cache import Cache, Question


def named(text: str | None, selection: Selection) -> tuple[Path | None, Selection]:
    """The matrix file, and the selection with the model: what `text` is of the two. A file is a matrix, and so is what
    is called like one. Raises ConfigurationError where it is neither."""
    from vrambench.methods.models.presets import PRESETS, presets_like

    if text is None:
        return None, selection
    path = Path(text)
    is_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.suffix.startswith(".y")
    if (path.exists() and not path.is_dir()) or path.suffix in (".yaml", ".yml") or _blank(text, selection):
        return path, selection
    if not text or (text not in PRESETS and not path.is_dir() and not is_hub_id):
        raise ConfigurationError(
            f"{shown(text)} is neither a matrix (a YAML file) nor a model: a preset ({presets_like(text)}), a hub id or a folder "
            f"with config.json{did_you_mean(text, PRESETS)}",
            field="model",
        )
    if selection.model is not None:
        raise ConfigurationError(f"--model {selection.model}: the model is {shown(text)} already", field="model")
    return None, replace(selection, model=text)


def _blank(text: str, selection: Selection) -> bool:
    """Whether `--set batch_size 4` was typed, of which `load` says what was probably meant."""
    return any("=" not in one for one in (*selection.set, *selection.only))


def is_menu(text: str | None, selection: Selection) -> bool:
    """Whether recipes or several budgets are asked for, and not one cell, as a trainer's configuration is."""
    model = text is not None and selection.model == text and selection.config is None
    return (model and set(selection.axes) != set(AXIS_NAMES)) or "," in (selection.budget or "")


def _known(budget: str | None) -> str | None:
    """A card by its one name, whatever it was called."""
    card = card_called(budget)
    return card.name if card else budget


def print_menu(
    path: Path | None, selection: Selection, *, alloc_conf: str | None, strict: bool, as_json: bool, cache: Cache | None
) -> int:
    """Prints the menu; gives the exit code: 0 where something fits, even if tightly (not with `strict`), else 1."""
    budgets = [one.strip() for one in (selection.budget or "").split(",")] if selection.budget is not None else [None]
    if budgets == [""]:
        raise ConfigurationError("--budget '': names no size and no card", field="budget")
    if len({_known(one) for one in budgets}) < len(budgets) or "" in budgets:
        raise ConfigurationError(f"--budget {selection.budget}: name each once, with single commas", field="budget")
    chosen = {budget: replace(selection, budget=budget) for budget in budgets}
    matrices = _loaded(path, list(chosen.values()))
    config = matrices[0].config
    if config:
        axes = {axis: values[0].value for axis, values in matrices[0].top.axes.items()}
        chosen = {budget: replace(one, axes=axes | dict(one.axes)) for budget, one in chosen.items()}
    with stdout_kept_clean() as out:
        from vrambench.bench.predict.alloc_conf import read
        from vrambench.bench.predict.kept import about_menu, read_menu

        read(alloc_conf)
        asked = about_menu(matrices, selection, alloc_conf=alloc_conf)
        menu = read_menu(cache, asked) if cache else None
        menu = menu or _predicted(path, chosen, matrices, alloc_conf, cache, asked)
        if config:
            from vrambench.bench.plan.built import as_built

            config = as_built(config, [row.cell for row in menu.rows])
        if as_json:
            print(json.dumps(menu.document(selection.read_as, config.told() if config else None), indent=1), file=out)
        else:
            from vrambench.reports.text.config import print_config
            from vrambench.reports.text.menu import print_menu as print_rows

            if config:
                print_config(config, out)
            print_rows(menu, out)
    fits = any(row.forecast and (row.forecast.verdict == "fits" if strict else row.fits) for row in menu.rows)
    return 0 if fits else EXIT_DOES_NOT_FIT


def _loaded(path: Path | None, selections: Sequence[Selection]) -> list[Matrix]:
    """The matrix for each. Raises Mistakes with every line about any of them."""
    matrices: list[Matrix] = []
    messages: list[str] = []
    for one in selections:
        try:
            matrices.append(load(path, one, recipes=True))
        except Mistakes as error:
            messages += error.messages
    if messages:
        raise Mistakes(list(dict.fromkeys(messages)))
    return matrices


def _predicted(
    path: Path | None,
    chosen: Mapping[str | None, Selection],
    matrices: Sequence[Matrix],
    alloc_conf: str | None,
    cache: Cache | None,
    asked: Question,
) -> Menu:
    """The menu anew, kept in `cache` as the answer to what is `asked`. `chosen`: by budget; `path`: of the matrices."""
    with ExitStack() as stack:
        from vrambench.bench.predict.many import end, new_pool
        from vrambench.bench.predict.quiet import hush
        from vrambench.bench.processes import fresh_start

        hush()
        stack.enter_context(fresh_start())
        config = matrices[0].config
        left_out = config.left_out if config else ()
        pool = None
        if config is None:  # of one there is one cell, and its budgets share a simulation
            pool = new_pool(1, alloc_conf, left_out, cache)
            stack.callback(end, pool)
            pool.submit(int)  # its imports, while those of this process are made

        from vrambench.bench.predict.answer import Menu
        from vrambench.bench.predict.forecast import Predictor
        from vrambench.bench.predict.kept import write_menu
        from vrambench.bench.predict.menu import plan_menu, predict_menu
        from vrambench.methods.models.config import model_config

        selection = next(iter(chosen.values()))
        if selection.model is not None:
            model_config(selection.model, field="model")  # what cannot be read is said once, and not by every row
        planned = {}
        for matrix, (budget, one) in zip(matrices, chosen.items(), strict=True):
            file, default = matrix_again(matrix, path)
            planned[budget] = plan_menu(matrix, one, file=file, default=default)

        def tell(row: MenuRow, done: int, total: int) -> None:
            where = f" on {row.budget}" if len(chosen) > 1 else ""
            verdict = row.forecast.verdict if row.forecast else "not predicted"
            say_progress(f"{done} of {total}: {row.title}{where}: {verdict}")

        try:
            rows = predict_menu(planned, Predictor(alloc_conf, left_out, cache), pool, tell)
        finally:
            end_progress()
        unsaid = "budget" not in selection.settings()
        menu = Menu(tuple(rows), matrices[0].name if unsaid else None)
        if cache:
            write_menu(cache, asked, menu, {name: one.value for name, one in selection.settings().items()})
        return menu
