"""`vrambench doctor` on the command line."""

from __future__ import annotations

import json

import pytest

from vrambench.bench.commands.app import main


def test_doctor_says_what_cannot_be_prepared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from vrambench.methods.offload import OFFLOADS

    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setitem(OFFLOADS._found, "zero2_optimizer", replace(OFFLOADS.get("zero2_optimizer"), prepare=fail))
    assert main(["doctor", "--prepare", "--json"]) == 4
    told = capsys.readouterr()
    said = "offload zero2_optimizer cannot be prepared: RuntimeError: no compiler"
    assert told.err.endswith(f"error: {said}\n")
    last = json.loads(told.out)["findings"][-1]
    assert (last["name"], last["state"]) == ("offload zero2_optimizer", "missing"), "all else is told too"
