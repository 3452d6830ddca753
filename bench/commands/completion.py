"""What a shell offers: axis values, fields, models, cards, profiles; without torch, since a shell waits for it.

vrambench --install-completion          for bash, zsh, fish
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Offer = Callable[[str], list[str]]
"""From what was typed so far, what it may become."""


def axis_values(axis: str) -> Offer:
    """The axis' values, each also behind others and a comma."""

    def offered(incomplete: str) -> list[str]:
        from vrambench.methods.axes import AXES

        before, comma, begun = incomplete.rpartition(",")
        return [before + comma + name for name in _beginning(begun, AXES[axis]) if name not in before.split(",")]

    return offered


def fields(incomplete: str) -> list[str]:
    """Fields of the workload, with what follows them."""
    from vrambench.methods.workload import FIELDS

    return [f"{name}=" for name in _beginning(incomplete, FIELDS)]


def models(incomplete: str) -> list[str]:
    """Presets. Where none begins so, the shell offers its files."""
    from vrambench.methods.models.presets import PRESETS

    return _beginning(incomplete, PRESETS)


def lists(incomplete: str) -> list[str]:
    """What `vrambench list` lists."""
    from vrambench.reports.text.lists import LISTS

    return _beginning(incomplete, LISTS)


def budgets(incomplete: str) -> list[str]:
    """Cards whose capacity is known."""
    from vrambench.methods.cards import CAPACITIES

    return _beginning(incomplete, CAPACITIES)


def profiles(incomplete: str) -> list[str]:
    """Those of the default matrix; none where it cannot be read."""
    from vrambench.bench.commands.shared import default_matrix
    from vrambench.bench.plan.matrix import read_matrix
    from vrambench.methods.errors import ConfigurationError

    try:
        matrix, _ = read_matrix(default_matrix())
    except (ConfigurationError, OSError):
        return []
    return _beginning(incomplete, matrix.profiles)


def _beginning(begun: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(begun)]
