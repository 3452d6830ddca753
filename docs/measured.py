"""What was measured on GPUs, from the folders results/<gpu>/ that `make gpu` filled: the first part of docs/accuracy.md.

    sections(Path("results"))   ->  lines of Markdown, none where nothing is published

A folder holds what `tests/gpu/run` packed: accuracy.json, replay.jsonl, context.json, versus_trl.jsonl, trainers.jsonl,
meters_cost.json, doctor.json, and the run folders 20b, claims, galore and repeat. accuracy-anew.json and trainers-anew.jsonl are
what `--anew` wrote later. What is missing or cut short is left out; a folder that names no GPU is none.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What reads these files for `make gpu` itself, which runs before anything is installed.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "gpu"))

from gpu_summary import GIB, KINDS, MIB, apart, environment_of, read_json, read_rows

CLAIMS = ("20b", "claims", "galore")


def sections(results: Path) -> list[str]:
    """A section for each GPU's folder, by name."""
    lines: list[str] = []
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        lines += section(folder)
    return lines


def section(folder: Path) -> list[str]:
    """One GPU's: what was found in short, then its tables. Nothing where no GPU is named, as after a rehearsal."""
    told = environment_of(folder)
    gpu = told.get("gpu")
    if not gpu:
        return []
    software = (
        f"driver {gpu.get('driver')}, torch {told.get('packages', {}).get('torch')}, CUDA {told.get('torch_cuda')}"
    )
    about = " (its README.md says what is there, and what is not)" if (folder / "README.md").exists() else ""
    lines = [
        f"## Measured on {gpu['name']}",
        "",
        f"{software}; `make gpu`, results/{folder.name}/{about}.",
        "",
    ]
    lines += [*accuracy(folder), *replays(folder), *outside(folder), *meters(folder), ""]
    for table in (trainers(folder), against_trl(folder), claims(folder), repeats(folder), cells(folder)):
        lines += [*table, ""] if table else []
    return lines


def accuracy(folder: Path) -> list[str]:
    """The errors in short, and which goals they meet."""
    found = read_json(folder / "accuracy.json")
    if not found.get("rows"):
        return []
    missed = [name.replace("_", " ") for name, met in found["met"].items() if met is False]
    fits, over = found["false_fits_at_24gib"], found["false_does_not_fit_at_24gib"]
    lines = [
        f"- {len(found['rows'])} cells predicted before they were measured: {errors(found)}. Goals missed: "
        f"{', '.join(missed) or 'none'}.",
        f"- At 24 GiB, of {found['decided_at_24gib']} cells: {len(fits)} predicted to fit that did not"
        f"{named(fits)}, {len(over)} predicted not to fit that did{named(over)}.",
    ]
    anew = read_json(folder / "accuracy-anew.json")
    if anew.get("rows"):
        lines.append(f"- The same cells predicted once more, with what the measurements taught: {errors(anew)}.")
    return lines


def errors(found: dict[str, Any]) -> str:
    """Of a comparison: the median and the worst by kind of bytes."""
    return "; ".join(
        f"{kind} median {share(found['median_absolute'][kind], sign=False, places=2)}, "
        f"worst {share(found['worst'][kind], places=2)}"
        for kind in KINDS
        if found["median_absolute"][kind] is not None
    )


def replays(folder: Path) -> list[str]:
    found = read_rows(folder / "replay.jsonl")
    exact = [row for row in found if row["exact"]]
    others = [row["cell"] for row in found if not row["exact"]]
    told = f"- The allocator's model repeated {len(exact)} of {len(found)} recorded jobs to the byte{named(others)}."
    return [told] if found else []


def outside(folder: Path) -> list[str]:
    """The bare context, and what one process holds with all libraries that jobs load."""
    found = [stage["outside_bytes"] for stage in read_json(folder / "context.json").get("stages", ())]
    if not found or None in found:
        return []
    first, last = (f"{nbytes / MIB:,.0f} MiB" for nbytes in (found[0], found[-1]))
    return [f"- Outside the allocator: {first} as soon as CUDA is there, {last} with every library that our jobs load."]


def meters(folder: Path) -> list[str]:
    found = read_json(folder / "meters_cost.json")
    if not found:
        return []
    low, high = (share(end, places=2) for end in found["interval_95"])
    return [f"- Meters on against off: a step takes {share(found['slow_down'], places=2)} (95 %: {low} to {high})."]


def against_trl(folder: Path) -> list[str]:
    """Ours over TRL's."""
    found = read_rows(folder / "versus_trl.jsonl")
    if not found:
        return []
    lines = [
        f"### Against TRL {found[0]['trl_version']}",
        "",
        "Ours over TRL's: more tokens a second and fewer bytes are better.",
        "",
    ]
    lines += ["| case | tokens/s, ours | TRL's | ratio | allocated | reserved |", "|---|--:|--:|--:|--:|--:|"]
    for row in found:
        speeds = [
            f"{row[side]['tokens_per_second']:,.0f}" if "error" not in row[side] else row[side]["error"]
            for side in ("ours", "trl")
        ]
        ratios = [row["ratio"][key] for key in ("tokens_per_second", "allocated_bytes", "reserved_bytes")]
        told = " | ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {row['case']} | {speeds[0]} | {speeds[1]} | {told} |")
    return lines


def trainers(folder: Path) -> list[str]:
    """TRL's and transformers' own jobs, and the cells that say the same."""
    found = [row for row in rows_of(folder, "trainers") if not row.get("failed")]
    if not found:
        return []
    lines = [
        "### What trainers take",
        "",
        f"TRL's trainers, and transformers' Trainer, on {found[0]['model']}, as `tests/gpu/trainers.py` runs them. Errors are",
        "those of predictions for the cells that say the same; where no cell can say it yet, there is none.",
        "",
        "| job | allocated | error | reserved | error |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in found:
        errors = row["error"] or {}
        kinds = ("allocated_bytes", "reserved_bytes")
        told = " | ".join(f"{size(row[kind])} | {share(errors.get(kind), places=2)}" for kind in kinds)
        lines.append(f"| {row['job']} | {told} |")
    return lines


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows as they are predicted today, where that was written."""
    return read_rows(folder / f"{name}-anew.jsonl") or read_rows(folder / f"{name}.jsonl")


def claims(folder: Path) -> list[str]:
    """Jobs held to their budget."""
    found = [result for run in CLAIMS for result in cells_of(folder / run)]
    if not found:
        return []
    lines = ["### Claims, held to the budget", "", "| cell | ended | allocated | device | predicted | budget | step |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for result in found:
        steps = result["throughput"]["step_seconds"]
        step = f"{statistics.median(steps):.2f} s" if steps else "-"
        sizes = [result["memory"]["allocated_bytes"], result["memory"]["device_bytes"]]
        sizes += [(result.get("predicted") or {}).get("device_bytes"), result["cell"]["budget"]]
        told = " | ".join(size(count) for count in sizes)
        lines.append(f"| {name_of(result)} | {result['status']}, {result['source']} | {told} | {step} |")
    return lines


def repeats(folder: Path) -> list[str]:
    """How far samples of the same job lie apart."""
    found = [result for result in cells_of(folder / "repeat") if len(result.get("samples") or ()) > 1]
    if not found:
        return []
    lines = ["### The same job again", "", "Between the least and the most of a cell's samples.", ""]
    lines += ["| cell | samples | allocated | reserved | device | step |", "|---|--:|--:|--:|--:|--:|"]
    for result in found:
        sizes, step = apart(result["samples"])
        told = ["-" if count is None else f"{count / 2**20:.2f} MiB" for count in sizes.values()]
        told.append(share(step, sign=False))
        lines.append(f"| {name_of(result)} | {len(result['samples'])} | {' | '.join(told)} |")
    return lines


def cells(folder: Path) -> list[str]:
    """Every cell that was predicted and measured, the largest error first."""
    found = read_json(folder / "accuracy.json").get("rows", [])
    if not found:
        return []
    lines = [
        "### Cell by cell",
        "",
        "Errors are signed: + where the prediction is higher. What ran out of memory had taken less than it needs.",
        "",
    ]
    lines += [
        "| cell | ended | measured: allocated | error | reserved | error | device | error |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(found, key=lambda row: -abs(row["errors"]["device"] or row["errors"]["allocated"] or 0)):
        told = " | ".join(f"{size(row['measured'][kind])} | {share(row['errors'][kind], places=2)}" for kind in KINDS)
        lines.append(f"| {row['name']} | {row['status']} | {told} |")
    return lines


def cells_of(run: Path) -> Iterator[dict[str, Any]]:
    found = [result for file in sorted((run / "cells").glob("*.json")) if (result := read_json(file))]
    yield from sorted(found, key=name_of)


def name_of(result: dict[str, Any]) -> str:
    return f"{result['cell']['model']} / {result['name']}"


def size(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f} GiB"


def share(value: float | None, *, sign: bool = True, places: int = 1) -> str:
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}.{places}f} %"


def named(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
