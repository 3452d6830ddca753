"""What several commands use: exit codes, common options, what they print where, and how a plan is made and predicted."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vrambench.methods.errors import ConfigurationError, UnknownValue, brief
from vrambench.reports.units import printable

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix, Setting, Settings
    from vrambench.bench.plan.plan import Plan
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.predict.many import NewPool
    from vrambench.bench.results.forecast import Outcome, Unmodelled
    from vrambench.bench.run.session import Predict
    from vrambench.methods.cards import Card
    from vrambench.methods.cell import Cell

EXIT_DOES_NOT_FIT, EXIT_USAGE, EXIT_NOT_COMPARABLE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 3, 4, 130, 141

MatrixPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MATRIX]", help="The matrix file; ./matrix.yaml, else the one that is shipped.", show_default=False
    ),
]
AllocConf = Annotated[
    str | None,
    typer.Option(
        "--alloc-conf",
        help="As PYTORCH_ALLOC_CONF; of an option said twice the last counts, as there.",
        metavar="OPTIONS",
        show_default="the environment's",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Predict anew, and keep nothing of it.")]

DEVICES = ("auto", "cpu", "cuda", "cuda:N")


class Mistakes(Exception):
    """Several mistakes in one call. `messages`: a line for each."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = tuple(messages)


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[typing.TextIO]:
    """The real stdout, for what the command has to say; whatever libraries print there meanwhile goes to stderr."""
    real = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield real
    real.flush()


def say(text: str, end: str = "\n") -> None:
    """On stderr. What a terminal would obey is shown as a mark."""
    print("\n".join(printable(line) for line in text.split("\n")), end=end, file=sys.stderr, flush=True)


def say_progress(text: str) -> None:
    """On stderr, what was done last: one line that is rewritten on a terminal (by nothing in the end), else a line each."""
    if not sys.stderr.isatty():
        say(text)
        return
    width = shutil.get_terminal_size().columns - 1
    print(f"\r{printable(text)[:width]}\x1b[K", end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    """Takes that line away."""
    if sys.stderr.isatty():
        say_progress("")


def check_out(out: Path, *, option: str = "-o", replaces: bool = True, why: str = "") -> None:
    """That the file that `option` names can be written; one that is there only where it `replaces` that, else with `why` not.
    Raises ConfigurationError."""
    wrong = None
    if str(out) == "-":
        wrong = "names no file; write one (./- if it is called so)"
    elif out.is_dir():
        wrong = "is a folder; name a file"
    elif not out.parent.is_dir():
        wrong = f"there is no folder {out.parent}"
    elif out.exists() and not out.is_file():
        wrong = "is a pipe or a device, not a file; name a file"
    elif out.exists() and not replaces:
        wrong = f"is there already{why}; --force replaces it"
    about = f"{option} {brief(str(out), 300)}"
    if wrong:
        raise ConfigurationError(f"{about}: {wrong}", field="out")
    check_writable(out.parent, about)


def is_there(path: Path, about: str) -> bool:
    """Whether the file is there. Raises ConfigurationError, which begins with `about`, where no file can have that name."""
    try:
        return path.exists()
    except OSError as error:
        raise ConfigurationError(f"{about}: {error.strerror or error}", field="out") from None


def check_writable(folder: Path, about: str) -> None:
    """That files can be made in `folder`, or in the nearest one above it that is there, which only trying tells. Raises
    ConfigurationError, which begins with `about`."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{about}: nothing can be written in {brief(str(folder), 300)}: {error.strerror or error}", field="out"
        ) from None


def default_matrix() -> Path:
    """./matrix.yaml if there is one, else the one that is shipped."""
    here = Path("matrix.yaml")
    return here if here.exists() else shipped_matrix()


def shipped_matrix() -> Path:
    """The file that comes with this package."""
    import vrambench.bench

    return Path(vrambench.bench.__file__).resolve().parent.parent / "matrix.yaml"


def matrix_again(matrix: Matrix, path: Path | None) -> tuple[list[str], Matrix]:
    """What a command names so that `matrix` (at `path`, if that was said) is read again: nothing where it is the default one. And
    the matrix that a command without --config is about."""
    from vrambench.bench.plan.matrix import read_matrix

    if matrix.config:
        matrix, _ = read_matrix(default_matrix())
    return [str(path)] if path and path.resolve() != default_matrix().resolve() else [], matrix


def planned_for(loaded: Matrix, selection: Selection, device: str, *, bf16: bool | None) -> Plan:
    """The plan for a device by its full name; what the matrix is warned of goes to stderr. `bf16` as for `select`."""
    from vrambench.bench.measure.collector import collector_held
    from vrambench.bench.predict.quiet import hush

    hush()
    with collector_held(collect=False):  # which takes a second of imports
        from vrambench.bench.plan.plan import select

    kind, _, _ = device.partition(":")
    planned = select(loaded, selection, typing.cast(Any, kind), bf16=bf16)
    for warning in planned.warnings:
        say(f"warning: {warning}")
    return planned


def cards_named(selection: Selection, matrix: Matrix | None = None) -> list[Card | None]:
    """What the budgets name that are said, None for each that is no card's: on the command line, else in the matrix, whose profile
    for CUDA counts where none is selected."""
    from vrambench.methods.called import card_called

    levels: list[tuple[Settings, Mapping[str, Sequence[Setting]]]] = [(selection.settings(), selection.sweeps())]
    if matrix:
        layer = matrix.layer(selection.profile or matrix.default_profile.get("cuda"))
        levels.append((layer.workload, layer.sweep or {}))
    for fixed, swept in levels:
        said = swept.get("budget") or ([fixed["budget"]] if "budget" in fixed else [])
        if said:
            return [card_called(one.value) for one in said]
    return []


def card_named(selection: Selection, matrix: Matrix | None = None) -> Card | None:
    """The one card that is named as the budget, if one is."""
    named = cards_named(selection, matrix)
    return named[0] if len(named) == 1 else None


def say_how_many(done: int, total: int, what: str = "cells") -> None:
    """On stderr, how many are predicted: one line that changes on a terminal, else the first and the last."""
    live = sys.stderr.isatty()
    if live or done in (0, total):
        print(
            f"{chr(13) if live else ''}predicted {done} of {total} {what}",
            end="\n" if done == total or not live else "",
            file=sys.stderr,
            flush=True,
        )


def predictions(
    named: Card | None,
    alloc_conf: str | None = None,
    left_out: tuple[Unmodelled, ...] = (),
    *,
    no_cache: bool = False,
    pool: NewPool | None = None,
    own_process: bool = False,
) -> Predict:
    """How cells are predicted: in processes of their own, with a line on stderr that says how many are done; for the GPU that they
    run on, else for the card that is `named`. What was predicted before is looked up unless `no_cache` forbids it.
    `left_out`: what a configuration says, and no prediction holds. `pool`: what they are made in, if not in processes here.
    `own_process`: few are made in this process, which measures nothing."""
    from vrambench.bench.predict.cache import Cache
    from vrambench.bench.predict.many import predict_all

    cache = None if no_cache else Cache.usual()

    def predict(cells: Sequence[Cell], here: Card | None) -> Mapping[str, Outcome]:
        card = here or named
        name = card.name if card else None
        return predict_all(
            cells,
            name,
            alloc_conf=alloc_conf,
            left_out=left_out,
            cache=cache,
            tell=say_how_many,
            pool=pool,
            here=own_process,
        )

    return predict


def check_device(device: str, choices: Sequence[str] = DEVICES) -> None:
    """That `device` is written as one of `choices`, wherever it is. Raises UnknownValue."""
    numbered = re.fullmatch(r"cuda:\d+", device) is not None
    if device not in choices and not (numbered and "cuda:N" in choices):
        raise UnknownValue("--device", device, choices)


def device_here(device: str) -> str:
    """The device to run on, by its full name. Raises ConfigurationError where it is not there."""
    from vrambench.bench.measure.collector import collector_held
    from vrambench.bench.predict.quiet import hush

    check_device(device)
    hush()  # jobs have processes of their own
    with collector_held(collect=False):  # which takes a second of imports
        from vrambench.methods.device import get_device
    return str(get_device(device).torch)


def has_bf16(device: str) -> bool | None:
    """Whether the device has bf16 arithmetic: a recent GPU, or a CPU; None for a GPU that is not here to ask."""
    if not device.startswith("cuda"):
        return True
    from vrambench.bench.machine.environment import describe_gpu
    from vrambench.bench.measure.meters.nvml import Nvml
    from vrambench.methods.cards import FIRST_BF16

    library = Nvml.open()
    gpu = describe_gpu(library, device) if library else None
    capability = gpu["compute_capability"] if gpu else None
    return tuple(map(int, capability.split("."))) >= FIRST_BF16 if capability else None
