"""Merging stacks of parts by what they compute."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.compose.host.layer import shape_of

__all__ = ["merge_stacks"]


def merge_stacks(model: nn.Module, adapters: list[str]) -> None:
    """Merge what lies on modules with several layers of parts: peft merges single layers only.

    Linear layers are merged by what they compute, because many layers read the frozen weight as they run: merging them
    one after the other would let them read one that has changed already.
    """
    stacks = [
        (model.get_submodule(parent), attribute, name, layer)
        for name, layer in model.named_modules()
        for parent, _, attribute in [name.rpartition(".")]
        if isinstance(layer, BaseTunerLayer) and isinstance(getattr(layer, "base_layer", None), BaseTunerLayer)
    ]
    for holder, attribute, name, layer in stacks:
        if isinstance(holder, BaseTunerLayer):
            continue
        chain = [layer]
        while isinstance(chain[-1].base_layer, BaseTunerLayer):
            chain.append(chain[-1].base_layer)
        if isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
            for each in chain:
                each.set_adapter(adapters)
            setattr(holder, attribute, _computed(layer, name))
        else:
            for each in reversed(chain[1:]):
                each.merge(adapter_names=adapters)


@torch.no_grad()
def _computed(layer: BaseTunerLayer, name: str) -> nn.Module:
    """The frozen module of a stack of mergeable layers with the weight and bias that the stack computes.

    Raises:
        ValueError: The module holds no plain numbers, or has no bias for what would have to be one.
    """
    module = layer.get_base_layer()
    if not module.weight.is_floating_point():
        raise ValueError(f"{name} is quantised, and nothing can be merged into it")
    dtype, wide_in = module.weight.dtype, shape_of(module)[0]
    # In new storage: the frozen tensors may be shared.
    module.weight = nn.Parameter(module.weight.detach().float(), requires_grad=False)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach().float(), requires_grad=False)
    rows = torch.eye(wide_in, device=module.weight.device)
    bias = layer(rows.new_zeros(1, wide_in))
    weight = torch.cat([layer(chunk) - bias for chunk in rows.split(1024)])
    if module.bias is not None:
        module.bias = nn.Parameter(bias[0].to(dtype), requires_grad=False)
    elif bool(bias.abs().max() > 0):
        raise ValueError(f"{name} has no bias that a trained one could be merged into")
    plain = weight if isinstance(module, Conv1D) else weight.T.contiguous()
    module.weight = nn.Parameter(plain.to(dtype), requires_grad=False)
    return module
