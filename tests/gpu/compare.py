#!/usr/bin/env python3
"""How far are predictions from what was measured? Reads run folders, prints a table, writes a JSON document.

    tests/gpu/compare.py runs/one runs/two --out accuracy.json
    tests/gpu/compare.py gpu-results/measured --anew      predicted once more, for the GPU that the results name
    tests/gpu/compare.py --trainers trainers.jsonl        what trainers.py wrote: their jobs, and the cells that say the same

A cell counts where it ended `ok` or `oom`, was predicted, and its memory was measured. Of each: the signed relative errors
of allocated, reserved and device bytes (predicted / measured - 1: positive where too much was predicted). What a job that
ran out of memory had taken is less than it needs, so its errors are shown but not summed up. `--anew` asks today's predictor
in place of the stored predictions.

The document: `rows`; `median_absolute` and `worst` (the signed error farthest from 0) by kind of bytes; at 24 GiB
`false_fits` and `false_does_not_fit` (cells' names, `_at_24gib`) among `decided_at_24gib` cells; the `goals` and which are
`met` (null: nothing was measured that tells). Exit code 0 whatever the numbers are, 2 if no folder has results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_summary import KINDS, read_json, read_rows

from vrambench.bench.predict.unseen.hardware import card_described

GIB = 2**30
SMALL_CARD_BYTES = 24 * GIB

# Accuracy that the project wants of its predictions, as shares (the last of all decided cells).
GOAL_ALLOCATED_MEDIAN = 0.005
GOAL_ALLOCATED_WORST = 0.02
GOAL_DEVICE_MEDIAN = 0.015
GOAL_DEVICE_WORST = 0.04
GOAL_FALSE_FITS = 0
GOAL_FALSE_DOES_NOT_FIT = 0.02
GOALS = {
    "allocated_median": GOAL_ALLOCATED_MEDIAN,
    "allocated_worst": GOAL_ALLOCATED_WORST,
    "device_median": GOAL_DEVICE_MEDIAN,
    "device_worst": GOAL_DEVICE_WORST,
    "false_fits": GOAL_FALSE_FITS,
    "false_does_not_fit": GOAL_FALSE_DOES_NOT_FIT,
}

Bytes = dict[str, int | None]


@dataclass(frozen=True)
class Row:
    """One cell. `predicted`, `measured`: bytes by kind; `errors`: shares by kind, None where a side is unknown. `fits` and
    `predicted_fits`: whether its device bytes stay within 24 GiB, None where that is not known."""

    run: str
    id: str
    name: str
    precision: str | None
    adapter: str | None
    status: str
    predicted: Bytes
    measured: Bytes
    errors: dict[str, float | None]
    fits: bool | None
    predicted_fits: bool | None

    @property
    def decided(self) -> bool:
        return self.fits is not None and self.predicted_fits is not None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Predictions against measurements, cell by cell.")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, with cells/*.json")
    parser.add_argument("--trainers", type=Path, metavar="FILE", help="rows of tests/gpu/trainers.py")
    parser.add_argument("--out", type=Path, help="where the JSON document goes")
    parser.add_argument("--anew", action="store_true", help="predict once more, for the GPU that the results name")
    chosen = parser.parse_args(arguments)
    results: list[tuple[str, dict[str, Any]]] = []
    for run in chosen.runs:
        found = [result for file in sorted((run / "cells").glob("*.json")) if (result := read_result(file))]
        if not found:
            print(f"{run}: no results", file=sys.stderr)
        results += [(run.name, result) for result in found]
    if chosen.anew:
        results = predicted_anew(results)
    rows = compare(results) + (trained(read_rows(chosen.trainers)) if chosen.trainers else [])
    document = summed_up(rows) | {"predictions": "anew" if chosen.anew else "stored", "results": len(results)}
    if chosen.out:
        try:
            chosen.out.write_text(json.dumps(document, indent=1) + "\n")
        except OSError as error:
            parser.error(f"--out {chosen.out}: {error.strerror}")
    print("\n".join(table(rows, document)))
    return 0 if rows or results else 2


def read_result(file: Path) -> dict[str, Any]:
    """A result; empty where the file was cut short, or holds something else."""
    found = read_json(file)
    return found if {"cell", "status", "name"} <= set(found) else {}


def compare(results: Sequence[tuple[str, dict[str, Any]]]) -> list[Row]:
    """A row for each (run, result) that has both sides."""
    rows = []
    for run, result in results:
        predicted, measured = result.get("predicted"), result.get("memory") or {}
        if result["status"] not in ("ok", "oom") or predicted is None:
            continue
        told: Bytes = {kind: predicted.get(f"{kind}_bytes") for kind in KINDS}
        seen: Bytes = {kind: measured.get(f"{kind}_bytes") for kind in KINDS}
        if not any(seen.values()):
            continue
        rows.append(
            Row(
                run=run,
                id=result["id"],
                name=f"{result['cell']['model']} / {result['name']}",
                precision=result["cell"].get("precision"),
                adapter=result["cell"].get("adapter"),
                status=result["status"],
                predicted=told,
                measured=seen,
                errors={kind: error(told[kind], seen[kind]) for kind in KINDS},
                fits=fits(result, seen["device"]),
                predicted_fits=None if told["device"] is None else told["device"] <= SMALL_CARD_BYTES,
            )
        )
    return rows


def trained(jobs: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each trainer's job that a cell says, under the cell's name."""
    rows = []
    for job in jobs:
        if not job.get("axes") or not job.get("predicted") or not job.get("allocated_bytes"):
            continue
        said = [f"{name}={value}" for name, value in _dotted(job["settings"]).items()]
        told: Bytes = {kind: job["predicted"].get(f"{kind}_bytes") for kind in KINDS}
        seen: Bytes = {kind: job.get(f"{kind}_bytes") for kind in KINDS}
        precision, adapter, *_ = job["axes"].split()
        rows.append(
            Row(
                run="trainers",
                id=job["job"],
                name=" ".join([job["model"], "/", job["axes"], *said]),
                precision=precision,
                adapter=adapter,
                status="ok",
                predicted=told,
                measured=seen,
                errors={kind: error(told[kind], seen[kind]) for kind in KINDS},
                fits=None,
                predicted_fits=None,
            )
        )
    return rows


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """With options one by one: {"grpo": {"beta": 0.04}} as {"grpo.beta": 0.04}."""
    flat = {}
    for name, value in settings.items():
        flat |= {f"{name}.{option}": one for option, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def error(predicted: int | None, measured: int | None) -> float | None:
    return predicted / measured - 1 if predicted is not None and measured else None


def fits(result: dict[str, Any], device_bytes: int | None) -> bool | None:
    """Whether the job stays within 24 GiB: one that ended well took what it needs; one that ran out of memory needs more
    than it took, and more than its budget."""
    if result["status"] == "oom":
        out_of_host = (result.get("oom") or {}).get("where") == "host"
        # The budget can be larger than the card: then only what was taken says something.
        over = (device_bytes or 0) > SMALL_CARD_BYTES or budget_at_small_card(result)
        return False if over and not out_of_host else None
    return None if device_bytes is None else device_bytes <= SMALL_CARD_BYTES


def budget_at_small_card(result: dict[str, Any]) -> bool:
    """Whether the job was held to 24 GiB, so that running out is its answer."""
    return bool(result["cell"].get("budget") == SMALL_CARD_BYTES)


def predicted_anew(results: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The results with today's predictions for the known card that they were measured on; those of other GPUs as they are
    stored."""
    from vrambench.bench.predict.many import predict_all
    from vrambench.methods.cell import from_flat

    groups: dict[str, list[dict[str, Any]]] = {}
    for _, result in results:
        card = card_described((result.get("environment") or {}).get("gpu"))
        if card is not None and result["status"] in ("ok", "oom"):
            groups.setdefault(card.name, []).append(result)
    fresh: dict[int, dict[str, Any]] = {}
    for name, group in groups.items():
        cells = [from_flat(result["cell"]) for result in group]
        outcomes = predict_all(cells, name)
        for cell, result in zip(cells, group, strict=True):
            outcome = outcomes[cell.id]  # a file of before may have another id
            memory = outcome.forecast.memory.model_dump(mode="json") if outcome.forecast else None
            if outcome.reason:
                print(f"{result['name']}: not predicted: {outcome.reason}", file=sys.stderr)
            fresh[id(result)] = result | {"predicted": memory}
    return [(run, fresh.get(id(result), result)) for run, result in results]


def summed_up(rows: Sequence[Row]) -> dict[str, Any]:
    """The document, less where it comes from."""
    errors = {kind: [row.errors[kind] for row in rows if row.status == "ok"] for kind in KINDS}
    known = {kind: [one for one in found if one is not None] for kind, found in errors.items()}
    median = {kind: statistics.median(map(abs, found)) if found else None for kind, found in known.items()}
    worst = {kind: max(found, key=abs, default=None) for kind, found in known.items()}
    decided = [row for row in rows if row.decided]
    false_fits = [row.name for row in decided if row.predicted_fits and not row.fits]
    false_does_not_fit = [row.name for row in decided if row.fits and not row.predicted_fits]
    share = len(false_does_not_fit) / len(decided) if decided else None
    return {
        "rows": [asdict(row) for row in rows],
        "median_absolute": median,
        "worst": worst,
        "decided_at_24gib": len(decided),
        "false_fits_at_24gib": false_fits,
        "false_does_not_fit_at_24gib": false_does_not_fit,
        "goals": GOALS,
        "met": {
            "allocated_median": within(median["allocated"], GOAL_ALLOCATED_MEDIAN),
            "allocated_worst": within(worst["allocated"], GOAL_ALLOCATED_WORST),
            "device_median": within(median["device"], GOAL_DEVICE_MEDIAN),
            "device_worst": within(worst["device"], GOAL_DEVICE_WORST),
            "false_fits": len(false_fits) <= GOAL_FALSE_FITS if decided else None,
            "false_does_not_fit": share < GOAL_FALSE_DOES_NOT_FIT if share is not None else None,
        },
    }


def within(found: float | None, goal: float) -> bool | None:
    return None if found is None else abs(found) <= goal


def table(rows: Sequence[Row], document: dict[str, Any]) -> list[str]:
    """Lines for people: each cell, worst device error first, and the sums."""
    if not rows:
        return [f"{document['results']} results, none of them with both a prediction and measured memory"]
    lines = ["status  allocated   reserved     device   measured device  cell"]
    for row in sorted(rows, key=lambda row: -abs(row.errors["device"] or row.errors["allocated"] or 0)):
        device = row.measured["device"]
        size = "-" if device is None else f"{device / GIB:.3f} GiB"
        shown = "".join(f"{percent(row.errors[kind]):>11}" for kind in KINDS)
        lines.append(f"{row.status:<6}{shown} {size:>17}  {row.name}")
    for label, sums in (("median", document["median_absolute"]), ("worst", document["worst"])):
        lines.append(f"{label:<6}" + "".join(f"{percent(sums[kind]):>11}" for kind in KINDS))
    wrong = [(label, document[f"false_{label}_at_24gib"]) for label in ("fits", "does_not_fit")]
    lines += [
        f"at 24 GiB, of {document['decided_at_24gib']} cells: "
        + ", ".join(f"{len(names)} false {label.replace('_', ' ')!r}" for label, names in wrong)
    ]
    lines += [f"  false {label.replace('_', ' ')!r}: {name}" for label, names in wrong for name in names]
    words = {True: "met", False: "missed", None: "not known"}
    lines += [f"goal {name} {goal:.1%}: {words[document['met'][name]]}" for name, goal in document["goals"].items()]
    return lines


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:+.2%}"


if __name__ == "__main__":
    sys.exit(main())
