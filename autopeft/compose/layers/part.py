"""What an own layer is: a torch module that turns the input and output of a frozen module into a new output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from autopeft.compose.layers.dropout import AdapterDropout

__all__ = ["OwnPart", "Place", "dropout_of", "widen"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a part may know about where it sits.

    Attributes:
        in_features: Width of the frozen module's input.
        out_features: Width of its output.
        read_features: Width of what the module named by the knob ``reads`` reads; `in_features` without that knob.
        kv_features: Key heads x head width; 0 where there is no prefix.
    """

    in_features: int
    out_features: int
    read_features: int
    kv_features: int


class OwnPart(nn.Module, ABC):
    """A part of a method that peft lacks. Built once per site and adapter, in float32.

    Args:
        place: Where it sits.
        knobs: The knobs of the part.
        dropout: Probability of dropout on its input.
    """

    mergeable: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Called at every forward pass, after the frozen module.

        Args:
            x: The module's input, `[..., in_features]`.
            y: The module's output with the parts inside of this one, `[..., out_features]`.

        Returns:
            The new output, of the shape and type of `y`.
        """

    def merge_into(self, module: nn.Module) -> None:
        """Fold the part into a frozen module, in new storage; called only where `mergeable`."""
        raise NotImplementedError(f"{type(self).__name__} cannot be merged")


def dropout_of(p: float) -> nn.Module:
    """The dropout of a part; nothing at all for 0."""
    return AdapterDropout(p) if p > 0.0 else nn.Identity()


def widen(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` in the type of a parameter, unless autocast decides about types anyway."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(like.dtype)
