"""One dimension of an encoding, as a sampler sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.space.configuration import Scalar

Values = Mapping[str, Scalar]
"""A point of an encoding: dimension name -> value."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A categorical dimension. `ordered` says that neighbours are alike (sizes, batch rows)."""

    name: str
    options: tuple[Scalar, ...]
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Real:
    """A real dimension in [low, high], searched on a log scale when `log`."""

    name: str
    low: float
    high: float
    log: bool = False


Dimension = Choice | Real


def dimension_to_dict(dimension: Dimension) -> dict[str, Any]:
    """As plain values, for fingerprints and display."""
    if isinstance(dimension, Choice):
        return {"name": dimension.name, "options": list(dimension.options), "ordered": dimension.ordered}
    return {"name": dimension.name, "low": dimension.low, "high": dimension.high, "log": dimension.log}
