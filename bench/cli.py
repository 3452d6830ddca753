"""The command line: reads what was typed, calls, prints, and is the one place that turns errors into exit codes.

    vrambench plan --only algorithm=ppo
    vrambench run --profile smoke --device cpu

Exit codes: 0 done, 2 wrong usage or configuration, 4 a measurement (or this program) failed, 130 interrupted. With
--json stdout holds one JSON document and nothing else; progress, logs and errors go to stderr. Heavy modules are
imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import shlex
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vrambench.methods.errors import ConfigurationError, UnknownValue

if TYPE_CHECKING:
    from rich.console import Console

    from vrambench.bench.plan import Plan, PlannedCell
    from vrambench.bench.selection import Selection

EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 2, 4, 130
PIPED_WIDTH = 200

# Click's base class of usage errors. Typer brings click along under a private name or imports it, depending on its
# version.
ClickException: type[Any] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="vrambench",
    help="Benchmark and memory profiler for fine-tuning and RLHF on one GPU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MatrixPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MATRIX]", help="The matrix file; ./matrix.yaml, else the one that is shipped.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives its exit code; every error that a user can cause becomes one line on stderr."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(typed or ["--help"], prog_name="vrambench", standalone_mode=False, obj=typed)
        sys.stdout.flush()
        if not typed:
            return EXIT_USAGE
        return code if isinstance(code, int) else 0
    except ConfigurationError as error:
        return _fail(error.message, EXIT_USAGE)
    except ClickException as error:
        message = error.format_message()
        return _fail(message[:1].lower() + message[1:].rstrip("."), EXIT_USAGE) if message else EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_FAILED)
    except Exception:
        import traceback

        traceback.print_exc()
        return _fail("vrambench failed; the lines above say where", EXIT_FAILED)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def selectors(
    *,
    profile: Annotated[list[str] | None, typer.Option(help="One of the matrix' profiles.", metavar="NAME")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Keep cells with these values.", metavar="AXIS=V,V")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field or option.", metavar="FIELD=VALUE")
    ] = None,
    sweep: Annotated[list[str] | None, typer.Option(help="A cell for each value.", metavar="FIELD=V,V")] = None,
    repeat: Annotated[list[int] | None, typer.Option(help="Samples of each cell.", metavar="N")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A preset, hub id or folder.", metavar="MODEL")] = None,
    budget: Annotated[list[str] | None, typer.Option(help="24GiB, or a card's name.", metavar="SIZE|CARD")] = None,
    coverage: Annotated[list[str] | None, typer.Option(help="full or pairwise.", metavar="HOW")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="These precisions instead.", metavar="V,V")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="These adapters instead.", metavar="V,V")] = None,
    optimizer: Annotated[list[str] | None, typer.Option(help="These optimizers instead.", metavar="V,V")] = None,
    offload: Annotated[list[str] | None, typer.Option(help="These offloads instead.", metavar="V,V")] = None,
    algorithm: Annotated[list[str] | None, typer.Option(help="These algorithms instead.", metavar="V,V")] = None,
) -> Selection:
    """What the selectors say. `--only`, `--set` and `--sweep` may be repeated, the others may not."""
    from vrambench.bench.selection import Selection

    axes = {
        "precision": precision,
        "adapter": adapter,
        "optimizer": optimizer,
        "offload": offload,
        "algorithm": algorithm,
    }
    chosen = {axis: _once(axis, values, several=True) for axis, values in axes.items()}
    return Selection(
        profile=_once("profile", profile),
        axes={axis: text for axis, text in chosen.items() if text is not None},
        only=tuple(only or ()),
        set=tuple(set_ or ()),
        sweep=tuple(sweep or ()),
        repeat=_once("repeat", repeat),
        model=_once("model", model),
        budget=_once("budget", budget),
        coverage=_once("coverage", coverage),
    )


def _once(name: str, values: list[Any] | None, *, several: bool = False) -> Any:
    """The one value of an option that must not be repeated. `several`: it holds several, with commas between them."""
    if values and len(values) > 1:
        typed = [str(value) for value in values]
        form = f"; write --{name} {','.join(typed)}" if several else f": {', '.join(typed)}"
        raise ConfigurationError(f"--{name} is given {len(values)} times{form}", field=name)
    return values[0] if values else None


def with_selectors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `command` every selector as an option of its own, and their reading as its argument `selection`."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        chosen = {name: arguments.pop(name) for name in options}
        return command(selection=selectors(**chosen), **arguments)

    hints = typing.get_type_hints(command, include_extras=True, localns={"Selection": Any})
    more = typing.get_type_hints(selectors, include_extras=True, localns={"Selection": Any})
    options = inspect.signature(selectors).parameters
    own = [one for name, one in inspect.signature(command).parameters.items() if name != "selection"]
    together = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=(hints | more)[one.name])
        for one in (*own, *options.values())
    ]
    wrapped.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {one.name: one.annotation for one in together}
    del wrapped.__wrapped__
    return wrapped


@app.command()
@with_selectors
def plan(
    matrix: MatrixPath = None,
    *,
    selection: Selection,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N: which rules hold.", metavar="DEVICE")] = "auto",
    as_json: Json = False,
) -> None:
    """Every cell of the matrix: valid, or forbidden by which rule and why."""
    with stdout_kept_clean() as out:
        planned = _plan(matrix, selection, device, must_exist=False)
        if as_json:
            print(json.dumps(planned.document(), indent=1), file=out)
        else:
            print_plan(planned, out)


@app.command()
@with_selectors
def run(
    context: typer.Context,
    matrix: MatrixPath = None,
    *,
    selection: Selection,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; with a run in it, that is resumed.", metavar="DIR", show_default="runs/<time>"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:N.", metavar="DEVICE", show_default="auto")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Cells at a time; on a GPU it can only be 1.",
            min=1,
            metavar="N",
            show_default="one per core on the CPU",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a cell may take.", min=1, metavar="S")] = 1800,
    retry: Annotated[
        str | None, typer.Option(help="Run failed cells again: timeout, crashed, error.", metavar="STATUS,..")
    ] = None,
) -> int:
    """Runs every valid cell in a process of its own, stores what each gave, and writes a report."""
    from rich.console import Console

    from vrambench.bench.progress import listening
    from vrambench.bench.result import FAILED
    from vrambench.bench.runner import run as run_cells
    from vrambench.reports import units

    statuses = _retried(retry, FAILED)
    folder = out or _new_folder(Path("runs"))
    resumed = matrix is None and selection.empty and (folder / "run.json").exists()
    if resumed:
        cells, settings = _stored_plan(folder, device)
    else:
        if (
            folder.exists()
            and not (folder / "run.json").exists()
            and any(folder.iterdir() if folder.is_dir() else [folder])
        ):
            raise ConfigurationError(
                f"--out {folder}: is there already, and is no run's folder; name another", field="out"
            )
        name = _device_name(device or "auto")
        planned = _plan(matrix, selection, name, must_exist=True)
        about = {"matrix": planned.matrix, "profile": planned.profile, "coverage": planned.coverage}
        cells, settings = list(planned.cells), {"device": name, "repeat": planned.repeat, "about": about}
    settings["about"]["command"] = shlex.join(["vrambench", *context.obj])

    console = Console(stderr=True)
    with stdout_kept_clean() as stdout:
        with listening(console, units.size, units.seconds) as listener:
            summary = run_cells(
                cells,
                folder,
                jobs=jobs or _jobs(settings["device"]),
                timeout=timeout,
                retry=statuses,
                listener=listener,
                **settings,
            )
        written = _write_report([folder], folder / "report.html")
        _print_results([folder], stdout)
        if summary.interrupted:
            print(f"interrupted; go on with: vrambench run --out {shlex.quote(str(folder))}", file=sys.stderr)
        print(f"wrote {written}", file=stdout)
    return summary.exit_code


def _jobs(device: str) -> int:
    """One cell for each core, which then has one thread; on a GPU one cell."""
    from vrambench.bench.environment import usable_threads

    return usable_threads() if device == "cpu" else 1


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.", metavar="FILE")] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is no report.")] = False,
) -> None:
    """Writes one HTML file about one or several runs, which needs nothing else to be read."""
    if out.is_dir():
        raise ConfigurationError(f"-o {out}: is a folder; name a file", field="out")
    if not out.parent.is_dir():
        raise ConfigurationError(f"-o {out}: there is no folder {out.parent}", field="out")
    if out.exists() and not force and not is_report(out):
        raise ConfigurationError(
            f"-o {out}: is there already, and is no report of ours; --force overwrites it", field="out"
        )
    with stdout_kept_clean() as stdout:
        written = _write_report(runs, out)
        print(f"wrote {written}", file=stdout)


@app.command()
def doctor(
    *,
    prepare: Annotated[bool, typer.Option("--prepare", help="Compile now what is to be compiled once.")] = False,
    as_json: Json = False,
) -> None:
    """What this machine can run, and what is missing for the rest."""
    from rich.markup import escape

    from vrambench.bench.doctor import as_document, as_rows, examine
    from vrambench.bench.environment import describe_environment

    with stdout_kept_clean() as out:
        if prepare:
            prepare_offloads()
        findings = examine()
        if as_json:
            print(json.dumps(as_document(findings, describe_environment("auto")), indent=1), file=out)
        else:
            rows = [[escape(text) for text in row] for row in as_rows(findings)]
            print_rows(("what", "state", "seen", "what follows"), rows, out)


def prepare_offloads() -> None:
    """Does what each offload value wants done once, before anything is timed. RuntimeError's words where it cannot be
    done."""
    from vrambench.methods.device import get_device
    from vrambench.methods.offload import OFFLOADS

    if get_device("auto").kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in OFFLOADS.values().items():
        if value.prepare is not None:
            print(f"preparing offload {name}", file=sys.stderr)
            try:
                value.prepare()
            except (RuntimeError, ImportError) as error:
                raise OSError(f"offload {name} cannot be prepared: {error}") from error


def is_report(path: Path) -> bool:
    """Whether the file is a report that vrambench wrote."""
    with path.open("rb") as file:
        return b'name="generator" content="vrambench' in file.read(4096)


def print_plan(planned: Plan, out: typing.TextIO) -> None:
    """A line for each cell, the warnings' reasons once, the counts."""
    from rich.markup import escape

    rows = []
    warnings: dict[str, str] = {}
    for one in planned.cells:
        refused = [f"{finding.rule}: {finding.reason}" for finding in one.findings if finding.kind == "reject"]
        warned = [finding for finding in one.findings if finding.kind == "warn" and one.verdict == "valid"]
        warnings |= {finding.rule: finding.reason for finding in warned}
        why = "\n".join(refused) or ("warning: " + ", ".join(finding.rule for finding in warned) if warned else "")
        colour = "green" if one.verdict == "valid" else "dim"
        rows.append((f"[{colour}]{escape(one.name)}[/]", one.verdict, escape(why)))
    console = print_rows(("cell", "verdict", "why"), rows, out)
    for rule, reason in warnings.items():
        console.print(f"warning {rule}: {reason}", markup=False, soft_wrap=True)
    counts = planned.counts
    profile = f", profile {planned.profile}" if planned.profile else ""
    console.print(
        f"{counts['cells']} cells: {counts['valid']} valid ({counts['warned']} with warnings), "
        f"{counts['invalid']} invalid; {planned.matrix}{profile}, {planned.coverage} coverage, on {planned.device}",
        markup=False,
        soft_wrap=True,
    )


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], out: typing.TextIO) -> Console:
    """A table of texts (Rich's markup in them), and the console that it was printed on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    return console


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[typing.TextIO]:
    """The real stdout, for what the command has to say; whatever libraries print there meanwhile goes to stderr."""
    real = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield real
    real.flush()


def default_matrix() -> Path:
    """./matrix.yaml if there is one, else the one that is shipped."""
    import vrambench.bench

    here = Path("matrix.yaml")
    return here if here.exists() else Path(vrambench.bench.__file__).resolve().parent.parent / "matrix.yaml"


def _plan(matrix: Path | None, selection: Selection, device: str, *, must_exist: bool) -> Plan:
    from vrambench.bench.matrix import load_matrix
    from vrambench.bench.plan import select

    name = device if must_exist else _planned_for(device)
    kind, _, _ = name.partition(":")
    return select(load_matrix(matrix or default_matrix()), selection, typing.cast(Any, kind), bf16=_has_bf16(name))


def _planned_for(device: str) -> str:
    """The device to plan for; unlike one to run on, it need not be there."""
    kind, colon, index = device.partition(":")
    if device == "auto":
        return _device_name("auto")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdigit())):
        raise UnknownValue("--device", device, ("auto", "cpu", "cuda", "cuda:N"))
    return device


def _device_name(device: str) -> str:
    """The device to run on, by its full name; ConfigurationError where it is not there or nothing can be measured on
    it."""
    from vrambench.methods.device import get_device

    found = get_device(device)
    if found.simulated:
        raise ConfigurationError(
            f"--device {device}: nothing can be measured there; auto, cpu, cuda or cuda:N", field="device"
        )
    return str(found.torch)


def _has_bf16(device: str) -> bool:
    """Whether the device has bf16 arithmetic: a GPU of compute capability 8.0, a CPU, or one that is not here to
    ask."""
    if not device.startswith("cuda"):
        return True
    from vrambench.bench.environment import describe_gpu
    from vrambench.bench.meters.nvml import Nvml

    library = Nvml.open()
    gpu = describe_gpu(library, device) if library else None
    capability = gpu["compute_capability"] if gpu else None
    return capability is None or float(capability) >= 8.0


def _retried(text: str | None, choices: Sequence[str]) -> frozenset[str]:
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if name not in choices:
            raise UnknownValue("--retry", name, choices)
    return frozenset(names)


def _new_folder(parent: Path) -> Path:
    """A folder for a run that begins now."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    names = (stamp if number == 1 else f"{stamp}-{number}" for number in range(1, 1000))
    return next(parent / name for name in names if not (parent / name).exists())


def _stored_plan(folder: Path, device: str | None) -> tuple[list[PlannedCell], dict[str, Any]]:
    """The cells of a run that was begun before, and how it was run."""
    from vrambench.bench.plan import PlannedCell
    from vrambench.bench.store import RunFolder
    from vrambench.bench.validity import check
    from vrambench.methods.cell import from_flat

    info = RunFolder.open(folder).info
    name = _device_name(device or info["device"])
    kind = typing.cast(Any, name.partition(":")[0])
    bf16 = _has_bf16(name)
    cells = []
    for stored in info["cells"]:
        cell = from_flat({key: value for key, value in stored.items() if key not in ("id", "name")})
        cells.append(PlannedCell(cell, stored["name"], check(cell, kind, bf16=bf16)))
    about = {key: info[key] for key in ("matrix", "profile", "coverage") if key in info}
    return cells, {"device": name, "repeat": info["repeat"], "about": about}


def _write_report(folders: list[Path], out: Path) -> Path:
    from vrambench.reports.html import write_report

    write_report(folders, out)
    return out


def _print_results(folders: list[Path], out: typing.TextIO) -> None:
    from vrambench.reports.terminal import print_table

    print_table(folders, out)
