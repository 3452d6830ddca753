"""Predicts a cell's memory from a job on the meta device: its allocations, what no tracer sees, and what lies outside PyTorch."""
