"""No offload: everything that training holds stays on the device."""

from __future__ import annotations

from vrambench.methods.learner import PlainLearner
from vrambench.methods.offload import Offload

NONE = Offload(summary="everything on the device", learner=PlainLearner)
