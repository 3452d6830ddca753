"""The error band of a kind of job: by how much measured bytes may exceed predicted ones, from every comparison that is published.

    error_band(kind_of(cell))   ->  Band(share=0.011, basis="the most that any of 9 compared jobs of its kind ...")

Comparisons are results/<gpu>/accuracy.json, as tests/gpu/compare.py writes them (accuracy-anew.json in its place where it is there:
the same cells as today's code predicts them), accuracy-trainers.json beside it (TRL's own jobs on that GPU), and
results/published/accuracy.json, as docs/accuracy.py writes it: others' figures.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from vrambench.methods.adapters import ADAPTERS
from vrambench.methods.algorithms import ALGORITHMS
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.precision import PRECISIONS

if TYPE_CHECKING:  # a report is told of bands without transformers
    from vrambench.methods.cell import Cell

RESULTS = Path(__file__).resolve().parents[2] / "results"
PUBLISHED = "published"
"""The folder of others' figures."""
TRAINERS = "trainers"
"""What tests/gpu/compare.py calls the run of rows that another library's trainers measured."""

ASSUMED_SHARE = 0.04
"""The band while too few measurements are published: the accuracy that is aimed at."""

FEWEST_CELLS = 20
"""With fewer measured cells, the band is ASSUMED_SHARE."""

RECIPE: Mapping[str, tuple[Any, ...]] = {
    "attention": ("flash", "efficient", "sdpa", "flash_attention_2"),
    "compute_dtype": ("bf16", None),
    "loss": ("scored", None),
    "autocast": ("none", None),
    "fp32_modules": ("none", None),
    "activation_offloading": (False,),
}
"""Fields that decide which operators a job runs, with the values that say nothing special."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class Kind(NamedTuple):
    """What decides which operators a job runs, and so how well its memory is predicted. `recipe`: its work, and the fields of
    RECIPE that are not as usual. `family`: of the model's architecture."""

    precision: str
    adapter: str
    recipe: str
    family: str

    def __str__(self) -> str:
        return f"{self.precision} with adapter {self.adapter}, {self.recipe}, on a model with {self.family}"


class Miss(NamedTuple):
    """A published job that ran out of memory where it was predicted to fit: it took more than its prediction by this `share`
    at least. `row`: its name in docs/accuracy.md."""

    row: str
    share: float


class Band(NamedTuple):
    """A measurement may exceed the predicted bytes by this `share` of them. `basis`: what that rests on, in words. `misses`:
    published jobs of the same kind that exceeded it, nobody knows by how much."""

    share: float
    basis: str
    misses: tuple[Miss, ...] = ()


class Compared(NamedTuple):
    """A measured job, in its `row`: `excess` of measured over predicted bytes, as a share. `ours`: of this harness' own job, and
    not of another library's trainer."""

    source: str
    row: dict[str, Any]
    excess: float
    ours: bool

    @property
    def kind(self) -> Kind | None:
        return _kind(self.row)


def kind_of(cell: Cell) -> Kind:
    """The kind of `cell`'s job."""
    from vrambench.methods.models.config import model_config

    work = cell.workload
    does = "rollouts" if work.rollout_batch is not None else "fine-tuning"
    special = {name: getattr(work, name) for name, usual in RECIPE.items() if getattr(work, name) not in usual}
    recipe = ", ".join([does, *(f"{name} {value}" for name, value in special.items())])
    return Kind(cell.precision, cell.adapter, recipe, family(model_config(work.model)))


def family(config: Any) -> str:
    """Of an architecture, by what its configuration has."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if not hasattr(text, "num_attention_heads") or layers - {"full_attention", "sliding_attention"}:
        return "recurrent layers"
    if any(getattr(text, name, None) for name in EXPERTS):
        return "experts"
    return "RMSNorm" if hasattr(text, "rms_norm_eps") else "LayerNorm"


@functools.cache
def error_band(kind: Kind | None = None, results: Path = RESULTS) -> Band:
    """The band of jobs of this `kind`: the most that any of them took above its prediction, and never less than what our own
    measured jobs of any kind did (another library's trainer allocates in an order of its own). Where none of the kind was compared
    it is the most of all, and `basis` names the nearest kind. Raises ValueError where a published file is no comparison."""
    rows = [(file.parent.name, row) for file in _published(results) for row in _rows(file)]
    found = list(_compared(rows))
    if len(found) < FEWEST_CELLS:
        return Band(ASSUMED_SHARE, "assumed, not yet confirmed by measurements")
    widest = max(0.0, *(one.excess for one in found))
    of_all = f"the most that any of {len(found)} compared jobs took above its prediction ({_named(found)})"
    if kind is None:
        return Band(widest, of_all)
    misses = tuple(_misses(rows, kind))
    alike = [one for one in found if _is_of(one.row, kind)]
    if not alike:
        kinds = {one.kind for one in found if one.kind is not None}
        near = f"; none of them was {kind}, the nearest that was compared is {nearest(kind, kinds)}" if kinds else ""
        return Band(widest, of_all + near, misses)
    ours = max((one.excess for one in found if one.ours), default=0.0)
    told = "one compared job" if len(alike) == 1 else f"any of {len(alike)} compared jobs"
    basis = f"the most that {told} of its kind ({_named(alike)}), or any job of ours, took above its prediction"
    return Band(max(0.0, ours, *(one.excess for one in alike)), basis, misses)


def bands(results: Path = RESULTS) -> dict[Kind, list[Compared]]:
    """Every kind of which a job was compared, and its jobs."""
    rows = [(file.parent.name, row) for file in _published(results) for row in _rows(file)]
    found: dict[Kind, list[Compared]] = {}
    for one in _compared(rows):
        if one.kind is not None:
            found.setdefault(one.kind, []).append(one)
    return dict(sorted(found.items()))


def nearest(kind: Kind, compared: Collection[Kind]) -> Kind:
    """The kind that trains alike (the base or an adapter), does the same work on the same family, with weights of the nearest
    number of bits; of several, by name."""
    base, bits = ADAPTERS.get(kind.adapter).trains_base, PRECISIONS.get(kind.precision).bits

    def distance(other: Kind) -> tuple[Any, ...]:
        apart = abs(math.log2(PRECISIONS.get(other.precision).bits / bits))
        alike = ADAPTERS.get(other.adapter).trains_base == base
        others = (other.family != kind.family) + (other.recipe != kind.recipe)
        return not alike, others, apart, other.precision != kind.precision, other.adapter != kind.adapter, other

    return min(compared, key=distance)


def _named(found: Collection[Compared]) -> str:
    return ", ".join(dict.fromkeys(one.source for one in found))


def _compared(rows: Collection[tuple[str, dict[str, Any]]]) -> Iterator[Compared]:
    for source, row in rows:
        if row["status"] == "ok" and (excess := _excess(row)) is not None:
            yield Compared(source, row, excess, source != PUBLISHED and row.get("run") != TRAINERS)


def _misses(rows: Collection[tuple[str, dict[str, Any]]], kind: Kind) -> Iterator[Miss]:
    """Others' jobs of this kind that ran out of memory where they were predicted to fit."""
    for _, row in rows:
        predicted, budget = row["predicted"].get("device"), row.get("budget")
        if row["status"] == "oom" and budget and predicted and predicted < budget and _is_of(row, kind):
            yield Miss(row["id"], budget / predicted - 1)


@functools.cache
def kind_named(name: str) -> Kind | None:
    """That of `llama-2-7b / nf4 lora adamw_torch none sft attention=math`; None where this version does not know such a cell."""
    from vrambench.methods.cell import resolve

    model, _, rest = name.partition(" / ")
    words = rest.split()
    axes, settings = words[: len(AXES)], [word.partition("=") for word in words[len(AXES) :]]
    if len(axes) < len(AXES):
        return None
    said: dict[str, Any] = {"model": model}
    try:
        for key, _, value in settings:
            group, _, option = key.partition(".")
            if option:
                said.setdefault(group, {})[option] = yaml.safe_load(value)
            else:
                said[key] = yaml.safe_load(value)
        return kind_of(resolve(dict(zip(AXES, axes, strict=True)), said))
    except (ConfigurationError, yaml.YAMLError):
        return None


def _is_of(row: dict[str, Any], kind: Kind) -> bool:
    """Whether the row is of this kind; a name that says another precision, adapter or work is not read, since most are such."""
    words = str(row.get("name", "")).partition(" / ")[2].split()
    if not row.get("kind") and words[:2] != [kind.precision, kind.adapter]:
        return False
    if not row.get("kind") and len(words) >= len(AXES) and words[4] in ALGORITHMS:
        rollouts = "rollout_batch" in ALGORITHMS.get(words[4]).fields
        if rollouts != kind.recipe.startswith("rollouts"):
            return False
    return _kind(row) == kind


def _kind(row: dict[str, Any]) -> Kind | None:
    """The row's own, else that of the cell in its name."""
    return Kind(*row["kind"]) if row.get("kind") else kind_named(str(row.get("name", "")))


def _published(results: Path) -> list[Path]:
    """A comparison for each GPU, by name, with that of trainers on it, and others' figures."""
    anew = {file.parent: file for file in results.glob("*/accuracy-anew.json")}
    files = list(({file.parent: file for file in results.glob("*/accuracy.json")} | anew).values())
    files += results.glob("*/accuracy-trainers.json")
    return sorted(files, key=lambda file: (file.parent.name == PUBLISHED, file))


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no comparison of predictions with measurements: {error!r}") from error
    return rows


def _excess(row: dict[str, Any]) -> float | None:
    """Measured over predicted bytes, less one: of the device, else of the line of the ledger that the source gave."""
    for counter in ("device", "reserved", "active", "allocated"):
        predicted, measured = row["predicted"].get(counter), row["measured"].get(counter)
        if predicted and measured:
            return measured / predicted - 1
    return None
