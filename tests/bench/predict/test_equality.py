"""The proof that needs no GPU: the same job, traced on the CPU, where it computes, and on the simulated device, where it does not.

Cells cover every pair of axis values that a CPU can run. Peaks are equal within 0.2 %, and within 0.02 % without attention's
outputs and single numbers; the streams of allocations in the steps are the same, operator by operator and byte by byte, but for the
differences named here:

* attention is another operator on the simulated device (the one that a GPU takes), with side outputs of its own: the sums of the
  memory-efficient kernel are padded to a multiple of 32 tokens, which is up to 0.18 % of a tiny model's peak;
* a text's tokens are read from the host, and made of zeros where there are no values;
* Adafactor makes its factors on the host and moves them, and 8-bit optimizers their two tables of 1 KiB: on the CPU host and device
  are one, so these count twice there;
* AdamW's count of steps, four bytes for each parameter, is made on the host (torch.optim.AdamW's _init_group);
* APOLLO's projectors are random numbers of a seed on the CPU, and of none where there are no values;
* torchao's step and StableAdamW's are one kernel on CUDA, which takes nothing, and many operators on the CPU: states are compared
  there, and not what the step computes with;
* int8's products are bitsandbytes' own: its CPU code makes fp32 copies of weights that no GPU makes;
* a real loss scaler skips steps whose gradients overflow, and the simulated one never does;
* a tensor that lies as it is wanted is not copied: for single prompts and short caches, strides differ where nothing is in between.

DeepSpeed's engine has a proof of its own (tests/methods/test_simulated_zero.py).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.predict.traces import traced
from vrambench.bench.plan.matrix import load_matrix
from vrambench.bench.plan.plan import PlannedCell, select
from vrambench.bench.plan.selection import Selection
from vrambench.bench.predict.changes import changed
from vrambench.bench.predict.tracing.trace import ALLOC, FREE, Trace
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.models.losses import LOSSES
from vrambench.methods.optimizers import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

SMALLEST = 64
"""Bytes: single numbers, and a few in a row, are made differently here and there."""
TABLES = 4096
"""Bytes by which 8-bit optimizers' tables and what makes them count on the CPU alone."""

# Few enough minibatches and decoded tokens that the simulated device leaves none out.
SETTINGS = (
    "response_tokens=2",
    "batch_size=2",
    "rollout_batch=4",
    "group_size=2",
    "ppo.epochs=1",
    "steps=1",
    "warmup_steps=1",
)


def of_few(planned: PlannedCell, *, minibatches: int = 1) -> PlannedCell:
    """With as many samples to a rollout, whether or not there are several to a prompt. One minibatch shows what two values do
    together; what a second one finds is the algorithm's, and shown by the first cell of each."""
    work = planned.cell.workload
    if work.rollout_batch is None:
        return planned
    prompts = minibatches * work.batch_size // (work.group_size or 1)
    return dataclasses.replace(planned, cell=changed(planned.cell, {"rollout_batch": prompts}))


def cells() -> dict[str, PlannedCell]:
    matrix = load_matrix(Path(__file__).parents[3] / "matrix.yaml")
    plan = select(matrix, Selection(profile="smoke", set=SETTINGS), "cpu")
    chosen: dict[str, PlannedCell] = {}
    for planned in plan.cells:
        work = planned.cell.workload
        ours = planned.cell.algorithm_value.foreign is None
        if planned.verdict == "valid" and ours and not planned.cell.offload_value.zero_stage and work.seed == 0:
            words = [planned.cell.name, work.model, work.value or "", work.reward or ""]
            first = planned.cell.algorithm not in {one.cell.algorithm for one in chosen.values()}
            scales = planned.cell.precision_value.loss_scaling(work)  # and may skip the first steps
            chosen.setdefault(
                " ".join([*words, "checkpointed" if work.gradient_checkpointing else ""]),
                of_few(planned, minibatches=2 if first or scales else 1),
            )
    quantised = {"precision": "nf4", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none"}
    for said in (
        ("fp32_modules=all", "attention=math"),
        ("autocast=bf16", "fp32_modules=all", "gradient_checkpointing=true"),
    ):
        axes = quantised | {"algorithm": "sft,ppo,remax,grpo,dpo,reward"}
        wanted = Selection(profile="smoke", axes=axes, coverage="full", set=(*SETTINGS, *said))
        some = [planned for planned in select(matrix, wanted, "cpu").cells if planned.verdict == "valid"]
        chosen |= {f"{planned.cell.name} {' '.join(said)}": of_few(planned) for planned in some}
    projected = {"precision": "bf16", "adapter": "none", "optimizer": "galore_adamw", "offload": "none"}
    galore = Selection(profile="smoke", axes=projected | {"algorithm": "sft"}, set=("galore.svd=randomized",))
    (first,) = select(matrix, galore, "cpu").cells
    return chosen | {f"{first.cell.name} randomized": first}


CELLS = cells()


def loss_cells() -> dict[str, Cell]:
    """Every loss with every algorithm that it goes with, over several chunks of tokens, and once more under autocast."""
    plain = {"precision": "bf16", "adapter": "lora", "optimizer": "adamw_torch", "offload": "none"}
    work = {"prompt_tokens": 300, "response_tokens": 2, "batch_size": 2, "rollout_batch": 2, "ppo": {"epochs": 1}}
    chosen = {}
    for loss, axes in itertools.product(LOSSES, ({}, {"precision": "bf16_amp", "adapter": "none"})):
        for algorithm in ("sft", "ppo", "remax", "grpo", "dpo") if LOSSES[loss].scorer else ("sft",):
            of_groups = {"rollout_batch": 1, "group_size": 2} if algorithm == "grpo" else {}
            cell = resolve(plain | axes | {"algorithm": algorithm}, work | {"loss": loss} | of_groups)
            chosen[f"{loss} {cell.name}"] = cell
    return chosen


LOSS_CELLS = loss_cells()


def allocations(trace: Trace, one_kernel: bool) -> list[tuple[int, str]]:
    return [
        (event.nbytes, event.operator)
        for event in trace.events
        if event.kind == ALLOC
        and event.nbytes >= SMALLEST
        and event.place.step is not None
        and "scaled_dot" not in event.operator
        and not (one_kernel and event.place.phase == "optimizer_step")
    ]


def peak_of_the_same(trace: Trace) -> int:
    """The peak without what both sides name otherwise or the host holds: attention's outputs, and single numbers."""
    apart = {
        event.ident
        for event in trace.events
        if event.kind == ALLOC and ("scaled_dot" in event.operator or event.nbytes < SMALLEST)
    }
    rest = [event for event in trace.events if event.kind not in (ALLOC, FREE) or event.ident not in apart]
    return dataclasses.replace(trace, events=rest).peak_bytes()


def owned(trace: Trace, kind: str) -> int:
    """Bytes of all that is `kind`."""
    return sum(
        event.nbytes
        for event in trace.events
        if event.kind == ALLOC and event.ident in trace.owners and trace.owners[event.ident].kind == kind
    )


def differences(cell: Cell, real: Trace, simulated: Trace) -> Counter[tuple[str, int, str]]:
    """What one of both allocates and the other does not, without what has been named."""
    one_kernel = cell.optimizer_value.one_kernel
    ours, theirs = Counter(allocations(real, one_kernel)), Counter(allocations(simulated, one_kernel))
    found: Counter[tuple[str, int, str]] = Counter()
    for where, counts in (("cpu", ours - theirs), ("meta", theirs - ours)):
        for (nbytes, operator), count in counts.items():
            found[where, nbytes, operator] += count
    tokens = {nbytes for where, nbytes, operator in found if where == "cpu" and operator == "aten.lift_fresh.default"}
    for where, nbytes, operator in list(found):
        named = operator == "aten.lift_fresh.default" or (
            operator == "aten.zeros.default" and where == "meta" and nbytes in tokens
        )
        if cell.optimizer_value.factored:
            named = named or (where == "cpu" and operator == "aten.zeros.default")
            named = named or (where == "meta" and operator == "aten._to_copy.default")
        if cell.optimizer_value.projects_gradients:
            named = named or any(one in operator for one in (".randn.", ".randint.", ".new_empty."))
        if cell.optimizer_value.eight_bit:
            named = named or (nbytes == 1024 and operator == "aten._to_copy.default")
        if cell.precision == "nf4":
            named = named or (nbytes == 64 and operator == "aten.div_.Tensor")
        if cell.adapter_value.virtual_tokens(cell.workload):  # PEFT makes their numbers and labels on the host
            named = named or (where, operator) in (("meta", "aten._to_copy.default"), ("cpu", "aten.full.default"))
        if "neox" in cell.workload.model:
            named = named or operator == "aten.clone.default"
        if named:
            del found[where, nbytes, operator]
    return found


@pytest.mark.parametrize("algorithm", ["ppo", "remax"])
def test_adamw_counts_its_steps_on_the_host(algorithm: str) -> None:
    """Four bytes for each parameter, from the first optimizer step on."""
    work = {"prompt_tokens": 8, "response_tokens": 2, "batch_size": 2, "rollout_batch": 8, "ppo": {"epochs": 1}}
    axes = {"precision": "fp32", "adapter": "none", "optimizer": "adamw_torch", "offload": "none"}
    cell = resolve(axes | {"algorithm": algorithm}, work | {"gradient_accumulation_steps": 2})
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    freed = {event.ident for event in real.events if event.kind == FREE}
    kept = [event for event in real.events if event.kind == ALLOC and event.ident not in freed]
    counters = [
        event.nbytes
        for event in kept
        if event.place.phase == "optimizer_step" and event.operator == "aten.lift_fresh.default"
    ]
    peaks = [
        max(live for event, live in trace.live() if event.place.phase == "optimizer_step")
        for trace in (real, simulated)
    ]
    assert set(counters) == {4}
    assert peaks[0] - peaks[1] == sum(counters)


@pytest.mark.parametrize("name", CELLS)
def test_the_simulated_job_allocates_what_the_real_one_does(name: str) -> None:
    cell = CELLS[name].cell
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    tables = TABLES if cell.optimizer_value.eight_bit else 0
    if cell.optimizer_value.one_kernel:
        state = owned(real, "optimizer")
        assert state > 10_000
        assert owned(simulated, "optimizer") == pytest.approx(state, rel=0.002)
    elif cell.precision == "int8":
        assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.05)
    else:
        assert abs(simulated.peak_bytes() - real.peak_bytes()) <= 0.002 * real.peak_bytes() + tables
        same = peak_of_the_same(real)
        assert abs(peak_of_the_same(simulated) - same) <= 0.0002 * same + tables
    if cell.precision != "int8" and not cell.precision_value.loss_scaling(cell.workload):
        assert not differences(cell, real, simulated)
    assert simulated.peak_bytes() > 0


@pytest.mark.parametrize("name", LOSS_CELLS)
def test_every_loss_allocates_on_the_simulated_device_what_it_does_on_the_cpu(name: str) -> None:
    cell = LOSS_CELLS[name]
    real = traced(cell, get_device("cpu"))
    simulated = traced(cell, dataclasses.replace(get_device("meta"), stands_for="cpu"))
    assert simulated.peak_bytes() == pytest.approx(real.peak_bytes(), rel=0.002)
    assert not differences(cell, real, simulated)


def test_every_value_that_a_cpu_can_run_is_compared() -> None:
    seen = {value for planned in CELLS.values() for value in planned.cell.axes.values()}
    assert {
        "fp32",
        "bf16",
        "fp16",
        "bf16_amp",
        "fp16_amp",
        "int8",
        "nf4",
        "none",
        "lora",
        "dora",
        "sft",
        "ppo",
        "remax",
        "reinforce",
        "rloo",
        "grpo",
    } <= seen
    optimizers = {planned.cell.optimizer for planned in CELLS.values()}
    able = {name for name, value in OPTIMIZERS.values().items() if not value.cuda_only}
    assert optimizers == able | {"galore_adamw_layerwise"}


def test_a_trace_frees_what_it_allocated_and_nothing_else() -> None:
    trace = traced(next(iter(CELLS.values())).cell, get_device("meta"))
    live: set[int] = set()
    for event in trace.events:
        if event.kind == ALLOC:
            assert event.ident not in live
            live.add(event.ident)
        elif event.kind == FREE:
            live.remove(event.ident)
    assert {event.place.phase for event in trace.events} >= {"load", "learn", "optimizer_step"}
