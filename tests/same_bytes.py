#!/usr/bin/env python3
"""Do two checkouts say the same? Ids of every profile's cells, predicted bytes of profile 24gb, and bytes of a smoke run.

    git worktree add /tmp/before COMMIT
    .venv/bin/python tests/same_bytes.py /tmp/before .                 all three, in about a quarter of an hour
    .venv/bin/python tests/same_bytes.py /tmp/before . --only ids,predicted

For whoever changes structure and wants to know that numbers did not move. Both sides are asked by the command line alone, with
this Python's packages, so that their insides may differ. Prints what differs, by kind of bytes; exit code 0 where nothing does, 1
otherwise. A cell of before is known by the id that its settings have after, so that a field may have been added in between; cells
that one side alone has are told too. What is measured on the CPU is compared by its allocated bytes; those of int8 cells and of
what failed are left out, since they depend on values.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("requested", "allocated", "active", "reserved", "device")
PROFILES = ("24gb", "20b", "smoke")

Bytes = dict[str, dict[str, Any]]
"""Numbers of each cell, by its id, and its settings under "cell", which are not compared."""

RENAME = """
import json, sys
from vrambench.methods.cell import from_flat
print(json.dumps([from_flat(cell).id for cell in json.load(sys.stdin)]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether two checkouts say the same.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--only", default="ids,predicted,run", help="ids, predicted, run: some of them")
    chosen = parser.parse_args()
    asked: dict[str, Callable[[Path], Bytes]] = {"ids": ids, "predicted": predicted, "run": traced}
    wanted = chosen.only.split(",")
    if not set(wanted) <= set(asked):
        parser.error(f"--only takes {', '.join(asked)}, not {chosen.only!r}")
    for side in (chosen.before, chosen.after):
        if not (side / "pyproject.toml").exists():
            parser.error(f"{side} is no checkout: it has no pyproject.toml")
    same = True
    for name in wanted:
        before = renamed(asked[name](chosen.before.resolve()), chosen.after.resolve())
        lines = apart(before, asked[name](chosen.after.resolve()))
        same &= len(lines) == 1
        print(f"{name}: " + "\n  ".join(lines), flush=True)
    return 0 if same else 1


def ids(checkout: Path) -> Bytes:
    found: Bytes = {}
    for profile in PROFILES:
        for device in ("cpu", "cuda"):
            told = answer(checkout, "plan", "--profile", profile, "--device", device, "--no-predict", "--json")
            for cell in told["cells"]:
                found[f"{profile} {device} {cell['id']}"] = {"verdict": cell["verdict"], "cell": cell["cell"]}
    return found


def predicted(checkout: Path) -> Bytes:
    told = answer(checkout, "plan", "--profile", "24gb", "--device", "cuda", "--json")
    return {
        cell["id"]: {kind: cell["predicted"][f"{kind}_bytes"] for kind in KINDS} | {"cell": cell["cell"]}
        for cell in told["cells"]
        if cell.get("predicted")
    }


def traced(checkout: Path) -> Bytes:
    with tempfile.TemporaryDirectory() as folder:
        vrambench(checkout, "run", "--profile", "smoke", "--device", "cpu", "--out", folder)
        results = [json.loads(file.read_text()) for file in Path(folder, "cells").glob("*.json")]
    return {
        one["id"]: {"allocated": one["memory"]["allocated_bytes"], "cell": one["cell"]}
        for one in results
        if one["status"] == "ok" and one["cell"]["precision"] != "int8"
    }


def renamed(found: Bytes, checkout: Path) -> Bytes:
    """Cells under the ids that their settings have in `checkout`."""
    cells = [numbers["cell"] for numbers in found.values()]
    told = python(checkout, RENAME, standard_input=json.dumps(cells))
    keys = [key.rpartition(" ") for key in found]
    return {
        f"{place}{blank}{name}": numbers
        for (place, blank, _), name, numbers in zip(keys, json.loads(told), found.values(), strict=True)
    }


def answer(checkout: Path, *words: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(vrambench(checkout, *words))
    return told


def vrambench(checkout: Path, *words: str) -> str:
    """What the checkout's command prints."""
    module, _, function = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["scripts"][
        "vrambench"
    ].partition(":")
    program = f"import sys; from {module} import {function}; sys.exit({function}())"
    return python(checkout, program, *words)


def python(checkout: Path, program: str, *words: str, standard_input: str = "") -> str:
    """What `program` prints where `vrambench` is the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vrambench").symlink_to(checkout)
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *words],
            env=os.environ | {"PYTHONPATH": folder, "VRAMBENCH_CACHE": folder},  # nothing that was predicted before
            cwd=checkout,
            input=standard_input,
            stdout=subprocess.PIPE,
            text=True,
        )
    if done.returncode:
        sys.exit(f"error: {' '.join(words) or 'renaming cells'} in {checkout} ended with code {done.returncode}")
    return done.stdout


def apart(before: Bytes, after: Bytes) -> list[str]:
    """A first line with the counts, and one for each kind of difference."""
    both = before.keys() & after.keys()
    lines = [f"{len(before)} before, {len(after)} after"]
    lines += [
        f"only {side}: {', '.join(sorted(alone)[:5])}{' ...' if len(alone) > 5 else ''} ({len(alone)})"
        for side, alone in (("before", before.keys() - both), ("after", after.keys() - both))
        if alone
    ]
    differing: Counter[str] = Counter()
    example: dict[str, str] = {}
    for cell in sorted(both):
        for kind, value in before[cell].items():
            if kind != "cell" and after[cell].get(kind) != value:
                differing[kind] += 1
                example.setdefault(kind, f"{cell}: {value} before, {after[cell].get(kind)} after")
    lines += [f"{kind} differs in {count} of {len(both)}, as in {example[kind]}" for kind, count in differing.items()]
    if len(lines) == 1:
        lines[0] += ", all equal"
    return lines


if __name__ == "__main__":
    sys.exit(main())
