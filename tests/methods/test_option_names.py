"""Names of options that are read from files' text, against the classes themselves."""

from __future__ import annotations

from vrambench.methods.axes import AXES
from vrambench.methods.cell import option_namespaces
from vrambench.methods.option_names import option_names


def test_they_are_those_of_the_classes() -> None:
    families = {name for registry in AXES.values() for name in registry.families}
    read = {space: fields for space, fields in option_names().items() if space not in families}
    assert read == {space: tuple(kind.model_fields) for space, kind in option_namespaces().items()}
