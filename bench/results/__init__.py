"""What is stored: records and the folder of a run. What is here imports nothing heavy: the command line asks it of each command."""

from typing import Literal

PREDICTED: Literal["predicted"] = "predicted"
"""The device of a run that predicts, whose GPU is the card that it predicts for; and the source of its results."""

BESIDE = "predicted"
"""The folder inside a run's that holds what was predicted beside it, a run of its own."""

OWN_CODE = "pytest"
"""The profile of a run whose cells are people's own tests."""
