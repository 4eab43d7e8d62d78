"""Sampling without a model of the results: the space's prior, and small changes to a good point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autopeft.space.configuration import Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.strategy.base import Sampler, TrialView
from autopeft.strategy.trials import Trials

Prior = Callable[[int], Values]
"""Point number i of the space's stratified prior: the same point whenever it is asked for."""


class RandomSampler(Sampler):
    """Takes the points of the space's prior in their order.

    The baseline that any other sampler has to beat (Bergstra and Bengio 2012, JMLR 13); because the prior is
    stratified, its first points cover the range of sizes better than independent draws would.

    Args:
        prior: Point number i.
    """

    def __init__(self, prior: Prior) -> None:
        self._prior = prior

    def propose(self, index: int, trials: Sequence[TrialView]) -> Values:
        """Point `index` of the prior, whatever has happened."""
        return dict(self._prior(index))


def estimates(trials: Sequence[TrialView]) -> dict[str, float]:
    """What each trial would score at the highest rung that any trial has reached.

    Trials stop at different rungs, so their last scores do not compare: a bad point trained to the end can beat a good
    one that has just begun. Each trial's last score is lifted by the median gain, rung by rung, of the trials that were
    observed at both ends of the step. Among trials of one rung the order is that of their scores; across rungs a
    promoted trial that then disappoints falls behind a paused one, which an order by rung first would never allow.

    Args:
        trials: Those without scores, and failed or infeasible ones, are left out.

    Returns:
        Trial id -> estimate.
    """
    return {trial.trial: estimate for estimate, trial in Trials.of(trials).best()}


def mutate(values: Values, dimensions: Sequence[Dimension], rng: np.random.Generator) -> dict[str, Scalar]:
    """A neighbour of a point: one or two of its dimensions moved.

    An ordered choice moves by one place, another choice to any other option, a real by a normal step of a tenth of its
    range (of its logarithm where it is searched on a log scale), reflected at the ends.

    Args:
        values: The point; it stays as it is.
        dimensions: All dimensions of the encoding.
        rng: Source of randomness.
    """
    movable = [d for d in dimensions if isinstance(d, Real) or len(d.options) > 1]
    moved: dict[str, Scalar] = dict(values)
    if not movable:
        return moved
    count = min(len(movable), 1 + int(rng.integers(2)))
    for place in rng.choice(len(movable), count, replace=False):
        dimension = movable[int(place)]
        moved[dimension.name] = _neighbour(dimension, values[dimension.name], rng)
    return moved


def position(dimension: Choice, value: Scalar) -> int | None:
    """The place of a value among a choice's options, or None; ``1``, ``1.0`` and ``True`` are different options."""
    for place, option in enumerate(dimension.options):
        if option == value and type(option) is type(value):
            return place
    # A journal may have turned 1.0 into 1; a number still means the option of that value when only one has it.
    equal = [place for place, option in enumerate(dimension.options) if option == value]
    return equal[0] if len(equal) == 1 and not isinstance(value, bool) else None


def inside(values: Mapping[str, Scalar], dimensions: Sequence[Dimension]) -> bool:
    """Whether a point has a legal value for every dimension."""
    for dimension in dimensions:
        value = values.get(dimension.name)
        if value is None:
            return False
        if isinstance(dimension, Choice):
            if position(dimension, value) is None:
                return False
        elif isinstance(value, str) or not dimension.low <= value <= dimension.high:
            return False
    return True


def _neighbour(dimension: Dimension, value: Scalar, rng: np.random.Generator) -> Scalar:
    if isinstance(dimension, Choice):
        here, last = position(dimension, value) or 0, len(dimension.options) - 1
        if not dimension.ordered:
            others = [place for place in range(last + 1) if place != here]
            return dimension.options[others[int(rng.integers(len(others)))]]
        step = 1 if here == 0 or (here < last and rng.random() < 0.5) else -1
        return dimension.options[here + step]
    low, high, at = dimension.low, dimension.high, float(value)
    if dimension.log:
        low, high, at = math.log(low), math.log(high), math.log(at)
    at += float(rng.normal()) * 0.1 * (high - low)
    at = 2 * low - at if at < low else 2 * high - at if at > high else at
    at = min(max(at, low), high)
    return min(max(math.exp(at) if dimension.log else at, dimension.low), dimension.high)
