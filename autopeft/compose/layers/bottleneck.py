"""Bottleneck adapters: serial (Houlsby et al., arXiv 1902.00751), parallel (He et al., arXiv 2110.04366) and Compacter
(Karimi Mahabadi et al., arXiv 2106.04647).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autopeft.compose.layers.part import OwnPart, Place, dropout_of, widen

__all__ = ["CompacterPart", "ParallelPart", "SerialPart"]

ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "tanh": torch.tanh, "silu": functional.silu}


class Kronecker(nn.Module):
    """A linear layer whose matrix is a sum of Kronecker products of small squares and rank-one matrices.

    Args:
        wide_in: Width of the input, divisible by `terms`.
        wide_out: Width of the output, divisible by `terms`.
        terms: Number of products, and the width of the squares.
    """

    def __init__(self, wide_in: int, wide_out: int, terms: int) -> None:
        super().__init__()
        self.terms = terms
        self.square = nn.Parameter(torch.empty(terms, terms, terms))
        self.read = nn.Parameter(torch.empty(terms, wide_in // terms))
        self.factor = nn.Parameter(torch.empty(terms, wide_out // terms))
        self.bias = nn.Parameter(torch.empty(wide_out))
        # The product has the spread of an ordinary layer's weight: uniform within 1 / sqrt(wide_in).
        nn.init.normal_(self.square, std=terms**-0.5)
        nn.init.normal_(self.read, std=(3 * wide_in) ** -0.5)
        nn.init.normal_(self.factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., wide_in]` -> `[..., wide_out]`, without ever making the matrix."""
        parted = x.unflatten(-1, (self.terms, -1))
        # a, b: row and column of the squares; p, q: position inside of a part; n: the term.
        inner = torch.einsum("...ap,np->...an", parted, self.read)
        mixed = torch.einsum("...an,nab->...bn", inner, self.square)
        return torch.einsum("...bn,nq->...bq", mixed, self.factor).flatten(-2) + self.bias


class _Bottleneck(OwnPart):
    """`scale * up(act(down(dropout(h))))`; `up` starts at zero, so that the adapted model starts as the base."""

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float, width: int) -> None:
        super().__init__(place, knobs, dropout)
        size = int(knobs["size"])
        self.scale = float(knobs.get("scale", 1.0))
        self.activation = str(knobs.get("activation", "relu"))
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        self.dropout = dropout_of(dropout)
        self.down = self.make(width, size, knobs)
        self.up = self.make(size, place.out_features, knobs)
        for zero in (
            self.down.bias,
            self.up.bias,
            self.up.factor if isinstance(self.up, Kronecker) else self.up.weight,
        ):
            nn.init.zeros_(zero)

    def make(self, wide_in: int, wide_out: int, knobs: Mapping[str, Any]) -> nn.Linear | Kronecker:
        """One of its two layers."""
        layer = nn.Linear(wide_in, wide_out)
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        return layer

    def change(self, h: torch.Tensor) -> torch.Tensor:
        """What is added to the output: `[..., width]` -> `[..., out_features]`."""
        inner = self.down(self.dropout(widen(h, self.down.bias)))
        return self.up(ACTIVATIONS[self.activation](inner)) * self.scale


class SerialPart(_Bottleneck):
    """A bottleneck after the module, with a skip connection: `y + scale * up(act(down(y)))`."""

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout, place.out_features)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `OwnPart.forward`."""
        return (y + self.change(y)).to(y.dtype)


class CompacterPart(SerialPart):
    """A serial bottleneck of Kronecker layers. The squares belong to each site (the paper shares them)."""

    def make(self, wide_in: int, wide_out: int, knobs: Mapping[str, Any]) -> Kronecker:
        """See `_Bottleneck.make`."""
        return Kronecker(wide_in, wide_out, int(knobs["terms"]))


class ParallelPart(_Bottleneck):
    """A bottleneck beside the feed-forward block, or beside the module alone when the knob ``reads`` is absent.

    A hook on the module named by ``reads`` puts that module's input into `read` before this part runs.
    """

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout, place.read_features)
        self.reads: str | None = knobs.get("reads")
        self.read: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `OwnPart.forward`."""
        # Taken, not kept: the tensor must not outlive the block.
        read, self.read = (x if self.reads is None else self.read), None
        if read is None:
            raise RuntimeError(f"{self.reads} did not run before the module that its parallel adapter sits on")
        return (y + self.change(read)).to(y.dtype)


class Tap:
    """A forward pre-hook that hands a module's input to a parallel part.

    An object rather than a closure: deep copies and pickles then follow the part.

    Args:
        layer: What hosts the part: it knows whether the part is active.
        part: The part.
        adapter: The adapter that it belongs to.
    """

    def __init__(self, layer: Any, part: ParallelPart, adapter: str) -> None:
        self.layer = layer
        self.part = part
        self.adapter = adapter

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Runs before every forward pass of the module that is read."""
        if self.layer.is_active(self.adapter):
            self.part.read = args[0]
