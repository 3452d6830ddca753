"""What is kept off stderr: four sentences, and no others."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import pytest

from vrambench.bench.predict.quiet import KERNELS, hush

LOGGER = "bitsandbytes.backends.cpu.ops"


def test_one_message_of_bitsandbytes_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    hush()
    logging.getLogger(LOGGER).warning(KERNELS + ": %s.", "No module named 'kernels'")
    logging.getLogger(LOGGER).warning("another message")
    assert caplog.messages == ["another message"]


def test_bitsandbytes_still_says_it_there() -> None:
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "backends" / "cpu" / "ops.py").read_text()
    assert KERNELS in source
    assert "logging.getLogger(__name__)" in source


def test_other_warnings_are_told() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        hush()
        warnings.warn("Paged optimizers are not supported on CPU: x", UserWarning, stacklevel=1)
        warnings.warn("None of the inputs have requires_grad=True. Gradients will be None", UserWarning, stacklevel=1)
        warnings.warn("a rename", FutureWarning, stacklevel=1)
        warnings.warn("news", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["news"]
