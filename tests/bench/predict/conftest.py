"""What all traces here have in common."""

from __future__ import annotations

import bitsandbytes  # noqa: F401 - what it logs once, as it is imported, pytest keeps with all that was alive around it
