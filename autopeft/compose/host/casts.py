"""Casts of peft that change nothing under autocast."""

from __future__ import annotations

from peft.tuners.lora.layer import LoraLayer
from torch import nn

from autopeft.compose.layers.dropout import AdapterDropout

__all__ = ["spare_casts"]


def spare_casts(model: nn.Module) -> int:
    """Leave a plain LoRA's input as it is, for a model that is only ever run under autocast.

    peft widens the input to the type of its factors, and autocast rounds it again before the product: from bfloat16 to
    float32 and back is the same number, and so is the gradient on its way. Layers with dropout are left alone, because
    they would scale in another type, and variants of LoRA, because they compute with the input themselves.

    Args:
        model: An adapted model.

    Returns:
        How many layers are changed.
    """
    plain = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and _plain(layer)]
    for layer in plain:
        layer.cast_input_dtype_enabled = False
    return len(plain)


def _plain(layer: LoraLayer) -> bool:
    drawn = (nn.Dropout, AdapterDropout)
    return not layer.lora_variant and not any(isinstance(each, drawn) for each in layer.lora_dropout.values())
