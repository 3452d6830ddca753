"""Whether a run is worse than a baseline: `baseline.py` is what was stored, `tolerance.py` what may change, `check.py` what did."""


class NoBaseline(Exception):
    """There is no baseline to hold a run against."""
