"""Traces of whole jobs, on the CPU as on the simulated device."""

from __future__ import annotations

import torch

from vrambench.bench.predict.tracing.job import TracedJob
from vrambench.bench.predict.tracing.trace import Trace
from vrambench.bench.predict.tracing.tracer import Tracer
from vrambench.methods.cell import Cell
from vrambench.methods.device import Device


def traced(cell: Cell, device: Device) -> Trace:
    """Two steps, and what evaluation and saving there is."""
    tracer = Tracer(device.torch.type)
    torch.manual_seed(0)
    job = TracedJob(cell, device, tracer)
    with tracer:
        job.load()
        job.step(0)
        if job.evaluates:
            job.evaluate()
        job.step(1)
        if job.saves:
            job.save()
    return tracer.trace
