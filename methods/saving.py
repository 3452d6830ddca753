"""Saving a trained model as the Trainer and PEFT do, and what that takes on the device and the host.

    save(model, "merged", setup, device)

On the device, references are enough to save weights as they are: safetensors takes them to the host, a whole file's at once
(safetensors 0.8, torch.py: _flatten_as_ptr; a file holds up to 50 GB, transformers' max_shard_size). Merging an adapter makes the
product of its factors for one layer after the other; a quantised layer is unpacked for it, and packed again (PEFT 0.21,
tuners/lora/bnb.py: merge). With DeepSpeed, accelerate first copies all of a model's weights to the host, frozen ones too
(accelerator.py: get_state_dict); in stage 3 one module's after the other is gathered for it
(stage3_gather_16bit_weights_on_model_save).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vrambench.methods.device import Device
from vrambench.methods.models.modeling import PreTrainedModel
from vrambench.methods.setup import Setup


def save(model: Any, setup: Setup, device: Device, learner: Any = None) -> None:
    """Saves `model`, a transformers model with its adapter, as the workload's `save` says, under its `save_as` or into a folder
    that is gone afterwards. On the simulated device, nothing is written. Merging changes the model for good. `learner`: what
    trains the module that `model` is the `model` of."""
    if setup.workload.save == "merged":
        with _requantising(device):
            model = model.merge_and_unload()
    if device.simulated:
        if setup.zero_stage == 3:
            learner.consolidate()
        elif not setup.zero_stage and isinstance(model, PreTrainedModel):
            _in_original_format(model)
        return
    state = None
    if setup.zero_stage == 3:
        whole = learner.module._zero3_consolidated_16bit_state_dict()
        state = {name.removeprefix("model."): value for name, value in whole.items() if name.startswith("model.")}
    elif setup.zero_stage:
        from deepspeed.checkpoint.utils import clone_tensors_for_torch_save

        state = clone_tensors_for_torch_save(model.state_dict())
    with _folder(setup) as folder:
        model.save_pretrained(folder, state_dict=state)


@contextmanager
def _folder(setup: Setup) -> Iterator[str]:
    """An empty folder, which takes its place under its name once all is written."""
    name = setup.workload.save_as
    if name is None or setup.saved is None:
        with tempfile.TemporaryDirectory(prefix="vrambench-") as folder:
            yield folder
        return
    setup.saved.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=setup.saved) as folder:
        made = Path(folder) / "made"
        yield str(made)
        shutil.rmtree(setup.saved / name, ignore_errors=True)
        made.rename(setup.saved / name)


def saved(model: nn.Module, setup: Setup) -> Iterator[nn.Parameter]:
    """The parameters that `save` takes to the host, before it merges anything."""
    work, whole = setup.workload, setup.adapter.trains_base or setup.zero_stage > 0
    for parameter in model.parameters():
        if whole or parameter.requires_grad == (work.save == "model"):
            yield parameter


def _in_original_format(model: PreTrainedModel) -> None:
    """What transformers does with weights before they go to the host (modeling_utils.py: save_pretrained): stacked experts become
    single matrices again, as in the checkpoint, and those that do not lie in one piece are copied, all before the first is
    written."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5, experts were never stacked
        return
    weights = revert_weight_conversion(model, dict(model.named_parameters()))
    for name in weights:
        weights[name] = weights[name].contiguous()


class _StaysThere(TorchFunctionMode):
    """Tensors of the simulated device that are asked to the host stay where they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and args[0].is_meta and args[1:2] == ("cpu",):
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _requantising(device: Device) -> Iterator[None]:
    """PEFT takes a quantised layer's merged weights to the host, and bitsandbytes quantises them on their way back. Nothing comes
    back from the simulated device: there, what a GPU would allocate on that way back is allocated."""
    if not device.simulated:
        yield
        return
    import bitsandbytes as bnb

    def to_four_bits(weight: Any, there: Any) -> Any:
        if device.stands_for == "cuda":
            weight.data = weight.data.clone()
        return weight._quantize(there)

    def to_eight_bits(weight: Any, there: Any) -> Any:
        halved = weight.data.to(torch.float16)
        weight.SCB = halved.new_empty(halved.shape[0], dtype=torch.float32)
        weight.CB = weight.data = torch.empty_like(halved, dtype=torch.int8)
        return weight

    with _StaysThere(), ExitStack() as restored:
        for kind, to in ((bnb.nn.Params4bit, to_four_bits), (bnb.nn.Int8Params, to_eight_bits)):
            restored.callback(setattr, kind, "to", kind.to)
            kind.to = to
        yield
