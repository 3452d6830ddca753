"""Random weights without a whole copy in between: built on meta, filled layer by layer on the device, in final
precision.

    model = build(AutoModelForCausalLM, config, torch.bfloat16, "vrambench_fa")        # shapes only
    fill(model, device.torch, quantize=lambda linear: ..., keep=[model.get_output_embeddings()])

A layer (an entry of a ModuleList, such as one decoder block) is materialised whole, initialised as transformers
initialises that architecture, and quantised linear by linear before the next one is touched. So a 20B int8 model never
holds more than its final bytes plus one layer (and, on the CPU only, what bitsandbytes' quantiser needs inside itself
for one linear layer). On the meta device the same is done with shapes and types alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.core_model_loading import build_glob_alternation
from transformers.pytorch_utils import Conv1D

from vrambench.methods.models.modeling import HfQuantizer, PreTrainedModel, should_convert_module
from vrambench.methods.models.parts import stacked
from vrambench.methods.tensors import shapes_only

Quantize = Callable[[nn.Linear], nn.Module]
QuantizeExperts = Callable[[nn.Module, str], None]


def build(auto: Any, config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model that transformers' auto class `auto` makes of `config`: every tensor on meta, weights of type `dtype` but for those
    that its architecture keeps in fp32."""
    with shapes_only():
        model: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation=attention)
    keep_in_fp32(model, dtype)
    return model


def keep_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Makes fp32 of what from_pretrained reads in fp32 whatever `dtype` is asked for (modeling_utils.py: _get_dtype_plan), such as
    routers and their corrections; from_config does not."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    kept = build_glob_alternation(list(plan))[0]
    saved = model.state_dict().keys()
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                whole = f"{path}.{name}"
                if tensor is not None and tensor.is_floating_point() and whole in saved and kept.search(whole):
                    tensor.data = tensor.data.float()


def not_quantized(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of `model` that transformers' quantisers leave as they are: the head, what is tied, what stays in fp32."""
    patterns = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return [module for name, module in model.named_modules() if not should_convert_module(name, patterns)]


def fill(
    model: PreTrainedModel,
    device: torch.device,
    *,
    quantize: Quantize | None = None,
    quantize_experts: QuantizeExperts | None = None,
    keep: Iterable[nn.Module] = (),
) -> None:
    """Gives every parameter and buffer of `model` (all on meta) a place and its initial value on `device`, in place.

    `quantize` replaces each linear layer but those in `keep`, and `quantize_experts` packs each stack of matrices, by module and
    name. Values come from torch's global generator, module by module, so the same seed on the same device gives the same weights.
    Weights that are tied stay one storage.
    """
    filler = _Filler(model, device, quantize, quantize_experts, keep)
    with torch.no_grad():
        filler.fill(model, owner=model)


class _Filler:
    """One pass over a model. `owner` is the nearest transformers model above a module: its rules initialise it."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        quantize: Quantize | None,
        quantize_experts: QuantizeExperts | None,
        keep: Iterable[nn.Module],
    ) -> None:
        self.device = device
        self.quantize = quantize
        self.quantize_experts = quantize_experts
        self.keep = {id(module) for module in keep}
        names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        self.shared = {parameter for parameter, count in names.items() if count > 1}
        self.placed: dict[int, nn.Parameter] = {}

    def fill(self, module: nn.Module, owner: PreTrainedModel) -> None:
        """Everything below `module`, layer by layer, then its own tensors."""
        for name, child in list(module.named_children()):
            child_owner = child if isinstance(child, PreTrainedModel) else owner
            if isinstance(module, nn.ModuleList) or not child._modules:
                self.fill_layer(child, child_owner)
                if isinstance(module, nn.ModuleList):
                    self.replace_linears(module, name)
            else:
                self.fill(child, child_owner)
        self.place(module)
        self.initialize(module, owner)
        if not isinstance(module, nn.ModuleList):
            for name, child in list(module.named_children()):
                if not child._modules:  # only now: some architectures initialise what is in a module from the module
                    self.replace_linears(module, name)

    def fill_layer(self, layer: nn.Module, owner: PreTrainedModel) -> None:
        """A layer at once, since some architectures initialise a block's weights from the block."""
        for module in layer.modules():
            self.place(module)
        self.initialize_below(layer, owner)

    def initialize_below(self, module: nn.Module, owner: PreTrainedModel) -> None:
        for child in module.children():
            self.initialize_below(child, child if isinstance(child, PreTrainedModel) else owner)
        self.initialize(module, owner)

    def initialize(self, module: nn.Module, owner: PreTrainedModel) -> None:
        weight = module._parameters["weight"] if isinstance(module, Conv1D) else None
        if weight is not None and not weight.is_meta:
            weight.fill_(math.nan)
            owner._initialize_weights(module)
            if weight[0, 0].isnan():  # OpenAI's GPT leaves these to their class
                nn.init.normal_(weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type] # a Conv1D's is a parameter
        else:
            owner._initialize_weights(module)
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) in self.shared:
                parameter._is_hf_initialized = True  # type: ignore[attr-defined] # not again where it is tied to

    def place(self, module: nn.Module) -> None:
        """Uninitialised memory on the device for the tensors that `module` itself has."""
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in self.placed:
                module._parameters[name] = self.placed[id(parameter)]
                continue
            new = nn.Parameter(torch.empty_like(parameter, device=self.device), requires_grad=parameter.requires_grad)
            if id(parameter) in self.shared:
                self.placed[id(parameter)] = new
                self.shared.add(id(new))
            module._parameters[name] = new
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=self.device)

    def replace_linears(self, parent: nn.Module, name: str) -> None:
        """Quantises the module called `name` in `parent`, or what is below it, one linear layer at a time."""
        if self.quantize is None:
            return
        module = parent._modules[name]
        assert module is not None
        if id(module) in self.keep:
            return
        if isinstance(module, Conv1D) or type(module) is nn.Linear:
            parent._modules[name] = self.quantize(_as_linear(module))
            return
        for child in list(module._modules):
            self.replace_linears(module, child)
        if self.quantize_experts is not None:
            for stack in stacked(module):
                self.quantize_experts(module, stack)


def _as_linear(module: nn.Linear | Conv1D) -> nn.Linear:
    """`module` itself, or GPT-2's Conv1D (weight [in,out]) as the linear layer that it is; that one gives its weight
    up."""
    if isinstance(module, nn.Linear):
        return module
    inputs, outputs = module.weight.shape
    with shapes_only():
        linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = nn.Parameter(module.weight.T.contiguous())
    linear.bias = module.bias
    module._parameters["weight"] = None  # freed now, not after quantising
    return linear
