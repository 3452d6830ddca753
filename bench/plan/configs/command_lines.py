"""A trainer's command line as a document: TRL's own, or a script's behind what starts it. Nothing of it is run.

command, document = command_line("accelerate launch --num_processes 8 sft.py --model_name_or_path gpt2")        "sft", ...
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from vrambench.bench.plan.configs.files import load
from vrambench.bench.plan.document import Document, parse_value
from vrambench.methods.errors import ConfigurationError, brief, shown

STARTERS = ("accelerate", "torchrun", "deepspeed", "python", "python3")
"""Programs that start a script, whose options come before it."""

FILES_OF = ("axolotl", "llamafactory-cli", "tune")
"""Programs that read a file."""

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

PROCESSES = frozenset(
    (
        "num_processes",
        "num_machines",
        "machine_rank",
        "main_process_ip",
        "main_process_port",
        "multi_gpu",
        "use_fsdp",
        "gpu_ids",
        "num_cpu_threads_per_process",
        "nproc_per_node",
        "nproc",
        "nnodes",
        "node_rank",
        "master_addr",
        "master_port",
        "standalone",
        "rdzv_id",
        "rdzv_backend",
        "rdzv_endpoint",
        "num_gpus",
        "num_nodes",
        "hostfile",
        "include",
        "exclude",
        "u",
    )
)
"""Starters' options that say how many processes there are, and where."""

SWITCHES = frozenset(("multi_gpu", "use_fsdp"))
COUNTS = SWITCHES | frozenset(
    ["num_processes", "num_machines", "nproc_per_node", "nproc", "nnodes", "num_gpus", "num_nodes"]
)
"""Those by which several GPUs train, unless their number is 1; switches have none."""


def is_command_line(text: str) -> bool:
    """Whether `text` begins as a command line does that is read here, or of which is said what to give instead."""
    words = _unassigned(text.split())[1]
    return bool(words) and words[0] in ("trl", *STARTERS, *FILES_OF)


def command_line(text: str, folder: Path = Path()) -> tuple[str, Document]:
    """What trains (`sft` of `trl sft`, and of `sft.py`), and what is said to it: the file of its --config with its own options laid
    over. Raises ConfigurationError where a part is not read, with what to give instead."""
    try:
        assigned, words = _unassigned(shlex.split(text.replace("\\\n", " ")))
    except ValueError as error:
        raise ConfigurationError(f"--config {brief(text)}: {error}", field="config") from None
    for name, value in assigned.items():
        if name in ALLOCATOR:
            raise _not_read(text, f"{name} is told by --alloc-conf {shlex.quote(value)}")
    several: dict[str, Any] = {}
    if words[0] in STARTERS:
        words, several = _started(text, words)
    if words[0] in FILES_OF or "axolotl" in words[0]:
        file = next((word for word in words[1:] if word.endswith((".yaml", ".yml", ".json"))), "FILE")
        copied = " (tune cp writes it)" if words[0] == "tune" and file == "FILE" else ""
        raise _not_read(text, f"give the file that it reads{copied}: --config {file}")
    name, *words = words
    command = Path(name).stem
    if name == "trl":
        command, words = (words[0], words[1:]) if words else ("", [])
        name = f"trl {command}"
    data, bare = _said(text, words, folder)
    return command, Document(name, data, {}, bare, several)


def _unassigned(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """What is set in the environment first, and the command."""
    first = next((index for index, word in enumerate(words) if not re.match(r"[A-Za-z_]\w*=", word)), len(words))
    return dict(word.split("=", 1) for word in words[:first]), words[first:]


def _started(text: str, words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The script, or `trl` and its command, with what comes behind; a module by its last name (`-m trl.scripts.sft`). And the
    starter's options by which several GPUs train, with their values."""
    rest = words[2:] if words[:2] == ["accelerate", "launch"] else words[1:]
    several: dict[str, Any] = {}
    for index, word in enumerate(rest):
        if word in ("-m", "--module") and len(rest) > index + 1:
            module = rest[index + 1]
            script = module if module.startswith("axolotl") else module.rpartition(".")[2]
            return [script, *rest[index + 2 :]], several
        if word == "trl" or word.endswith(".py"):
            return rest[index:], several
        if word.startswith("-"):
            written, equals, text_of = word.partition("=")
            option = written.lstrip("-").replace("-", "_")
            if option not in PROCESSES:
                raise _not_read(
                    text,
                    f"{written} is {words[0]}'s: leave it out, and say to the trainer what it says of precision or "
                    "DeepSpeed (--bf16 true, --deepspeed FILE)",
                )
            if option in COUNTS:
                value = _value(text_of) if equals else _value(next((one for one in rest[index + 1 :]), ""))
                value = True if option in SWITCHES else value
                several |= {written: value} if value not in (0, 1) or value is True else {}
    raise _not_read(text, f"{words[0]} starts a script, and there is none (a name that ends in .py)")


def _not_read(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"--config {brief(text)}: {why}", field="config")


def _said(text: str, words: list[str], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Options as argparse reads them: without a value true, with several a list. And those without a value."""
    lists: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            key, equals, value = word.removeprefix("--").partition("=")
            lists[key.replace("-", "_")] = [value] if equals else []
        elif lists:
            lists[next(reversed(lists))].append(word)
        else:
            raise _not_read(text, f"{shown(word)} is no option")
    data: dict[str, Any] = {}
    for key, values in lists.items():
        read = [_value(one) for one in values]
        data[key] = True if not read else read[0] if len(read) == 1 else read
    if isinstance(data.get("config"), str):
        data = load(folder / data.pop("config")).data | data
    return data, [key for key, values in lists.items() if not values]


def _value(text: str) -> Any:
    """One word of the command line; Python's None, True and False as argparse's users write them."""
    try:
        return {"None": None, "True": True, "False": False}.get(text, parse_value(text))
    except ValueError:
        return text
