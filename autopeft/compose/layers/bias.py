"""Bias delta (BitFit, arXiv 2106.10199), as an addition, so that switching it off gives the base back exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autopeft.compose.layers.part import OwnPart, Place

__all__ = ["BiasPart"]


class BiasPart(OwnPart):
    """`y + delta`, with `delta` `[out_features]` starting at zero."""

    mergeable = True

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        self.delta = nn.Parameter(torch.zeros(place.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `OwnPart.forward`."""
        return (y + self.delta).to(y.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """See `OwnPart.merge_into`."""
        bias = module.bias.detach()
        module.bias = nn.Parameter((bias + self.delta.detach()).to(bias.dtype), requires_grad=False)
