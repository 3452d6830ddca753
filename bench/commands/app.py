"""The command line: the ordered list of commands, and the one place that turns errors into exit codes.

    vrambench plan --only algorithm=ppo
    vrambench run --profile smoke --device cpu
    vrambench fit --precision nf4 --adapter lora --optimizer adamw_torch --offload none --algorithm ppo --budget rtx-4090

Exit codes: 0 done, fits or passes, 1 does not fit, or regressed, 2 wrong usage or configuration, 3 there is no baseline, or none
that compares, 4 a measurement (or this program) failed, 130 interrupted, 141 whoever read the output has gone. With --json stdout
holds one JSON document and nothing else; progress, logs and errors go to stderr. Only the command that is typed is imported, and
heavy modules inside of it, so that `--help` and mistakes are quick.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from vrambench.bench.commands.shared import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_COMPARABLE,
    EXIT_PIPE,
    EXIT_USAGE,
    Mistakes,
    say,
)
from vrambench.bench.commands.streams import ReaderGone, streams
from vrambench.bench.gate import NoBaseline
from vrambench.bench.predict import NotPredicted
from vrambench.bench.processes import interruptible
from vrambench.methods.errors import ConfigurationError, brief

COMMANDS = (
    "list",
    "plan",
    "fit",
    "run",
    "report",
    "track",
    "baseline",
    "check",
    "claims",
    "explain",
    "export",
    "doctor",
)
"""In the order of `--help`. Each is a function in the module of its name."""

OPTIONS = ("device", "out", "jobs", "timeout", "profile")
"""Told by rooms that know nothing of the command line, and typed as options there."""

# Click's base class of usage errors. Typer brings click along under a private name or imports it, depending on its
# version.
ClickException: type[Any] = typer.BadParameter.__mro__[2]

atexit.register(gc.freeze)  # what is left goes with the process: looking through it takes a second


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"vrambench {version('vrambench')}")
        raise typer.Exit


def command_line(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands, whose modules are imported."""
    app = typer.Typer(
        name="vrambench",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(vrambench)
    for name in commands:
        app.command()(getattr(importlib.import_module(f"vrambench.bench.commands.{name}"), name))
    return app


def vrambench(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Benchmark and memory profiler for fine-tuning and RLHF on one GPU."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and gives its exit code; every error that a user can cause becomes one line on stderr."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    with streams():
        return _ended(typed)


def _ended(typed: list[str]) -> int:
    try:
        with interruptible():  # SIGTERM is told as Ctrl-C is
            app = command_line(typed[:1] if typed and typed[0] in COMMANDS else COMMANDS)
            code = app(typed or ["--help"], prog_name="vrambench", standalone_mode=False, obj=typed)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:  # Typer makes it of KeyboardInterrupt, and says nothing
            return _fail("interrupted", code=EXIT_INTERRUPTED)
        if not typed:
            return EXIT_USAGE
        return code if isinstance(code, int) else 0
    except Mistakes as error:
        return _fail(*error.messages, code=EXIT_USAGE)
    except ConfigurationError as error:
        dashes = "--" if error.field in OPTIONS and error.message.startswith(f"{error.field}:") else ""
        return _fail(dashes + error.message, code=EXIT_USAGE)
    except ClickException as error:
        message = _with_value(error.format_message(), typed)
        told = message[:1].lower() + message[1:].rstrip(".") + _what_is_missing(error)
        return _fail(told, code=EXIT_USAGE) if message else EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort) as error:
        # Typer takes it for the end of what is typed; nothing is asked for here.
        if isinstance(error.__cause__, EOFError):
            return _fail("vrambench failed: a process that it talks to has ended", code=EXIT_FAILED)
        return _fail("interrupted", code=EXIT_INTERRUPTED)
    except ReaderGone:  # it has seen enough; the exit code is no verdict
        return EXIT_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", code=EXIT_FAILED)
    except NoBaseline as error:
        return _fail(str(error), code=EXIT_NOT_COMPARABLE)
    except NotPredicted as error:
        return _fail(str(error), code=EXIT_FAILED)
    except Exception:
        import traceback

        traceback.print_exc()
        return _fail("vrambench failed; the lines above say where", code=EXIT_FAILED)


def _with_value(message: str, typed: Sequence[str]) -> str:
    """`message`, and what was typed where it is about an option's value, which Click does not repeat."""
    message = re.sub(r"[^\s']{100,}", lambda word: brief(word[0]), message).replace("Value error, ", "")
    message = re.sub(r"Input should be (greater|less) than or equal to (\S+)", _bound, message)
    message = re.sub(r"Input should be a valid integer.*", "must be a whole number", message)
    message = re.sub(r"Input should be a valid number.*", "must be a number", message)
    option = re.match(r"Invalid value for '(--[a-z-]+)': ", message)
    if option is None or option[1] not in typed[:-1]:
        return message
    value = repr(typed[typed.index(option[1]) + 1])
    return message if value in message else f"{message[: option.end()]}{value}: {message[option.end() :]}"


def _what_is_missing(error: Any) -> str:
    """Of a usage error about an argument or option that was not typed, what it is."""
    told = getattr(error.param, "help", None) if type(error).__name__ == "MissingParameter" else None
    return f": {told.rstrip('.')}" if told else ""


def _bound(found: re.Match[str]) -> str:
    return f"must be at {'least' if found[1] == 'greater' else 'most'} {found[2]}"


def _fail(*messages: str, code: int) -> int:
    for message in messages:
        say(f"error: {message}")
    return code
