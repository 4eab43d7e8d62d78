"""The prior of the recipe encoding, conditioned on what fits.

Unconditioned: every method of a slot, and ``none``, equally likely; no prefix half of the time; places, lowest block,
split, tilt, rate and training options uniform; the share of the limit uniform on a log scale. Conditioning is exact:
the mixtures are few enough to be enumerated with the fewest parameters that each needs from every block upwards, and a
mixture's weight is multiplied by the part of the depth range from which it fits. A mixture that fits only if it starts
deeper than the space's range allows keeps a small weight, so that no feasible method has probability 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

from autopeft.space.bound import Limits
from autopeft.space.configuration import Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.modules import ModuleMap
from autopeft.space.placement import Mixture, Placement, Placements
from autopeft.space.sequence import even, pick, stream
from autopeft.space.values import SpaceValues

__all__ = ["RecipePrior"]

_NO_PREFIX = 0.5
_PRIME_OF = {"share": 2, "attention": 3, "block": 5, "rate": 7}
"""What must be covered evenly by few points, each in a prime base of its own; the rest is plain random."""


class Bound(Protocol):
    """What the prior needs of a bound recipe space (`autopeft.space.recipe.RecipeSpace`)."""

    values: SpaceValues
    modules: ModuleMap
    dimensions: tuple[Dimension, ...]
    placements: Placements
    mixtures: dict[Placement, Mixture]
    within: Limits
    largest_params: int


class RecipePrior:
    """Draws points.

    Args:
        space: The bound space, whose dimensions and mixtures exist already.
    """

    def __init__(self, space: Bound) -> None:
        self._space = space
        self._weighted = [(mixture, self._weight(mixture)) for mixture in space.mixtures.values()]

    def draw(self, index: int, seed: int) -> Values:
        """Point number `index`; neighbouring indices are spread over the log of the parameters and over methods."""
        generator = stream("recipe", seed, index)
        mixture = self._mixture(index, seed, generator.random)
        start = self._start(mixture, generator.random())
        drawn: dict[str, Scalar] = {}
        placement = mixture.placement
        chosen: dict[str, Scalar] = {
            "attention": placement.attention,
            "attention_sites": placement.sites,
            "block": placement.block,
            "extra": placement.extra,
            "prefix": placement.prefix,
            "start": start,
        }
        for dimension in self._space.dimensions:
            # Taken for every dimension, so that fixing one does not move the others.
            uniform = generator.random()
            name = dimension.name
            if name in chosen:
                drawn[name] = chosen[name]
            elif isinstance(dimension, Choice):
                drawn[name] = dimension.options[int(uniform * len(dimension.options))]
            elif name == "share":
                drawn[name] = self._share(dimension, mixture, start, even(index, _PRIME_OF["share"], seed))
            else:
                place = even(index, _PRIME_OF[name], seed) if name in _PRIME_OF else uniform
                drawn[name] = dimension.low + place * (dimension.high - dimension.low)
        return drawn

    def _mixture(self, index: int, seed: int, uniform: Callable[[], float]) -> Mixture:
        left = self._weighted
        for field in ("attention", "block"):
            totals = _totals(left, field)
            value = pick(list(totals), list(totals.values()), even(index, _PRIME_OF[field], seed))
            left = [item for item in left if getattr(item[0].placement, field) == value]
        return pick([mixture for mixture, _ in left], [weight for _, weight in left], uniform())

    def _weight(self, mixture: Mixture) -> float:
        """Probability of a mixture without conditions, times the part of the depths at which it fits."""
        lengths = [length for length in self._space.placements.lengths if length]
        weight = 1.0
        if lengths and 0 in self._space.placements.lengths:
            weight = _NO_PREFIX if mixture.placement.prefix == 0 else (1 - _NO_PREFIX) / len(lengths)
        low, high = self._feasible(mixture)
        first, last = self._space.values.start
        least = 1 / (2 * self._space.modules.blocks)
        if last == first:
            return weight * (1.0 if low <= first else least)
        return weight * max((high - low) / (last - first), least)

    def _feasible(self, mixture: Mixture) -> tuple[float, float]:
        """The depths at which a mixture fits, within the space's range where they meet it."""
        blocks = self._space.modules.blocks
        first, last = self._space.values.start
        lowest = mixture.lowest(self._space.within)
        low = max((lowest or 0) / blocks, first)
        return (low, last) if low <= last else (low, low)

    def _start(self, mixture: Mixture, place: float) -> float:
        low, high = self._feasible(mixture)
        last = self._space.values.start[1]
        return min(low + place * (high - low), last)

    def _share(self, dimension: Real, mixture: Mixture, start: float, place: float) -> float:
        """The share of the limit, even on a log scale from what the mixture needs at least."""
        block = min(int(start * self._space.modules.blocks), mixture.last)
        least = mixture.minimum[block] / self._space.largest_params
        low = min(max(dimension.low, least), dimension.high)
        return math.exp(math.log(low) + place * (math.log(dimension.high) - math.log(low)))


def _totals(weighted: Iterable[tuple[Mixture, float]], field: str) -> dict[str, float]:
    totals: dict[str, float] = {}
    for mixture, weight in weighted:
        value = getattr(mixture.placement, field)
        totals[value] = totals.get(value, 0.0) + weight
    return totals
