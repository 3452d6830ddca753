"""Which predictions may be kept (cache.py), and the questions that they answer.

asked = about_forecast(cell, budget, card, read(None))              of one prediction
asked = about_answer(matrix, selection, maximum="batch_size")       of all that `fit` says, before a cell is made of it
read_answer(cache, asked)                                           without torch
read_menu(cache, about_menu(matrices, selection))                   the same of a menu
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from vrambench.bench.allocator.settings import ENVIRONMENT
from vrambench.bench.predict.answer import Answer, Menu
from vrambench.bench.predict.cache import Cache, Question
from vrambench.bench.results.forecast import Forecast, Unmodelled
from vrambench.methods.axes import AXES
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell
from vrambench.methods.models.presets import PRESETS

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.predict.alloc_conf import AllocConf

REWARDS = ("tokens", "reviews", "model", None)
DATA = ("synthetic", "reviews")


@dataclass(frozen=True)
class KeptAnswer:
    """What `fit` said. `command`: the shortest that asks for the cell again; `lines`: on stderr; `files`: what it read, by path,
    with a digest of what was in it."""

    answer: Answer
    profile: str | None
    command: str
    lines: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptForecast:
    """One prediction. `events`: allocs and frees of its job."""

    forecast: Forecast
    events: int


@dataclass(frozen=True)
class KeptMenu:
    """What `fit MODEL` said; `files` as in KeptAnswer."""

    menu: Menu
    files: dict[str, str] = field(default_factory=dict)


_ANSWER, _FORECAST, _MENU = TypeAdapter(KeptAnswer), TypeAdapter(KeptForecast), TypeAdapter(KeptMenu)


def self_contained(cell: Cell) -> bool:
    """Whether a prediction rests on nothing but what the cell says and its models' configurations: no values, rewards and data of
    a user's own, and no weights that another cell saves."""
    work = cell.workload
    built_in = all(
        name in AXES[axis] or name.partition(":")[0] in AXES[axis].families for axis, name in cell.axes.items()
    )
    return built_in and work.reward in REWARDS and work.data in DATA and not work.starts_from


def about_forecast(
    cell: Cell,
    budget_bytes: int,
    card: Card | None,
    conf: AllocConf,
    left_out: tuple[Unmodelled, ...] = (),
    worst_alone: bool = False,
) -> Question | None:
    """What one prediction answers (see Predictor.forecast); None where its answer cannot be kept."""
    from vrambench.methods.models.config import model_config

    if not self_contained(cell):
        return None
    models = {name: model_config(name).to_json_string() for name in _models(cell) if name not in PRESETS}
    return {
        "cell": cell.model_dump(mode="json"),
        "models": models,
        "budget_bytes": budget_bytes,
        "card": card.name if card else None,
        "alloc_conf": [asdict(conf.settings), conf.notes],
        "left_out": [one.model_dump() for one in left_out],
        "worst_alone": worst_alone,
    }


def about_answer(
    matrix: Matrix, selection: Selection, *, maximum: str | None, advices: int | None, alloc_conf: str | None
) -> Question:
    """What `fit` is asked, in the current folder and with the allocator's options of the environment."""
    return {"matrix": repr(matrix), "max": maximum, "advise": advices, **_asked(selection, alloc_conf)}


def about_menu(matrices: Sequence[Matrix], selection: Selection, *, alloc_conf: str | None) -> Question:
    """What `fit MODEL` is asked; `matrices`: one for each budget."""
    return {"menu of": [repr(matrix) for matrix in matrices], **_asked(selection, alloc_conf)}


def _asked(selection: Selection, alloc_conf: str | None) -> Question:
    return {
        "selection": repr(selection),
        "alloc_conf": alloc_conf,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "folder": str(Path.cwd()),
    }


def read_forecast(cache: Cache, question: Question) -> KeptForecast | None:
    text = cache.get(question)
    try:
        return _FORECAST.validate_json(text) if text else None
    except ValidationError:
        return None


def write_forecast(cache: Cache, question: Question, kept: KeptForecast) -> None:
    text = _FORECAST.dump_json(kept)
    if _FORECAST.validate_json(text) == kept:
        cache.put(question, text.decode())


def read_answer(cache: Cache, question: Question) -> KeptAnswer | None:
    """What was said to `question`, where the files that were read are still the same."""
    text = cache.get(question)
    try:
        kept = _ANSWER.validate_json(text) if text else None
    except ValidationError:
        return None
    return kept if kept and _unchanged(kept.files) else None


def write_answer(cache: Cache, question: Question, kept: KeptAnswer, said: Mapping[str, Any]) -> None:
    """Keeps it, unless it rests on what may change unseen, such as a hub id. `said`: of the workload, by the matrix or the command
    line."""
    files = _files([kept.answer.cell], said)
    if files is not None:
        kept = replace(kept, files=files)
        text = _ANSWER.dump_json(kept)
        if _ANSWER.validate_json(text) == kept:
            cache.put(question, text.decode())


def read_menu(cache: Cache, question: Question) -> Menu | None:
    """As `read_answer`."""
    text = cache.get(question)
    try:
        kept = _MENU.validate_json(text) if text else None
    except ValidationError:
        return None
    return kept.menu if kept and _unchanged(kept.files) else None


def write_menu(cache: Cache, question: Question, menu: Menu, said: Mapping[str, Any]) -> None:
    """As `write_answer`; not where something could not be predicted, which may be another time."""
    files = _files([row.cell for row in menu.rows], said)
    if files is not None and not any(row.reason for row in menu.rows):
        kept = KeptMenu(menu, files)
        text = _MENU.dump_json(kept)
        if _MENU.validate_json(text) == kept:
            cache.put(question, text.decode())


def _files(cells: Iterable[Cell], said: Mapping[str, Any]) -> dict[str, str] | None:
    """The files that predictions of `cells` rest on, each with a digest; None where they rest on more, or one cannot be read."""
    files: dict[str, str] = {}
    for cell in cells:
        paths = [Path(name) / "config.json" for name in _models(cell) if name not in PRESETS]
        if isinstance(lengths := said.get("lengths"), str):
            paths.append(Path(lengths))
        digests = {str(path): _content(path) for path in paths}
        if not self_contained(cell) or not all(digests.values()):
            return None
        files |= {path: each or "" for path, each in digests.items()}
    return files


def _unchanged(files: Mapping[str, str]) -> bool:
    return all(_content(Path(path)) == digest for path, digest in files.items())


def _models(cell: Cell) -> list[str]:
    """The cell's, by name."""
    return [name for name in (cell.workload.model, cell.workload.reward_model) if name]


def _content(path: Path) -> str | None:
    """A digest of a file; None where it cannot be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()
    except OSError:
        return None
