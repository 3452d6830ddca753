"""Optimizers that are nobody else's: one needs a package which nobody has."""

from __future__ import annotations

import dataclasses

from vrambench.methods.optimizers.adamw import ADAMW_TORCH

OPTIMIZER = dataclasses.replace(ADAMW_TORCH, requires=("torch", "no_such_package.inside"), extra="more")
OTHER = dataclasses.replace(ADAMW_TORCH)
