"""Runs a cell's job on the simulated device, and gives what it does to a GPU's memory.

    simulator = Simulator()
    simulation = simulator.run(cell, card=CARDS["rtx-4090"])
    simulation.trace, simulation.roles, simulation.managed_bytes

Loading and two steps are traced: the first in which optimizer state comes into being, and the second in which it is there from the
start; of sequences of several lengths, as many as several.py says. Then, where the job has them, an evaluation with one step more,
and saving. Models of many equal layers are built with four,
and the trace is extended to all of them (layers.py).
"""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vrambench.bench.measure.ledger import count_parameters, largest_gradients, paged_state, whole_bytes
from vrambench.bench.predict.several import order_of
from vrambench.bench.predict.tracing.decode_steps import NotRegular, with_all_steps, without_marks
from vrambench.bench.predict.tracing.hidden import HiddenMemory, Kept
from vrambench.bench.predict.tracing.job import TracedJob
from vrambench.bench.predict.tracing.layers import BUILT, NotAlike, extend
from vrambench.bench.predict.tracing.shapes import KnownShapes
from vrambench.bench.predict.tracing.trace import ALLOC, HOST, Owner, Trace
from vrambench.bench.predict.tracing.tracer import Tracer
from vrambench.bench.predict.unseen.matmuls import LT_MATMULS, MATMULS, cublas_workspace_bytes, cublaslt_workspace
from vrambench.bench.predict.unseen.workspaces import EARLY, workspaces
from vrambench.bench.results.records import Parameters, RoleBytes
from vrambench.methods.batches import Kind
from vrambench.methods.cards import Card
from vrambench.methods.cell import Cell
from vrambench.methods.device import get_device
from vrambench.methods.job import Job
from vrambench.methods.models.parts import layer_stacks
from vrambench.methods.offload.host import HostMemory
from vrambench.methods.registry import Workspace

STEPS = 2


@dataclass(frozen=True)
class Simulation:
    """What a job does to memory. `managed_bytes`: what may lie on the device or on the host (paged optimizer state). `layers`: how
    many layers of each model were traced, None for all; `notes`: what of it is
    out of the ordinary."""

    trace: Trace
    roles: dict[str, RoleBytes]
    parameters: Parameters
    managed_bytes: int
    host_pinned_bytes: int
    host_bytes: int
    layers: int | None
    notes: tuple[str, ...] = ()


class Simulator:
    """Simulates jobs, one after the other; what it learns of operators it keeps."""

    def __init__(self) -> None:
        self._shapes = KnownShapes()

    def run(self, cell: Cell, card: Card | None = None, *, worst_alone: bool = False) -> Simulation:
        """`cell` on `card`'s hardware (an RTX 3090's where none is named), with the batches of `order_of`. Raises
        ConfigurationError as the job itself would."""
        order = order_of(cell, worst_alone=worst_alone)
        work = cell.workload
        try:
            if work.activation_offloading and work.gradient_checkpointing:
                raise NotAlike("offloading holds the inputs of five layers at once")
            if cell.offload_value.across_layers:
                raise NotAlike(f"{cell.offload} works on several layers' weights or gradients at once")
            if cell.adapter_value.uneven(work):
                raise NotAlike(f"{cell.adapter} may add something else to each layer")
            return self._simulated(cell, card, BUILT, order)
        except NotAlike as difference:
            simulation = self._simulated(cell, card, None, order)
            note = f"every layer was traced, since not all do the same ({difference})"
            return replace(simulation, notes=(note, *simulation.notes))

    def _simulated(self, cell: Cell, card: Card | None, layers: int | None, order: tuple[Kind, ...]) -> Simulation:
        steps = len(order) - (cell.workload.eval_batch_size is not None) if order else STEPS
        device = replace(get_device("meta"), layers=layers, capability=card.capability if card else None, order=order)
        tracer = Tracer("meta", hidden=hidden_memory(cell, card), shapes=self._shapes)
        job = TracedJob(cell, device, tracer)
        with tracer:
            job.load()
            for index in range(steps):
                job.step(index)
            if job.evaluates:
                job.evaluate()
                job.step(steps)  # in the memory that the evaluation leaves cached
            parameters = _parameters(job)
            managed = _managed_bytes(job)
            gradients = largest_gradients(job) if cell.optimizer_value.layerwise else {}
            host, held = list(_host_memory(job)), _held_on_host(job)
            shares = {name: role.shares for name, role in job.roles.items()}
            saved = _saved_bytes(job) if job.saves else 0
            notes: list[str] = []
            if job.saves:
                notes.append(f"saving takes {saved / 2**20:,.0f} MiB of the host's memory")
                job.save()
        del job
        gc.collect()
        trace = extend(tracer.trace, tracer.stacks) if layers is not None else tracer.trace
        try:
            trace = with_all_steps(trace, tracer.trace)
        except NotRegular as difference:
            trace = without_marks(trace)
            notes.append(f"of decoding, only the first and the last step are followed ({difference})")
        work = cell.workload
        offloads = work.activation_offloading or cell.offload_value.activations_on_host or work.ref_reward_offload
        activations = offloaded_bytes(trace) if offloads else 0
        return Simulation(
            trace=trace,
            roles=roles_of(trace, shares, gradients),
            parameters=parameters,
            managed_bytes=managed,
            host_pinned_bytes=sum(memory.host_pinned_bytes for memory in host) + activations,
            host_bytes=sum(memory.host_bytes for memory in host) + activations + saved + held,
            layers=layers if any(depth > BUILT for depth in tracer.stacks) else None,
            notes=tuple(notes),
        )


def hidden_memory(cell: Cell | None, card: Card | None) -> HiddenMemory:
    """What CUDA's operators, and those of the axis values of `cell`, take inside themselves; and what cuBLAS keeps."""
    taken: dict[str, Workspace] = dict(workspaces(card))
    for value in cell.values.values() if cell else ():
        taken |= value.workspaces
    cublas = Kept("cublas", cublas_workspace_bytes(card.capability if card else None))
    kept: dict[str, tuple[Kept, ...]] = dict.fromkeys(MATMULS, (cublas,))
    lt = cublaslt_workspace(torch.__version__)
    if lt.nbytes and lt.kept:
        for name in LT_MATMULS:
            kept[name] = (*kept.get(name, ()), Kept("cublaslt", lt.nbytes))
    elif lt.nbytes:
        taken |= dict.fromkeys(LT_MATMULS, lambda args, kwargs, result: (lt.nbytes,))
    return HiddenMemory(taken, EARLY, kept)


def roles_of(trace: Trace, shares: Mapping[str, str | None], gradients: Mapping[str, int]) -> dict[str, RoleBytes]:
    """The roles' lines of the ledger. `gradients`: where an optimizer frees each at once, the largest one's bytes."""
    sums: defaultdict[Owner, int] = defaultdict(int)
    for event in trace.events:
        if event.kind == ALLOC and event.ident in trace.owners:
            sums[trace.owners[event.ident]] += event.nbytes
    lines = {}
    for name, shared in shares.items():

        def held(kind: str, name: str = name) -> int:
            return max((total for (role, its, _), total in sums.items() if (role, its) == (name, kind)), default=0)

        lines[name] = RoleBytes(
            weights_bytes=held("weights"),
            gradients_bytes=gradients.get(name, held("gradients")),
            optimizer_bytes=held("optimizer"),
            shares=shared,
        )
    return lines


def _left_out(module: nn.Module) -> dict[nn.Parameter, int]:
    """By parameter of a layer of a shortened stack of `module`: how many like it were not built. What the layers share was."""
    times: dict[nn.Parameter, int] = {}
    for stack in layer_stacks(module):
        if stack.depth > len(stack.layers):
            shared = set(stack.layers[0].parameters())
            own = [parameter for parameter in stack.layers[1].parameters() if parameter not in shared]
            times |= dict.fromkeys(own, stack.depth - len(stack.layers))
    return times


def _parameters(job: Job) -> Parameters:
    built = count_parameters(job.parameters())
    total, trainable = built.total, built.trainable
    times: dict[nn.Parameter, int] = {}
    for role in job.roles.values():
        times |= _left_out(role.module)
    for parameter, count in times.items():
        one = count_parameters([parameter])
        total += count * one.total
        trainable += count * one.trainable
    return Parameters(total=total, trainable=trainable)


def _host_memory(job: Job) -> Iterator[HostMemory]:
    """What each trained model's offload holds on the host, all layers counted."""
    for role in job.roles.values():
        learner: Any = role.learner
        if hasattr(learner, "host_memory_of"):
            times = _left_out(role.module)
            groups = [
                [each for parameter in group for each in [parameter] * (1 + times.get(parameter, 0))]
                for group in learner.parameter_groups
            ]
            yield learner.host_memory_of(groups)


def _held_on_host(job: Job) -> int:
    """Of models that are in the host's memory, all layers counted."""
    total = 0
    for module in (role.module for role in job.roles.values() if role.on_host):
        times = _left_out(module)
        total += sum((1 + times.get(parameter, 0)) * parameter.nbytes for parameter in module.parameters())
    return total


def offloaded_bytes(trace: Trace) -> int:
    """Of host memory, for activations: a block is used again for others of its size, and never given back."""
    held, most = Counter[int](), Counter[int]()
    for event in trace.events:
        if event.kind == HOST:
            size = abs(event.nbytes)
            held[size] += 1 if event.nbytes > 0 else -1
            most[size] = max(most[size], held[size])
    return sum(size * count for size, count in most.items())


def _saved_bytes(job: Job) -> int:
    """Of what saving takes to the host, all layers counted."""
    module = job.saved_module
    times = _left_out(module)
    total = 0
    for parameter in job.saved():
        total += (1 + times.get(parameter, 0)) * whole_bytes(parameter)
    return total


def _managed_bytes(job: Job) -> int:
    paged: list[Any] = paged_state(job)
    total: int = sum(tensor.nbytes for tensor in paged)
    for role in job.roles.values():
        times = _left_out(role.module) if role.learner else {}
        total += sum(times.get(tensor.parameter, 0) * tensor.nbytes for tensor in paged)
    return total
