"""How often a verdict and a whole search err: what stands beside every verdict in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FALSE_BETTER", "NOT_TIES", "REAL", "SEARCHES", "WHOLE", "WITHIN", "ErrorRate", "error_rate"]

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
WHOLE = 200
"""Whole simulated searches in each setting of `NOT_TIES`."""
NOT_TIES: dict[str, int] = {
    "equal": 4,
    "equal, 200 rows": 2,
    "equal, 3100 rows": 4,
    "equal, decided": 4,
    "tuned": 9,
    "shuffled": 1,
    "mixtures": 4,
    "mixtures, pareto": 3,
}
"""Setting -> how many of `WHOLE` simulated searches between equal spaces ended otherwise than ``tie``. Made by
``benchmarks/search_error_rate.py``, which says what the settings are."""
WITHIN: dict[str, tuple[int, int]] = {"within": (1, 144), "lossy": (0, 200)}
"""How often ``within`` was wrong: of the verdicts ``within`` where it may be right, and of all searches where it cannot
be. Made by ``benchmarks/search_error_rate.py``, which says what the settings are."""
REAL: tuple[int, int, int] | None = (0, 0, 20)
"""Real searches of LoRA against LoRA: how many ended ``better`` or ``worse``, how many had no time for a verdict
(``unconfirmed``), and of how many; None until there are 20 on record. Made by ``benchmarks/real_searches.py``."""


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """False-positive rates.

    Attributes:
        wrong: How many simulated verdicts between equals were ``better``.
        searches: Of how many.
        rows: Validation rows of the simulation.
        seeds: Seeds of each finalist there.
        not_ties: How many whole simulated searches between equals ended otherwise than ``tie``, in the worst setting.
        whole: Of how many.
        real: Of real searches, how many ended ``better`` or ``worse``, without a verdict, and of how many; or None.
    """

    wrong: int
    searches: int
    rows: int
    seeds: int
    not_ties: int
    whole: int
    real: tuple[int, int, int] | None


def error_rate(rows: int, seeds: int) -> ErrorRate | None:
    """The rates at the nearest simulated number of rows, and at most as many seeds.

    Args:
        rows: Validation rows of the verdict.
        seeds: Seeds of each finalist; below 2 there is no verdict that could err, and the answer is None.
    """
    fewer = [simulated for _, simulated in FALSE_BETTER if simulated <= seeds]
    if rows < 1 or not fewer:
        return None
    nearest = min({known for known, _ in FALSE_BETTER}, key=lambda known: abs(math.log(known / rows)))
    wrong = FALSE_BETTER[nearest, max(fewer)]
    return ErrorRate(wrong, SEARCHES, nearest, max(fewer), max(NOT_TIES.values()), WHOLE, REAL)
