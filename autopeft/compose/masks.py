"""Which single weights a sparse update trains: rules that look at a frozen weight and choose a fixed number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autopeft.methods.sparse import MASK_SEED

__all__ = ["MASKS"]

Rule = Callable[[torch.Tensor, int], torch.Tensor]


def _random(weight: torch.Tensor, count: int) -> torch.Tensor:
    # As peft chooses them with this seed, so that plain peft finds them again.
    return torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(MASK_SEED))[:count]


def _smallest(weight: torch.Tensor, count: int) -> torch.Tensor:
    return weight.detach().abs().flatten().float().topk(count, largest=False).indices


def _as_mask(rule: Rule) -> Callable[..., torch.Tensor]:
    """A rule as peft's SHiRA asks for it: `(layer, r) -> mask`, 1 at the chosen weights.

    As many weights are chosen as LoRA of rank r has parameters.
    """

    def mask(base_layer: nn.Module, r: int, **more: Any) -> torch.Tensor:
        weight = base_layer.weight
        count = int(r) * sum(weight.shape)
        # Without values any choice has the right number of weights, and nothing else is asked of it.
        chosen = torch.arange(count, device="cpu") if weight.is_meta else rule(weight, count)
        with torch.device("cpu" if weight.is_meta else weight.device):
            flat = torch.zeros(weight.numel())
            flat[chosen.to(flat.device)] = 1.0
        return flat.view(weight.shape)

    return mask


MASKS: dict[str, Callable[..., torch.Tensor]] = {"random": _as_mask(_random), "smallest": _as_mask(_smallest)}
"""Value of the knob ``mask`` -> rule."""
