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
import marshal
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from vrambench.methods.adapters import ADAPTERS, Adapter
from vrambench.methods.algorithms import ALGORITHMS, EVALUATION_FIELDS, Algorithm
from vrambench.methods.axes import AXES
from vrambench.methods.called import has_bf16
from vrambench.methods.errors import ConfigurationError, UnknownValue, did_you_mean, shown
from vrambench.methods.lengths import truncated
from vrambench.methods.offload import OFFLOADS, Offload
from vrambench.methods.offload.zero import AUTO, ZeroOptions, sized
from vrambench.methods.optimizers import OPTIMIZERS, Optimizer
from vrambench.methods.precision import PRECISIONS, Precision
from vrambench.methods.registry import AxisValue, Options
from vrambench.methods.setup import Setup
from vrambench.methods.validated import check_mapping, unknown_field, validated, validated_once
from vrambench.methods.workload import BEST_FIT, FIELDS, PARTS, Workload

_FIELDS = frozenset(FIELDS)


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
    def requires(self) -> tuple[str, ...]:
        """The modules that its values import once they are used, beside torch and transformers; each once."""
        return tuple(dict.fromkeys(name for value in self.values.values() for name in value.requires))

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
        """The part of the cell that models and learners need."""
        values, offload = (self.precision_value, self.adapter_value, self.optimizer_value), self.offload_value
        return Setup(*values, self.workload, offload.zero_stage, offload.optimizer_on_host, offload.parameters_on_host)

    @property
    def rollout_unit(self) -> int:
        """The fewest prompts whose responses are a whole number of optimizer steps."""
        step = self.workload.batch_size * self.workload.gradient_accumulation_steps
        return step // math.gcd(step, self.algorithm_value.sequences_per_prompt(self.workload))

    @cached_property
    def id(self) -> str:
        """Twelve hex digits of a hash of what the cell says. A field or an option at its default says nothing, so that a version
        with more of them gives the same ids."""
        usual = {value.options.namespace: _usual(value.options) for value in self.values.values() if value.options}
        fields = self.workload.model_dump(mode="json", exclude={"options"}, exclude_defaults=True)
        said = self.axes | {name: value for name, value in fields.items() if value is not None}
        said |= _said(self.workload.options, usual)
        content = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Another cell has an id of its own: pydantic would copy the one that was asked for before."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied

    @property
    def name(self) -> str:
        """Readable, and unique among cells of one workload: the axis values in order. A swept field is added by the matrix."""
        return " ".join(self.axes.values())

    def flat(self) -> dict[str, Any]:
        """As it is written in result files: axes, fields and option namespaces side by side."""
        return self.axes | self.workload.flat()


@cache
def _usual(kind: type[Options]) -> dict[str, Any]:
    """What an axis value's options say where nothing was said of them."""
    return validated(kind, {}, prefix=kind.namespace + ".").model_dump(mode="json")


def _said(content: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """What of `content` is not as usual; options one by one."""
    said = {}
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(usual.get(key), dict):
            value = _said(value, usual[key]) or None
        if value is not None and value != usual.get(key):
            said[key] = value
    return said


def from_flat(data: Mapping[str, Any]) -> Cell:
    """The cell of a result file. Raises ConfigurationError where the file says what this version does not know."""
    return resolve(
        {axis: data[axis] for axis in AXES}, _settings_of_then({k: v for k, v in data.items() if k not in AXES})
    )


def _settings_of_then(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a result file. In files of before `lora_target_parameters`, `auto` adapted all linear layers of the architectures
    in ADAPTED_WHOLE."""
    if settings.get("lora_target_modules") != "auto" or "lora_target_parameters" in settings:
        return settings
    from vrambench.methods.models.config import model_config

    if model_config(settings["model"]).model_type in ADAPTED_WHOLE:
        return settings | {"lora_target_modules": "all-linear"}
    return settings


ADAPTED_WHOLE = ("llama", "mistral", "qwen2", "qwen3", "gemma")


def resolve(axes: Mapping[str, str], settings: Mapping[str, Any], *, flash: bool | None = None) -> Cell:
    """The cell of `axes` (a value's name for each of the five) with the workload's `settings`.

    Settings are the workload's fields and, under their namespaces, axis values' options; those of values that this cell
    does not use are checked and then left out. `flash`: whether `attention: auto` may stand for the flash kernel, which GPUs
    have from compute capability 8.0 on; None: where the card whose memory the budget is has it. Raises ConfigurationError with
    the field, the value and the nearest valid one.
    """
    _check_axes(axes)
    values = {axis: registry.get(axes[axis]) for axis, registry in AXES.items()}
    namespaces = option_namespaces(values)
    _check_fields(values)
    unused, silent = _unused(tuple(value.fields for value in values.values()))
    fields = {key: value for key, value in settings.items() if key in _FIELDS and not (value is None and key in silent)}
    check = validated if isinstance(fields.get("lengths"), str) else validated_once  # what a file holds may change
    workload = check(Workload, fields)
    options = _options(settings, values, namespaces)
    workload = workload.model_copy(update=dict.fromkeys(unused) | {"options": options})
    changes = _decided(workload, values, has_bf16(workload.budget) if flash is None else flash, fields)
    return Cell(**axes, workload=workload.model_copy(update=changes))


@lru_cache(maxsize=1024)
def _unused(declared: tuple[tuple[str, ...], ...]) -> tuple[frozenset[str], frozenset[str]]:
    """By what a cell's values declare: the fields that it does not use; and those of which None says nothing, so that the default
    stands: a cell's file holds None where the cell does not use a field."""
    used = frozenset(name for fields in declared for name in fields)
    unused = conditional_fields() - used
    return unused, unused | used


def _check_axes(axes: Mapping[str, str]) -> None:
    """That every axis has a value, and nothing else has one."""
    for axis in axes:
        if axis not in AXES:
            raise UnknownValue("axes", axis, AXES)
    lacking = [axis for axis in AXES if axis not in axes]
    if lacking:
        raise ConfigurationError(f"axes: {', '.join(lacking)} must be named too", field=lacking[0])


def _options(
    settings: Mapping[str, Any], values: Mapping[str, AxisValue], namespaces: Mapping[str, type[Options]]
) -> dict[str, dict[str, Any]]:
    """Every option of the cell's own values, by namespace, as `settings` or its default says; all that `settings` says is
    checked."""
    given = {key: {} if value is None else value for key, value in settings.items() if key not in _FIELDS}
    own = tuple(value.options for value in values.values() if value.options)
    try:
        written = marshal.dumps(given, 2)  # as `validated_once` tells what says the same
    except ValueError:
        return _made_options(given, own, namespaces)
    return marshal.loads(_written_options(written, own))  # fresh, for they can be changed


@lru_cache(maxsize=1024)
def _written_options(written: bytes, own: tuple[type[Options], ...]) -> bytes:
    namespaces = {**_builtin_namespaces(), **{kind.namespace: kind for kind in own}}
    return marshal.dumps(_made_options(marshal.loads(written), own, namespaces), 2)


def _made_options(
    given: Mapping[str, Any], own: Sequence[type[Options]], namespaces: Mapping[str, type[Options]]
) -> dict[str, dict[str, Any]]:
    mine = [kind.namespace for kind in own]
    options: dict[str, Options] = {}
    for name in dict.fromkeys((*given, *mine)):
        if name not in namespaces:
            if not any(name in registry.families for registry in AXES.values()):
                raise unknown_field(name, {space: kind.model_fields for space, kind in namespaces.items()})
            check_mapping(given[name], name)
            continue  # another cell's: which options it has, its value says
        options[name] = validated_once(namespaces[name], given.get(name, {}), prefix=name + ".")
    return {name: options[name].model_dump(mode="json") for name in mine}


def _decided(
    workload: Workload, values: Mapping[str, AxisValue], flash: bool, given: Collection[str]
) -> dict[str, Any]:
    """What the axis values decide where the workload, without the fields that they do not use, left it to them. `given`: the fields
    that were set."""
    from vrambench.methods.models.config import attention_of, hidden_size

    algorithm, precision, adapter = values["algorithm"], values["precision"], values["adapter"]
    assert isinstance(algorithm, Algorithm)
    assert isinstance(precision, Precision)
    assert isinstance(adapter, Adapter)
    decided: dict[str, Any] = {}
    if workload.learning_rate is None:
        decided["learning_rate"] = algorithm.learning_rate
    if workload.group_size is None:
        decided["group_size"] = algorithm.group_size
    kernel = precision.attention(workload)
    preferred = "sdpa" if workload.lengths or workload.reference_dtype else kernel if flash else "efficient"
    decided["attention"] = attention_of(workload.model, workload.attention, preferred)
    if workload.reference == "auto":
        used = algorithm.uses_reference(workload) != "unused"
        switched_off = adapter.can_switch_off and not adapter.changes_base(workload)
        decided["reference"] = ("adapter_off" if switched_off else "copy") if used else "none"
    if workload.reward != "model":
        decided["reward_model"] = None
    if workload.eval_batch_size is None:
        decided |= dict.fromkeys(EVALUATION_FIELDS)
    if "max_length" in algorithm.fields:
        decided |= _lengths(workload, given)
    zero = workload.options.get(ZeroOptions.namespace)
    if zero and AUTO in zero.values():
        decided["options"] = workload.options | {ZeroOptions.namespace: sized(zero, hidden_size(workload.model))}
    return decided


def _lengths(workload: Workload, given: Collection[str]) -> dict[str, Any]:
    """A sequence's length and its two parts, so that they agree. Raises ConfigurationError where what was `given` does not."""
    whole, prompt = workload.max_length, workload.prompt_tokens
    if workload.lengths is not None:
        decided = _several_lengths(workload.lengths, whole, workload.packing)
        for name in PARTS:
            if name in given and getattr(workload, name) != decided[name]:
                raise ConfigurationError(
                    f"{name}: {getattr(workload, name)} says nothing beside lengths, {shown(workload.lengths)}, which say how long "
                    "sequences are; leave one of both out",
                    field=name,
                )
        return decided
    if whole is None:
        return {"max_length": workload.sequence_tokens}
    if prompt >= whole and "prompt_tokens" not in given:
        prompt = whole // 2
    if prompt >= whole:
        raise ConfigurationError(
            f"prompt_tokens: {prompt} must be less than max_length, {whole}, which leaves the rest to the response",
            field="prompt_tokens",
        )
    if "response_tokens" in given and prompt + workload.response_tokens != whole:
        raise ConfigurationError(
            f"response_tokens: {workload.response_tokens} with prompt_tokens {prompt} is not max_length, {whole}; leave "
            "response_tokens or max_length out",
            field="response_tokens",
        )
    return {"prompt_tokens": prompt, "response_tokens": whole - prompt}


def _several_lengths(lengths: Mapping[int, float], limit: int | None, packing: str) -> dict[str, Any]:
    """Lengths as `limit`, max_length, leaves them; the longest one, of which nothing is a prompt."""
    if limit is None and packing != "none":
        raise ConfigurationError(
            f"max_length: packing {packing} needs it: the tokens that a row has at most (TRL's default is 1024)",
            field="packing",
        )
    limit = limit or max(lengths)
    if packing == "wrapped":
        return {"max_length": limit, "prompt_tokens": 1, "response_tokens": limit - 1}
    cut = dict(lengths) if packing == "bfd_split" else truncated(lengths, limit)
    longest = min(max(cut), limit)
    whole = limit if packing in BEST_FIT else longest
    return {"lengths": cut, "max_length": whole, "prompt_tokens": 1, "response_tokens": longest - 1}


@cache
def conditional_fields() -> frozenset[str]:
    """The workload's fields that some built-in axis value declares as its own."""
    return frozenset(
        field for registry in AXES.values() for value in registry.values().values() for field in value.fields
    )


def _check_fields(values: Mapping[str, AxisValue]) -> None:
    """That the workload has every field that a value declares."""
    for axis, value in values.items():
        for name in value.fields:
            if name not in FIELDS:
                raise ConfigurationError(
                    f"{axis}: its value declares the field {shown(name)}, which no workload has{did_you_mean(name, FIELDS)}",
                    field=axis,
                )


def option_namespaces(values: Mapping[str, AxisValue] | None = None) -> dict[str, type[Options]]:
    """Every namespace that a workload may hold: the built-in values' and those of `values`, by axis (a user's own among
    them). Raises ConfigurationError where two values' options would have one name, or an option a field's."""
    namespaces = dict(_builtin_namespaces())
    _add_namespaces(namespaces, (values or {}).items())
    return namespaces


@cache
def _builtin_namespaces() -> Mapping[str, type[Options]]:
    namespaces: dict[str, type[Options]] = {}
    for axis, registry in AXES.items():
        _add_namespaces(namespaces, ((axis, value) for value in registry.values().values()))
    return namespaces


def _add_namespaces(namespaces: dict[str, type[Options]], values: Iterable[tuple[str, AxisValue]]) -> None:
    """Adds those of `values`, each with its axis, to `namespaces`."""
    for axis, value in values:
        kind = value.options
        if kind is None:
            continue
        name = getattr(kind, "namespace", None)
        if isinstance(name, str) and namespaces.get(name) is kind:
            continue
        if not isinstance(name, str) or not name.isidentifier() or name in (*FIELDS, *AXES, "options"):
            raise ConfigurationError(
                f"{axis}: the options {kind.__name__} need a namespace of their own, not {shown(name)}", field=axis
            )
        if namespaces.setdefault(name, kind) is not kind:
            raise ConfigurationError(
                f"{axis}: the options {kind.__name__} have the namespace {name!r}, which is that of "
                f"{namespaces[name].__name__}; give them another",
                field=axis,
            )
