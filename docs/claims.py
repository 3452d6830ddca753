"""What becomes of the claims in claims.yaml: writes docs/claims.md beside this file.

    .venv/bin/python docs/claims.py

Predicted are all that predictions can tell; measured is what the runs under results/ hold. The page holds no times of its own, so
it changes only where a prediction, a claim or a result does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import yaml

from vrambench.bench.claims.answer import NOT_MEASURED, Answer, Ran, answer
from vrambench.bench.claims.file import Claim, load_claims
from vrambench.bench.results.forecast import Outcome
from vrambench.bench.results.store import RunFolder
from vrambench.methods.cell import Cell
from vrambench.reports.claims import value_words, verdict_words

ROOT = Path(__file__).resolve().parents[1]
FILE, PAGE, RESULTS = ROOT / "claims.yaml", ROOT / "docs" / "claims.md", ROOT / "results"
COMMAND = ".venv/bin/python docs/claims.py"
Predict = Callable[[Sequence[Cell]], Mapping[str, Outcome]]

INTRODUCTION = f"""\
# Claims

What others say of these methods, and what becomes of it here. Each is a row of [claims.yaml](../claims.yaml): the cells that it
is about, a formula over what they give, the claimed value and its source. This page is written by `{COMMAND}`.

```console
$ vrambench claims                              # all of them, predicted: in a minute or two, without a GPU
$ vrambench claims results/nvidia-h100/claims   # and what that run measured
$ vrambench claims --only remax-memory,remax-speed --json
$ vrambench run --device cpu --out runs/claims --claims remax-speed,remax-reward
$ vrambench claims runs/claims --no-predict
$ vrambench run --device predicted --claims all # their cells as a run of predictions, whose report has a line for each
```

*Predicted* is for a GPU, from the simulated job. *Measured* is what runs under results/ gave: those on GPUs ran a claim's own
cells; those *on the CPU* ran smaller ones at equal work, which the claim names in its part `cpu`, and stand for ratios alone.
Where a source does not tell its whole job, what is assumed stands below, and in the command's output.

A verdict, where the row does not say which values count:

- **reproduced**: within a tenth of what is claimed, and of an effect at least half; no less where it is claimed to be at least
  so much.
- **partly**: of an effect (a share in %, a ratio in x), the same direction and at least half of it, however much more: half of 50 %
  is 25 %, and half of 2 x is 1.5 x. Of an amount (bytes, tokens), within a quarter; within a tenth of what it should at least be.
- **refuted**: anything else. What fits or does not is reproduced or refuted; where what no prediction knows may decide, there is no
  verdict.

Absolute figures that others published, and how far predictions are from them, are in [accuracy.md](accuracy.md).

## Write your own

A claims.yaml in the current folder, or the file that `--claims` names, takes the place of the one that is shipped. A claim may
look so:

```yaml
# claims.yaml
common: {{precision: bf16, adapter: lora, optimizer: adamw_torch, offload: none, algorithm: sft}}
claims:
  checkpointing-halves:
    claim: checkpointing halves the memory of LoRA
    source: a colleague
    common: {{model: llama-3.2-1b, batch_size: 4}}         # of all its cells: axes and workload fields side by side
    cells: {{whole: {{}}, less: {{gradient_checkpointing: true}}}}
    formula: 1 - less.device_bytes / whole.device_bytes
    claimed: 50 %                                        # or 2.2 x, 13.6 GB, at least 80 GB, fits, does not fit
    assumed: four sequences of 512 tokens
```

A formula has + - * / ( ), comparisons, and, or, not, min and max over CELL.VALUE: the ledger's lines (`device_bytes`,
`reserved_bytes`, `allocated_bytes`, ...), `weights_bytes`, `gradients_bytes` and `optimizer_bytes` of all roles or of one
(`ppo.value.weights_bytes`), `parameters`, `trainable_parameters`, `fits`; of runs also `step_seconds`, `train_tokens_per_second`,
`loss`, `reward` and `kl` (means of the last quarter of the steps). `reproduced` and `partly` may be given as
[least, most]; `note` says why; `not_here` says why a claim cannot be told, and takes the place of cells and formula.
"""


def render(predict: Predict, results: Path = RESULTS) -> str:
    """The page, with predictions by `predict` and what runs in `results` measured."""
    claims = load_claims(FILE)
    answers = answer(claims, runs_in(results), predict)
    counted = Counter(" and ".join(one.verdicts) or NOT_MEASURED for one in answers)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    kinds = ", ".join(f"{count} {words}" for words, count in counted.most_common())
    lines = [
        INTRODUCTION,
        "## Verdicts",
        "",
        f"{len(answers)} claims: {kinds}. Predicted with {packages}.",
        "",
        "| claim | claimed | predicted | measured | verdict |",
        "|---|--:|--:|---|---|",
        *(row(one) for one in answers),
        "",
        "## One by one",
        "",
    ]
    raw = yaml.safe_load(FILE.read_text())["claims"]
    for one in answers:
        lines += [*details(one, raw[one.claim.id]), ""]
    return "\n".join(lines).rstrip() + "\n"


def row(one: Answer) -> str:
    claim = one.claim
    predicted = value_words(one.predicted, claim) if one.predicted else "–"
    found = list(dict.fromkeys(value_words(found, claim) for found in one.measured if found.verdict))
    told = [f"[{claim.id}](#{anchor(claim.id)}): {claim.claim}", claim.claimed.text, predicted, "; ".join(found) or "–"]
    return f"| {' | '.join([*told, verdict_words(one)])} |"


def anchor(name: str) -> str:
    """As GitHub makes a heading's: without dots."""
    return name.replace(".", "")


def details(one: Answer, written: Mapping[str, object]) -> Iterator[str]:
    claim = one.claim
    yield f"### {claim.id}"
    yield ""
    yield f"- {capital(claim.claim)}. Source: {claim.source}."
    if claim.formula:
        yield f"- `{claim.formula.text}`, {claim.claimed.text} claimed{intervals(claim)}."
        yield f"- Cells: {settings(written.get('common'))}; {cells(written)}."
    if claim.on_cpu:
        yield f"- On a CPU: {settings(written.get('cpu'))}."
    if claim.assumed:
        yield f"- Assumed: {claim.assumed}."
    if claim.note:
        yield f"- {capital(claim.note).removesuffix('.')}."
    reasons = [found.reason for found in one.found if found.reason and not found.verdict]
    for reason in dict.fromkeys(reasons or ([one.reason] if one.reason else [])):
        yield f"- {capital(reason)}."


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def intervals(claim: Claim) -> str:
    said = {"reproduced": claim.claimed.reproduced, "partly": claim.claimed.partly}
    words = [
        f"{name} {f'from {low:g}' if low is not None else ''}{f' to {high:g}' if high is not None else ''}".strip()
        for name, interval in said.items()
        if interval
        for low, high in [interval]
    ]
    return f" ({', '.join(words)})" if words else ""


def settings(said: object) -> str:
    return f"`{yaml.safe_dump(said or {}, default_flow_style=True, width=10**6, sort_keys=False).strip()}`"


def cells(written: Mapping[str, object]) -> str:
    held = written["cells"]
    assert isinstance(held, dict)
    return ", ".join(f"{name} {settings(own)}" if own else name for name, own in held.items())


def runs_in(results: Path) -> list[Ran]:
    """Every run under the folder, by name."""
    folders = sorted(file.parent for file in results.rglob("run.json"))
    stores = [(folder.relative_to(results), RunFolder.open(folder)) for folder in folders]
    return [Ran.of(f"results/{name}", store.info, store.results()) for name, store in stores]


def main() -> None:
    from vrambench.bench.predict.many import predict_all

    PAGE.write_text(
        render(lambda cells: predict_all(cells, alloc_conf="", tell=lambda done, of: print(done, of, flush=True)))
    )


if __name__ == "__main__":
    main()
