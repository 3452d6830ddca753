"""What `tests/gpu/run` runs: the parts, as commands, most telling first.

parts("python3", work, rehearse=False)                       all of them
parts("python3", work, rehearse=False, quarter=1)            the plan for 80 GB and a quarter of an hour: the engine
parts("python3", work, rehearse=False, quarter=2)            the same for another: what people's trainers do
parts("python3", work, rehearse=False, quarter=3)            and for a third: values that no GPU has measured
parts("python3", work, rehearse=True)                        the same on a CPU, at tiny sizes
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMAND = "import sys; from vrambench.bench.commands.app import main; sys.exit(main())"
RETRY = ("--retry", "crashed,error")
CELL_SECONDS = 240
RECORDINGS = "recordings"
VALUES = "algorithms, roles, adapters and offloads that no GPU had measured, one a cell"
OPTIMIZERS = "optimizers that no GPU had measured, one a cell"

TINY = ("--set", "batch_size=1", "--set", "steps=1", "--set", "prompt_tokens=4")
SHORT = ("--set", "response_tokens=4", *TINY)
SFT = ("--only", "algorithm=sft")
CLAIMS_7B = (str(HERE / "claims.yaml"), "--only", "algorithm=ppo,remax", "--only", "precision=nf4")
CLAIMS_GPT2 = (str(HERE / "claims.yaml"), "--only", "algorithm=ppo,remax", "--only", "precision=bf16")
PLAIN = ("--only", "optimizer=adamw_torch", "--only", "offload=none")
AXES = ("--precision", "bf16", "--optimizer", "adamw_torch", "--offload", "none", "--algorithm", "sft")

SELECTORS: dict[str, tuple[str, ...]] = {
    "smoke": ("--profile", "smoke"),
    "measured": (str(HERE / "measured.yaml"),),
    "quarter": (str(HERE / "quarter.yaml"),),
    "recipes": (str(HERE / "recipes.yaml"),),
    "values": (str(HERE / "values.yaml"),),
    "optimizers": (str(HERE / "optimizers.yaml"),),
    "20b": ("--profile", "20b", "--set", "steps=2", "--set", "warmup_steps=1"),
    "20b, quarter": (
        "--profile",
        "20b",
        "--sweep",
        "response_tokens=16,24",
        "--set",
        "steps=1",
        "--set",
        "warmup_steps=1",
    ),
    "claims": (str(HERE / "claims.yaml"),),
    "claims, 7b": (*CLAIMS_7B, "--set", "steps=1", "--set", "warmup_steps=0"),
    "claims, gpt2": CLAIMS_GPT2,
    "repeat": (str(HERE / "repeat.yaml"),),
    "galore": (
        str(HERE / "claims.yaml"),
        "--only",
        "optimizer=galore_adamw_8bit_layerwise",
        "--set",
        "galore.svd=full",
    ),
}
"""What each run is of, by name."""

TWENTY_B = (
    "--profile",
    "20b",
    "--model",
    "tiny-neox",
    "--sweep",
    "response_tokens=4,12",
    "--set",
    "rollout_batch=1",
    *TINY,
)
REHEARSED: dict[str, tuple[str, ...]] = {
    "smoke": (*SELECTORS["smoke"], *AXES, *TINY),
    "measured": (*SELECTORS["measured"], "--sweep", "model=tiny", *SFT, *PLAIN, *SHORT),
    "quarter": (*SELECTORS["quarter"], "--sweep", "model=tiny", *SFT, "--only", "adapter=lora", *TINY),
    "recipes": (
        *SELECTORS["recipes"],
        "--sweep",
        "model=tiny",
        "--only",
        "precision=nf4",
        *TINY,
        "--set",
        "max_length=16",
    ),
    "values": (*SELECTORS["values"], *PLAIN, "--set", "model=tiny", "--set", "reward_model=tiny", *SHORT),
    "optimizers": (*SELECTORS["optimizers"], "--only", "optimizer=muon", "--set", "model=tiny", *TINY),
    "20b": TWENTY_B,
    "20b, quarter": TWENTY_B,
    "claims": (*SELECTORS["claims"], "--set", "model=tiny", *SFT, "--only", "precision=nf4", *SHORT),
    "claims, 7b": (*CLAIMS_7B, "--set", "model=tiny", "--set", "rollout_batch=1", *SHORT),
    "claims, gpt2": (*CLAIMS_GPT2, "--set", "model=tiny", "--set", "rollout_batch=1", *SHORT),
    "repeat": (*SELECTORS["repeat"], "--set", "model=tiny", *SFT, "--only", "precision=bf16", *SHORT),
    "galore": (str(HERE / "measured.yaml"), "--only", "optimizer=galore_adamw_layerwise", "--set", "model=tiny", *TINY),
}
"""The same, small enough for a CPU."""


@dataclass(frozen=True)
class Part:
    """One command. `seconds`: its limit. `stdout`: the file that its output goes to, its log where None. `results`: the
    folder of a run that it fills. `reads`: parts whose results it works on; after one of them has run, it runs again.
    `adds`: cut off by its time limit, it goes on at the next call, and its output is added to. Names of files are within
    the work folder. `alone`: nothing else runs meanwhile, since something is timed; neighbours that are not run side by side."""

    name: str
    why: str
    command: tuple[str, ...]
    seconds: int
    stdout: str | None = None
    results: str | None = None
    reads: tuple[str, ...] = ()
    adds: bool = False
    alone: bool = True


@dataclass(frozen=True)
class Commands:
    """How parts are called: with which Python, into which folder, for real or as a rehearsal."""

    python: str
    work: Path
    rehearse: bool

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def small(self) -> tuple[str, ...]:
        return ("--tiny",) if self.rehearse else ()

    def vrambench(self, *words: str) -> tuple[str, ...]:
        return (self.python, "-P", "-c", COMMAND, *words)

    def script(self, name: str, *options: str) -> tuple[str, ...]:
        return (self.python, str(HERE / name), "--device", self.device, *options)

    def tests(self, name: str, report: str) -> tuple[str, ...]:
        options = ("-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1")
        return (self.python, "-m", "pytest", str(HERE / name), *options, f"--junitxml={self.work / report}")

    def run(
        self, name: str, why: str, seconds: int, *, of: str | None = None, cell_seconds: int = CELL_SECONDS
    ) -> Part:
        """A run into the folder `name`. `of`: which selectors, those of its name unless said."""
        selectors = (REHEARSED if self.rehearse else SELECTORS)[of or name]
        predict = () if self.rehearse else ("--predict",)  # predictions are for CUDA
        where = ("--device", self.device, "--out", str(self.work / name))
        command = self.vrambench("run", *selectors, *where, *RETRY, "--timeout", str(cell_seconds), *predict)
        return Part(name, why, command, seconds, results=name)

    def replay(self, jobs: int, seconds: int, *, alone: bool) -> Part:
        recorded = ("--recordings", str(self.work / RECORDINGS), "--done", str(self.work / "replay.jsonl"))
        command = self.script("replay.py", *recorded, "--jobs", str(jobs), *self.small)
        why = "whether the allocator's model is exact"
        return Part("replay", why, command, seconds, stdout="replay.jsonl", adds=True, alone=alone)

    def accuracy(self, *runs: str) -> Part:
        folders = [str(self.work / name) for name in runs]
        command = (self.python, str(HERE / "compare.py"), *folders, "--out", str(self.work / "accuracy.json"))
        return Part("accuracy", "predictions against measurements", command, 120, reads=runs)

    def trainers(self, jobs: int, seconds: int, *, alone: bool) -> Part:
        done, recorded = self.work / "trainers.jsonl", self.work / RECORDINGS
        command = self.script(
            "trainers.py", "--done", str(done), "--recordings", str(recorded), "--jobs", str(jobs), *self.small
        )
        why = "what people's trainers take, against predictions"
        return Part("trainers", why, command, seconds, stdout="trainers.jsonl", adds=True, alone=alone)

    def versus_trl(self, seconds: int, *options: str) -> Part:
        command = self.script("versus_trl.py", "--done", str(self.work / "versus_trl.jsonl"), *options)
        return Part("trl", "our trainers against TRL's", command, seconds, stdout="versus_trl.jsonl", adds=True)

    def first(self) -> tuple[Part, Part, Part, Part]:
        """What every plan begins with: the context, what this machine can run, the meters, hidden workspaces."""
        doctor = self.vrambench("doctor", "--prepare", "--json")
        return (
            Part("context", "what lies outside the allocator", self.script("context.py"), 60, stdout="context.json"),
            Part("doctor", "what this machine can run", doctor, 300, stdout="doctor.json"),
            Part("tests", "the meters against known allocations", self.tests("test_meter.py", "tests.xml"), 300),
            Part("workspaces", "what operators allocate unseen", self.script("workspaces.py", *self.small), 120,
                 stdout="workspaces.jsonl"),
        )  # fmt: skip


def parts(python: str, work: Path, *, rehearse: bool, quarter: int = 0) -> list[Part]:
    """All parts, most valuable first; with `rehearse` the same on a CPU at tiny sizes. `quarter`: the first, second or third plan
    for a quarter of an hour, in which whatever is not timed runs side by side."""
    return (_whole, _engine, _recipes, _values)[quarter](Commands(python, work, rehearse))


def _values(commands: Commands) -> list[Part]:
    large = commands.run("7b", "PPO and ReMax on Llama-2-7B, held to 24 GiB", 480, of="claims, 7b", cell_seconds=240)
    return [
        replace(commands.first()[0], alone=False),
        replace(commands.run("values", VALUES, 480, cell_seconds=120), alone=False),
        replace(commands.run("optimizers", OPTIMIZERS, 480, cell_seconds=120), alone=False),
        replace(large, alone=False),
        commands.accuracy("values", "optimizers", "7b"),
        commands.run("claims", "PPO against ReMax on GPT-2, held to 24 GiB", 240, of="claims, gpt2", cell_seconds=60),
    ]


def _recipes(commands: Commands) -> list[Part]:
    rival = commands.small or ("--model", "gpt2", "--chunked", "--rounds", "2")
    recipes = commands.run("recipes", "one setting or architecture of people's trainers a cell", 420, cell_seconds=90)
    return [
        replace(commands.first()[0], alone=False),
        replace(recipes, alone=False),
        commands.trainers(2, 420, alone=False),
        commands.accuracy("recipes"),
        commands.run("claims", "published claims, held to 24 GiB", 300, cell_seconds=90),
        commands.versus_trl(100, *rival),
    ]


def _engine(commands: Commands) -> list[Part]:
    context, doctor, meter, workspaces = commands.first()
    rival = commands.small or ("--model", "gpt2", "--rounds", "2")
    return [
        context,
        replace(doctor, seconds=120, alone=False),
        replace(meter, seconds=120, alone=False),
        commands.replay(6, 150, alone=False),
        replace(workspaces, seconds=60, alone=False),
        commands.run("measured", "24 cells that span all axes", 240, of="quarter", cell_seconds=60),
        commands.run("20b", "GPT-NeoX-20B with PPO on 24 GiB", 120, of="20b, quarter", cell_seconds=90),
        commands.accuracy("measured", "20b"),
        commands.versus_trl(210, *rival),
        commands.run("claims", "published claims, held to 24 GiB", 200, cell_seconds=60),
    ]


def _whole(commands: Commands) -> list[Part]:
    context, doctor, meter, workspaces = commands.first()
    cost = (commands.python, str(HERE.parent / "benchmarks" / "meters_cost.py"), "--device", commands.device)
    pairs = "10" if commands.rehearse else "60"
    return [
        context,
        doctor,
        meter,
        commands.replay(4, 420, alone=True),
        workspaces,
        commands.run("measured", "what the claims' models really take", 900),
        commands.run("20b", "GPT-NeoX-20B with PPO on 24 GiB", 420),
        commands.run("claims", "published claims, held to 24 GiB", 480),
        commands.run("recipes", "one setting or architecture of people's trainers a cell", 600),
        commands.run("values", VALUES, 480),
        commands.run("optimizers", OPTIMIZERS, 360),
        commands.accuracy("measured", "20b", "claims", "recipes", "values", "optimizers"),
        commands.trainers(1, 600, alone=True),
        commands.versus_trl(480, *commands.small),
        commands.run("repeat", "whether numbers repeat: five jobs, three times each", 240),
        Part("meters", "what measuring costs a job", (*cost, "--pairs", pairs), 120, stdout="meters_cost.json"),
        Part("cells", "every axis value, and the same job twice", commands.tests("test_cells.py", "cells.xml"), 900),
        commands.run("smoke", "every pair of axis values, tiny, and learning", 900),
        commands.run("galore", "GaLore on 24 GiB with whole decompositions", 1500, cell_seconds=1500),
    ]
