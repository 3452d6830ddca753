"""The command line: exit codes, one line for each mistake, clean stdout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.commands.conftest import MATRIX
from vrambench.bench.commands.app import COMMANDS, main
from vrambench.bench.commands.shared import default_matrix
from vrambench.methods.errors import ConfigurationError, brief


def test_help_is_quick_and_lists_what_exists() -> None:
    code = "import sys; from vrambench.bench.commands.app import main; main(['--help']); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    commands = [line.split()[0] for line in told.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert commands == list(COMMANDS)
    assert told.splitlines()[-1] == "False"


def test_a_mistake_imports_its_own_command_and_nothing_that_measures_or_stores() -> None:
    code = """
import sys
from vrambench.bench.commands.app import COMMANDS, main
code = main(["plan", "--set", "batchsize=4"])
print(code, [name for name in COMMANDS if f"vrambench.bench.commands.{name}" in sys.modules])
print([name for name in ("torch", "psutil", "vrambench.bench.results.records") if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert told.stderr == "error: --set batchsize=4: unknown field 'batchsize'; did you mean 'batch_size'?\n"
    assert told.stdout.splitlines() == ["2 ['plan']", "[]"]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vrambench {importlib.metadata.version('vrambench')}\n"


def test_nothing_typed_shows_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("Usage: vrambench")


@pytest.mark.usefixtures("matrix")
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("dcotor", "no such command 'dcotor'. Did you mean 'doctor'?"),
        ("plan --foo", "no such option: --foo"),
        ("plan --set batch_size 4", "--set batch_size 4: write --set batch_size=4, without a blank"),
        ("run --timeout inf", "invalid value for '--timeout': 'inf': must be a finite number of seconds, at least 1"),
        ("run --timeout nan", "invalid value for '--timeout': 'nan': must be a finite number of seconds, at least 1"),
        ("run --timeout 0.5", "invalid value for '--timeout': '0.5': must be a finite number of seconds, at least 1"),
        ("plan --profile", "option '--profile' requires an argument"),
        ("plan absent.yaml", "absent.yaml: cannot be read: No such file or directory"),
        ("plan .", ".: cannot be read: Is a directory"),
        ("plan --profile smoke", "profile: matrix.yaml has no profiles, so there is no 'smoke'"),
        ("plan --device cude", "--device: 'cude' is not one of auto, cpu, cuda, cuda:N; did you mean 'cuda'?"),
        ("plan --device cpu:1", "--device: 'cpu:1' is not one of auto, cpu, cuda, cuda:N; did you mean 'cpu'?"),
        ("plan --only algorithm=ppoo", "--only algorithm: 'ppoo' is not one of sft, ppo; did you mean 'ppo'?"),
        (
            "plan --set torch_compile=true",
            "--set torch_compile=true: unknown field 'torch_compile'; what torch.compile makes ",
        ),
        ("plan --set steps=0", "--set steps=0: steps: 0: must be at least 1"),
        ("plan --budget 24Gx", "--budget 24Gx: budget: '24Gx' is not a size; write 24GiB, 16GB or a card: "),
        ("plan --precision fp32 --precision nf4", "--precision is given 2 times; write --precision fp32,nf4"),
        ("plan --model tiny --model gpt2", "--model is given 2 times: tiny, gpt2"),
        ("plan --repeat 1 --repeat 2", "--repeat is given 2 times: 1, 2"),
        ("plan --repeat many", "invalid value for '--repeat': 'many': "),
        ("plan --repeat 0", "--repeat 0: must be at least 1"),
        ("run --jobs 0", "invalid value for '--jobs': '0': "),
        ("run --timeout soon", "invalid value for '--timeout': "),
        ("run --retry=", "--retry: '' is not one of timeout, crashed, error, pruned"),
        ("run --retry oops", "--retry: 'oops' is not one of timeout, crashed, error, pruned"),
        ("run --device cpu --prune", "--prune: is for runs on a GPU, and this one is on the CPU"),
        ("run --device cpu --predict", "--predict: is for runs on a GPU, and this one is on the CPU"),
        ("run --device meta", "--device: 'meta' is not one of auto, cpu, cuda, cuda:N"),
        ("run --device tpu", "--device: 'tpu' is not one of auto, cpu, cuda, cuda:N"),
        ("run --out matrix.yaml", "--out matrix.yaml: is there already, and is no run's folder; name another"),
        ("run --out .", "--out .: is there already, and is no run's folder; name another"),
        (
            "run --device cpu --out matrix.yaml/new",
            "--out matrix.yaml/new: nothing can be written in matrix.yaml: Not a directory",
        ),
        ("report nowhere -o /proc/x.html", "-o /proc/x.html: nothing can be written in /proc: "),
        ("report nowhere --format htm", "invalid value for '--format': 'htm' is not one of 'html', 'table', "),
        ("fit tiny --budget ,", "--budget ,: name each once, with single commas"),
        ("x" * 5000, f"no such command '{brief('x' * 5000)}'"),
        ("report", "missing argument 'RUN...': Folders of runs"),
        ("report nowhere -o -", "-o -: names no file; write one (./- if it is called so)"),
        (
            "report nowhere --format csv -o cells.html",
            "-o cells.html: .html tells the format html, and --format says csv",
        ),
        ("list", "missing argument 'WHAT': models, cards, fields, values or rules"),
        ("plan --set batch=4", "--set batch=4: unknown field 'batch'; did you mean 'batch_size'?"),
        ("plan --sweep batch=1,2", "--sweep batch=1,2: unknown field 'batch'; did you mean 'batch_size'?"),
        (
            "plan --set reserved_elsewhere=rtx-4090",
            "--set reserved_elsewhere=rtx-4090: reserved_elsewhere: 'rtx-4090' is not a size; write 6GiB or 30%",
        ),
        ("report nowhere -o .", "-o .: is a folder; name a file"),
        ("report nowhere -o there/report.html", "-o there/report.html: there is no folder there"),
        (
            "report nowhere --format html -o matrix.yaml",
            "-o matrix.yaml: is there already, and is no report of ours; --force replaces it",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(typed: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "axes: [\n", "\tx: 1\n"])
def test_a_broken_matrix_is_one_line(text: str, matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix.write_text(text)
    assert main(["plan"]) == 2
    assert capsys.readouterr().err.startswith("error: matrix.yaml:")


def test_without_a_matrix_here_the_shipped_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_matrix() == Path(__file__).parents[3] / "matrix.yaml"
    (tmp_path / "matrix.yaml").write_text("axes: {}\n")
    assert default_matrix() == Path("matrix.yaml")


@pytest.mark.usefixtures("matrix")
@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ConfigurationError("x: wrong"), 2, "error: x: wrong\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(28, "No space left on device", "results"), 4, "error: results: No space left on device\n"),
        (ZeroDivisionError(), 4, "error: vrambench failed; the lines above say where\n"),
    ],
)
def test_errors_become_exit_codes_in_one_place(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vrambench.bench.plan.plan

    def fail(*given: Any, **more: Any) -> None:
        raise raised

    monkeypatch.setattr(vrambench.bench.plan.plan, "select", fail)
    assert main(["plan", "--device", "cpu"]) == code
    err = capsys.readouterr().err
    assert err.endswith(message)
    assert ("Traceback" in err) == isinstance(raised, ZeroDivisionError)


COMMAND = "import sys; from vrambench.bench.commands.app import main; sys.exit(main(sys.argv[1:]))"


def started(typed: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-P", "-c", COMMAND, *typed.split()]
    return subprocess.run(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams)


@pytest.mark.usefixtures("matrix")
@pytest.mark.parametrize("typed", ["--help", "fit -h", "--version", "plan --device cpu --json"])
def test_a_reader_that_goes_is_141(typed: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = started(typed, stdout=nobody)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "typed", ["claims --no-predict --json", "list cards --json"], ids=["as it prints", "at the end"]
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_an_output_that_is_full_is_a_failure_with_a_sentence(typed: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = started(typed, stdout=full)
    assert (done.returncode, done.stderr) == (4, "error: standard output: No space left on device\n")


@pytest.mark.usefixtures("matrix")
def test_a_broken_stderr_changes_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        wrong = started("plan --algorithm ppoo", stderr=nobody)
        done = started("claims --no-predict", stderr=nobody)
    assert wrong.returncode == 2
    assert done.returncode == 0
    assert done.stdout.endswith("claims.yaml\n")


def test_ascii_is_enough() -> None:
    """For a table with a frame, and for words that have more."""
    done = started("claims --no-predict", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.startswith("+--")
    assert "|weights-bytes-fp32 " in done.stdout
    assert done.stdout.isascii()


MISTAKES = (
    "plan --algorithm ppoo",
    "plan --only axis=ppo",
    "plan --set batchsize=4",
    "plan --set batch_size",
    "plan --set batch_size=0",
    "plan --budget 24Gx",
    "plan --profile smok",
    "plan --device cude",
    "plan broken.yaml",
    "plan wrong.yaml",
    "plan odd.yaml",
    "plan --only algorithm=ppoo",
    "plan --model qwen2.5-7",
    "plan --model ./nowhere",
    "plan --set reward_model=tinny",
    "plan --sweep model=tiny,tinny",
    "plan --set data=nowhere.txt",
    "plan --set lengths=nowhere.txt",
    "plan --set reward=nowhere:score",
    "plan --set attention=flsh",
    "plan --set xyzzy=1",
    "plan --set ppo.epochz=1",
    "plan --set ppo.epochs=x",
    "plan --sweep galore.rank=4,-1",
    "plan odder.yaml",
    "plan bare.yaml",
    "fit unknown",
    "plan --sweep zerro.stage=1,2",
    "plan --model .",
    "plan --set reward_model=config.json",
    "fit .",
    "plan --precision nowhere:OWN",
    "plan --alloc-conf expandable:True",
    "plan --only algorithm",
    "fit --optimizer adam",
    "fit --max batchsize",
    "fit --max seed",
    "fit --alloc-conf expandable_segments",
    "fit --coverage pairwise",
    "fit --advise 0",
    "report nowhere -o .",
    "explain nowhere.pickle",
    "claims --only nowhere",
    "run --claims nowhere",
    "run --out matrix.yaml",
    "run --device tpu",
    "run --retry oops",
)
FORKS = """
import json, os, sys
import vrambench.bench.commands.early
from vrambench.bench.commands.app import main
for number, typed in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[1]}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        code = main(typed.split())
        sys.exit(code if not {"torch", "transformers"} & set(sys.modules) else 99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Told = dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The exit code, stdout and stderr of each mistake, in a process of its own that is forked from one which has imported what
    they have in common."""
    here, streams = tmp_path_factory.mktemp("mistakes"), tmp_path_factory.mktemp("streams")
    axes = MATRIX.partition("workload:")[0] + "workload:\n"
    files = {
        "matrix.yaml": MATRIX,
        "broken.yaml": "axes: [\n",
        "wrong.yaml": MATRIX.replace("nf4", "nf5"),
        "odd.yaml": f"{axes}  batch_size: 0\n",
        "odder.yaml": f"{axes}  ppo: {{kl_estimator: k4}}\n",
        "bare.yaml": "include: []\n",
        "config.json": "{}",
        "unknown/config.json": '{"model_type": "lama"}',
    }
    (here / "unknown").mkdir()
    for name, text in files.items():
        (here / name).write_text(text)
    words, given = [sys.executable, "-P", "-c", FORKS, str(streams)], json.dumps(MISTAKES)
    done = subprocess.run(words, cwd=here, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        typed: (int(code), (streams / f"{number}.1").read_text(), (streams / f"{number}.2").read_text())
        for number, (typed, code) in enumerate(zip(MISTAKES, done.stdout.split(), strict=True))
    }


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_are_told_without_torch(typed: str, told: Told) -> None:
    code, out, error = told[typed]
    assert (code, out) == (2, "")
    assert error.count("\n") == 1


def test_all_mistakes_are_told_at_once(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix.write_text("axes: [\n")
    typed = (
        "plan --algorithm ppoo,sftt --precision nf5 --only x=ppo --set batchsize=4 --set steps --sweep seed=-1 --repeat 0 "
        "--set lora_r=x --budget 24Gx"
    )
    assert main(typed.split()) == 2
    told = [line.split(": ")[:3] for line in capsys.readouterr().err.splitlines()]
    assert [line[1] for line in told] == [
        told[0][1],
        "--precision nf5",
        "--algorithm ppoo,sftt",
        "--algorithm ppoo,sftt",
        "--only x=ppo",
        "--set batchsize=4",
        "--set steps",
        "--set lora_r=x",
        "--sweep seed=-1",
        "--budget 24Gx",
        "--repeat 0",
    ]
    assert told[0][1].startswith("matrix.yaml:")


@pytest.mark.parametrize("command", ["plan --device cpu --no-predict", "fit --model tiny"])
def test_all_mistakes_in_options_are_told_at_once(
    command: str, matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix.write_text("workload: {galore: {rank: -1}}\naxes: {precision: [fp32]}\n")
    axes = "--precision nf4 --adapter lora --optimizer adamw_torch --offload none --algorithm ppo"
    typed = "--set ppo.epochs=x --set ppo.epochz=1 --set xyzzy=3 --set peft.r=4 --set zerro.stage=2"
    sweep = [] if command.startswith("fit") else ["--sweep", "nf4.double_quant=true,5"]
    assert main([*f"{command} {axes} {typed}".split(), *sweep]) == 2
    told = capsys.readouterr().err.splitlines()
    wanted = [
        "error: --set ppo.epochs=x: ppo.epochs: 'x': must be a whole number",
        "error: --set ppo.epochz=1: ppo.epochz: no such field; did you mean 'ppo.epochs'? (there are ",
        "error: --set xyzzy=3: unknown field 'xyzzy'",
        "error: --set zerro.stage=2: unknown field 'zerro'; did you mean 'zero'?",
        "error: matrix.yaml:1: workload.galore.rank: -1: must be at least 1",
        *(["error: --sweep nf4.double_quant=true,5: nf4.double_quant: 5: must be true or false"] if sweep else []),
    ]
    assert len(told) == len(wanted)
    assert all(any(line.startswith(one) for line in told) for one in wanted), told


def test_a_mistake_in_a_file_hides_no_other(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix.write_text(
        "model: tiny\n"
        "workload: {batch_sice: 4, steps: 0}\n"
        "axes: {precision: [bf61], adapter: lora}\n"
        "repeat: 0\n"
        "default_profile: {cpu: smoke}\n"
        "profiles:\n"
        "  smoke: {coverage: pairs, axes: {optimiser: [adamw]}}\n"
    )
    assert main(["plan", "--profile", "smoke", "--set", "seed=-1"]) == 2
    assert [line.removeprefix("error: ").split(": ")[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["matrix.yaml:1", "model"],
        ["matrix.yaml:3", "axes.adapter"],
        ["matrix.yaml:4", "repeat"],
        ["matrix.yaml:7", "profiles.smoke.coverage"],
        ["matrix.yaml:7", "profiles.smoke.axes"],
        ["--set seed=-1", "seed"],
        ["matrix.yaml:3", "axes.precision"],
        ["matrix.yaml:2", "workload"],
        ["matrix.yaml:2", "workload.steps"],
    ]


def test_control_characters_are_not_obeyed(matrix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--set", "batch\x1b]0;title\x07size=4"]) == 2
    assert main(["plam\x1b[31m"]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "\x07" not in told
