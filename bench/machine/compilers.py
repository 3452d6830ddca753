"""What DeepSpeed's CPUAdam needs to be compiled: g++, ninja, and an nvcc where it is built with CUDA."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


def lacking(cuda_build: str | None) -> list[str]:
    """What is not here. `cuda_build`: the CUDA that torch was built for (`13.0`), where it uses a GPU; nvcc must be of the same."""
    missing = []
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX") or "c++", "g++")):
        missing.append("g++")
    if not find_ninja():
        missing.append("ninja")
    if cuda_build and builds_with_cuda():
        toolkit = nvcc_version()
        if toolkit is None:
            missing.append(f"nvcc of CUDA {cuda_build}")
        elif toolkit.split(".")[0] != cuda_build.split(".")[0]:
            missing.append(f"nvcc of CUDA {cuda_build} (there is {toolkit})")
    return missing


def builds_with_cuda() -> bool:
    """Whether DeepSpeed has a builder of CPU Adam of its own for CUDA; since 0.19 it takes the CPU's there too."""
    found = importlib.util.find_spec("deepspeed")
    folders = (found.submodule_search_locations if found else None) or ()
    return any((Path(folder) / "ops" / "op_builder" / "cpu_adam.py").exists() for folder in folders)


def nvcc_version() -> str | None:
    """The CUDA toolkit's version (`13.0`), of the nvcc that torch's extensions would use; None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = (str(Path(home) / "bin" / "nvcc") if home else None) or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"release (\d+\.\d+)", said)
    return match[1] if match else None


def find_ninja() -> bool:
    """Whether ninja is on the path, or beside this Python as its package puts it."""
    return shutil.which("ninja") is not None or (Path(sys.executable).parent / "ninja").exists()
