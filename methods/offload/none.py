"""No offload: everything that training holds stays on the device."""

from __future__ import annotations

from vrambench.methods.offload import Offload
from vrambench.methods.offload.learner import PlainLearner

NONE = Offload(summary="everything on the device", learner=PlainLearner)
