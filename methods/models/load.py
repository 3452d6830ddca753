"""Language models by name, in a cell's precision and with its adapter.

    policy = load_model(setup, device, seed=0)

Every model comes in train mode with dropout probabilities of zero: `eval()` would also switch gradient checkpointing
off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedConfig

from vrambench.methods.amp import recompute_contexts
from vrambench.methods.device import Device
from vrambench.methods.dtypes import HALF
from vrambench.methods.errors import ConfigurationError
from vrambench.methods.models.attention import implementation
from vrambench.methods.models.config import model_config, readable, shortened
from vrambench.methods.models.fill import build, fill, not_quantized
from vrambench.methods.models.modeling import PreTrainedModel
from vrambench.methods.models.parts import before_head, stacked, unwrapped
from vrambench.methods.models.presets import PRESETS
from vrambench.methods.models.upcast import upcast
from vrambench.methods.models.virtual import put_before_trunk
from vrambench.methods.precision.nf4 import forbid_repacking
from vrambench.methods.setup import Setup
from vrambench.methods.workload import saved_name


def load_model(setup: Setup, device: Device, *, model: str | None = None, adapter: bool = True, seed: int) -> nn.Module:
    """The cell's causal language model (or `model`), on `device`, in the cell's precision, with the cell's adapter.

    With adapter=False it is the base alone: loaded again with the same seed it has the same weights, so it serves as a
    frozen copy. Weights are random or pretrained as the workload says; on the simulated device there are shapes only.
    """
    name = model or setup.workload.model
    config = model_config(name)
    with seeded(device, seed):
        loaded = load(AutoModelForCausalLM, name, config, setup, device)
        _check_head_follows_trunk(loaded, name)
        result = setup.adapter.attach(loaded, setup.workload) if adapter else loaded
        if adapter:
            _read_adapter(result, setup, device)
    return ready(result, setup, device)


def load(
    auto: Any, name: str, config: PreTrainedConfig, setup: Setup, device: Device, *, field: str = "model"
) -> PreTrainedModel:
    """What `auto` makes of `config`, in the cell's precision, on the device; weights, and which of them in fp32, as the workload
    says.

    Pretrained weights have the same bytes on the simulated device, in blocks as random ones have them. On CUDA transformers cuts
    them from one block for all (caching_allocator_warmup), so that a large one's block may be up to 1 MiB smaller.
    """
    workload, precision = setup.workload, setup.precision
    with readable(name, field):
        config = shortened(config, device)
    dtype = precision.dtype(workload)
    _check_runs_in(config, dtype, quantized=precision.quantize is not None)
    kernel = implementation(
        workload.attention,
        config,
        tokens=setup.adapter.virtual_tokens(workload) + workload.sequence_tokens,
        masked=workload.masks,
        simulated=device.simulated,
    )
    quantize, pack = precision.quantize, precision.quantize_experts
    quantize_experts = (lambda module, name: pack(module, name, workload)) if pack else None
    saved = saved_name(workload.weights) if field == "model" else None  # a reward model is no cell's
    if (saved or workload.weights == "pretrained") and not device.simulated:
        model = read_weights(
            auto,
            str(setup.saved_folder(saved, "weights")) if saved else name,
            "weights" if saved else field,
            config=config,
            dtype=dtype,
            attention=kernel,
            device=device,
            quantization=_quantization_config(setup),
        )
        forbid_repacking(model)
        if quantize_experts:  # transformers has read them in 16 bit
            for module in list(model.modules()):
                for stack in stacked(module):
                    quantize_experts(module, stack)
    else:
        with readable(name, field):
            model = build(auto, config, dtype, kernel)
        fill(
            model,
            device.torch,
            quantize=quantize and (lambda linear: quantize(linear, workload)),
            quantize_experts=quantize_experts,
            keep=not_quantized(model) if quantize else (),
        )
        _say_quantized(model)
    upcast(model, workload.fp32_modules)
    _expect_no_padding(model)
    return model


def _read_adapter(model: Any, setup: Setup, device: Device) -> None:
    """The adapter's weights, where another cell of the run has saved them."""
    name = saved_name(setup.workload.adapter_weights)
    if name is None or device.simulated:
        return
    from peft import load_peft_weights, set_peft_model_state_dict

    folder = setup.saved_folder(name, "adapter_weights")
    try:
        found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device=str(device.torch)))
        lacking = [key for key in found.missing_keys if "lora" in key]
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"adapter_weights: {name!r} cannot be read: {reason}", field="adapter_weights"
        ) from error
    if found.unexpected_keys or lacking:
        raise ConfigurationError(
            f"adapter_weights: what is saved as {name!r} is no adapter of this cell's kind "
            f"({', '.join([*found.unexpected_keys, *lacking][:3])})",
            field="adapter_weights",
        )


def _check_head_follows_trunk(model: PreTrainedModel, name: str) -> None:
    """Raises ConfigurationError where it cannot be told what happens between trunk and head."""
    between = before_head(model)
    if len(between) > 1:
        raise ConfigurationError(
            f"model: {name!r} is a {model.config.model_type}, which has several parts between its last hidden states and its "
            f"output head ({', '.join(between)})",
            field="model",
        )


def _check_runs_in(config: PreTrainedConfig, dtype: torch.dtype, *, quantized: bool) -> None:
    """Raises ConfigurationError where an architecture's code cannot be run with such weights, here or elsewhere."""
    text: Any = config.get_text_config()
    why = None
    if text.model_type == "xlstm" and dtype in HALF:
        why = "multiplies fp32 by half precision, which torch refuses: take precision: fp32"
    elif quantized and getattr(text, "altup_coef_clip", None) is not None:
        why = (
            "clips weights of its linear layers in each training step, which fails on quantised ones: take precision: bf16, or "
            "altup_coef_clip: null in its config.json"
        )
    elif quantized and text.model_type == "longcat_flash":
        why = "reads its routers' weights as they are, which fails on quantised ones: take precision: bf16"
    if why:
        raise ConfigurationError(f"model: its architecture ({text.model_type}) {why}", field="model")


def _expect_no_padding(model: PreTrainedModel) -> None:
    """Nothing here is padded, and transformers would read tokens back from the device to warn about padding without a mask."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.warn_if_padding_and_no_attention_mask = lambda *tokens: None


def ready(model: nn.Module, setup: Setup, device: Device) -> nn.Module:
    """In train mode, with gradient checkpointing as the workload says. After the adapter: PEFT would add hooks for it
    again."""
    put_before_trunk(model)
    if setup.workload.gradient_checkpointing:
        base = unwrapped(model)
        # Its name until transformers 5.22 was gradient_checkpointing_enable.
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        # Checkpointing itself takes autocast from forward to recomputation, but the simulated device's it does not know.
        reentrant = setup.workload.use_reentrant
        enable(
            {"use_reentrant": reentrant}
            | ({"context_fn": recompute_contexts} if device.simulated and not reentrant else {})
        )
        if device.simulated and reentrant:
            for module in base.modules():
                if getattr(module, "gradient_checkpointing", False):
                    module._gradient_checkpointing_func = _checkpoint_reentrant
    return model.train()


def _checkpoint_reentrant(function: Callable[..., Any], *args: Any) -> Any:
    """Reentrant checkpointing takes no `context_fn`: here the function itself enters the autocast of its forward pass when it is
    called once more."""
    contexts = iter(recompute_contexts())

    def run(*inputs: Any) -> Any:
        with next(contexts):
            return function(*inputs)

    return checkpoint(run, *args, use_reentrant=True)


def read_weights(
    auto: Any,
    name: str,
    field: str,
    *,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str,
    device: Device,
    quantization: Any = None,
) -> PreTrainedModel:
    """The checkpoint `name`, straight to the device; transformers quantises it as it reads."""
    if name in PRESETS:
        raise ConfigurationError(
            f"{field}: {name!r} is a preset, a shape without weights; pretrained weights need a folder or a hub id"
            + (f", as {PRESETS[name].hub_id}" if PRESETS[name].hub_id else ""),
            field=field,
        )
    try:
        return auto.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map={"": device.torch},
            quantization_config=quantization,
            trust_remote_code=False,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{field}: {name!r} cannot be loaded: {reason}", field=field) from error


def _quantization_config(setup: Setup) -> Any:
    """transformers' settings for the cell's precision, None where that is not quantised."""
    precision = setup.precision
    if precision.quantize is None:
        return None
    if precision.quantization_config is None:
        raise ConfigurationError(f"precision: {precision.summary!r} cannot read pretrained weights", field="precision")
    return precision.quantization_config(setup.workload)


def _say_quantized(model: PreTrainedModel) -> None:
    """What from_pretrained says of quantised models: PEFT asks flags before it looks for bitsandbytes' layers, and architectures
    that would read a layer's weight (Jamba) ask their configuration."""
    kinds = {type(module).__name__ for module in model.modules()}
    model.is_loaded_in_8bit = "Linear8bitLt" in kinds
    model.is_loaded_in_4bit = "Linear4bit" in kinds
    if model.is_loaded_in_8bit or model.is_loaded_in_4bit:
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.config._is_quantized = True


@contextmanager
def seeded(device: Device, seed: int) -> Iterator[None]:
    """Draws from `seed` inside, and leaves the job's own random numbers as they were."""
    devices = [device.torch] if device.kind == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
