"""What is kept off stderr: a few sentences, and no others."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import pytest

from vrambench.bench.predict.quiet import KERNELS, LOGGED, hush


@pytest.mark.parametrize("name", LOGGED)
def test_one_message_of_a_library_is_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    hush()
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)
    try:
        logger.warning("%s, and more", LOGGED[name])
        logger.warning("another message")
    finally:
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"another message"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bitsandbytes.backends.cpu.ops", KERNELS),
        ("torchao", 'f"Failed to load {file}'),
        ("torch.utils._pytree", "is an Enum subclass and is now natively supported"),
        ("transformers.modeling_utils", 'f"`loss_type={loss_type}` was set in the config'),
    ],
)
def test_the_library_still_says_it_there(name: str, said: str) -> None:
    package, _, module = name.partition(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / f"{module.replace('.', '/')}.py" if module else Path(spec.origin)
    source = file.read_text()
    assert said in source
    assert "getLogger(__name__)" in source or "get_logger(__name__)" in source


def test_other_warnings_are_told() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        hush()
        warnings.warn("Paged optimizers are not supported on CPU: x", UserWarning, stacklevel=1)
        warnings.warn("None of the inputs have requires_grad=True. Gradients will be None", UserWarning, stacklevel=1)
        warnings.warn("a rename", FutureWarning, stacklevel=1)
        warnings.warn("news", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["news"]
