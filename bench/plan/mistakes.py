"""What is wrong with options of axis values, which only the values' own modules know: all of it, where planning ended at the first.

list(about_options(matrix, selection))      ["--set ppo.epochs=x: ppo.epochs: 'x': must be a whole number"]
"""

from __future__ import annotations

from collections.abc import Iterator

from vrambench.bench.plan.matrix import Matrix, Setting, located
from vrambench.bench.plan.selection import Selection
from vrambench.methods.axes import AXES
from vrambench.methods.cell import option_namespaces
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.option_names import option_names
from vrambench.methods.validated import unknown_field, validated
from vrambench.methods.workload import FIELDS


def about_options(matrix: Matrix, selection: Selection) -> Iterator[str]:
    """A line for each option of a built-in value that cannot be what the matrix or the selection says, each by itself; and for each
    name that is neither a field nor an option, unless a user's own value may have it."""
    try:
        layer = selection.layer().over(matrix.layer(selection.profile))
        own = any(":" in name for name in layer.values())
        said = {**layer.workload, **selection.settings()}
        swept = {**(layer.sweep or {}), **selection.sweeps()}
    except ConfigurationError:  # which was told
        return
    for name, settings in ({name: (setting,) for name, setting in said.items()} | swept).items():
        for setting in settings:
            message = _about(name, setting, own=own)
            if message:
                yield message


def _about(name: str, setting: Setting, *, own: bool) -> str | None:
    namespaces = option_namespaces()
    namespace, _, option = name.partition(".")
    kind = namespaces.get(namespace)
    elsewhere = own or any(namespace in registry.families for registry in AXES.values())
    if name in FIELDS or (kind is None and elsewhere) or (kind is not None and not option):
        return None
    try:
        if kind is None:
            raise unknown_field(namespace, option_names())
        validated(kind, {option: setting.value}, prefix=f"{namespace}.")
    except ConfigurationError as error:
        return located(error, {error.field or name: setting}).message
    return None
