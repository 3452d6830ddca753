"""The usual recipes for one model on one card or on several: which fit, and how far each goes.

    planned = plan_menu(matrix, selection, CARDS["rtx-4090"])      a PlannedRow for each recipe and algorithm
    rows = predict_menu({"rtx-4090": planned}, pool)               and what is predicted of each
    document(rows)                                                 as `vrambench fit MODEL --json` prints it

The largest values are found by real predictions, and each is a value that fits and whose next
one does not. One half of the work is done in a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from vrambench.bench.plan.combinations import all_named, combinations
from vrambench.bench.plan.matrix import Level, Matrix, Setting, Settings, check_names, unflatten
from vrambench.bench.plan.plan import PlannedCell, resolved
from vrambench.bench.plan.selection import Selection
from vrambench.bench.plan.used import check_used, fields_of
from vrambench.bench.plan.validity import check
from vrambench.bench.predict.answer import Maximum
from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.fit import has_bf16
from vrambench.bench.predict.many import predictor_here, why
from vrambench.bench.predict.reach import integer_fields, largest
from vrambench.bench.predict.recipes import RECIPES, Recipe, asked
from vrambench.bench.results.forecast import Forecast
from vrambench.methods.cards import CARDS, card_called
from vrambench.methods.cell import Cell, from_flat
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.workload import AXIS_NAMES

if TYPE_CHECKING:
    from vrambench.bench.predict.forecast import Predictor

AS_NAMED = "as named"
"""The row of a cell whose five axes were named."""


@dataclass(frozen=True)
class PlannedRow:
    """One recipe with an algorithm. `command`: the shortest one that gives the cell again; `source`: see Recipe."""

    recipe: str
    source: str | None
    planned: PlannedCell
    command: str

    @property
    def key(self) -> tuple[str, str]:
        """The same for every budget."""
        return self.recipe, self.planned.cell.name


@dataclass(frozen=True)
class OnCard:
    """One row under one budget, as it was named (None: the matrix'). `reason`: why nothing was predicted; `batch` and `length`: the
    largest batch at the length asked for, and the longest sequence at batch 1, where they were searched."""

    budget: str | None
    row: PlannedRow
    forecast: Forecast | None = None
    batch: Maximum | None = None
    length: Maximum | None = None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """As it is, even if tightly or as far as is known."""
        return self.forecast is not None and self.forecast.fits

    def document(self) -> dict[str, Any]:
        """As `fit --json` prints it; bytes as integers."""
        forecast, rule = self.forecast, self.row.planned.rejection
        return {
            "recipe": self.row.recipe,
            "source": self.row.source,
            "name": self.row.planned.name,
            "budget": self.budget,
            "budget_bytes": self.row.planned.cell.workload.budget,
            "rule": rule.rule if rule else None,
            "reason": rule.reason if rule else self.reason,
            "verdict": forecast.verdict if forecast else None,
            "fits": self.fits,
            "device_bytes": forecast.memory.device_bytes if forecast else None,
            "margin_bytes": forecast.margin_bytes if forecast else None,
            "band_bytes": forecast.band_bytes if forecast else None,
            "largest_batch": self.batch.model_dump(mode="json") if self.batch else None,
            "longest_sequence": self.length.model_dump(mode="json") if self.length else None,
            "command": self.row.command,
            "cell": self.row.planned.cell.flat(),
        }


def document(rows: Sequence[OnCard]) -> dict[str, Any]:
    """As `fit MODEL --json` prints it."""
    return {"fits": any(row.fits for row in rows), "rows": [row.document() for row in rows]}


def plan_menu(matrix: Matrix, selection: Selection, *, bf16: bool = True) -> list[PlannedRow]:
    """The recipes that the selection leaves, by its algorithms (sft where it names none), each a cell of the matrix' workload (with
    that of the profile that CUDA takes), over which lies what the recipe sets, over which lies what was said. Of a cell there
    is one row. Raises ConfigurationError as `select` does."""
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
        row = _planned(matrix, selection, profile, recipe, algorithm, bf16)
        rows.setdefault(row.planned.id, row)
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


def _planned(
    matrix: Matrix, selection: Selection, profile: str | None, recipe: Recipe, algorithm: str, bf16: bool
) -> PlannedRow:
    axes = {axis: {**recipe.axes, "algorithm": algorithm}[axis] for axis in AXIS_NAMES}
    named = Selection(axes=axes).layer()
    check_names(matrix, named)
    layer = named.over(matrix.layer(profile))
    lower = {**layer.workload, **combinations(layer, axes)[0].added}
    fixed = selection.settings()
    said = {
        name: Setting(value, f"recipe {recipe.name}: ", Level.COMMAND_LINE) for name, value in recipe.settings.items()
    }
    said = {name: setting for name, setting in said.items() if name not in fixed}

    def made(settings: Settings) -> Cell:
        return resolved(axes, {**lower, **settings, **fixed}, flash=bf16)

    cell = made(said)
    for name in tuple(said):  # what the matrix says as well need not be said again
        less = {one: setting for one, setting in said.items() if one != name}
        said = less if made(less) == cell else said
    has = fields_of(cell)
    typed = [one for one in selection.set if has.get(one.partition("=")[0].strip()) is not None]
    command = _command(replace(selection, set=tuple(typed)), axes, said)
    planned = PlannedCell(cell, cell.name, check(cell, "cuda", bf16=bf16), said=unflatten({**lower, **said, **fixed}))
    return PlannedRow(recipe.name, recipe.source or None, planned, command)


def _command(selection: Selection, axes: Mapping[str, str], said: Settings) -> str:
    """What gives the cell again; `said`: what the recipe sets beside the matrix."""
    words = ["vrambench", "fit", *([selection.model] if selection.model else [])]
    for option in ("profile", "budget"):
        if value := getattr(selection, option):
            words += [f"--{option}", value]
    for axis, value in axes.items():
        words += [f"--{axis}", value]
    for one in selection.set:
        words += ["--set", one]
    for name, setting in said.items():
        text = setting.value if isinstance(setting.value, str) else json.dumps(setting.value)
        words += ["--set", f"{name}={text}"]
    return shlex.join(words)


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


def predict_menu(
    planned: Mapping[str | None, Sequence[PlannedRow]],
    predictor: Predictor,
    pool: Executor | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[OnCard]:
    """Each row under each budget (its name: the rows planned for it), with its largest values where there is one budget. Rows that
    fit somewhere come first, those that a rule forbids last. `predictor` makes one part of the predictions here; `pool`, whose
    processes are many.py's, the other. `tell`: how many questions are answered, and of how many."""
    tasks: dict[tuple[str | None, str, str | None], _Task] = {}
    for budget, rows in planned.items():
        card = card_called(budget)
        for row in rows:
            one = row.planned
            if one.rejection is not None:
                continue
            for field in (None,) if len(planned) > 1 else ("batch_size", _length(one.cell)):
                cell = one.cell if field in (None, "batch_size") else _one_at_a_time(one, has_bf16(card))
                tasks[budget, one.id, field] = _Task(cell.flat(), card.name if card else None, one.said, field)
    told = _all(tasks, predictor, pool, tell)
    found = [_on_card(budget, row, told) for budget, rows in planned.items() for row in rows]
    fitting = {one.row.key for one in found if one.fits}
    return sorted(found, key=lambda one: (one.row.planned.rejection is not None, one.row.key not in fitting))


def _length(cell: Cell) -> str:
    """The field that says how long sequences are."""
    return "max_length" if "max_length" in integer_fields(cell) else "response_tokens"


def _one_at_a_time(planned: PlannedCell, bf16: bool) -> Cell:
    """The cell with a batch of one sequence."""
    if planned.cell.workload.batch_size == 1:
        return planned.cell
    return changed(planned.cell, {"batch_size": 1}, flash=bf16, said=planned.said)


def _on_card(budget: str | None, row: PlannedRow, told: Mapping[tuple[str | None, str, str | None], _Told]) -> OnCard:
    by_field = {field: one for (card, id_, field), one in told.items() if (card, id_) == (budget, row.planned.id)}
    own = by_field.get("batch_size") or by_field.get(None) or _Told()
    longest = next((one for field, one in by_field.items() if field not in (None, "batch_size")), _Told())
    return OnCard(budget, row, own.forecast, own.largest, longest.largest, own.reason or longest.reason)


def _all(
    tasks: Mapping[Any, _Task],
    predictor: Predictor,
    pool: Executor | None,
    tell: Callable[[int, int], None],
) -> dict[Any, _Told]:
    """What each task comes to. The pool takes the first that is left, this process the last, until none is."""
    left, told = deque(tasks), dict[Any, _Told]()
    tell(0, len(tasks))

    def take(next_one: Callable[[], Any], answer: Callable[[_Task], _Told]) -> None:
        while left:
            try:
                key = next_one()
            except IndexError:  # the other has taken it
                return
            told[key] = answer(tasks[key])
            tell(len(told), len(tasks))

    def elsewhere(task: _Task) -> _Told:
        assert pool is not None
        try:
            return pool.submit(_answer_here, task).result()
        except BrokenProcessPool:
            return _Told(reason="the process that predicted it ended")

    with ThreadPoolExecutor(1) as threads, frozen():
        others = threads.submit(take, left.popleft, elsewhere) if pool else None
        try:
            take(left.pop, lambda task: _answer(predictor, task))
        finally:
            left.clear()
        if others:
            others.result()
    return told


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """What is there is left out of collections, unless a caller has frozen something: 0.2 s less for each prediction."""
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()


def _answer_here(task: _Task) -> _Told:
    """Runs in a process of the pool."""
    told = _answer(predictor_here(), task)
    gc.freeze()
    return told


def _answer(predictor: Predictor, task: _Task) -> _Told:
    """Whatever a prediction raises is its reason: the others go on."""
    card = CARDS[task.card] if task.card else None
    made: dict[str, Forecast] = {}

    def ask(cell: Cell) -> Forecast:
        if cell.id not in made:
            made[cell.id] = predictor.forecast(cell, card=card)
        return made[cell.id]

    try:
        cell = from_flat(task.flat)
        forecast = ask(cell)
        if task.field is None:
            return _Told(forecast)
        bf16 = has_bf16(card)
        return _Told(forecast, largest(cell, task.field, ask, bf16=bf16, said=task.said, along_a_line=True))
    except Exception as error:
        return _Told(reason=why(error))
