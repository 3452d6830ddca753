"""What can be wrong with the matrix and the selectors by their words alone: told at once and together, before anything heavy
is imported.

    matrix = load(path, selection)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vrambench.bench.commands.shared import Mistakes, default_matrix, shipped_matrix
from vrambench.methods.errors import ConfigurationError, UnknownValue
from vrambench.methods.models.config_file import check_config_file
from vrambench.methods.models.presets import PRESETS, check_name
from vrambench.methods.registry import check_module
from vrambench.methods.validated import meant_by, unknown_field, validated
from vrambench.methods.workload import FIELDS, Workload

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix, Setting
    from vrambench.bench.plan.selection import Selection


def load(path: Path | None, selection: Selection, *, recipes: bool = False) -> Matrix:
    """The matrix file at `path`, else the default one. Raises Mistakes with every line about it and the selectors that can be
    said without importing torch; what is left, `select` says. `recipes`: they have the axes' values, and the matrix needs none."""
    from vrambench.bench.plan.file import about_profiles
    from vrambench.bench.plan.matrix import read_matrix

    _check_blanks(path, selection)
    if selection.config_format is not None and selection.config is None:
        raise ConfigurationError(
            f"--config-format {selection.config_format}: says what the file of --config is, and there is none",
            field="config-format",
        )
    messages = list(dict.fromkeys(_about(selection)))
    try:
        matrix, mistakes = (
            (_configured(path, selection), [])
            if selection.config is not None
            else read_matrix(path or default_matrix())
        )
    except ConfigurationError as error:
        rest = getattr(error, "matrix", None)
        more = [] if rest is None else _about_matrix(rest)
        raise Mistakes(list(dict.fromkeys([*getattr(error, "messages", [error.message]), *messages, *more]))) from None
    shipped = not matrix.config and (path or default_matrix()).resolve() == shipped_matrix()
    messages = [
        *(error.message for error in mistakes),
        *messages,
        *_about_kept(matrix, selection),
        *(() if shipped else _about_matrix(matrix)),
        *(() if about_profiles(mistakes) else _about_profile(matrix, selection.profile)),
        *_about_names(matrix, selection, shipped=shipped),
        *(() if shipped or mistakes or recipes else _about_axes(matrix, selection)),
    ]
    if messages:
        raise Mistakes(list(dict.fromkeys(messages)))
    return matrix


def with_others(error: ConfigurationError, selection: Selection) -> Mistakes:
    """`error`, with the other mistakes that the selectors' words show."""
    return Mistakes(list(dict.fromkeys([error.message, *_about(selection)])))


def _configured(path: Path | None, selection: Selection) -> Matrix:
    """The file of --config as a matrix."""
    from vrambench.bench.plan.configs import read
    from vrambench.bench.plan.configs.keys import Chosen

    assert selection.config is not None
    if not selection.config.strip():
        raise ConfigurationError("--config '': names no file", field="config")
    if path is not None:
        raise ConfigurationError(
            f"--config {selection.config}: takes the place of the matrix {path}; leave one out", field="config"
        )
    axes = {axis: text.strip() for axis, text in selection.axes.items()}
    for axis, text in axes.items():
        if "," in text:
            raise ConfigurationError(f"--{axis} {text}: with --config, an axis has one value", field=axis)
    return read(selection.config, Chosen(axes, (*selection.settings(), *selection.sweeps())), selection.config_format)


def _check_blanks(path: Path | None, selection: Selection) -> None:
    """`--set batch_size 4` sets nothing, and takes 4 for the matrix: says what was probably meant."""
    if path is None or path.exists():
        return
    for option, given in (("set", selection.set), ("sweep", selection.sweep), ("only", selection.only)):
        for typed in given:
            if "=" not in typed:
                raise ConfigurationError(
                    f"--{option} {typed} {path}: write --{option} {typed}={path}, without a blank", field=option
                )


def _about(selection: Selection) -> Iterator[str]:
    """A line for each mistake in what was typed; those between two selectors only where each alone is right."""
    from vrambench.bench.plan.selection import Selection

    parts = [
        *(Selection(axes={axis: text}) for axis, text in selection.axes.items()),
        *(Selection(only=(typed,)) for typed in selection.only),
        *(Selection(set=(typed,)) for typed in selection.set),
        *(Selection(sweep=(typed,)) for typed in selection.sweep),
        Selection(model=selection.model),
        Selection(budget=selection.budget),
        Selection(coverage=selection.coverage),
        Selection(repeat=selection.repeat),
    ]
    found = [message for part in parts for message in _of(part)]
    yield from found or _of(replace(selection, axes={}))


def _of(selection: Selection) -> list[str]:
    """The mistakes in one selector; in several, the first."""
    from vrambench.bench.plan.matrix import check_builtin

    messages: list[str] = []

    def check(function: Callable[[], object]) -> None:
        try:
            function()
        except ConfigurationError as error:
            messages.append(error.message)

    def check_axes() -> None:
        for axis, settings in selection.layer().axes.items():
            for setting in settings:
                check(partial(check_builtin, axis, setting.value, setting.origin))
                check(partial(_check_own, axis, setting))

    check(check_axes)
    check(lambda: _check_fields({name: (setting,) for name, setting in selection.settings().items()}))
    check(lambda: _check_fields(selection.sweeps()))
    check(lambda: _check_things({name: (setting,) for name, setting in selection.settings().items()}))
    check(lambda: _check_things(selection.sweeps()))
    check(selection.kept)
    return messages


def _check_own(axis: str, setting: Setting) -> None:
    """That the module of a user's own value is there."""
    from vrambench.bench.plan.matrix import located
    from vrambench.methods.axes import AXES

    if ":" in setting.value and setting.value.partition(":")[0] not in AXES[axis].families:
        try:
            check_module(setting.value, field=axis)
        except ConfigurationError as error:
            raise located(error, {axis: setting}) from None


def _check_things(settings: Mapping[str, tuple[Setting, ...]]) -> None:
    """That models, data and a user's own reward are there, as far as their names tell."""
    from vrambench.bench.plan.matrix import located

    for name, values in settings.items():
        for setting in values:
            try:
                _check_thing(name, setting.value)
            except ConfigurationError as error:
                raise located(error, {name: setting}) from None


def _check_thing(name: str, value: object) -> None:
    if not isinstance(value, str):
        return
    if name in ("model", "reward_model"):
        check_name(value, name)
        if value and value not in PRESETS and Path(value).exists():
            check_config_file(Path(value), name)
    elif name == "data" and value != Workload().data:
        from vrambench.methods.texts import check_data  # which imports numpy

        check_data(value)
    elif name == "reward" and ":" in value:
        check_module(value, field=name)


def _check_fields(settings: Mapping[str, tuple[Setting, ...]]) -> None:
    """That no field is a slip of another's name, and that each can have its values. A name unlike all fields may be a
    namespace, which only the axes' values know."""
    from vrambench.bench.plan.matrix import located

    for name, values in settings.items():
        for setting in values:
            try:
                _check_field(name, setting.value)
            except ConfigurationError as error:
                raise located(error, {name: setting}) from None


def _check_field(name: str, value: object) -> None:
    if name in FIELDS:
        validated(Workload, {name: value})
    elif "." not in name and not isinstance(value, Mapping) and meant_by(name):
        raise unknown_field(name)


def _about_kept(matrix: Matrix, selection: Selection) -> Iterator[str]:
    """A line for each value to keep that no axis has."""
    from vrambench.methods.axes import AXES

    try:
        kept, chosen, layer = selection.kept(), selection.layer().axes, matrix.layer(selection.profile)
    except ConfigurationError:  # which is told of the selector
        return
    for axis, names in kept.items():
        there = [setting.value for setting in chosen.get(axis) or layer.axes.get(axis) or ()]
        for name in names:
            if ":" not in name and name not in AXES[axis]:
                yield UnknownValue(f"--only {axis}", name, there or AXES[axis]).message


def _about_names(matrix: Matrix, selection: Selection, *, shipped: bool) -> Iterator[str]:
    """A line for each option, in the file or typed, that cannot be what is said of it, and for each name that no field and no
    option has. `shipped`: the file is ours, and needs no such look."""
    from vrambench.bench.plan.matrix import Layer
    from vrambench.bench.plan.names import unknown_names, wrong_options

    try:
        more, layer = selection.layer(), Layer() if shipped else matrix.layer(selection.profile)
        typed = {name: (setting,) for name, setting in selection.settings().items()} | dict(selection.sweeps())
    except ConfigurationError:  # which is told of the selector
        return
    written = {name: (setting,) for name, setting in layer.workload.items()} | dict(layer.sweep or {})
    said = {name: settings for name, settings in written.items() if name not in typed}
    checked = replace(matrix, top=layer, profiles={}) if shipped else matrix
    for error in (*wrong_options(typed, said), *unknown_names(checked, more, typed)):
        yield error.message


def _about_matrix(matrix: Matrix) -> Iterator[str]:
    """A line for each unknown axis value or wrong field in the file."""
    from vrambench.bench.plan.matrix import check_builtin

    for layer in (matrix.top, *matrix.profiles.values()):
        for axis, settings in layer.axes.items():
            for setting in settings:
                try:
                    check_builtin(axis, setting.value, setting.origin)
                except ConfigurationError as error:
                    yield error.message
        for name, setting in layer.workload.items():
            try:
                _check_fields({name: (setting,)})
            except ConfigurationError as error:
                yield error.message


def _about_axes(matrix: Matrix, selection: Selection) -> Iterator[str]:
    """A line where an axis has no value, whatever the device is."""
    from vrambench.bench.plan.combinations import check_complete

    profiles = [selection.profile] if selection.profile else [None, *matrix.default_profile.values()]
    try:
        layers = [selection.layer().over(matrix.layer(profile)) for profile in profiles]
    except ConfigurationError:  # which is told of the selector, or of the profile
        return
    wrong = []
    for layer in layers:
        try:
            check_complete(layer)
        except ConfigurationError as error:
            wrong.append(error.message)
    if len(wrong) == len(layers):
        yield wrong[0]


def _about_profile(matrix: Matrix, profile: str | None) -> Iterator[str]:
    """A line for a profile that the file has not."""
    try:
        matrix.layer(profile)
    except ConfigurationError as error:
        yield error.message
