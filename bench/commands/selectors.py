"""The selectors as options of a command: which cells, and with which settings. What they mean: `selection.py`.

@app.command()
@with_selectors()
def plan(*, selection: Selection) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vrambench.bench.commands import completion
from vrambench.bench.commands.shared import say
from vrambench.methods.errors import ConfigurationError

if TYPE_CHECKING:
    from vrambench.bench.plan.selection import Selection

Command = Callable[..., Any]
Texts = list[str] | None
"""What was typed, each time that the option was given."""


Profile = Annotated[
    Texts, typer.Option(help="A profile of the matrix.", metavar="NAME", autocompletion=completion.profiles)
]
Only = Annotated[Texts, typer.Option(help="Keep only cells with these values; may be repeated.", metavar="AXIS=V,V")]
Set = Annotated[
    Texts,
    typer.Option(
        "--set",
        help="Set a workload field or an option; may be repeated.",
        metavar="FIELD=VALUE",
        autocompletion=completion.fields,
    ),
]
Sweep = Annotated[
    Texts,
    typer.Option(
        help="Make a cell of each value; may be repeated.", metavar="FIELD=V,V", autocompletion=completion.fields
    ),
]
Repeat = Annotated[list[int] | None, typer.Option(help="How many samples of each cell are measured.", metavar="N")]
Model = Annotated[
    Texts,
    typer.Option("--model", help="A preset, a hub id or a folder.", metavar="MODEL", autocompletion=completion.models),
]
Budget = Annotated[
    Texts,
    typer.Option(help="The device memory that a cell may use.", metavar="SIZE|CARD", autocompletion=completion.budgets),
]
Coverage = Annotated[Texts, typer.Option(help="full, or pairwise: every pair of values.", metavar="HOW")]
Config = Annotated[
    Texts,
    typer.Option("--config", help="A trainer's own file instead of a matrix: docs/config-files.md.", metavar="FILE"),
]
ConfigFormat = Annotated[
    Texts, typer.Option("--config-format", help="What it is, where its keys do not tell.", metavar="FORMAT")
]


def _of_axis(axis: str) -> Any:
    return typer.Option(
        help=f"These {axis}s instead of the matrix'.", metavar="V,V", autocompletion=completion.axis_values(axis)
    )


def selectors(
    *,
    profile: Profile = None,
    only: Only = None,
    set_: Set = None,
    sweep: Sweep = None,
    repeat: Repeat = None,
    model: Model = None,
    budget: Budget = None,
    coverage: Coverage = None,
    config: Config = None,
    config_format: ConfigFormat = None,
    precision: Annotated[Texts, _of_axis("precision")] = None,
    adapter: Annotated[Texts, _of_axis("adapter")] = None,
    optimizer: Annotated[Texts, _of_axis("optimizer")] = None,
    offload: Annotated[Texts, _of_axis("offload")] = None,
    algorithm: Annotated[Texts, _of_axis("algorithm")] = None,
) -> Selection:
    """What the selectors say. `--only`, `--set` and `--sweep` may be repeated, the others may not."""
    from vrambench.bench.plan.selection import Selection

    axes = {
        "precision": precision,
        "adapter": adapter,
        "optimizer": optimizer,
        "offload": offload,
        "algorithm": algorithm,
    }
    chosen = {axis: _once(axis, values, several=True) for axis, values in axes.items()}
    return Selection(
        profile=_once("profile", profile),
        axes={axis: text for axis, text in chosen.items() if text is not None},
        only=tuple(only or ()),
        set=tuple(set_ or ()),
        sweep=tuple(sweep or ()),
        repeat=_once("repeat", repeat),
        model=_once("model", model),
        budget=_once("budget", budget),
        coverage=_once("coverage", coverage),
        config=_once("config", config),
        config_format=_once("config-format", config_format),
    )


def _once(name: str, values: list[Any] | None, *, several: bool = False) -> Any:
    """The one value of an option that must not be repeated. `several`: it holds several, with commas between them."""
    if values and len(values) > 1:
        typed = [str(value) for value in values]
        form = f"; write --{name} {','.join(typed)}" if several else f": {', '.join(typed)}"
        raise ConfigurationError(f"--{name} is given {len(values)} times{form}", field=name)
    return values[0] if values else None


def with_selectors(refused: Mapping[str, str] = MappingProxyType({})) -> Callable[[Command], Command]:
    """Gives a command every selector as an option of its own, and their reading as its argument `selection`. `refused`: selectors
    that say nothing to it, with the reason; --help does not show them."""

    def decorated(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**arguments: Any) -> Any:
            chosen = {name: arguments.pop(name) for name in options}
            for name, why in refused.items():
                if chosen[name]:
                    raise ConfigurationError(f"--{name} {chosen[name][0]}: {why}", field=name)
            from vrambench.bench.plan.aliased import in_our_names

            selection, notes = in_our_names(selectors(**chosen))
            for note in notes:
                say(note)
            return command(selection=replace(selection, read_as=notes), **arguments)

        hints = typing.get_type_hints(command, include_extras=True, localns={"Selection": Any})
        more = typing.get_type_hints(selectors, include_extras=True, localns={"Selection": Any})
        more |= {name: Annotated[Texts, typer.Option(f"--{name}", hidden=True)] for name in refused}
        options = inspect.signature(selectors).parameters
        own = [one for name, one in inspect.signature(command).parameters.items() if name != "selection"]
        together = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=(hints | more)[one.name])
            for one in (*own, *options.values())
        ]
        wrapped.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in together}
        del wrapped.__wrapped__
        return wrapped

    return decorated
