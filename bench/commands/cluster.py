"""Cells on a cluster, as the commands ask for them: `--on`, and what belongs to it.

with opened(asked("ray", None, None, folder), device=None, jobs=None) as cluster:
    cluster.device, cluster.executor
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vrambench.bench.results import PREDICTED
from vrambench.methods.errors import ConfigurationError, UnknownValue

if TYPE_CHECKING:
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.bench.predict.many import NewPool
    from vrambench.bench.run.ray import RayExecutor

LOCAL, RAY, CLIENT = "local", "ray", "ray://"
WHERE = "local, ray (the cluster that RAY_ADDRESS names, or that runs here), ray://HOST:PORT."

On = Annotated[
    str | None, typer.Option("--on", help=f"Where cells run: {WHERE}", metavar="WHERE", show_default="local")
]
PredictOn = Annotated[
    str, typer.Option("--on", help=f"Where cells are predicted: {WHERE}", metavar="WHERE", show_default="local")
]
OnGpus = Annotated[
    str | None,
    typer.Option(
        help="On a cluster, kinds of GPUs by Ray's names, as H100,L4: each cell on each.",
        metavar="KIND,..",
        show_default="the only kind there is",
    ),
]
CpusPerCell = Annotated[
    int | None,
    typer.Option(help="On a cluster, the cores that a cell asks for.", min=1, metavar="N", show_default="1"),
]


@dataclass(frozen=True)
class Asked:
    """Where a run's cells are to run: `on` as typed, the kinds of GPUs that were named, and cores for each cell."""

    on: str = LOCAL
    gpus: tuple[str, ...] = ()
    cpus: int = 1

    @property
    def about(self) -> dict[str, Any]:
        """As run.json holds it; nothing where the run is this machine's."""
        return {} if self.on == LOCAL else {"on": self.on, "on_gpus": list(self.gpus), "cpus_per_cell": self.cpus}


def asked(on: str | None, gpus: str | None, cpus: int | None, folder: Path) -> Asked:
    """What was typed, and for the rest what the run in `folder` was begun with. Raises ConfigurationError."""
    begun = Asked()
    if (folder / "run.json").exists():
        from vrambench.bench.results.store import RunFolder

        info = RunFolder.open(folder).run
        assert info is not None
        begun = Asked(info.on or LOCAL, info.on_gpus, info.cpus_per_cell or 1)
    where = on or begun.on
    check_on(where)
    for option, typed in (("--on-gpus", gpus), ("--cpus-per-cell", cpus)):
        if typed is not None and where == LOCAL:
            raise ConfigurationError(f"{option}: is for cells on a cluster; add --on ray", field="on")
    if where == LOCAL:
        return Asked()
    named = tuple(dict.fromkeys(filter(None, (one.strip() for one in (gpus or "").split(",")))))
    return Asked(where, named or begun.gpus, cpus or begun.cpus)


def begun_on(folder: Path) -> str | None:
    """The device that the run in `folder` was begun on, if there is one."""
    from vrambench.bench.results.store import RunFolder

    return RunFolder.open(folder).info["device"] if (folder / "run.json").exists() else None


def check_on(on: str) -> None:
    """Raises UnknownValue for what is no place."""
    if on not in (LOCAL, RAY) and not (on.startswith(CLIENT) and len(on) > len(CLIENT)):
        raise UnknownValue("--on", on, (LOCAL, RAY, f"{CLIENT}HOST:PORT"))


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. `device`: what cells run on there; `kinds`: on these GPUs, where that is said or
    there is only one kind."""

    device: str
    kinds: tuple[str, ...]
    executor: RayExecutor

    @property
    def pool(self) -> NewPool:
        """What predictions are made in there."""
        from vrambench.bench.run.ray_cluster import predicting

        return predicting

    @property
    def first(self) -> str | None:
        """The first kind of GPU, or the only one."""
        return self.kinds[0] if len(self.kinds) > 1 else None

    def has_bf16(self, kind: str | None) -> bool:
        """Whether GPUs of that kind have bf16 arithmetic."""
        from vrambench.methods.cards import FIRST_BF16

        gpu = self.executor.environment(kind)["gpu"] or {}
        capability = gpu.get("compute_capability")
        return capability is None or tuple(map(int, capability.split("."))) >= FIRST_BF16

    def spread(self, cells: Callable[[bool], Sequence[PlannedCell]]) -> list[PlannedCell]:
        """`cells` (with bf16 arithmetic or without), once for each kind of GPU where there are several. Raises ConfigurationError
        where one would save what another of its name saves too."""
        if len(self.kinds) < 2:
            return list(cells(self.has_bf16(None)))
        by_arithmetic = {bf16: cells(bf16) for bf16 in {self.has_bf16(kind) for kind in self.kinds}}
        kept = by_arithmetic[self.has_bf16(self.first)]
        saves = next((one.cell.workload.save_as for one in kept if one.cell.workload.save_as), None)
        if saves:
            raise ConfigurationError(
                f"--on-gpus: on each kind a cell would save {saves!r}; name one kind, or leave such cells out",
                field="on_gpus",
            )
        return [
            replace(one, on=kind, name=f"{one.name} gpu={kind}")
            for kind in self.kinds
            for one in by_arithmetic[self.has_bf16(kind)]
        ]


@contextlib.contextmanager
def opened(where: Asked, device: str | None, jobs: int | None) -> Iterator[Cluster | None]:
    """The cluster, for as long as cells run on it; None where they run here. `device` as typed, or as the run was begun."""
    if where.on == LOCAL:
        yield None
        return
    kind = (device or "auto").partition(":")[0]
    if kind == PREDICTED:
        raise ConfigurationError(
            f"--device {PREDICTED}: predictions are spread over a cluster by `vrambench plan --on {where.on}`",
            field="device",
        )
    _check_installed()
    from vrambench.bench.run.ray import RayExecutor
    from vrambench.bench.run.ray_cluster import Share, chosen_kinds, connected, kinds_of_gpus

    with connected(_address(where.on)):
        on_gpus = kind == "cuda" or (kind == "auto" and bool(kinds_of_gpus()))
        if where.gpus and not on_gpus:
            raise ConfigurationError("--on-gpus: cells that run on CPUs have no GPU", field="on_gpus")
        kinds = chosen_kinds(where.gpus) if on_gpus else ()
        name = "cuda:0" if on_gpus else "cpu"  # Ray shows each job its own GPU alone
        share = Share(where.cpus, gpus=int(on_gpus))
        yield Cluster(name, kinds, RayExecutor(name, share, kinds, most=jobs))


@contextlib.contextmanager
def pool_on(on: str) -> Iterator[NewPool | None]:
    """What predictions are made in on a cluster; None: in processes here."""
    check_on(on)
    if on == LOCAL:
        yield None
        return
    _check_installed()
    from vrambench.bench.run.ray_cluster import connected, predicting

    with connected(_address(on)):
        yield predicting


def _address(on: str) -> str | None:
    return on if on.startswith(CLIENT) else None


def _check_installed() -> None:
    """Raises ConfigurationError where Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise ConfigurationError("--on ray: Ray is not installed; pip install 'vrambench[ray]'", field="on")
