"""A cell: one combination of axis values on one workload, with nothing left open.

    cell = resolve({"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none",
                    "algorithm": "ppo"}, {"model": "llama-2-7b", "ppo": {"epochs": 2}})
    cell.id, cell.name

`resolve` is where `auto` is decided, defaults are filled in and what the axis values do not use is emptied, so a cell's id
depends only on what the job will really do.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vrambench.methods.adapters import ADAPTERS, Adapter
from vrambench.methods.algorithms import ALGORITHMS, Algorithm
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError, UnknownValue, complaint, did_you_mean, shown
from vrambench.methods.models.config import heads_of_one_size
from vrambench.methods.offload import OFFLOADS, Offload
from vrambench.methods.optimizers import OPTIMIZERS, Optimizer
from vrambench.methods.precision import PRECISIONS, Precision
from vrambench.methods.registry import AxisValue, Options
from vrambench.methods.setup import Setup
from vrambench.methods.workload import FIELDS, Workload


class Cell(BaseModel):
    """Axis values by name, and the workload. Frozen; two cells with the same id are the same job."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    precision: str
    adapter: str
    optimizer: str
    offload: str
    algorithm: str
    workload: Workload

    @property
    def axes(self) -> dict[str, str]:
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def values(self) -> dict[str, AxisValue]:
        return {axis: registry.get(getattr(self, axis)) for axis, registry in AXES.items()}

    @property
    def precision_value(self) -> Precision:
        return PRECISIONS.get(self.precision)

    @property
    def adapter_value(self) -> Adapter:
        return ADAPTERS.get(self.adapter)

    @property
    def optimizer_value(self) -> Optimizer:
        return OPTIMIZERS.get(self.optimizer)

    @property
    def offload_value(self) -> Offload:
        return OFFLOADS.get(self.offload)

    @property
    def algorithm_value(self) -> Algorithm:
        return ALGORITHMS.get(self.algorithm)

    @property
    def setup(self) -> Setup:
        """What its models and learners are told of it."""
        values = self.precision_value, self.adapter_value, self.optimizer_value
        return Setup(*values, self.workload, self.offload_value.zero_stage)

    @cached_property
    def id(self) -> str:
        """Twelve hex digits of a hash of the content; the same on every machine and version that gives a cell the same fields."""
        content = json.dumps(self.flat(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()

    @property
    def name(self) -> str:
        """Readable, and unique among cells of one workload: the axis values in order. A swept field is added by the matrix."""
        return " ".join(self.axes.values())

    def flat(self) -> dict[str, Any]:
        """As it is written in result files: axes, fields and option namespaces side by side."""
        return self.axes | self.workload.flat()


def from_flat(data: Mapping[str, Any]) -> Cell:
    """The cell of a result file. Raises ConfigurationError where the file says what this version does not know."""
    return resolve({axis: data[axis] for axis in AXES}, {k: v for k, v in data.items() if k not in AXES})


def resolve(axes: Mapping[str, str], settings: Mapping[str, Any]) -> Cell:
    """The cell of `axes` (a value's name for each of the five) with the workload's `settings`.

    Settings are the workload's fields and, under their namespaces, axis values' options; those of values that this cell
    does not use are checked and then left out. Raises ConfigurationError with the field, the value and the nearest valid one.
    """
    values = {axis: registry.get(axes[axis]) for axis, registry in AXES.items()}
    namespaces = option_namespaces(values.values())
    conditional = conditional_fields().union(*(value.fields for value in values.values()))
    # A cell's file holds None where the cell does not use a field; so None there says nothing, and the default stands.
    fields = {
        key: value for key, value in settings.items() if key in FIELDS and not (value is None and key in conditional)
    }
    options: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key in FIELDS:
            continue
        if key not in namespaces:
            raise unknown_field(key, namespaces)
        options[key] = _validated(namespaces[key], value if value is not None else {}, prefix=key + ".").model_dump(
            mode="json"
        )
    workload: Workload = _validated(Workload, fields)

    used = {value.options.namespace: value.options for value in values.values() if value.options}
    filled = {name: options.get(name, kind().model_dump(mode="json")) for name, kind in used.items()}
    unused = conditional - {field for value in values.values() for field in value.fields}
    changes: dict[str, Any] = dict.fromkeys(unused) | {"options": filled}
    algorithm, precision, adapter = values["algorithm"], values["precision"], values["adapter"]
    assert isinstance(algorithm, Algorithm)
    assert isinstance(precision, Precision)
    assert isinstance(adapter, Adapter)
    if workload.learning_rate is None:
        changes["learning_rate"] = algorithm.learning_rate
    if workload.attention == "auto":
        kernel = precision.attention(workload)
        changes["attention"] = kernel if kernel != "flash" or heads_of_one_size(workload.model) else "efficient"
    if "reference" not in unused and workload.reference == "auto":
        changes["reference"] = "adapter_off" if adapter.can_switch_off else "copy"
    if workload.reward != "model":
        changes["reward_model"] = None
    return Cell(**axes, workload=workload.model_copy(update=changes))


def conditional_fields() -> set[str]:
    """The workload's fields that some axis value declares as its own."""
    return {field for registry in AXES.values() for value in registry.values().values() for field in value.fields}


def option_namespaces(values: Any = ()) -> dict[str, type[Options]]:
    """Every namespace that a workload may hold: the built-in values' and those of `values` (a user's own among them)."""
    known = [value for registry in AXES.values() for value in registry.values().values()]
    return {value.options.namespace: value.options for value in (*known, *values) if value.options}


def _validated(kind: type[BaseModel], data: object, *, prefix: str = "") -> Any:
    if not isinstance(data, Mapping):
        raise ConfigurationError(
            f"{prefix.rstrip('.')}: {shown(data)} is not a mapping of settings", field=prefix.rstrip(".")
        )
    try:
        made = kind(**data)
    except ValidationError as error:
        raise explain(error, kind, prefix) from None
    for name, value in data.items():
        if value is not None:
            _check_number(prefix + name, value, getattr(made, name))
    return made


def _check_number(field: str, given: object, made: object) -> None:
    """What pydantic lets pass where a class of options does not forbid it: a bool that becomes a number, a number that
    is not finite."""
    if isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for one, other in zip(given, made, strict=False):
            _check_number(field, one, other)
    elif isinstance(given, bool) and not isinstance(made, bool):
        raise ConfigurationError(f"{field}: {shown(given)}: must be a number", field=field)
    elif isinstance(made, float) and not math.isfinite(made):
        raise ConfigurationError(f"{field}: {shown(given)}: must be a finite number", field=field)


def explain(error: ValidationError, kind: type[BaseModel], prefix: str = "") -> ConfigurationError:
    """The first of pydantic's complaints, in our words: field, value, nearest valid one."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    field = prefix + name
    if first["type"] == "extra_forbidden":
        return unknown_option(name, kind, prefix)
    if first["type"] == "literal_error":
        annotation = str(first["ctx"]["expected"])
        return UnknownValue(field, first["input"], [part.strip().strip("'") for part in re_split(annotation)])
    message, value = complaint(first), shown(first["input"])
    if first["type"] != "value_error" or value not in message:  # our own messages may name it already
        message = f"{value}: {message}"
    return ConfigurationError(f"{field}: {message}", field=field)


def unknown_option(name: str, kind: type[BaseModel], prefix: str) -> ConfigurationError:
    """That `kind`, whose fields are written after `prefix`, has none called `name`."""
    choices = [choice for choice in kind.model_fields if choice != "options"]
    return ConfigurationError(
        f"{prefix}{name}: no such field{did_you_mean(name, choices)} (there are {', '.join(choices)})",
        field=prefix + name,
    )


def unknown_field(name: str, namespaces: Iterable[str]) -> ConfigurationError:
    """That a workload has neither a field nor a namespace called `name`."""
    return ConfigurationError(
        f"workload: unknown field {name!r}{did_you_mean(name, (*FIELDS, *namespaces))}", field=name
    )


def re_split(expected: str) -> list[str]:
    """`'a', 'b' or 'c'` in parts."""
    return expected.replace(" or ", ", ").split(", ")
