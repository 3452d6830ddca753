"""What all traces here have in common, and models of a few layers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import bitsandbytes  # noqa: F401 - what it logs once, as it is imported, pytest keeps with all that was alive around it
import pytest

OfLayers = Callable[[str, int], str]


@pytest.fixture(scope="session")
def of_layers(tmp_path_factory: pytest.TempPathFactory) -> OfLayers:
    """A preset's name and a number of layers -> a folder with a model of that many, as wide as the preset's."""
    from vrambench.methods.models.config import model_config

    @functools.cache
    def folder(name: str, count: int) -> str:
        config = copy.deepcopy(model_config(name))
        config.num_hidden_layers = count
        made = tmp_path_factory.mktemp(name)
        config.save_pretrained(made)
        return str(made)

    return folder
