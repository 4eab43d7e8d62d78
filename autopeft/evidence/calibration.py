"""How often a verdict errs, by simulation: what stands beside every verdict in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FALSE_BETTER", "SEARCHES", "ErrorRate", "error_rate"]

SEARCHES = 1000
"""Simulated searches behind each number."""
FALSE_BETTER: dict[tuple[int, int], int] = {
    (200, 2): 6,
    (200, 3): 6,
    (200, 5): 10,
    (872, 2): 11,
    (872, 3): 17,
    (872, 5): 12,
    (3100, 2): 15,
    (3100, 3): 17,
    (3100, 5): 11,
}
"""`(validation rows, seeds of each finalist)` -> how many of `SEARCHES` ended ``better`` though challenger and baseline
were equally good and each the best of 20 and of 10 candidates: the worst of three spreads over seeds. Made by
``benchmarks/verdict_error_rate.py``."""


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """A false-positive rate.

    Attributes:
        wrong: How many simulated searches between equals ended ``better``.
        searches: Of how many.
        rows: Validation rows of the simulation.
        seeds: Seeds of each finalist there.
    """

    wrong: int
    searches: int
    rows: int
    seeds: int


def error_rate(rows: int, seeds: int) -> ErrorRate | None:
    """The rate at the nearest simulated number of rows, and at most as many seeds.

    Args:
        rows: Validation rows of the verdict.
        seeds: Seeds of each finalist; below 2 there is no verdict that could err, and the answer is None.
    """
    fewer = [simulated for _, simulated in FALSE_BETTER if simulated <= seeds]
    if rows < 1 or not fewer:
        return None
    nearest = min({known for known, _ in FALSE_BETTER}, key=lambda known: abs(math.log(known / rows)))
    return ErrorRate(FALSE_BETTER[nearest, max(fewer)], SEARCHES, nearest, max(fewer))
