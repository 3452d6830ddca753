"""Charts drawn by vl-convert, and the JavaScript that draws them in a browser.

    drawings([spec, ...])        an SVG of each Vega-Lite specification
    bundle()                     JavaScript that defines `vegaEmbed`, with all it needs

vl-convert runs in a process of its own, which imports nothing else: where it lacks memory, it ends the process that it is in.
To pack its JavaScript takes it 2 s of a CPU, so what it gave is kept in the folder of what was predicted.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vrambench.bench.predict.cache import digest, usual_folder
from vrambench.bench.results.store import write_atomically

CODE = """
import json, os, sys
import vl_convert
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever JavaScript prints
for line in sys.stdin:
    asked = json.loads(line)
    told = [getattr(vl_convert, asked["function"])(*one, **asked["settings"]) for one in asked["each"]]
    print(json.dumps(told), file=answers, flush=True)
"""
DEFINES = "window.vegaEmbed = vegaEmbed;"


class NotDrawn(OSError):
    """vl-convert's process ended without an answer; the message says how."""


def drawings(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """An SVG of each specification, for which nothing is loaded. Raises NotDrawn."""
    return _answers("vegalite_to_svg", [[spec] for spec in specs], vl_version=vl_version(), allowed_base_urls=[])


@cache
def bundle() -> str:
    """The JavaScript. Raises NotDrawn."""
    code = _read()
    if code is None:
        (code,) = _answers("javascript_bundle", [[DEFINES]], vl_version=vl_version())
        keep(code)
    return code


@cache
def vl_version() -> str:
    """Altair's version of Vega-Lite as vl-convert names it: `6.4`."""
    from altair import SCHEMA_VERSION

    return ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _answers(function: str, each: Sequence[Sequence[Any]], **settings: Any) -> list[str]:
    """What vl-convert's `function` gives for each list of arguments, with these settings."""
    if not each:
        return []
    done = ask(json.dumps({"function": function, "each": each, "settings": settings}))
    if done.returncode:
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        words = done.stderr.strip().rpartition("\n")[2]
        raise NotDrawn(f"drawing ended with {ended}: {words or 'no output'}")
    found: list[str] = json.loads(done.stdout)
    return found


def ask(line: str) -> subprocess.CompletedProcess[str]:
    """CODE over one line, in a process of its own."""
    command = [sys.executable, "-P", "-c", CODE]
    return subprocess.run(command, input=line, capture_output=True, text=True, errors="replace")


def _kept() -> Path | None:
    """Where the JavaScript is kept; None where nothing is."""
    folder = usual_folder()
    return folder and folder / f"vega-{vl_version()}-{version('vl-convert-python')}.js"


def _read() -> str | None:
    """What was kept, undamaged."""
    kept = _kept()
    if kept is None:
        return None
    with contextlib.suppress(OSError, UnicodeError):
        first, _, code = kept.read_text(encoding="utf-8").partition("\n")
        if first == digest(code):
            return code
    return None


def keep(code: str) -> None:
    """Keeps `code` as the JavaScript for whoever asks next, if that can be done."""
    kept = _kept()
    if kept is None:
        return
    with contextlib.suppress(OSError):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(kept, f"{digest(code)}\n{code}")
