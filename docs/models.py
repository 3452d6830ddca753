"""Every causal language model type that transformers knows, tried at a tiny size: writes docs/models.md beside this file.

    .venv/bin/python docs/models.py                 all of them, which takes a quarter of an hour
    .venv/bin/python docs/models.py llama mixtral   prints what comes of these, and writes nothing

Each type is made with 6 layers and 256 tokens (tiny.py). It is refused with one sentence, or it is predicted, run on the CPU and
compared with transformers. Whatever else comes of it is a fault, and is told as one.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tiny import DECODERS_IF_TOLD, DECODERS_WITHOUT_ENCODER, LAYERS, tiny
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vrambench.bench.predict import NotPredicted
from vrambench.bench.predict.forecast import Predictor
from vrambench.bench.predict.simulate import Simulation
from vrambench.methods.cell import Cell, resolve
from vrambench.methods.device import get_device
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.job import Job
from vrambench.methods.models.config import model_config
from vrambench.methods.models.fill import keep_in_fp32
from vrambench.methods.models.load import load_model
from vrambench.methods.models.policy import Policy
from vrambench.methods.rollout import GREEDY, generate

PAGE = Path(__file__).with_name("models.md")
COMMAND = ".venv/bin/python docs/models.py"
TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
CPU = get_device("cpu")

AXES = {"precision": "bf16", "adapter": "none", "optimizer": "adamw_torch", "offload": "none", "algorithm": "sft"}
WORK: dict[str, Any] = {"prompt_tokens": 8, "response_tokens": 8, "batch_size": 2, "lora_r": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "lora": {"adapter": "lora"},
    "lora all-linear": {"adapter": "lora", "lora_target_modules": "all-linear"},
    "nf4": {"precision": "nf4", "adapter": "lora", "lora_target_modules": "all-linear"},
}
"""What each model is predicted and run with."""
COLUMNS = ("whole", *SETTINGS, "logits", "rollout")

YES = "yes"
FAULT = "fault: "


@dataclass
class Tried:
    """What came of a type. `refused`: why it is, None where it is taken. `cells`: by the names of COLUMNS, YES or what was said
    instead."""

    model_type: str
    refused: str | None = None
    cells: dict[str, str] = field(default_factory=dict)


class Trial:
    """One type, whose config.json is written into `folder`."""

    def __init__(self, model_type: str, folder: Path) -> None:
        self.model_type = model_type
        self.name = str(folder / model_type)
        Path(self.name).mkdir()
        Path(self.name, "config.json").write_text(json.dumps(tiny(model_type)))
        self.simulation: Simulation | None = None

    def result(self) -> Tried:
        """What comes of it. Faults are among the sentences."""
        refused = self.outcome(lambda: model_config(self.name))
        if refused != YES:
            return Tried(self.model_type, refused)
        result = Tried(self.model_type)
        for setting in SETTINGS:
            predicted = self.outcome(lambda setting=setting: self.predict(setting))
            run = self.outcome(lambda setting=setting: trains(self.cell(setting)))
            result.cells[setting] = run if run == predicted else f"predicted: {predicted} / run: {run}"
        result.cells["whole"] = self.outcome(self.is_whole)
        result.cells["logits"] = self.outcome(self.has_transformers_logits)
        result.cells["rollout"] = self.outcome(self.decodes)
        return result

    def outcome(self, ask: Callable[[], object]) -> str:
        """YES where `ask` returns; else the sentence that a user would read, or the exception that should not have come."""
        try:
            ask()
        except (ConfigurationError, NotPredicted) as error:
            said = str(error)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = f"{FAULT}{type(error).__name__}: {' '.join(lines[:2])[:200]}"
        else:
            return YES
        return said.replace(repr(self.name), f"'{self.model_type}'")

    def cell(self, setting: str, **more: Any) -> Cell:
        said = WORK | SETTINGS[setting] | more | {"model": self.name}
        return resolve({one: said.pop(one, AXES[one]) for one in AXES}, said)

    def predict(self, setting: str) -> None:
        simulation = Predictor("").simulation(self.cell(setting))
        if setting == "none":
            self.simulation = simulation

    def is_whole(self) -> None:
        """That what was predicted has as many parameters, and bytes of weights and buffers, as the whole model on meta."""
        if self.simulation is None:
            raise ConfigurationError("not predicted")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.name), dtype=torch.bfloat16)
        keep_in_fp32(model, torch.bfloat16)
        tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}.values()
        total, weights = sum(one.numel() for one in model.parameters()), sum(one.nbytes for one in tensors)
        found = self.simulation.parameters.total, self.simulation.roles["policy"].weights_bytes
        assert found == (total, weights), f"predicted {found}, whole {total, weights} (parameters, bytes)"

    def has_transformers_logits(self) -> None:
        """That log-probabilities are those of transformers' model with eager attention, and that nothing later moves them."""
        model: Any = load_model(self.cell("none", precision="fp32").setup, CPU, seed=0)
        tokens = sample()
        changed = tokens.clone()
        changed[:, 8:] = (changed[:, 8:] + 1) % 256
        with torch.no_grad():
            ours, later = (Policy(model)(one, 1).logprobs for one in (tokens, changed))
            model.set_attn_implementation("eager")
            logits = model(input_ids=tokens, use_cache=False).logits.float()
        theirs = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), (
            f"{(ours - theirs).abs().max():.2g} from transformers'"
        )
        moved = (ours[:, :7] - later[:, :7]).abs().max()
        assert moved < 1e-5, f"tokens that come later move them by {moved:.2g}"

    def decodes(self) -> None:
        """That greedy decoding over the cache gives the tokens that one plain pass over all of them finds likeliest."""
        model: Any = load_model(self.cell("none", precision="fp32").setup, CPU, seed=0)
        tokens = generate(model, sample()[:, :6], 6, GREEDY, CPU)
        with torch.no_grad():
            likeliest = model(input_ids=tokens, use_cache=False).logits.argmax(-1)
        agree = (likeliest[:, 5:-1] == tokens[:, 6:]).float().mean().item()
        assert agree == 1, f"{agree:.0%} of its tokens are the likeliest"


def trains(cell: Cell) -> None:
    """Loads the cell's job on the CPU, and takes two steps."""
    job = Job(cell, CPU)
    job.load()
    for index in range(2):
        loss = job.step(index)["loss"]
        assert torch.isfinite(torch.as_tensor(loss)), f"step {index} has the loss {loss}"


def sample() -> torch.Tensor:
    """Tokens [2,12], always the same."""
    return torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(1))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says of tiny configurations, and on one thread, which is fastest for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)


def try_all(types: Sequence[str]) -> Iterator[Tried]:
    with quiet(), tempfile.TemporaryDirectory() as folder:
        for model_type in types:
            yield Trial(model_type, Path(folder)).result()


def render(tried: Iterable[Tried]) -> str:
    """The page."""
    tried = list(tried)
    taken = [one for one in tried if one.refused is None]
    notes: dict[str, int] = {}
    rows = [row(one, notes) for one in taken]
    reasons: dict[str, list[str]] = {}
    for one in tried:
        if one.refused is not None:
            reasons.setdefault(impersonal(one.refused), []).append(one.model_type)
    lines = [
        "# Model types", "",
        f"Written by `{COMMAND}` with transformers {version('transformers')}: its {len(tried)} causal language model types, "
        f"made with {LAYERS} layers, a width of 64 and 256 tokens. {len(taken)} are taken.", "",
        "- *whole*: what is predicted has the parameters, and the bytes of weights and buffers, of the whole model.",
        "- *none*, *lora* (`lora_target_modules: auto`), *lora all-linear*, *nf4* (with LoRA on all linear layers): predicted, and "
        "two steps run on the CPU.",
        "- *logits*: log-probabilities are those of transformers' model with its eager attention, and nothing later moves them.",
        "- *rollout*: greedy decoding over the cache gives the tokens that one plain pass finds likeliest.", "",
        "Some are decoders only where their config.json says so, and are refused without it: with `is_decoder: true` "
        f"{', '.join(DECODERS_IF_TOLD)}; with `is_encoder_decoder: false` {', '.join(DECODERS_WITHOUT_ENCODER)}.", "",
        "A number stands for a sentence below the table.", "",
        f"| model type | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|", *rows, "",
        *(f"{number}. {note}" for note, number in notes.items()), "",
        "## Refused", "",
        *(f"- {reason}: {', '.join(types)}." for reason, types in reasons.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def row(one: Tried, notes: dict[str, int]) -> str:
    """A line of the table. What is not as it should be is a number in `notes`, where new sentences are added."""
    shown = []
    for column in COLUMNS:
        said = impersonal(one.cells[column])
        shown.append(said if said == YES else f"no ({notes.setdefault(said, len(notes) + 1)})")
    return f"| {one.model_type} | {' | '.join(shown)} |"


PERSONAL = (
    (r"^model: '([^']*)' is a \1, which ", ""),
    (r"model: '[^']*': |model: a [\w-]+ (?=has)|model: (?=its)| \(\w+Attention\)", ""),
    (r"(bf16|nf4) \w+ adamw_torch none sft on '[^']*' (?=cannot)", ""),
    (r"knows no layers of '[^']*'", "knows no layers of it"),
    (r"\. (This|You) .*?(?= / run|$)", ""),
)
"""What is of one type, or an essay of a library, in sentences; and what is put for it."""


def impersonal(sentence: str) -> str:
    """`sentence` as it is said of many."""
    for pattern, other in PERSONAL:
        sentence = re.sub(pattern, other, sentence)
    return sentence.replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tries every causal language model type that transformers knows.")
    parser.add_argument("types", nargs="*", help="those to try; all of them where none is named")
    chosen = parser.parse_args().types
    tried = []
    for one in try_all(chosen or TYPES):
        told = {name: said for name, said in one.cells.items() if said != YES}
        print(f"{one.model_type}: {one.refused or told or YES}", flush=True)
        tried.append(one)
    if not chosen:
        PAGE.write_text(render(tried))


if __name__ == "__main__":
    main()
