"""Cells of TRL's GRPOTrainer and RLOOTrainer hold what the cells of ours that say the same hold, phase by phase; what is different
is named, with its bytes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainers.test_beside import LORA, measured, peaks
from vrambench.methods.models.config import model_config

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

BATCH, PROMPT, RESPONSE, PROMPTS, GROUP = 8, 16, 32, 4, 4
SEQUENCES, LENGTH = PROMPTS * GROUP, PROMPT + RESPONSE
UNNAMED = 0.001
"""Share of a peak that may differ without a name: a number for each sequence, losses, norms."""
INT64, FP32, BF16 = 8, 4, 2
WORK: dict[str, Any] = {"model": "tiny", "batch_size": BATCH, "prompt_tokens": PROMPT, "response_tokens": RESPONSE}
WORK |= {"rollout_batch": PROMPTS, "group_size": GROUP}
FULL, WITH_LORA = "bf16 none adamw_torch_fused none", "bf16 lora adamw_torch none"

CONFIG = model_config(WORK["model"])
LAYERS, WIDTH, VOCABULARY = CONFIG.num_hidden_layers, CONFIG.hidden_size, CONFIG.vocab_size
HEAD = WIDTH // CONFIG.num_attention_heads
CACHED = 2 * LAYERS * CONFIG.num_key_value_heads * HEAD * BF16
"""Bytes of a token's keys and values."""

Named = dict[str, int]
"""By cause, what TRL's trainer holds more than the cell of ours at a phase's peak; less, where negative."""


def fp32_numbers(of_rollout: int, of_batch: int) -> Named:
    numbers = of_rollout * SEQUENCES * RESPONSE + of_batch * BATCH * RESPONSE
    return {"ours: masks, log-probabilities and losses in fp32, for a rollout and for a batch": -FP32 * numbers}


def bf16_numbers(of_rollout: int) -> Named:
    return {"TRL's: log-probabilities of a rollout in bf16": BF16 * of_rollout * SEQUENCES * RESPONSE}


PROMPTS_BYTES = SEQUENCES * PROMPT * INT64
RESPONSES_BYTES = SEQUENCES * RESPONSE * INT64
OUR_TOKENS = {"ours: prompts with their responses, and prompts": -(SEQUENCES * LENGTH * INT64 + PROMPTS_BYTES)}
ROLLOUT = OUR_TOKENS | {
    "ours: the whole cache from the first pass on, in which most is live, where TRL's is still short": -CACHED
    * SEQUENCES
    * RESPONSE,
    "ours: positions": -LENGTH * INT64,
    "TRL's: cosines and sines of positions, for each sequence": 2 * (SEQUENCES - 1) * PROMPT * HEAD * BF16,
    "TRL's: prompts, masks, and copies of them": 6 * PROMPTS_BYTES,
    "TRL's: responses of the last rollout, and their mask": 2 * RESPONSES_BYTES,
    "TRL's: flags and positions, a number for each sequence": 17 * SEQUENCES * INT64,
}
SCORE = {
    "TRL's: logits of the last batch, and their quotient by the temperature, while the next one runs": (
        BATCH * (2 * RESPONSE + 1) * VOCABULARY * BF16
    ),
    "TRL's: log-probabilities of that batch": BATCH * RESPONSE * BF16,
    "TRL's: prompts, responses and their masks, of this rollout and of the last": 4 * (PROMPTS_BYTES + RESPONSES_BYTES),
    "TRL's: a mask of prompts with their responses": SEQUENCES * LENGTH * INT64,
    "ours: prompts": -PROMPTS_BYTES,
}
STEP = OUR_TOKENS | {"TRL's: prompts, responses and their masks": 2 * (PROMPTS_BYTES + RESPONSES_BYTES)}
LEARN = STEP | {"TRL's: a mask of the batch": BATCH * LENGTH * INT64}
GRPO = {
    "rollout": ROLLOUT | bf16_numbers(1),
    "score": SCORE | fp32_numbers(1, 1) | bf16_numbers(1),
    "learn": LEARN | fp32_numbers(2, 0) | bf16_numbers(1),
    "optimizer_step": STEP | fp32_numbers(2, 0) | bf16_numbers(1),
}
RLOO = {
    "rollout": ROLLOUT,
    "score": SCORE | fp32_numbers(2, 3) | bf16_numbers(1),
    "learn": LEARN | fp32_numbers(3, 2),
    "optimizer_step": STEP | fp32_numbers(3, 2),
}
CELLS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Named]]] = {
    "grpo": ("grpo", FULL, {}, {}, GRPO),
    "grpo with a reference": (
        "grpo",
        FULL,
        {"grpo": {"beta": 0.04}},
        {"trl": {"beta": 0.04}},
        {
            "rollout": ROLLOUT | bf16_numbers(2),
            "score": SCORE | fp32_numbers(2, 1) | bf16_numbers(3),
            "learn": LEARN | fp32_numbers(3, 0) | bf16_numbers(2),
            "optimizer_step": STEP | fp32_numbers(3, 0) | bf16_numbers(2),
        },
    ),
    "grpo lora": ("grpo", WITH_LORA, LORA, LORA, GRPO),
    "grpo lora, checkpointed": (
        "grpo",
        WITH_LORA,
        LORA | {"gradient_checkpointing": True},
        LORA | {"gradient_checkpointing": True},
        GRPO | {"learn": STEP | fp32_numbers(2, 0) | bf16_numbers(1)},
    ),
    "rloo": ("rloo", FULL, {}, {}, RLOO),
    "rloo lora": ("rloo", WITH_LORA, LORA, LORA, RLOO | {"score": SCORE | fp32_numbers(1, 1) | bf16_numbers(1)}),
}


@pytest.mark.parametrize(("algorithm", "axes", "settings", "told", "named"), CELLS.values(), ids=CELLS)
def test_it_holds_what_ours_holds(
    algorithm: str, axes: str, settings: dict[str, Any], told: dict[str, Any], named: dict[str, Named]
) -> None:
    ours = measured(algorithm, axes, WORK | settings | {"loss": "selective"})
    theirs = measured(f"trl_{algorithm}", axes, WORK | told | {"loss": "scored"})
    copied = 0
    if algorithm == "rloo" and "lora" in axes:  # TRL's reference is an adapter of its own, where ours is none
        copied = ours.roles["policy"].gradients_bytes
        assert theirs.roles["policy"].weights_bytes == ours.roles["policy"].weights_bytes + copied
    else:
        assert theirs.roles == ours.roles
    assert peaks(theirs).keys() == peaks(ours).keys() == named.keys()
    for phase, nbytes in peaks(theirs).items():
        explained = peaks(ours)[phase] + copied + sum(named[phase].values())
        assert nbytes == pytest.approx(explained, rel=UNNAMED), phase
