"""What a row of docs/accuracy.md is: a published figure or verdict, and the cell that re-creates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vrambench.bench.claims.cells import cells_of
from vrambench.bench.claims.file import Claim
from vrambench.methods.cell import Cell, resolve

FULL, LORA, QLORA = "bf16 none adamw_torch none sft", "bf16 lora adamw_torch none sft", "nf4 lora adamw_torch none sft"
Key = Literal["allocated", "active", "reserved", "device"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell in short: `axes` in their order, in one string, and the workload's `settings`; `card` by name."""

    axes: str
    settings: Mapping[str, Any]
    card: str = "a100-80gb"

    def cell(self) -> Cell:
        names = ("precision", "adapter", "optimizer", "offload", "algorithm")
        return resolve(dict(zip(names, self.axes.split(), strict=True)), self.settings)


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """The one cell of a claim of claims.yaml; `card` by name."""

    claim: Claim
    card: str

    def cell(self) -> Cell:
        ((cell,),) = cells_of(self.claim, self.claim.cells).values()
        return cell


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published figure: `published` in `unit`, compared with our `key`; `stated` is false where the source does not say which
    counter it read. `settings`: what the source says and what is assumed here. `why`: why it is off. `alike` is false where
    the source used a technique that is no value of our axes, so that the error is not the predictor's. `phase`: the one in whose
    first step it is compared, None for the whole job. `known`: the source gives every setting that memory depends on.
    `held_bytes`: what the source's versions of the libraries held and today's do not, by arithmetic: added to the prediction, and
    said in `why`."""

    id: str
    what: str
    published: float
    unit: str
    key: Key
    job: Job
    source: str
    settings: str
    why: str
    stated: bool = True
    alike: bool = True
    phase: str | None = None
    known: bool = False
    held_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """A published verdict: whether `job` ran on its card."""

    id: str
    what: str
    fits: bool
    job: Job | ClaimedJob
    why: str = ""


@dataclass(frozen=True)
class Left:
    """A published figure that is not re-created, and why."""

    what: str
    reason: str


def sequences(model: str, batch: int, tokens: int, **more: Any) -> dict[str, Any]:
    """A workload of `batch` sequences of `tokens` tokens, all trained on but the first."""
    return {"model": model, "batch_size": batch, "prompt_tokens": 1, "response_tokens": tokens - 1, **more}


def claimed(claim: Claim, card: str) -> VerdictRow:
    """A claim that one job fits on a card or does not."""
    fits = claim.claimed.value is True
    return VerdictRow(
        id=claim.id, what=claim.claim, fits=fits, job=ClaimedJob(claim=claim, card=card), why=claim.note or ""
    )
