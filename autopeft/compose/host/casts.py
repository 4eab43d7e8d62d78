"""Work of peft that changes nothing under autocast."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from autopeft.compose.layers.dropout import AdapterDropout

__all__ = ["spare_casts"]


def spare_casts(model: nn.Module) -> int:
    """Let plain LoRA compute the same numbers with less, in a model that is only ever run under autocast.

    peft widens the input to the type of its factors, and autocast rounds it again before the product: from bfloat16 to
    float32 and back is the same number, and so is the gradient on its way. Layers with dropout are left alone, because
    they would scale in another type, and variants of LoRA, because they compute with the input themselves. A scale that
    is a power of two is put between the factors, where it multiplies few numbers, and as exactly.

    Args:
        model: An adapted model. To call it again changes nothing.

    Returns:
        How many layers are changed.
    """
    plain = [layer for layer in model.modules() if isinstance(layer, Linear) and _plain(layer)]
    for layer in plain:
        layer.cast_input_dtype_enabled = False
        (name,) = layer.active_adapters
        if math.frexp(layer.scaling[name])[0] == 0.5 and not layer.lora_bias[name]:
            layer.forward = partial(_scaled_between, layer, name)
    return len(plain)


def _plain(layer: Linear) -> bool:
    drawn = (nn.Dropout, AdapterDropout)
    one = len(layer.active_adapters) == 1 and not layer.lora_variant
    return one and not any(isinstance(each, drawn) for each in layer.lora_dropout.values())


def _scaled_between(layer: Linear, name: str, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args or kwargs or layer.disable_adapters or layer.merged:
        other: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return other
    y: torch.Tensor = layer.base_layer(x)
    inner, scale = layer.lora_A[name](x), layer.scaling[name]
    return (y + layer.lora_B[name](inner if scale == 1.0 else inner * scale)).to(y.dtype)
