"""Whether what a matrix and the command line name is there: fields, options and built-in axis values; and whether options can have
their values. Nothing is imported for it that needs torch.

for error in unknown_names(matrix, selection.layer(), selection.sweeps()): ...
for error in wrong_options(selection.settings(), selection.sweeps()): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vrambench.bench.plan.matrix import Layer, Matrix, Setting, check_builtin, located
from vrambench.methods.axes import AXES
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.validated import unknown_field, unknown_option, validated
from vrambench.methods.workload import FIELDS
from vrambench.methods.written_options import option_names, written_options


def check_names(matrix: Matrix, more: Layer) -> None:
    """That everything that the file names anywhere exists, in profiles that are not in use too. `more`: the command line's layer.
    Raises ConfigurationError for the first that does not."""
    for error in unknown_names(matrix, more):
        raise error


def unknown_names(
    matrix: Matrix, more: Layer, typed: Mapping[str, Sequence[Setting]] | None = None
) -> Iterator[ConfigurationError]:
    """An error for each name that does not exist: in the file's layers, then among the `typed` settings. A user's own axis value,
    and another library's (`peft:RoadConfig`), may bring options under a name that is not known here; only the cells can tell."""
    layers = [matrix.top, *matrix.profiles.values()]
    own = any(":" in value for layer in (*layers, more) for value in layer.values())
    for layer in layers:
        entries = (*(layer.exclude or ()), *(layer.include or ()))
        for axis, values in layer.axes.items():
            yield from _unknown_values((axis, value.value, value.origin) for value in values)
        for entry in entries:
            yield from _unknown_values((axis, name, f"{entry.origin}.") for axis, name in entry.axes.items())
        swept = {name: values[0] for name, values in (layer.sweep or {}).items()}
        for settings in (layer.workload, swept, *(entry.settings for entry in entries)):
            yield from _unknown(settings, own=own)
    yield from _unknown({name: settings[0] for name, settings in (typed or {}).items()}, own=own)


def wrong_options(*said: Mapping[str, Sequence[Setting]]) -> Iterator[ConfigurationError]:
    """An error for each setting of a built-in value's option that cannot be, each by itself."""
    for name, settings in [pair for one in said for pair in one.items()]:
        namespace, _, option = name.partition(".")
        family = any(namespace in registry.families for registry in AXES.values())
        kind = written_options(namespace)
        if kind is None or family or not option:
            continue
        for setting in settings:
            try:
                validated(kind, {option: setting.value}, prefix=f"{namespace}.")
            except ConfigurationError as error:
                yield located(error, {error.field or name: setting})


def _unknown_values(named: Iterator[tuple[str, str, str]]) -> Iterator[ConfigurationError]:
    """Of an axis, a value and where it was written."""
    for axis, name, origin in named:
        try:
            check_builtin(axis, name, origin)
        except ConfigurationError as error:
            yield error


def _unknown(settings: Mapping[str, Setting], *, own: bool) -> Iterator[ConfigurationError]:
    for name, setting in settings.items():
        namespace, _, option = name.partition(".")
        if namespace in FIELDS or any(namespace in registry.families for registry in AXES.values()):
            continue  # `batch_size.x` is told where the layer is read
        options = option_names().get(namespace)
        if options is None:
            if not (own and (option or isinstance(setting.value, Mapping))):
                yield located(unknown_field(namespace, option_names()), {namespace: setting})
        elif option and option not in options:
            yield located(unknown_option(option, options, f"{namespace}."), {name: setting})
