"""Points that cover an interval evenly from the first one on, and reproducible randomness by index."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["even", "pick", "stream"]

T = TypeVar("T")


def stream(*key: int | str) -> random.Random:
    """A generator that depends on the key alone, the same in every process and version."""
    return random.Random("/".join(str(part) for part in key))


def even(index: int, base: int, seed: int) -> float:
    """Number `index` of a van der Corput sequence in a base, shifted modulo 1 by the seed; in [0, 1).

    Any run of `base ** k` neighbouring indices has one point in each of as many equal intervals. Sequences in different
    prime bases go together (Halton).
    """
    result, weight, rest = 0.0, 1.0, index + 1
    while rest:
        weight /= base
        rest, digit = divmod(rest, base)
        result += digit * weight
    return (result + stream("shift", base, seed).random()) % 1.0


def pick(options: Sequence[T], weights: Sequence[float], point: float) -> T:
    """The option into whose share of the total weight a point of [0, 1) falls; options of weight 0 never."""
    target = point * sum(weights)
    last = None
    for option, weight in zip(options, weights, strict=True):
        if weight <= 0:
            continue
        last = option
        target -= weight
        if target < 0:
            return option
    if last is None:
        raise ValueError("all weights are 0")
    return last
