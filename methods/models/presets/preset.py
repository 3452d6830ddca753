"""What a preset is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Preset:
    """`architecture`: transformers' `model_type`. `shape`: the fields that differ from its class's defaults. `published`: the hub
    id whose config.json it equals, or what else it was read from. `read`: when, year and month."""

    architecture: str
    shape: Mapping[str, Any]
    published: str | None = None
    read: str | None = None

    @property
    def hub_id(self) -> str | None:
        """The hub id whose config.json it equals, None where there is none."""
        return self.published if self.published and " " not in self.published else None

    def config(self) -> PreTrainedConfig:
        """A fresh configuration, which the caller may change."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.architecture, **self.shape)


def rotary(theta: float, **scaling: Any) -> dict[str, Any]:
    """transformers' `rope_parameters`: the base, and how positions beyond those of pre-training are scaled."""
    return {"rope_theta": theta, "rope_type": "default"} | scaling


def sizes(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    """The five sizes that models of a family differ in."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }
