"""Predicts a cell's memory from a job on the meta device: its allocations, what no tracer sees, and what lies outside PyTorch."""


class NotPredicted(Exception):
    """A cell whose job fails on the simulated device, in one sentence; what failed is its cause."""
