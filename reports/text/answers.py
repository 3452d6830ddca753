"""What `plan`, `fit` and `doctor` say on a terminal: tables of texts, and the lines below them.

    print_fit(answer, sys.stdout)

Text from users is never read as markup. Sizes are binary and say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.table import Table

from vrambench.bench.results.forecast import Forecast, PredictedBatch, PredictedBatches
from vrambench.bench.results.records import OutOfMemory
from vrambench.reports import units
from vrambench.reports.text.terminal import Output, plain

if TYPE_CHECKING:
    from vrambench.bench.plan.plan import Plan, PlannedCell
    from vrambench.bench.predict.answer import Advice, Answer, Maximum, Probe
    from vrambench.methods.workload import Workload

SMALLEST_SHARE = 0.0005
"""Of what is live: smaller ones are told together."""
COLOURS = {"fits": "green", "tight": "yellow", "unsure": "yellow", "does not fit": "red"}


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> Output:
    """A table of texts (Rich's markup in them), and the console that it was printed on."""
    console = Output(out)
    console.print(_table(headings, rows))
    return console


def print_plan(planned: Plan, out: TextIO) -> None:
    """A line for each cell, reasons of warnings and of several cells once below, the counts; predictions where they were made."""
    predicted = any(one.outcome for one in planned.cells)
    shared = _shared_reasons(planned)
    rows = []
    warnings: dict[str, str] = {}
    for one in planned.cells:
        refused = [finding for finding in one.findings if finding.kind == "reject"]
        why = [
            found.rule if (found.rule, found.reason) in shared else f"{found.rule}: {found.reason}" for found in refused
        ]
        warned = [finding for finding in one.findings if finding.kind == "warn" and one.verdict == "valid"]
        warnings |= {finding.rule: finding.reason for finding in warned}
        if warned and not refused:
            why = ["warning: " + ", ".join(finding.rule for finding in warned)]
        if one.outcome and one.outcome.reason:
            why = [*why, f"not predicted: {one.outcome.reason}"]
        if one.outcome and one.outcome.forecast and one.outcome.forecast.memory.num_alloc_retries:
            why = [*why, _retried(one.outcome.forecast.memory.num_alloc_retries)]
        colour = "green" if one.verdict == "valid" else "dim"
        told = _prediction(one) if predicted else ()
        rows.append((f"[{colour}]{plain(one.name)}[/]", one.verdict, *told, "\n".join(map(plain, why))))
    headings = ("cell", "rules", *(("predicted", "of budget", "memory") if predicted else ()), "why")
    console = print_rows(headings, rows, out)
    for rule, reason in shared:
        console.tell(f"rule {rule}: {reason}")
    for rule, reason in warnings.items():
        console.tell(f"warning {rule}: {reason}")
    counts = planned.counts
    profile = f", profile {planned.profile}" if planned.profile else ""
    console.tell(
        f"{units.plural(counts['cells'], 'cell')}: {counts['valid']} valid ({counts['warned']} with warnings), "
        f"{counts['invalid']} invalid; {planned.matrix}{profile}, {planned.coverage} coverage, on {planned.device}"
        + (", predictions for CUDA" if predicted else "")
    )


def _shared_reasons(planned: Plan) -> list[tuple[str, str]]:
    """The rules, each with its reason, that forbid several cells in the same words."""
    told = Counter(
        (finding.rule, finding.reason) for one in planned.cells for finding in one.findings if finding.kind == "reject"
    )
    return [reason for reason, times in told.items() if times > 1]


def print_fit(answer: Answer, out: TextIO, profile: str | None = None) -> None:
    """The verdict, the ledger, where and of what the peak is, and what all that rests on. `profile`: whose the workload is."""
    forecast = answer.forecast
    console = Output(out)
    colour = COLOURS[forecast.verdict]
    console.print(f"[{colour}]{forecast.verdict}[/]: {plain(_verdict(answer))}", soft_wrap=True)
    whose = f" (profile {profile})" if profile else ""
    console.tell(f"{answer.cell.name}, {_work(answer)}{whose}")
    if forecast.batches:
        console.tell(_batches(forecast.batches))
    for finding in answer.warnings:
        console.tell(f"warning {finding.rule}: {finding.reason}")
    console.print(_table(("ledger", "bytes", ""), list(_ledger(forecast))))
    console.print(_table(("phase", "step", "allocated", "reserved", "device"), list(_phases(forecast))))
    if forecast.roles:
        console.print(_table(("role", "weights", "gradients", "optimizer", ""), list(_roles(forecast))))
    console.print(_table(("live at the peak", "bytes", "share", ""), list(_at_peak(forecast))))
    for line in _rests_on(answer):
        console.tell(line)
    for found in answer.max:
        _print_max(found, console)
    if len(answer.max) > 1:
        console.tell("each of these is the largest with the others as they are, not with all of them at once")
    if answer.advice:
        _print_advice(answer.advice, console)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _prediction(one: PlannedCell) -> tuple[str, str, str]:
    forecast = one.outcome.forecast if one.outcome else None
    if forecast is None:
        return units.DASH, units.DASH, units.DASH
    device = forecast.memory.device_bytes or 0
    share = f"{device / forecast.budget_bytes:.0%}"
    return units.size(device), share, f"[{COLOURS[forecast.verdict]}]{forecast.verdict}[/]"


def _verdict(answer: Answer) -> str:
    forecast = answer.forecast
    need, budget = units.size(forecast.memory.device_bytes), units.size(forecast.budget_bytes)
    about = [f"usable on {answer.card.name}"] if answer.card else []
    if forecast.memory.elsewhere_bytes:
        about.append(f"{units.size(forecast.memory.elsewhere_bytes)} of it reserved beside the job")
    budget += f" ({', '.join(about)})" if about else ""
    band = units.size(forecast.band_bytes)
    if not forecast.fits:
        words = f"{need} of {budget} predicted, {units.size(-forecast.margin_bytes)} too much"
        if forecast.verdict == "unsure":
            decisive = any(one.decisive for one in forecast.unmodelled)
            return f"{words}; with what is left out, below, it may be {'another job' if decisive else 'less'}"
        if -forecast.margin_bytes < forecast.band_bytes:
            words += f", less than the error band of {band}"
        return words + _runs_out(forecast.oom_phase, forecast.oom)
    if forecast.verdict == "unsure":
        return f"{need} of {budget} predicted, {units.size(forecast.margin_bytes)} to spare; what is left out, below, may be more"
    if forecast.verdict == "fits":
        return f"{need} of {budget} predicted, {units.size(forecast.margin_bytes)} to spare, more than the error band of {band}"
    if forecast.memory.num_alloc_retries:
        return f"{need} of {budget} predicted, but it {_retried(forecast.memory.num_alloc_retries)}; the error band is {band}"
    return f"{need} of {budget} predicted, {units.size(forecast.margin_bytes)} to spare, less than the error band of {band}"


def _retried(retries: int | None) -> str:
    """Why it is tight, however much room is left."""
    return f"fits only after cached memory is given back ({units.plural(retries or 0, 'time')})"


def _runs_out(phase: str | None, oom: OutOfMemory | None) -> str:
    if phase is None or oom is None:
        return ""
    request = f" at a request of {units.size(oom.asked_bytes)}" if oom.asked_bytes else ""
    return f"; memory runs out in {phase}{request}"


def _work(answer: Answer) -> str:
    workload = answer.cell.workload
    parts = [
        workload.model,
        f"batch_size {workload.batch_size}",
        tokens(workload),
    ]
    if workload.rollout_batch is not None:
        parts.append(f"rollout_batch {workload.rollout_batch}")
    if workload.gradient_accumulation_steps > 1:
        parts.append(f"gradient_accumulation_steps {workload.gradient_accumulation_steps}")
    parts.append(f"gradient_checkpointing {'on' if workload.gradient_checkpointing else 'off'}")
    return ", ".join(parts)


def tokens(workload: Workload) -> str:
    """How long sequences are."""
    if workload.lengths is None:
        return f"{workload.max_length or f'{workload.prompt_tokens} + {workload.response_tokens}'} tokens"
    shortest, longest = min(workload.lengths), max(workload.lengths)
    range_of = f"{shortest:,} to {longest:,} tokens" if shortest < longest else f"{longest:,} tokens"
    if workload.packing != "none":
        return f"{range_of}, packing {workload.packing} to {workload.max_length:,}"
    return f"{range_of}, {'padding-free' if workload.padding_free else 'padded'}"


def _batches(batches: PredictedBatches) -> str:
    """Which batch the peak is of, how many are as large, and what a usual one takes."""
    worst, usual = batches.worst, batches.usual
    if (worst.rows, worst.row_tokens, worst.sequences) == (usual.rows, usual.row_tokens, usual.sequences):
        return f"worst batch: {_batch(worst)} (what is allocated in its step); a usual batch is as large"
    share = batches.worst_share
    often = f"{share:.0%} of batches have" if share >= 0.5 else f"1 in {round(1 / share):,} batches has"
    return (
        f"worst batch: {_batch(batches.worst)}, and {often} as many tokens; a usual batch is {_batch(batches.usual)} (what is "
        "allocated in its step)"
    )


def _batch(batch: PredictedBatch) -> str:
    whose = "" if batch.sequences == batch.rows else f" of {units.plural(batch.sequences, 'sequence')}"
    return f"{batch.rows} x {batch.row_tokens:,} tokens{whose}: {units.size(batch.allocated_bytes)}"


def _ledger(forecast: Forecast) -> Iterator[tuple[str, str, str]]:
    memory, size = forecast.memory, units.size
    requested, allocated, active = memory.requested_bytes or 0, memory.allocated_bytes or 0, memory.active_bytes or 0
    yield "requested", size(requested), "what tensors and operators ask for"
    yield "+ rounding", size(allocated - requested), "to the allocator's block sizes"
    if active != allocated:
        yield "+ stream-held", size(active - allocated), "freed, but another stream may still use it"
    yield (
        "+ fragmentation",
        size(forecast.fragmentation_bytes),
        "the most that is reserved, beyond the most that is in use",
    )
    yield "= reserved", size(memory.reserved_bytes), "held by PyTorch's allocator"
    yield "+ outside", size(memory.context_bytes), "CUDA context, kernels, libraries"
    yield "[bold]= device[/]", f"[bold]{size(memory.device_bytes)}[/]", "what nvidia-smi would show"
    if memory.elsewhere_bytes:
        yield (
            "elsewhere",
            size(memory.elsewhere_bytes),
            "another process', as reserved_elsewhere says; the budget holds both",
        )
    if memory.managed_bytes:
        yield "managed", size(memory.managed_bytes), "paged: on the device as far as there is room, else on the host"
    if memory.host_pinned_bytes:
        yield "host, pinned", size(memory.host_pinned_bytes), "page-locked, of what is offloaded"
    if forecast.host_bytes:
        yield (
            "host",
            size(forecast.host_bytes),
            "host memory for all that is offloaded or saved, beside the process' own",
        )
    if memory.num_alloc_retries:
        yield "retries", str(memory.num_alloc_retries), "the allocator gave back its cache to go on"


def _phases(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    """Of several lengths, without steps whose batches are neither the worst nor usual."""
    steps = {phase.step for phase in forecast.phases}
    if forecast.batches:
        steps = {None, 0, forecast.batches.usual.step, forecast.batches.worst.step, forecast.limiting_step}
    for phase in forecast.phases:
        if phase.step not in steps:
            continue
        here = (phase.name, phase.step) == (forecast.limiting_phase, forecast.limiting_step)
        numbers = map(units.size, (phase.allocated_bytes, phase.reserved_bytes, phase.device_bytes))
        row = (plain(phase.name), units.DASH if phase.step is None else str(phase.step), *numbers)
        yield tuple(f"[bold]{text}[/]" for text in row) if here else row


def _roles(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    for name, role in forecast.roles.items():
        sizes = map(units.size, (role.weights_bytes, role.gradients_bytes, role.optimizer_bytes))
        yield plain(name), *sizes, f"shares {plain(role.shares)}'s" if role.shares else ""


def _at_peak(forecast: Forecast) -> Iterator[tuple[str, str, str, str]]:
    from vrambench.bench.results.forecast import KINDS

    total = sum(share.nbytes for share in forecast.at_peak) or 1
    small = 0
    for share in forecast.at_peak:
        if share.nbytes < SMALLEST_SHARE * total:
            small += share.nbytes
            continue
        kind = share.kind.replace("_", " ")
        whose = f"{share.role}'s {kind}" if share.role else kind
        yield plain(whose), units.size(share.nbytes), f"{share.nbytes / total:.1%}", KINDS.get(share.kind, "")
    if small:
        yield "others", units.size(small), f"{small / total:.1%}", ""


def _rests_on(answer: Answer) -> Iterator[str]:
    forecast = answer.forecast
    role = f", of {forecast.limiting_role}" if forecast.limiting_role else ""
    step = f" of step {forecast.limiting_step}" if forecast.limiting_step is not None else ""
    yield f"most in use: in {forecast.limiting_phase}{step}{role}"
    peak = forecast.device_peak
    yield f"most on the device: first in {peak.name}{'' if peak.step is None else f' of step {peak.step}'}"
    if not forecast.fits:
        yield "these are the bytes without a limit; under the budget, cached memory is given back first, and that is not enough"
    for one in forecast.unmodelled:
        yield f"left out: {one.reason}{f' ({units.size(one.nbytes)})' if one.nbytes else ''}"
    total, trainable = forecast.parameters.total, forecast.parameters.trainable
    yield f"parameters: {total:,}, {trainable:,} of them trained"
    yield (f"predicted in {units.seconds(forecast.seconds)} after start-up, nothing was measured")
    yield f"the error band of {units.size(forecast.band_bytes)}: {forecast.band_basis}"
    yield from forecast.notes


def _probed(probe: Probe) -> str:
    """The verdict, and what the budget does where it is reached."""
    words = f"[{COLOURS[probe.verdict]}]{probe.verdict}[/]{_runs_out(probe.oom_phase, probe.oom)}"
    if not probe.num_alloc_retries or probe.device_bytes is None:
        return words
    return f"{words}; {_retried(probe.num_alloc_retries)}, and then takes {units.size(probe.device_bytes)}"


def _print_max(found: Maximum, console: Output) -> None:
    rows = [
        (str(probe.value), units.size(probe.unlimited_bytes), _probed(probe))
        for probe in sorted(found.probes, key=lambda probe: probe.value)
    ]
    console.print(_table((found.field, "without a limit", "verdict"), rows))
    if found.value is None:
        console.tell(f"largest {found.field}: none fits ({found.bound})")
        return
    along = "".join(f", with {name} {value}" for name, value in found.along.items())
    console.tell(f"largest {found.field}: {found.value}{along} ({units.size(found.device_bytes)}; {found.bound})")


def _print_advice(advice: Advice, console: Output) -> None:
    if advice.suggestions:
        rows = [
            (
                "\n".join(plain(_change(name, value)) for name, value in one.changes.items()),
                units.size(one.device_bytes),
                units.size(one.margin_bytes),
                f"[{COLOURS[one.verdict]}]{one.verdict}[/]",
                "\n".join(plain(one.price.get(name, "")) for name in one.changes),
            )
            for one in advice.suggestions
        ]
        console.print(_table(("change to", "device", "to spare", "verdict", "at the price of"), rows))
    predictions = units.plural(advice.predictions, "prediction")
    console.tell(f"advice: {advice.ending} ({predictions})")


def _change(name: str, value: object) -> str:
    """A field with its value; a variable of the environment as a shell sets it."""
    if name.isupper():
        return f"{name}={value}"
    return f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
