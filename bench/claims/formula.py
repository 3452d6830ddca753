"""A claim's formula: arithmetic over what its cells gave.

    formula = parse("1 - remax.device_bytes / ppo.device_bytes")
    formula.names                   {("remax", "device_bytes"), ("ppo", "device_bytes")}
    formula.value({("remax", "device_bytes"): 6, ("ppo", "device_bytes"): 8})        0.25

It is read by Jinja, whose sandbox works it out. What may stand in it is told by kind of node: numbers, names of values, + - * /,
comparisons, and, or, not, min and max. Nothing of it is run as Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vrambench.methods.errors import ConfigurationError, UnknownValue, brief

Name = tuple[str, ...]
"""A cell and what is asked of it: `("ppo", "device_bytes")`, `("ppo", "value", "weights_bytes")`."""

FITS = "fits"
MEMORY = (
    "requested_bytes",
    "allocated_bytes",
    "active_bytes",
    "reserved_bytes",
    "device_bytes",
    "context_bytes",
    "managed_bytes",
    "host_pinned_bytes",
)
ROLE_BYTES = ("weights_bytes", "gradients_bytes", "optimizer_bytes")
PARAMETERS = ("parameters", "trainable_parameters")
RATES = (
    "step_seconds",
    "train_tokens_per_second",
    "generated_tokens_per_second",
    "samples_per_second",
    "energy_joules",
)
LEARNING = ("loss", "reward", "kl")
ROLES = ("policy", "reference", "value", "reward")

PREDICTED = (*MEMORY, *ROLE_BYTES, *PARAMETERS, FITS)
"""What a prediction tells of a cell."""
MEASURED = (*RATES, *LEARNING)
"""What a run alone tells."""
VALUES = (*PREDICTED, *MEASURED)

LONGEST = 1000
"""Characters of a formula."""

FUNCTIONS: Mapping[str, Any] = {"min": min, "max": max}
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.Neg, nodes.Pos)
_LOGIC = (nodes.Compare, nodes.And, nodes.Or, nodes.Not)
_FOREIGN: Mapping[type[nodes.Node], str] = {
    nodes.Pow: "**",
    nodes.FloorDiv: "//",
    nodes.Mod: "%",
    nodes.Concat: "~",
    nodes.Filter: "|",
    nodes.Test: "is",
    nodes.Getitem: "[ ]",
    nodes.Slice: "[ : ]",
    nodes.List: "[ ]",
    nodes.Dict: "{ }",
    nodes.Tuple: "a comma",
    nodes.CondExpr: "if",
}
"""What Jinja reads and no formula has, as it is written."""
_SANDBOX = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


@dataclass(frozen=True)
class Formula:
    """`judges`: its value is true or false, not a number. `fits_of`: the cell of which it asks whether it fits, where it asks no
    more."""

    text: str
    names: frozenset[Name]
    judges: bool
    fits_of: str | None = None

    @property
    def cells(self) -> frozenset[str]:
        return frozenset(name[0] for name in self.names)

    @property
    def predictable(self) -> bool:
        """Whether predictions alone give its value."""
        return all(name[-1] in PREDICTED for name in self.names)

    def value(self, given: Mapping[Name, float | bool]) -> float | bool:
        """What the formula comes to. Raises ZeroDivisionError; every name must be among `given`."""
        tree: dict[str, Any] = {}
        for name in self.names:
            inner = tree
            for part in name[:-1]:
                inner = inner.setdefault(part, {})
            inner[name[-1]] = given[name]
        worked_out = _SANDBOX.compile_expression(self.text, undefined_to_none=False)
        found: Any = worked_out(**{cell: _space(held) for cell, held in tree.items()}, **FUNCTIONS)
        value: float | bool = found
        return value


def _space(held: Any) -> Any:
    return SimpleNamespace(**{key: _space(one) for key, one in held.items()}) if isinstance(held, dict) else held


def parse(text: str) -> Formula:
    """The formula that `text` is. Raises ConfigurationError with what cannot stand in it, and what may."""
    if not text.strip():
        raise ConfigurationError("is empty; write a cell's name and a value: ppo.device_bytes")
    if len(text) > LONGEST:
        raise ConfigurationError(f"has {len(text):,} characters; at most {LONGEST:,}")
    try:
        (output,) = _SANDBOX.parse("{{ (" + text + ") }}").body
    except (TemplateSyntaxError, ValueError) as error:
        raise ConfigurationError(f"{brief(text)!r} is no formula: {error or 'it ends too early'}") from None
    except RecursionError:
        raise ConfigurationError(f"{brief(text)!r} is nested too deeply") from None
    if not isinstance(output, nodes.Output) or len(output.nodes) != 1:
        raise ConfigurationError(f"{brief(text)!r} is no formula")
    expression = output.nodes[0]
    names = frozenset(_names(expression))
    if not names:
        raise ConfigurationError(
            f"{brief(text)!r} asks nothing of a cell; write a cell's name and a value: ppo.device_bytes"
        )
    asked = _dotted(expression) if isinstance(expression, nodes.Getattr) else ()
    return Formula(text, names, _judges(expression), asked[0] if asked[1:] == (FITS,) else None)


def _judges(node: nodes.Node) -> bool:
    return isinstance(node, _LOGIC) or (isinstance(node, nodes.Getattr) and node.attr == FITS)


def _names(node: nodes.Node) -> Iterator[Name]:
    """Every value that the expression asks for. Raises ConfigurationError at what no formula has."""
    if isinstance(node, nodes.Getattr):
        name = _dotted(node)
        check_value(name)
        yield name
    elif isinstance(node, nodes.Name):
        raise ConfigurationError(f"{node.name!r} is a cell, and no value of it; write {node.name}.device_bytes")
    elif isinstance(node, nodes.Const):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ConfigurationError(f"{brief(str(node.value))!r} is no number")
    elif isinstance(node, nodes.Call):
        if not isinstance(node.node, nodes.Name) or node.node.name not in FUNCTIONS:
            called = node.node.name if isinstance(node.node, nodes.Name) else "it"
            raise UnknownValue("the function", called, FUNCTIONS)
        if node.kwargs or node.dyn_args or node.dyn_kwargs or len(node.args) < 2:
            raise ConfigurationError(f"{node.node.name} takes two values or more, with commas between them")
        for argument in node.args:
            yield from _names(argument)
    elif isinstance(node, (*_ARITHMETIC, *_LOGIC, nodes.Operand)):
        if isinstance(node, nodes.Operand) and node.op in ("in", "notin"):
            raise ConfigurationError("'in' has no meaning in a formula")
        for child in node.iter_child_nodes():
            yield from _names(child)
    else:
        raise ConfigurationError(
            f"{_FOREIGN.get(type(node), 'this')} cannot stand in a formula; there are + - * / ( ), comparisons, and, or, not, min "
            "and max"
        )


def _dotted(node: nodes.Getattr) -> Name:
    inner = node.node
    if isinstance(inner, nodes.Name):
        return (inner.name, node.attr)
    if isinstance(inner, nodes.Getattr):
        return (*_dotted(inner), node.attr)
    raise ConfigurationError(f".{node.attr} stands behind no cell's name")


def check_value(name: Name) -> None:
    """That `name` is a cell's value, or that of one of its roles. Raises UnknownValue with the nearest one."""
    cell, *path = name
    if len(path) == 1:
        if path[0] in ROLES and path[0] not in VALUES:
            raise ConfigurationError(f"{cell}.{path[0]} is a role; write {cell}.{path[0]}.weights_bytes")
        if path[0] not in VALUES:
            raise UnknownValue(f"the value of {cell}", path[0], VALUES)
    elif len(path) > 2 or path[0] not in ROLES:
        raise UnknownValue(f"the role of {cell}", path[0], ROLES)
    elif path[1] not in ROLE_BYTES:
        raise UnknownValue(f"the value of {cell}.{path[0]}", path[1], ROLE_BYTES)
