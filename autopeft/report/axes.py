"""Axes of drawings: from values to places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 14, 56
CLIP, SAVED = 3.0, 0.3
"""Scores that lie so many times as far below the best as the median does are cut, where that saves this share."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places.

    Attributes:
        low: Smallest value shown.
        high: Largest value shown, above `low`.
        start: Place of `low` in pixels.
        end: Place of `high` in pixels.
        log: Whether places go with the logarithm.
        cut: How many values lie below `low`.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    cut: int = 0

    def place(self, value: float) -> float:
        """Where a value goes, in pixels."""
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def clipped(self, value: float) -> float:
        """Where a value goes; at the edge where it lies below."""
        return self.place(max(self.low, value))

    def ticks(self) -> list[float]:
        """Round values to mark."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), range(1, 10)):
                fine = [digit * 10.0**power for power in powers for digit in digits]
                shown = [value for value in fine if self.low * 0.9999 <= value <= self.high * 1.0001]
                if len(shown) > 1:
                    return shown
        raw = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 5, 10) if raw <= size * factor)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def score_axis(scores: Sequence[float], clip: bool = False) -> Axis:
    """An upright axis with room around the scores.

    Args:
        scores: What is to be shown.
        clip: Whether scores that lie far below most others may be left to the edge, so that the others can be told
            apart; `below` says so.
    """
    low, high = min(scores), max(scores)
    if clip:
        higher = high - CLIP * (high - median(scores))
        low = higher if higher < high and higher - low > SAVED * (high - low) else low
    room = (high - low) * 0.08 or max(abs(high) * 0.02, 1e-3)
    return Axis(low - room, high + room, HEIGHT - BOTTOM, TOP, cut=sum(score < low - room for score in scores))


def below(axis: Axis) -> str:
    """What is to be said of values that lie below the axis."""
    if not axis.cut:
        return ""
    return f" {axis.cut} {'lies' if axis.cut == 1 else 'lie'} below the chart, drawn at its edge."


def cost_axis(values: Sequence[float]) -> Axis:
    """A level axis for sizes: logarithmic where they differ by much."""
    low, high = min(values), max(values)
    if high > 4 * low:
        return log_axis(values, 1.3)
    room = (high - low) * 0.08 or high * 0.1
    return Axis(low - room, high + room, LEFT, WIDTH - RIGHT)


def log_axis(values: Sequence[float], room: float = 1.5) -> Axis:
    """A level logarithmic axis with a factor of room at both ends; values are above 0."""
    return Axis(min(values) / room, max(values) * room, LEFT, WIDTH - RIGHT, log=True)
