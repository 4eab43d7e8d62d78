"""Trained biases in plain peft's form, and the base's own biases at the precision that they were stored in.

Here a trained bias is a delta beside the frozen one. Plain peft has none: a config with ``bias="all"`` or
``"lora_only"`` stores whole biases and loads them over those of the base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftConfig

from autopeft.compose.base import Carrier
from autopeft.space.beside import BIAS, without_biases
from autopeft.space.configuration import Configuration

__all__ = ["as_deltas", "say_biases", "whole_biases"]

PREFIX = "base_model.model."
DELTA = ".bias_part.delta"


def say_biases(config: PeftConfig, configuration: Configuration) -> None:
    """Let a config of LoRA name what it writes: ``lora_only`` where exactly the adapted modules have trained biases."""
    biased = {name for name, part in configuration.parts() if part.method == BIAS}
    config.bias = "lora_only" if biased == _adapted(configuration) else "all"


def whole_biases(
    tensors: Mapping[str, torch.Tensor], configuration: Configuration, carrier: Carrier
) -> dict[str, torch.Tensor]:
    """An adapter's tensors as plain peft names them, with float32 sums of base and delta for trained biases.

    Biases that were not trained are left out: plain peft keeps those of the base then.

    Args:
        tensors: By the hybrid's names.
        configuration: What was trained: LoRA or DoRA, and biases.
        carrier: What it was trained on.
    """
    adapted = _adapted(configuration)
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(DELTA):
            site = name.removeprefix(PREFIX).removesuffix(DELTA)
            delta = tensor.detach().cpu().float()
            found[_stored_name(site, adapted)] = _frozen(carrier, site) + delta
        else:
            found[name] = tensor
    return found


def as_deltas(
    tensors: Mapping[str, torch.Tensor], configuration: Configuration, carrier: Carrier
) -> dict[str, torch.Tensor]:
    """The inverse of `whole_biases`, up to the rounding of one float32 subtraction.

    Names that it does not know stay, so that a caller finds what is missing and what is too much.
    """
    adapted = _adapted(configuration)
    found = dict(tensors)
    for site, part in configuration.parts():
        stored = _stored_name(site, adapted)
        if part.method == BIAS and stored in found:
            found[f"{PREFIX}{site}{DELTA}"] = found.pop(stored).float() - _frozen(carrier, site)
    return found


def _adapted(configuration: Configuration) -> set[str]:
    rest = without_biases(configuration)
    return set() if rest is None else {name for name, _ in rest.sites}


def _stored_name(site: str, adapted: set[str]) -> str:
    return f"{PREFIX}{site}.base_layer.bias" if site in adapted else f"{PREFIX}{site}.bias"


def _frozen(carrier: Carrier, site: str) -> torch.Tensor:
    """A frozen bias in float32, as exactly as it is known: plain peft may load a base of full precision."""
    name = f"{site}.bias"
    for known in (name, name.removeprefix(f"{carrier.model.base_model_prefix}.")):
        if known in carrier.biases:
            return torch.tensor(carrier.biases[known])
    return carrier.model.get_parameter(name).detach().cpu().float()
