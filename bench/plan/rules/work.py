"""Rules of the work itself: algorithms, losses, lengths, and how steps are made."""

from __future__ import annotations

from vrambench.bench.plan.rules.rule import Rule
from vrambench.bench.plan.traits import algorithm_option, quantized_to, remax_temperature, visitors
from vrambench.methods.models.losses import LOSSES

RULES: tuple[Rule, ...] = (
    Rule(
        "reentrant-alone",
        "reject",
        "use_reentrant says how checkpointing is done, and nothing is checkpointed (gradient_checkpointing: true)",
        lambda cell, _: cell.workload.use_reentrant and not cell.workload.gradient_checkpointing,
    ),
    Rule(
        "remax-greedy",
        "reject",
        "at temperature 0 the sampled response is the greedy one, so every advantage and the gradient are zero",
        lambda cell, _: remax_temperature(cell) == 0,
    ),
    Rule(
        "group-of-one",
        "reject",
        "a response is compared with the others to its prompt, and of one alone every advantage is zero (group_size: 2 or more)",
        lambda cell, _: cell.workload.group_size == 1,
    ),
    Rule(
        "loss-logprobs",
        "reject",
        "the algorithm's own loss is made of tokens' log-probabilities, which this loss does not give",
        lambda cell, _: cell.algorithm_value.from_logprobs and LOSSES[cell.workload.loss].scorer is None,
        lambda cell, _: LOSSES[cell.workload.loss].why_none,
    ),
    Rule(
        "loss-cuda-only",
        "reject",
        "this loss runs on CUDA alone",
        lambda cell, target: target.kind == "cpu" and LOSSES[cell.workload.loss].cuda_only is not None,
        lambda cell, _: LOSSES[cell.workload.loss].cuda_only or "",
    ),
    Rule(
        "loss-scores",
        "reject",
        "a reward model gives scores and no logits, and loss says how those are made (loss: scored)",
        lambda cell, _: cell.algorithm_value.trains_reward and cell.workload.loss != "scored",
        lambda cell, _: f"loss is {cell.workload.loss}",
    ),
    Rule(
        "reference-needed",
        "reject",
        "the algorithm's loss compares with a reference (reference: auto, or a loss without one)",
        lambda cell, _: (
            cell.workload.reference == "none" and cell.algorithm_value.uses_reference(cell.workload) == "needed"
        ),
    ),
    Rule(
        "reference-unused",
        "reject",
        "the algorithm's loss compares with no reference, which would be held for nothing (reference: none)",
        lambda cell, _: (
            cell.workload.reference not in ("none", None)
            and cell.algorithm_value.uses_reference(cell.workload) == "unused"
        ),
    ),
    Rule(
        "reference-dtype",
        "reject",
        "reference_dtype is of the reference's own weights, and it has none (reference: copy)",
        lambda cell, _: cell.workload.reference_dtype is not None and cell.workload.reference != "copy",
        lambda cell, _: f"reference is {cell.workload.reference}",
    ),
    Rule(
        "reference-precomputed",
        "reject",
        "nothing can be precomputed of responses that each step samples anew",
        lambda cell, _: cell.workload.reference == "precomputed" and not cell.algorithm_value.from_pairs,
    ),
    Rule(
        "lengths-algorithm",
        "reject",
        "all responses of the algorithm are as long as response_tokens, and it takes no sequences of several lengths",
        lambda cell, _: (
            cell.workload.lengths is not None
            and not cell.algorithm_value.takes_lengths
            and cell.algorithm_value.foreign is None
        ),
    ),
    Rule(
        "lengths-none",
        "reject",
        "it makes rows of sequences of several lengths, and here every sequence has the same one (say how long they are: lengths)",
        lambda cell, _: (
            cell.workload.lengths is None
            and (
                cell.workload.padding_free
                or cell.workload.packing != "none"
                or cell.workload.pad_to_multiple_of is not None
            )
        ),
        lambda cell, _: ", ".join(
            f"{name} {str(getattr(cell.workload, name)).lower()}"
            for name in ("padding_free", "packing", "pad_to_multiple_of")
            if getattr(cell.workload, name) not in (False, "none", None)
        ),
    ),
    Rule(
        "rollout-batch",
        "reject",
        "a rollout must be a whole number of optimizer steps, each of batch_size times gradient_accumulation_steps sequences",
        lambda cell, _: (cell.workload.rollout_batch or 0) % cell.rollout_unit != 0,
        lambda cell, _: (
            f"rollout_batch {cell.workload.rollout_batch} is no multiple of {cell.rollout_unit}; the nearest above is "
            f"{-(-(cell.workload.rollout_batch or 0) // cell.rollout_unit) * cell.rollout_unit}"
        ),
    ),
    Rule(
        "k1-loss",
        "warn",
        "in the loss, the gradient of k1 is zero in the mean, so it holds the policy back by noise alone (kl_estimator: k2 or k3)",
        lambda cell, _: bool(algorithm_option(cell, "use_kl_loss")) and algorithm_option(cell, "kl_estimator") == "k1",
    ),
    Rule(
        "nothing-left",
        "reject",
        "another process holds all of the budget (reserved_elsewhere)",
        lambda cell, _: cell.workload.own_budget <= 0,
    ),
    Rule(
        "nothing-to-offload",
        "reject",
        "ref_reward_offload moves a reference that is a copy and a reward that is a model, and there is neither",
        lambda cell, _: bool(cell.workload.ref_reward_offload) and not visitors(cell),
    ),
    Rule(
        "ref-reward-offload-int8",
        "reject",
        "bitsandbytes' int8 layers keep their weights beside the parameter, so the device would not get rid of them "
        "(ref_reward_offload: false)",
        lambda cell, _: bool(cell.workload.ref_reward_offload) and quantized_to(cell, 8),
    ),
    Rule(
        "empty-cache-cpu",
        "warn",
        "a CPU's memory has no cache that could be emptied: torch_empty_cache_steps and empty_cache_between_phases change "
        "nothing here",
        lambda cell, target: (
            target.kind == "cpu"
            and (cell.workload.torch_empty_cache_steps > 0 or bool(cell.workload.empty_cache_between_phases))
        ),
    ),
    Rule(
        "ref-reward-offload-cpu",
        "warn",
        "a CPU's memory is the host's: ref_reward_offload copies weights, and frees nothing for it here",
        lambda cell, target: target.kind == "cpu" and bool(cell.workload.ref_reward_offload),
    ),
    Rule(
        "activation-offloading-cpu",
        "warn",
        "a CPU's memory is the host's: activation_offloading copies what is saved, and frees nothing for it here",
        lambda cell, target: target.kind == "cpu" and cell.workload.activation_offloading,
    ),
)
