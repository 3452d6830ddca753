"""What `make gpu` found, in words: each part's end, failed tests, and the numbers of every cell.

Goes in: the parts, how each ended, and the folder that holds their files. What is missing or cut short is left out.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

MIB, GIB = 2**20, 2**30
KINDS = ("allocated", "reserved", "device")


class Part(Protocol):
    """`results`: the name of the run's folder that it fills, if it is a run."""

    @property
    def name(self) -> str: ...

    @property
    def why(self) -> str: ...

    @property
    def results(self) -> str | None: ...


def summary(plan: Sequence[Part], state: Mapping[str, Any], work: Path) -> str:
    """What a reader wants first: each part's end, the tests' failures, and every cell's numbers."""
    lines = [hardware(work), ""]
    for part in plan:
        ended = state.get(part.name, {"state": "not begun"})
        lines.append(f"{part.name:<10} {ended['state']:<20} {ended.get('seconds', '')}")
    lines += ["", *tests_told(work / "tests.xml"), *tests_told(work / "cells.xml")]
    lines += context_told(work / "context.json")
    lines += meters_told(work / "meters_cost.json")
    lines += [*workspaces_told(work / "workspaces.jsonl"), *replay_told(work / "replay.jsonl")]
    lines += accuracy_told(work / "accuracy.json")
    lines += trainers_told(work / "trainers.jsonl")
    lines += trl_told(work / "versus_trl.jsonl")
    for part in plan:
        if part.results and (work / part.results / "cells").is_dir():
            lines += ["", f"== {part.name}: {part.why}", *cells_told(work / part.results)]
    return "\n".join(lines) + "\n"


def context_told(file: Path) -> list[str]:
    """What the device holds outside the allocator, after each thing that loads more."""
    told = read_json(file)
    if not told.get("stages"):
        return []
    lines, before = [f"outside the allocator, counted by {told['accounting']}:"], -1
    for stage in told["stages"]:
        outside = stage["outside_bytes"]
        if stage.get("error"):
            lines.append(f"  {stage['name']}: {stage['error'][:160]}")
        elif outside is not None and outside != before:
            lines.append(f"  {stage['name']}: {outside / MIB:.0f} MiB")
            before = outside
    return lines


def trl_told(file: Path) -> list[str]:
    """Ours over TRL's: tokens per second, and peaks."""
    lines = []
    for row in read_rows(file):
        sides = [f"{side}: {row[side]['error']}" for side in ("ours", "trl") if "error" in row[side]]
        ratio = [f"{key} {value:.3f}" for key, value in row["ratio"].items() if value is not None]
        lines.append(f"against TRL {row['trl_version']}, {row['case']}: {', '.join([*sides, *ratio])}")
    return lines


def trainers_told(file: Path) -> list[str]:
    """What people's trainers took, and the signed errors of what was predicted."""
    lines = []
    for row in read_rows(file):
        errors = ", ".join(f"{kind} {100 * value:+.2f} %" for kind, value in (row.get("error") or {}).items())
        took = row.get("failed") or f"{(row['allocated_bytes'] or 0) / GIB:.3f} GiB allocated"
        lines.append(f"trainer, {row['job']}: {took}{f'; predicted: {errors}' if errors else ''}")
    return lines


def hardware(work: Path) -> str:
    """The GPU, its driver and torch's version, as the doctor or a run saw them."""
    found = environment_of(work)
    gpu = found.get("gpu")
    name = f"{gpu['name']}, driver {gpu['driver']}" if gpu else "no GPU"
    return f"{name}; torch {found.get('packages', {}).get('torch')}, CUDA {found.get('torch_cuda')}" if found else name


def environment_of(work: Path) -> dict[str, Any]:
    """What the doctor or else a run says of the machine; empty where neither does."""
    told = (read_json(file).get("environment") for file in (work / "doctor.json", *sorted(work.glob("*/run.json"))))
    return next(filter(None, told), {})


def tests_told(report: Path) -> list[str]:
    """Counts, and each failure's name and first line."""
    try:
        suite = ElementTree.parse(report).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        return []
    if suite is None:
        return []
    counts = [f"{suite.get(key)} {key}" for key in ("tests", "failures", "errors", "skipped")]
    lines = [f"{report.stem}: {', '.join(counts)}"]
    for case in suite.iter("testcase"):
        for problem in (*case.findall("failure"), *case.findall("error")):
            said = (problem.get("message") or "").strip() or "no message"
            lines.append(f"  {case.get('name')}: {said.splitlines()[0][:160]}")
    return lines


def meters_told(file: Path) -> list[str]:
    told = read_json(file)
    if not told:
        return []
    low, high = told["interval_95"]
    return [f"meters slow a step by {told['slow_down']:.2%} (95 %: {low:.2%} to {high:.2%}): {told['verdict']}"]


def workspaces_told(file: Path) -> list[str]:
    """How many operators hid what the table says, and those that did not."""
    rows = read_rows(file)
    if not rows:
        return []
    lines = []
    for row in rows:
        found, said = row["measured_peak_bytes"], row["declared_peak_bytes"]
        if row.get("error"):
            lines.append(f"  {row['operator']}: {row['error'][:160]}")
        elif found is not None and found != (said or 0):
            lines.append(
                f"  {row['operator']} {' '.join(row['shapes'] or [])[:80]}: {found} bytes, {said} in the table"
            )
    measured = sum(row["measured_peak_bytes"] is not None for row in rows)
    return [f"workspaces: {measured} of {len(rows)} operators measured, {len(lines)} not as in the table", *lines]


def replay_told(file: Path) -> list[str]:
    """How many recorded jobs the allocator's model repeated to the byte, those that it did not, and how far the simulated
    jobs' peaks are from the recorded ones."""
    rows = read_rows(file)
    if not rows:
        return []
    lines = [f"replay: {sum(row['exact'] is True for row in rows)} of {len(rows)} recorded jobs exact"]
    for row in rows:
        if row["error"]:
            lines.append(f"  {row['cell']}: {row['error'][:160]}")
            continue
        told = "exact" if row["exact"] else f"not exact, moved at entry {row['moved_entry']} of {row['events']}"
        if row["simulated"]:
            kinds = ("requested", "allocated", "reserved")
            apart = {kind: row["simulated"][f"{kind}_bytes"] / row["recorded"][f"{kind}_bytes"] - 1 for kind in kinds}
            told += "; simulated " + ", ".join(f"{kind} {share:+.2%}" for kind, share in apart.items())
        elif row["simulation_error"]:
            told += f"; not simulated: {row['simulation_error'][:160]}"
        lines.append(f"  {row['cell']}: {told}")
        for side, sizes in (row.get("apart") or {}).items():
            if sizes:
                listed = ", ".join(f"{count} x {size:,}" for size, count in sizes[:6])
                lines.append(f"    {side.replace('_', ' ')}, at the peak: {listed} bytes")
    return lines


def accuracy_told(file: Path) -> list[str]:
    """The predictions' errors, summed up."""
    told = read_json(file)
    if not told:
        return []
    if not told["rows"]:
        return [f"accuracy: none of {told['results']} results has both a prediction and measured memory"]
    lines = [f"accuracy: {len(told['rows'])} cells, predictions {told['predictions']}"]
    for kind, middle in told["median_absolute"].items():
        if middle is not None:
            lines.append(f"  {kind}: median {middle:.2%}, worst {told['worst'][kind]:+.2%}")
    wrong, over = told["false_fits_at_24gib"], told["false_does_not_fit_at_24gib"]
    lines.append(
        f"  at 24 GiB, of {told['decided_at_24gib']}: {len(wrong)} false 'fits', {len(over)} false 'does not fit'"
    )
    missed = [name for name, met in told["met"].items() if met is False]
    return [*lines, f"  goals missed: {', '.join(missed) or 'none'}"]


def cells_told(run: Path) -> list[str]:
    """Status counts and a line for each cell: peaks in GiB, seconds of a step."""
    results = [found for file in sorted((run / "cells").glob("*.json")) if (found := read_json(file))]
    counts = Counter(result["status"] for result in results)
    lines = [", ".join(f"{count} {status}" for status, count in counts.most_common())]
    lines.append("status   source    allocated reserved device context  step_s  model / cell")
    for result in sorted(results, key=lambda one: (one["cell"]["model"], one["name"])):
        memory, steps = result["memory"], sorted(result["throughput"]["step_seconds"])
        sizes = [memory[f"{kind}_bytes"] for kind in ("allocated", "reserved", "device", "context")]
        numbers = " ".join(f"{'-' if size is None else format(size / GIB, '.3f'):>8}" for size in sizes)
        step = format(steps[len(steps) // 2], ".3f") if steps else "-"
        why = f"  [{result['reason']}]" if result["status"] in ("error", "crashed", "timeout") else ""
        name = f"{result['cell']['model']} / {result['name']}{why}"
        lines.append(f"{result['status']:<8} {result['source'] or '-':<9} {numbers} {step:>7}  {name}")
        if len(result.get("samples") or ()) > 1:
            lines.append(spread(result["samples"]))
    return lines


def spread(samples: list[dict[str, Any]]) -> str:
    """How far a cell's samples lie apart: peaks in MiB, and median step times as a share of their middle one."""
    sizes, step = apart(samples)
    told = [f"{kind} -" if size is None else f"{kind} {size / 2**20:.3f} MiB" for kind, size in sizes.items()]
    if step is not None:
        told.append(f"step {step:.1%}")
    return f"         {len(samples)} samples apart: {', '.join(told)}"


def apart(samples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int | None], float | None]:
    """Bytes between the least and the most of the samples, by kind, None where one of them is not known; and between the least
    and the most median step, as a share of the middle one, None where there are no steps."""
    sizes: dict[str, int | None] = {}
    for kind in KINDS:
        found = [sample["memory"][f"{kind}_bytes"] for sample in samples]
        sizes[kind] = None if None in found else max(found) - min(found)
    steps = [statistics.median(one) for sample in samples if (one := sample["throughput"]["step_seconds"])]
    return sizes, (max(steps) - min(steps)) / statistics.median(steps) if steps else None


def read_json(file: Path) -> dict[str, Any]:
    """A file's document; empty where it is not there, was cut short, or is something else."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """An object a line, those that were cut short left out; none where there is no file. OSError where it cannot be read."""
    rows = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def done_before(file: Path | None, key: str, wanted: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows of `file` whose `key` is wanted, by it. ValueError where the file cannot be read."""
    if file is None:
        return {}
    try:
        return {row[key]: row for row in read_rows(file) if row.get(key) in wanted}
    except OSError as error:
        raise ValueError(f"--done {file}: {error.strerror}") from error
