"""Parts behind gates: UniPELT (Mao et al., arXiv 2110.07577).

A gate is a linear layer to one number and a sigmoid, from 0 to 1 for every token. The paper averages the numbers of a
row; a token's own number neither depends on padding nor, in a language model, on what comes later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopeft.compose.layers.bottleneck import SerialPart
from autopeft.compose.layers.part import OwnPart, Place, dropout_of, widen
from autopeft.compose.layers.prefix import PrefixPart

__all__ = ["GatedLowRankPart", "GatedPrefixPart", "GatedSerialPart"]


class Gate(nn.Module):
    """Starts half open everywhere.

    Args:
        width: Width of what it reads.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """The number before the sigmoid: `[..., width]` -> `[..., 1]`."""
        return functional.linear(widen(h, self.weight), self.weight, self.bias)


class GatedLowRankPart(OwnPart):
    """LoRA whose gate, one for each module, stands for its scale: `y + gate(x) * B(A(dropout(x)))`."""

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        rank = int(knobs["r"])
        self.dropout = dropout_of(dropout)
        self.a = nn.Parameter(torch.empty(rank, place.in_features))
        self.b = nn.Parameter(torch.zeros(place.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.gate = Gate(place.in_features)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `OwnPart.forward`."""
        inner = functional.linear(widen(self.dropout(x), self.a), self.a)
        change = functional.linear(inner, self.b)
        return (y + torch.sigmoid(self.gate(x)) * change).to(y.dtype)


class GatedSerialPart(SerialPart):
    """A serial bottleneck behind a gate that reads what the bottleneck reads."""

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        self.gate = Gate(place.out_features)

    def change(self, h: torch.Tensor) -> torch.Tensor:
        """See `_Bottleneck.change`."""
        return torch.sigmoid(self.gate(h)) * super().change(h)


class GatedPrefixPart(PrefixPart):
    """A prefix behind a gate: a token's attention to the prefix is multiplied by the gate before it is normalised.

    The paper multiplies the prefix's keys and values by the row's number.
    """

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        self.gate = Gate(place.in_features)
        self.openness: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Leaves the projection alone and keeps the gates of the tokens for the attention that follows."""
        self.openness = functional.logsigmoid(self.gate(x))
        return y

    def log_gate(self) -> torch.Tensor | None:
        """See `PrefixPart.log_gate`."""
        # Taken, not kept: the tensor must not outlive the block.
        openness, self.openness = self.openness, None
        return None if openness is None else openness.unsqueeze(1)
