"""The command line: reads what was typed, calls, prints, and is the one place that turns errors into exit codes.

    vrambench plan --only algorithm=ppo
    vrambench run --profile smoke --device cpu
    vrambench fit --precision nf4 --adapter lora --optimizer adamw_torch --offload none --algorithm ppo --budget rtx-4090

Exit codes: 0 done or fits, 1 does not fit, 2 wrong usage or configuration, 4 a measurement (or this program) failed, 130
interrupted. With --json stdout holds one JSON document and nothing else; progress, logs and errors go to stderr. Heavy
modules are imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vrambench.bench.commands.selectors import with_selectors
from vrambench.bench.processes import interruptible
from vrambench.methods.errors import ConfigurationError, UnknownValue

if TYPE_CHECKING:
    from vrambench.bench.plan.matrix import Matrix
    from vrambench.bench.plan.plan import Plan, PlannedCell
    from vrambench.bench.plan.selection import Selection
    from vrambench.bench.results.forecast import Outcome
    from vrambench.bench.run.session import Predict
    from vrambench.methods.cards import Card
    from vrambench.methods.cell import Cell

EXIT_DOES_NOT_FIT, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 4, 130, 141

# Click's base class of usage errors. Typer brings click along under a private name or imports it, depending on its
# version.
ClickException: type[Any] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="vrambench",
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
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        with interruptible():  # SIGTERM while a report is written says so, as Ctrl-C does
            code = app(typed or ["--help"], prog_name="vrambench", standalone_mode=False, obj=typed)
        sys.stdout.flush()
        if not typed:
            return EXIT_USAGE
        return code if isinstance(code, int) else 0
    except ConfigurationError as error:
        return _fail(error.message, EXIT_USAGE)
    except ClickException as error:
        message = _with_value(error.format_message(), typed)
        return _fail(message[:1].lower() + message[1:].rstrip("."), EXIT_USAGE) if message else EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort) as error:
        # Typer takes it for the end of what is typed; nothing is asked for here.
        if isinstance(error.__cause__, EOFError):
            return _fail("vrambench failed: a process that it talks to has ended", EXIT_FAILED)
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has seen enough; the exit code is no verdict
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_FAILED)
    except Exception:
        import traceback

        traceback.print_exc()
        return _fail("vrambench failed; the lines above say where", EXIT_FAILED)


def _with_value(message: str, typed: Sequence[str]) -> str:
    """`message`, and what was typed where it is about an option's value, which Click does not repeat."""
    option = re.match(r"Invalid value for '(--[a-z-]+)': ", message)
    if option is None or option[1] not in typed[:-1]:
        return message
    return f"{message[: option.end()]}{typed[typed.index(option[1]) + 1]!r}: {message[option.end() :]}"


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"vrambench {version('vrambench')}")
        raise typer.Exit


@app.callback()
def vrambench(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Benchmark and memory profiler for fine-tuning and RLHF on one GPU."""


@app.command()
@with_selectors
def plan(
    matrix: MatrixPath = None,
    *,
    selection: Selection,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:N: which rules hold.", metavar="DEVICE")
    ] = "auto",
    predict: Annotated[
        bool | None,
        typer.Option(
            "--predict/--no-predict",
            help="Each valid cell's peak on CUDA.",
            show_default="predict where rules are CUDA's",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Every cell of the matrix: valid and predicted to fit or not, or forbidden by which rule and why. All five axes by
    name are the combinations: the matrix' exclude removes none, its include and coverage bring and leave out none."""
    with stdout_kept_clean() as out:
        loaded = _load(matrix)
        planned = _plan(loaded, selection, _planned_for(device))
        if predict or (predict is None and planned.device == "cuda"):
            planned = planned.predicted(_predict_all(selection)(planned.valid, None))
        if as_json:
            print(json.dumps(planned.document(), indent=1), file=out)
        else:
            from vrambench.reports.text.answers import print_plan

            print_plan(planned, out)


@app.command()
@with_selectors
def fit(
    matrix: MatrixPath = None,
    *,
    selection: Selection,
    maximum: Annotated[
        str | None, typer.Option("--max", help="The field's largest value that fits.", metavar="FIELD")
    ] = None,
    advices: Annotated[
        int | None, typer.Option("--advise", help="The N nearest configurations that fit.", min=1, metavar="N")
    ] = None,
    as_json: Json = False,
) -> int:
    """Whether one cell fits its budget on a GPU, predicted in seconds; no GPU and no weights are needed. Exit code 0: it
    fits, be it tightly; 1: it does not."""
    loaded = _load(matrix)
    with stdout_kept_clean() as out:
        from vrambench.bench.plan.plan import select
        from vrambench.bench.predict.fit import fit as fit_cell
        from vrambench.bench.predict.fit import has_bf16, only_cell

        card = _card(selection)
        planned = select(loaded, selection, "cuda", bf16=has_bf16(card))
        cell = only_cell(planned, maximum)
        answer = fit_cell(cell, card, maximum=maximum, advices=advices, tell=_say)
        if as_json:
            print(json.dumps(answer.document(), indent=1), file=out)
        else:
            from vrambench.reports.text.answers import print_fit

            print_fit(answer, out, planned.profile)
    return 0 if answer.forecast.fits else EXIT_DOES_NOT_FIT


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
        str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N.", metavar="DEVICE", show_default="auto")
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
        str | None,
        typer.Option(help="Run these again: timeout, crashed, error, pruned.", metavar="STATUS,.."),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune/--no-prune", help="Leave out what is predicted far over its budget (CUDA)."),
    ] = False,
    predict: Annotated[
        bool,
        typer.Option("--predict/--no-predict", help="Store predictions beside what is measured (CUDA); --prune does."),
    ] = False,
) -> int:
    """Runs every valid cell in a process of its own, stores what each gave, and writes a report. All five axes by name
    are the combinations: the matrix' exclude removes none, its include and coverage bring and leave out none."""
    from rich.console import Console

    from vrambench.bench.results.records import FAILED
    from vrambench.bench.run.session import run as run_cells
    from vrambench.reports import units
    from vrambench.reports.text.progress import listening

    statuses = _retried(retry, (*FAILED, "pruned"))
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
        loaded = _load(matrix)
        name = _device_name(device or "auto")
        planned = _plan(loaded, selection, name)
        about = {"matrix": planned.matrix, "profile": planned.profile, "coverage": planned.coverage}
        cells, settings = list(planned.cells), {"device": name, "repeat": planned.repeat, "about": about}
    if predict or prune:
        option = "--prune" if prune else "--predict"
        if settings["device"] == "cpu":
            raise ConfigurationError(f"{option}: predictions are for CUDA, and this run is on the CPU", field="prune")
        settings |= {"predict": _predict_all(selection), "prune": prune}
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
    from vrambench.bench.machine.environment import usable_threads

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

    from vrambench.bench.machine.doctor import as_document, as_rows, examine, prepare_offloads, with_failures
    from vrambench.bench.machine.environment import describe_environment
    from vrambench.reports.text.answers import print_rows

    with stdout_kept_clean() as out:
        failures = prepare_offloads(_say) if prepare else {}
        findings = with_failures(examine(), failures)
        if as_json:
            print(json.dumps(as_document(findings, describe_environment("auto")), indent=1), file=out)
        else:
            rows = [[escape(text) for text in row] for row in as_rows(findings)]
            print_rows(("what", "state", "seen", "what follows"), rows, out)
    if failures:
        raise OSError("; ".join(f"offload {name} cannot be prepared: {said}" for name, said in failures.items()))


def is_report(path: Path) -> bool:
    """Whether the file is a report that vrambench wrote."""
    with path.open("rb") as file:
        return b'name="generator" content="vrambench' in file.read(4096)


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


def _load(matrix: Path | None) -> Matrix:
    """The matrix file. Torch is not imported for it, so a slip in the file is told at once."""
    from vrambench.bench.plan.matrix import load_matrix

    return load_matrix(matrix or default_matrix())


def _plan(matrix: Matrix, selection: Selection, device: str) -> Plan:
    """The plan for a device by its full name; what the matrix is warned of goes to stderr."""
    from vrambench.bench.plan.plan import select

    kind, _, _ = device.partition(":")
    planned = select(matrix, selection, typing.cast(Any, kind), bf16=_has_bf16(device))
    for warning in planned.warnings:
        _say(f"warning: {warning}")
    return planned


def _card(selection: Selection) -> Card | None:
    """The card that the command line names as the budget, if it names one."""
    from vrambench.methods.cards import CARDS

    named = selection.settings().get("budget")
    return CARDS.get(named.value.lower()) if named and isinstance(named.value, str) else None


def _predict_all(selection: Selection) -> Predict:
    """How cells are predicted: in processes of their own, with a line on stderr that says how many are done; for the GPU that they
    run on, else for the card that the budget names."""
    from vrambench.bench.predict.many import predict_all

    named = _card(selection)

    def tell(done: int, total: int) -> None:
        live = sys.stderr.isatty()
        if live or done in (0, total):
            end = "\n" if done == total or not live else ""
            _say(f"{chr(13) if live else ''}predicted {done} of {total} cells", end)

    def predict(cells: Sequence[Cell], here: Card | None) -> Mapping[str, Outcome]:
        card = here or named
        return predict_all(cells, card.name if card else None, tell=tell)

    return predict


def _say(text: str, end: str = "\n") -> None:
    """On stderr, as long as anybody reads it: what is only progress must not end a command."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


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
    from vrambench.bench.machine.environment import describe_gpu
    from vrambench.bench.measure.meters.nvml import Nvml

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
    from vrambench.bench.plan.plan import PlannedCell
    from vrambench.bench.plan.validity import check
    from vrambench.bench.results.store import RunFolder
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
    from vrambench.reports.page.html import write_report

    write_report(folders, out)
    return out


def _print_results(folders: list[Path], out: typing.TextIO) -> None:
    from vrambench.reports.text.terminal import print_table

    print_table(folders, out)
