"""Updates of single weights and of single embeddings, whose places are chosen once and stored with the values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from autopeft.compose.layers.part import OwnPart, Place, widen

__all__ = ["ChoosingPart", "SparsePart", "TokensPart"]


class ChoosingPart(OwnPart):
    """A part with trained values at places that are chosen after it was built.

    Attributes:
        positions: int32 `[count]`, ascending: the places. Stored with the values.
        values: float32: what is added there, from zero.
        settled: Whether the places were chosen or read back; until then it cannot be trained.
    """

    positions: torch.Tensor
    settled = False

    def check_settled(self) -> None:
        """Raise a ValueError where it would be trained at places that nobody chose."""
        if not self.settled and self.values.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"the places of a {type(self).__name__} were not chosen: call autopeft.hybrid.choose")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments, **kwargs)
        self.settled = self.settled or f"{prefix}positions" in state_dict

    def settle(self, places: torch.Tensor) -> None:
        """Take places, in any order; nothing was trained yet.

        Raises:
            ValueError: They are not as many different places as the part has values, or it was trained already.
        """
        if bool(self.values.any()):
            raise ValueError("the places of a part that was trained cannot be chosen again")
        found = torch.unique(places.detach().flatten())
        if len(found) != len(self.positions):
            raise ValueError(f"{len(found)} places were found for {len(self.positions)} values")
        self.positions.copy_(found.to(self.positions))
        self.settled = True


class SparsePart(ChoosingPart):
    """Trains a fixed number of single weights of a linear layer: FishMask (Sung et al., arXiv 2111.09839) and PaFi
    (Liao et al., arXiv 2305.16742). As many weights as LoRA of rank r has parameters.

    A position is `row * in_features + column` of the weight as torch stores it, `[out, in]`.
    """

    mergeable = True

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        self.shape = (place.out_features, place.in_features)
        count = int(knobs["r"]) * sum(self.shape)
        self.register_buffer("positions", torch.arange(count, dtype=torch.int32))
        self.values = nn.Parameter(torch.zeros(count))

    def settle_by(self, importance: torch.Tensor) -> None:
        """Take the places of highest importance.

        Args:
            importance: `[out, in]`, any float type.
        """
        self.settle(importance.float().flatten().topk(len(self.positions)).indices)

    def delta(self) -> torch.Tensor:
        """The update of the weight, `[out, in]`."""
        flat = self.values.new_zeros(self.shape[0] * self.shape[1])
        return flat.scatter(0, self.positions.long(), self.values).view(self.shape)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `OwnPart.forward`."""
        self.check_settled()
        return (y + functional.linear(widen(x, self.values), self.delta())).to(y.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """See `OwnPart.merge_into`."""
        weight, delta = module.weight.detach(), self.delta().detach()
        # GPT-2's weights are stored the other way round.
        merged = weight.float() + (delta.T if isinstance(module, Conv1D) else delta)
        module.weight = nn.Parameter(merged.to(weight.dtype), requires_grad=False)


class TokensPart(ChoosingPart):
    """Trains the embeddings of chosen tokens. A position is a token id."""

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        count = int(knobs["count"])
        self.register_buffer("positions", torch.arange(count, dtype=torch.int32))
        self.values = nn.Parameter(torch.zeros(count, place.out_features))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Adds to the embeddings `y` of the tokens `x`, int64 `[batch, length]`."""
        self.check_settled()
        tokens = x.to(self.positions.dtype)
        index = torch.searchsorted(self.positions, tokens).clamp(max=len(self.positions) - 1)
        trained = (self.positions[index] == tokens).unsqueeze(-1)
        return (y + torch.where(trained, self.values[index], 0.0)).to(y.dtype)
