"""The doctor: real probes on this machine, and every bad answer a probe can give."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vrambench.bench.commands.app import main
from vrambench.bench.machine import compilers, doctor, probes
from vrambench.bench.machine.doctor import Diagnosis, Machine, as_document, as_rows, examine
from vrambench.bench.machine.probes import Reply
from vrambench.methods.offload import OFFLOADS

GIB = 2**30

GOOD: dict[str, dict[str, Any]] = {
    "torch": {
        "version": "2.11.0",
        "cuda_build": "13.0",
        "cuda": True,
        "cpu_capability": "AVX2",
        "name": "NVIDIA H100",
        "capability": [9, 0],
        "bf16": True,
        "accounting": "process",
    },
    "bitsandbytes": {"device": "cuda", "paged": True},
    "attention": {
        "device": "cuda",
        "works": {"flash": ["bf16", "fp16"], "efficient": ["bf16", "fp16", "fp32"], "math": ["bf16", "fp16", "fp32"]},
    },
    "galore_torch": {"optimizer": "AdamW"},
    "deepspeed": {"version": "0.19.8", "accelerator": "cuda"},
}
NO_HALF = {"flash": [], "efficient": ["fp32"], "math": ["fp32"]}
GPU = {
    "gpu": {"name": "NVIDIA H100", "total_bytes": 80 * GIB, "usable_bytes": 79 * GIB, "driver": "580.1"},
    "gpu_used_bytes": 0,
}


def machine(environment: dict[str, Any] | None = None, **answers: Any) -> Machine:
    """A GPU machine on which all is well, but for `answers`: a failure's text, or what differs in what was told."""
    told = {}
    for name, good in GOOD.items():
        answer = answers.get(name, {})
        told[name] = Reply(failure=answer) if isinstance(answer, str) else Reply(told=good | answer)
    return Machine(told, GPU if environment is None else environment, Path())


def by_name(findings: list[Diagnosis]) -> dict[str, Diagnosis]:
    return {finding.name: finding for finding in findings}


@pytest.fixture(scope="module")
def real() -> Callable[[str, float], Reply]:
    """Real probes, each run once."""
    return functools.cache(probes.run)


@pytest.mark.slow
def test_this_machine_is_examined_for_real(tmp_path: Path, real: Callable[[str, float], Reply]) -> None:
    found = by_name(examine(tmp_path / "not" / "there", probe=real))
    assert list(found) == list(doctor.CHECKS)
    assert found["torch"].state == "ok"
    assert found["bitsandbytes"].state == "ok", found["bitsandbytes"]
    assert "flash: bf16" in found["attention"].seen
    assert found["deepspeed"].state == "ok", found["deepspeed"]
    document = json.loads(json.dumps(as_document(list(found.values()), {"device": "cpu"})))
    assert document["schema"] == 1
    assert [entry["name"] for entry in document["findings"]] == list(found)
    assert str(tmp_path) not in json.dumps(document)


@pytest.mark.slow
def test_on_the_command_line_it_says_what_cannot_be_prepared(
    real: Callable[[str, float], Reply], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setitem(OFFLOADS._found, "zero2_optimizer", replace(OFFLOADS.get("zero2_optimizer"), prepare=fail))
    monkeypatch.setattr(doctor, "examine", lambda: examine(probe=real))
    assert main(["doctor", "--prepare", "--json"]) == 4
    told = capsys.readouterr()
    said = "offload zero2_optimizer cannot be prepared: RuntimeError: no compiler"
    assert told.err.endswith(f"error: {said}\n")
    last = json.loads(told.out)["findings"][-1]
    assert (last["name"], last["state"]) == ("offload zero2_optimizer", "missing"), "all else is told too"


def test_on_a_good_gpu_machine_all_is_well() -> None:
    healthy = machine()
    names = (
        "torch",
        "GPU",
        "NVML",
        "GPU memory",
        "bitsandbytes",
        "attention",
        "galore_torch",
        "deepspeed",
        "axis values",
    )
    states = {name: doctor.CHECKS[name](healthy).state for name in names}
    assert set(states.values()) == {"ok"}, states


@pytest.mark.parametrize(
    ("check", "answers", "state", "says"),
    [
        ("torch", {"torch": "ModuleNotFoundError: No module named 'torch'"}, "missing", "no cell runs"),
        ("torch", {"torch": {"cuda": False, "cuda_build": None}}, "limited", "this build cannot use it"),
        ("torch", {"torch": {"cuda": False}}, "limited", "cannot start CUDA"),
        ("GPU", {"torch": {"bf16": False, "capability": [7, 5]}}, "limited", "bf16 and bf16_amp cells are invalid"),
        ("NVML", {"torch": {"accounting": "device"}}, "limited", "the device's change"),
        ("bitsandbytes", {"bitsandbytes": "OSError: libcudart"}, "missing", "int8, nf4"),
        ("bitsandbytes", {"bitsandbytes": {"device": "cpu", "paged": False}}, "limited", "int8, nf4"),
        ("bitsandbytes", {"bitsandbytes": {"paged": False}}, "limited", "except paged_adamw_8bit"),
        (
            "attention",
            {"attention": {"works": {"flash": [], "efficient": ["fp32"], "math": ["fp32"]}}},
            "limited",
            "bf16 (flash)",
        ),
        (
            "galore_torch",
            {"galore_torch": "ImportError: x"},
            "missing",
            "galore_adamw, galore_adamw_8bit, galore_adafactor",
        ),
        (
            "deepspeed",
            {"deepspeed": "ImportError: x"},
            "missing",
            "zero2, zero2_optimizer, zero3_optimizer, zero3_all cells cannot run",
        ),
        ("deepspeed", {"deepspeed": {"accelerator": "cpu"}}, "limited", "cannot run on the GPU"),
    ],
)
def test_what_is_wrong_is_said_with_its_consequence(check: str, answers: dict[str, Any], state: str, says: str) -> None:
    finding = doctor.CHECKS[check](machine(**answers))
    assert finding.state == state
    assert says in finding.consequence


def test_a_gpu_that_others_use_is_no_place_to_measure() -> None:
    finding = doctor.check_gpu_idle(machine(GPU | {"gpu_used_bytes": 30 * GIB}))
    assert (finding.state, finding.seen) == ("limited", "30.0 of 79.0 GiB in use")


def test_a_gpu_whose_memory_the_driver_does_not_tell_is_said_so() -> None:
    gpu = GPU["gpu"] | {"total_bytes": None, "usable_bytes": None}  # type: ignore[operator]
    silent = machine({"gpu": gpu, "gpu_used_bytes": None})
    finding = doctor.check_gpu_idle(silent)
    assert (finding.state, finding.seen) == ("limited", "the driver does not tell this GPU's memory")
    assert doctor.check_gpu(silent).state == "ok"


@pytest.mark.parametrize(
    ("package", "cells"),
    [
        (
            "bitsandbytes",
            "int8, nf4, adamw_bnb_8bit, paged_adamw_8bit, paged_adamw_32bit, galore_adamw, galore_adamw_8bit, galore_adafactor, "
            "apollo_adamw, lion_32bit, lion_8bit, paged_lion_32bit, paged_lion_8bit, ademamix, ademamix_8bit, "
            "paged_ademamix_32bit, paged_ademamix_8bit, rmsprop_bnb, rmsprop_bnb_8bit, rmsprop_bnb_32bit cells",
        ),
        ("peft", "lora, dora, rslora, ia3, adalora, vera, oft, prompt_tuning cells"),
        ("deepspeed", "zero2, zero2_optimizer, zero3_optimizer, zero3_all cells"),
    ],
)
def test_a_packages_cells_are_those_whose_values_require_it(package: str, cells: str) -> None:
    assert doctor.cells_with(package) == cells


@pytest.mark.parametrize(
    ("tools", "toolkit", "state", "lacks"),
    [
        ({"c++", "g++", "ninja"}, "13.0", "ok", ""),
        ({"g++", "ninja"}, "13.2", "ok", ""),
        ({"ninja"}, "13.0", "missing", "g++"),
        ({"g++"}, "13.0", "missing", "ninja"),
        ({"g++", "ninja"}, None, "missing", "nvcc of CUDA 13.0"),
        ({"g++", "ninja"}, "12.8", "missing", "nvcc of CUDA 13.0 (there is 12.8)"),
    ],
)
def test_what_cpu_adam_needs(
    monkeypatch: pytest.MonkeyPatch, tools: set[str], toolkit: str | None, state: str, lacks: str
) -> None:
    from vrambench.methods.offload import deepspeed

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(deepspeed, "compiled", lambda: False)
    monkeypatch.setattr(compilers.shutil, "which", lambda name: f"/bin/{name}" if name in tools else None)
    monkeypatch.setattr(compilers, "find_ninja", lambda: "ninja" in tools)
    monkeypatch.setattr(compilers, "nvcc_version", lambda: toolkit)
    monkeypatch.setattr(compilers, "builds_with_cuda", lambda: True)
    finding = doctor.check_cpu_adam(machine())
    assert finding.state == state
    assert lacks in (finding.remedy or "")
    monkeypatch.setattr(compilers, "builds_with_cuda", lambda: False)
    assert "nvcc" not in (doctor.check_cpu_adam(machine()).remedy or "")


def test_nvccs_version_is_its_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "nvcc"
    compiler.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert compilers.nvcc_version() == "12.4"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    assert compilers.nvcc_version() is None


def test_a_check_that_fails_is_a_finding_itself() -> None:
    broken = Machine({}, {}, Path())
    findings = [doctor._guarded(name, check, broken) for name, check in doctor.CHECKS.items()]
    assert [finding.name for finding in findings] == list(doctor.CHECKS)
    assert "could not be examined: KeyError" in by_name(findings)["torch"].seen


def test_everything_missing_still_ends(tmp_path: Path) -> None:
    def broken_driver() -> Any:
        raise RuntimeError("driver/library version mismatch")

    findings = examine(tmp_path, probe=lambda name, seconds: Reply(failure=f"no {name}"), driver=broken_driver)
    found = by_name(findings)
    assert found["torch"].state == found["bitsandbytes"].state == found["attention"].state == "missing"
    assert all(isinstance(cell, str) for row in as_rows(findings) for cell in row)


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (
            "import sys; print('noise'); sys.stderr.write('Traceback\\nValueError: broken\\n\\n'); sys.exit(1)",
            "ValueError: broken",
        ),
        ("import os; os.abort()", "ended by signal 6"),
        ("raise SystemExit(3)", "ended with code 3"),
        ("import time; time.sleep(60)", "gave no answer within 1 s"),
    ],
    ids=["error", "crash", "silent", "hang"],
)
def test_a_probe_that_fails_says_why_in_a_line(monkeypatch: pytest.MonkeyPatch, code: str, failure: str) -> None:
    monkeypatch.setattr(probes, "CODE", code)
    assert probes.run("torch", 1.0) == Reply(failure=failure)


def test_a_probes_answer_is_found_among_its_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        probes, "CODE", f"print('a library greets'); print('{probes.MARK}' + '{{\"x\": 1}}'); print('bye')"
    )
    assert probes.run("torch", 30.0) == Reply(told={"x": 1})
    monkeypatch.setattr(probes.sys, "executable", str(Path(sys.executable).parent / "no-such-python"))
    assert probes.run("torch", 30.0).failure is not None


def test_what_offloads_need_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler\nand forty lines more")

    def prepared_by(prepare: Callable[[], None], *names: str) -> None:
        for name in names:
            monkeypatch.setitem(OFFLOADS._found, name, replace(OFFLOADS.get(name), prepare=prepare))

    heard: list[str] = []
    names = [name for name, value in OFFLOADS.values().items() if value.prepare]
    assert names == ["zero2", "zero2_optimizer", "zero3_optimizer", "zero3_all"]
    prepared_by(lambda: heard.append("done"), *names)
    assert doctor.prepare_offloads(heard.append) == {}
    assert heard == [f"preparing offload {', '.join(names)}", "done"]
    prepared_by(fail, "zero2", "zero3_all")
    failures = doctor.prepare_offloads()
    assert failures == dict.fromkeys(("zero2", "zero3_all"), "RuntimeError: no compiler")
    findings = [doctor.Diagnosis("CPUAdam", "ok", "compiled", "cells run"), doctor.Diagnosis("disk", "ok", "free", "")]
    told = [one.name for one in doctor.with_failures(findings, failures)]
    assert told == ["disk", "offload zero2", "offload zero3_all"]
    assert doctor.with_failures(findings, {}) == findings
