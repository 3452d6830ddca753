"""One thread for tiny tensors: more would only wait for each other, most where several runs share a machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
