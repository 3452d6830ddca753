"""What `make gpu` keeps from one call to the next: how its parts ended, and the archive of all that they wrote."""

from __future__ import annotations

import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

from gpu_plan import Part
from gpu_summary import summary

ARCHIVED = "gpu-results"
ABOUT = "about.json"
RESUME_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error)


def read_state(file: Path) -> dict[str, Any]:
    """How each part ended. ValueError where the file is none of ours."""
    state = json.loads(file.read_text()) if file.exists() else {}
    if not isinstance(state, dict) or not all(isinstance(one, dict) for one in state.values()):
        raise ValueError("does not say how parts ended")
    return state


def write_state(file: Path, state: dict[str, Any]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(state, indent=1))
    fresh.replace(file)


def unpack(archive: Path, work: Path, rehearse: bool) -> None:
    """What an earlier call packed, where the next one looks for it. ValueError where the archive holds something else, or
    results of a rehearsal where none are wanted."""
    with tarfile.open(archive) as packed:
        members = {member.name: member for member in packed.getmembers()}
        told = [members.get(f"{ARCHIVED}/{name}") for name in ("state.json", ABOUT)]
        read = [packed.extractfile(member) if member else None for member in told]
        state, about = (json.load(file) if file else None for file in read)
        if not isinstance(state, dict) or not isinstance(about, dict):
            raise ValueError("holds no results of this command")
        if about.get("rehearsal") != rehearse:
            raise ValueError("holds a rehearsal" if not rehearse else "holds no rehearsal")
        for member in members.values():
            if member.isfile() and member.name.startswith(f"{ARCHIVED}/"):
                member.name = member.name.removeprefix(f"{ARCHIVED}/")
                packed.extract(member, work, filter="data")


def pack(plan: list[Part], state: dict[str, Any], work: Path, out: Path) -> None:
    """Writes the summary and the archive; whole files only take the old ones' place."""
    (work / "summary.txt").write_text(summary(plan, state, work))
    archive = out / "gpu-results.tar.gz"
    fresh = archive.with_name(archive.name + ".new")
    with tarfile.open(fresh, "w:gz") as packed:
        for path in sorted(work.iterdir()):
            if path.name not in ("source", "site"):
                packed.add(path, arcname=f"{ARCHIVED}/{path.name}")
    fresh.replace(archive)
    for name in ("summary.txt", "doctor.json", "tests.xml"):
        if (work / name).exists():
            (out / name).write_bytes((work / name).read_bytes())
