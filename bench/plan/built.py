"""How a configuration was read, as it is true of the cells that were made of it.

    config = as_built(config, [planned.cell for planned in plan.cells])

The command line may name an algorithm that has no use for what the file says, and the model decides what an `auto` is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vrambench.bench.plan.config import Config, Made, ReadKey
from vrambench.bench.plan.used import has
from vrambench.methods.cell import Cell
from vrambench.methods.errors import shown
from vrambench.methods.workload import AXIS_NAMES, PARTS


def as_built(config: Config, cells: Sequence[Cell]) -> Config:
    """`config`, in which a key is without effect where none of `cells` has what it became, and only that is taken for granted which
    some have."""

    def holds(made: Made) -> bool:
        return made.name in ("", *AXIS_NAMES) or any(has(cell, made.name) for cell in cells)

    def decided(made: Made) -> Made:
        """With the number that an option's `auto` came to, if it is one."""
        namespace, _, option = made.name.partition(".")
        if not option or made.told != f"{made.name}: auto":
            return made
        numbers = {cell.workload.options.get(namespace, {}).get(option) for cell in cells} - {None}
        return replace(made, told=f"{made.name}: {shown(*numbers)}, by the hidden size") if len(numbers) == 1 else made

    def read(one: ReadKey) -> ReadKey:
        made = tuple(map(decided, filter(holds, one.made)))
        if made == one.made:
            return one
        if made or one.kind != "used":
            return replace(one, made=made)
        return replace(one, kind="without effect", reason="this job does not use it")

    parts = [part for part in PARTS if part not in config.said]
    apart = [cell.workload for cell in cells if cell.workload.max_length is None and cell.workload.lengths is None]
    taken = [
        Made(
            part,
            f"{part.removesuffix('_tokens')}s of {getattr(apart[0], part)} tokens, as the file does not say how long they are "
            f"(--set {part}=512)",
        )
        for part in (parts if apart else ())
    ]
    return replace(
        config,
        keys=tuple(map(read, config.keys)),
        defaults=tuple(filter(holds, config.defaults)),
        taken=(*filter(holds, config.taken), *taken),
    )
