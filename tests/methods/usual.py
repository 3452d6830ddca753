"""Two sets of axis values: one that uses nearly all fields of a workload, and one that uses the fewest."""

PPO_AXES = {
    "precision": "int8",
    "adapter": "lora",
    "optimizer": "adamw_torch",
    "offload": "zero2_optimizer",
    "algorithm": "ppo",
}
SFT_AXES = {
    "precision": "fp32",
    "adapter": "none",
    "optimizer": "adafactor",
    "offload": "none",
    "algorithm": "sft",
}
