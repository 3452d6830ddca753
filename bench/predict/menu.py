"""The usual recipes for one model on one card or on several: which fit, and how far each goes.

    planned = plan_menu(matrix, selection)                         a PlannedRow for each recipe and algorithm
    rows = predict_menu({"rtx-4090": planned}, predictor, pool)    and what is predicted of each

The largest values are those of `--max`. One half of the work is done in a process of its own.
"""

from __future__ import annotations

import gc
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from vrambench.bench.plan.combinations import all_named, combinations
from vrambench.bench.plan.matrix import Level, Matrix, Setting, unflatten
from vrambench.bench.plan.names import check_names
from vrambench.bench.plan.plan import PlannedCell, by_preset, resolved
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.shortest import shortest
from vrambench.bench.plan.used import check_used
from vrambench.bench.plan.validity import check
from vrambench.bench.predict.answer import AS_NAMED, Maximum, MenuRow
from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.many import frozen, predictor_here, why
from vrambench.bench.predict.reach import integer_fields, largest
from vrambench.bench.predict.recipes import RECIPES, Recipe, asked
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.called import card_called
from vrambench.methods.cards import CARDS
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import AXIS_NAMES

if TYPE_CHECKING:
    from vrambench.bench.predict.forecast import Predictor


@dataclass(frozen=True)
class PlannedRow:
    """One recipe with an algorithm. `command`: the shortest one that gives the cell again; `source`: see Recipe."""

    recipe: str
    source: str | None
    planned: PlannedCell
    command: str


def plan_menu(
    matrix: Matrix, selection: Selection, *, file: Sequence[str] = (), default: Matrix | None = None
) -> list[PlannedRow]:
    """The recipes that the selection leaves, by its algorithms (sft where it names none), each a cell of the matrix' workload (with
    that of the profile that CUDA takes), over which lies what the recipe sets, over which lies what was said. Of a cell there
    is one row. `file`: the matrix' own, which commands name where it is not the default one; `default`: that, where `matrix` is
    made of another tool's configuration. Raises ConfigurationError as `select` does."""
    if selection.only:
        raise ConfigurationError(
            f"--only {selection.only[0]}: recipes are narrowed by an axis' name, as in --precision nf4"
        )
    profile = selection.profile or matrix.default_profile.get("cuda")
    layer = matrix.layer(profile)
    for name in layer.sweep or {}:
        if name not in selection.settings():
            raise ConfigurationError(
                f"{name}: the matrix sweeps it; choose one value, as in --set {name}=VALUE", field=name
            )
    rows: dict[str, PlannedRow] = {}
    for recipe, algorithm in _recipes(selection):
        planned = _planned(matrix, selection, profile, recipe, algorithm)
        if planned.id not in rows:
            words = shortest(planned.cell, default or matrix, profile=selection.profile)
            command = shlex.join(["vrambench", "fit", *file, *words])
            rows[planned.id] = PlannedRow(recipe.name, recipe.source or None, planned, command)
    if not rows:
        raise ConfigurationError(f"no recipe is left by {selection.words()}; name all five axes for a cell of your own")
    check_used(selection.settings(), cells=[row.planned.cell for row in rows.values()])
    return list(rows.values())


def _recipes(selection: Selection) -> Iterator[tuple[Recipe, str]]:
    """Recipes with their algorithm; of five named axes, their combinations."""
    named = {axis: tuple(one.value for one in values) for axis, values in selection.layer().axes.items()}
    algorithms = named.pop("algorithm", ("sft",))
    if all_named(selection.axes):
        axes = [axis for axis in AXIS_NAMES if axis != "algorithm"]
        made = [Recipe(AS_NAMED, dict(zip(axes, one, strict=True)), {}, "") for one in product(*map(named.get, axes))]  # type: ignore[arg-type]
        yield from product(made, algorithms)
    else:
        yield from ((recipe, algorithm) for algorithm in algorithms for recipe in asked(RECIPES, named))


def _planned(matrix: Matrix, selection: Selection, profile: str | None, recipe: Recipe, algorithm: str) -> PlannedCell:
    axes = {axis: {**recipe.axes, "algorithm": algorithm}[axis] for axis in AXIS_NAMES}
    named = Selection(axes=axes).layer()
    check_names(matrix, named)
    layer = named.over(matrix.layer(profile))
    if matrix.config:
        layer = by_preset(layer)
    lower = {**layer.workload, **combinations(layer, axes)[0].added}
    fixed = selection.settings()
    said = {
        name: Setting(value, f"recipe {recipe.name}: ", Level.COMMAND_LINE) for name, value in recipe.settings.items()
    }
    said = {name: setting for name, setting in said.items() if name not in fixed}

    cell = resolved(axes, {**lower, **said, **fixed})
    return PlannedCell(cell, cell.name, check(cell, "cuda"), said=unflatten({**lower, **said, **fixed}))


class _Task(NamedTuple):
    """A prediction of a cell and, of `field`, its largest value. `card`: by name, where the budget was given as one."""

    flat: Mapping[str, Any]
    card: str | None
    said: Mapping[str, Any]
    field: str | None


class _Told(NamedTuple):
    forecast: Forecast | None = None
    largest: Maximum | None = None
    reason: str | None = None


_Key = tuple[str | None, str, str | None]
"""Budget, a cell's id, the field whose largest value is asked for."""


def predict_menu(
    planned: Mapping[str | None, Sequence[PlannedRow]],
    predictor: Predictor,
    pool: Executor | None = None,
    tell: Callable[[MenuRow, int, int], None] = lambda row, done, total: None,
) -> list[MenuRow]:
    """Each row under each budget (its name: the rows planned for it), with its largest values where there is one budget. Rows that
    fit somewhere come first, those that a rule forbids last. `predictor` makes one part of the predictions here; `pool`, whose
    processes are many.py's, the other. `tell` hears of each row that is done, of how many there are by then, and of how many."""
    rows = {(budget, row.planned.id): row for budget, those in planned.items() for row in those}
    tasks: dict[_Key, _Task] = {}
    names = dict.fromkeys(
        (row.recipe, row.planned.name) for row in rows.values()
    )  # budgets of a row share a simulation
    for (budget, id_), row in sorted(
        rows.items(), key=lambda one: list(names).index((one[1].recipe, one[1].planned.name))
    ):
        one, card = row.planned, card_called(budget)
        if one.rejection is not None:
            continue
        for field in (None,) if len(planned) > 1 else ("batch_size", _length(one.cell)):
            cell = one.cell if field in (None, "batch_size") else _one_at_a_time(one)
            tasks[budget, id_, field] = _Task(cell.flat(), card.name if card else None, one.said, field)
    waited_for = {key[:2] for key in tasks}

    def done(told: Mapping[_Key, _Told]) -> None:
        left = {key[:2] for key in tasks if key not in told}
        for key in waited_for - left:
            waited_for.discard(key)
            total = len({one[:2] for one in tasks})
            tell(_row(key[0], rows[key], told), total - len(waited_for), total)

    told = _all(tasks, predictor, pool, done)
    found = [_row(budget, row, told) for (budget, _), row in rows.items()]
    fitting = {one.key for one in found if one.fits}
    return sorted(found, key=lambda one: (one.rule is not None, one.key not in fitting))


def _length(cell: Cell) -> str:
    """The field that says how long sequences are."""
    return "max_length" if "max_length" in integer_fields(cell) else "response_tokens"


def _one_at_a_time(planned: PlannedCell) -> Cell:
    """The cell with a batch of one sequence."""
    if planned.cell.workload.batch_size == 1:
        return planned.cell
    return changed(planned.cell, {"batch_size": 1}, said=planned.said)


def _row(budget: str | None, row: PlannedRow, told: Mapping[_Key, _Told]) -> MenuRow:
    by_field = {field: one for (card, id_, field), one in told.items() if (card, id_) == (budget, row.planned.id)}
    own = by_field.get("batch_size") or by_field.get(None) or _Told()
    longest = next((one for field, one in by_field.items() if field not in (None, "batch_size")), _Told())
    return MenuRow(
        row.recipe,
        row.source,
        row.planned.cell,
        row.command,
        budget,
        row.planned.rejection,
        own.forecast,
        own.largest,
        longest.largest,
        own.reason or longest.reason,
    )


def _all(
    tasks: Mapping[_Key, _Task],
    predictor: Predictor,
    pool: Executor | None,
    done: Callable[[Mapping[_Key, _Told]], None],
) -> dict[_Key, _Told]:
    """What each task comes to. The pool takes the first that is left, this process the last, until none is."""
    left, told = deque(tasks), dict[_Key, _Told]()
    lock, made = Lock(), _Made()

    def take(next_one: Callable[[], _Key], answer: Callable[[_Task], _Told]) -> None:
        while left:
            try:
                key = next_one()
            except IndexError:  # the other has taken it
                return
            one = answer(tasks[key])
            with lock:
                told[key] = one
                done(told)

    def elsewhere(task: _Task) -> _Told:
        assert pool is not None
        try:
            return pool.submit(_answer_here, task).result()
        except BrokenProcessPool:
            return _Told(reason="the process that predicted it ended")

    with ThreadPoolExecutor(1) as threads, frozen() as freezes:
        others = threads.submit(take, left.popleft, elsewhere) if pool else None
        try:
            take(left.pop, lambda task: _answer(predictor, task, made, freezes=freezes))
        finally:
            left.clear()
        if others:
            others.result()
    return told


class _Made(dict[tuple[str, int, str | None], Forecast]):
    """Forecasts of one process by cell, budget and card: a recipe's own is the first of both its searches."""


_made_here = _Made()  # one for each process of the pool, which has no other place to keep it


def _answer_here(task: _Task) -> _Told:
    """Runs in a process of the pool."""
    return _answer(predictor_here(), task, _made_here, freezes=True)


def _answer(predictor: Predictor, task: _Task, made: _Made, *, freezes: bool) -> _Told:
    """Whatever a prediction raises is its reason: the others go on. `freezes`: what is there after one, the next one's collections
    need not look at."""
    card = CARDS[task.card] if task.card else None

    def ask(cell: Cell) -> Forecast:
        key = cell.id, cell.workload.budget, task.card
        if key not in made:
            made[key] = predictor.forecast(cell, card=card)
            if freezes:
                gc.freeze()
        return made[key]

    try:
        cell = from_flat(task.flat)
        forecast = ask(cell)
        if task.field is None:
            return _Told(forecast)
        return _Told(forecast, largest(cell, task.field, ask, said=task.said))
    except Exception as error:
        return _Told(reason=why(error))
