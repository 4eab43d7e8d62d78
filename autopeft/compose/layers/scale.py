"""SSF: scale and shift of what a module puts out (Lian et al., arXiv 2210.08823)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.compose.layers.part import OwnPart, Place

__all__ = ["ScalePart"]


class ScalePart(OwnPart):
    """`y * scale + shift`, both `[out_features]`, from one and zero."""

    mergeable = True

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        self.scale = nn.Parameter(torch.ones(place.out_features))
        self.shift = nn.Parameter(torch.zeros(place.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `OwnPart.forward`."""
        return (y * self.scale + self.shift).to(y.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """See `OwnPart.merge_into`."""
        scale, shift = self.scale.detach(), self.shift.detach()
        weight, bias = module.weight.detach(), module.bias.detach()
        # Rows of a linear layer's weight make the outputs; GPT-2's are the columns.
        by_row = weight.ndim == 2 and not isinstance(module, Conv1D)
        scaled = weight * (scale[:, None] if by_row else scale)
        module.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
        module.bias = nn.Parameter((bias * scale + shift).to(bias.dtype), requires_grad=False)
