"""What a comparison can show at all, before it is made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COUNTED", "Power", "detectable"]

COUNTED = ("accuracy", "exact_match")
"""Metrics that are a share of examples: the only ones whose spread is known before anything was trained."""
DISAGREEMENT = 0.07
"""Share of examples that one of two good adapters gets right and the other wrong."""
SEED_SPREAD = 0.005
"""Standard deviation of a configuration's score over seeds."""
CHANCE = 0.8
"""How often a difference shall be shown."""
MOST_ROWS = 100_000_000


@dataclass(frozen=True, slots=True)
class Power:
    """What a comparison of two finalists can show.

    Attributes:
        difference: The smallest true difference for which the verdict is ``better`` in four of five searches.
        by_rows_alone: What it would be if seeds made no difference.
        rows_for_half: Validation rows with which half of `difference` would be shown as often; None where no number of
            rows does, because the seeds alone spread too much.
        disagreement: Assumed share of examples on which the finalists differ.
        seed_spread: Assumed standard deviation of a score over seeds.
    """

    difference: float
    by_rows_alone: float
    rows_for_half: int | None
    disagreement: float
    seed_spread: float


def detectable(
    rows: int,
    seeds: int,
    *,
    disagreement: float = DISAGREEMENT,
    seed_spread: float = SEED_SPREAD,
    level: float = 0.95,
    chance: float = CHANCE,
) -> Power | None:
    """What the verdict of `autopeft.evidence.compare` can show for a share of examples.

    The estimate spreads around the true difference with the variances of examples and seeds; the verdict is ``better``
    when it exceeds the verdict's half-width; so the difference that is shown with a given chance is the half-width plus
    that quantile of the spread (Cohen 1988, ch. 1).

    Args:
        rows: Validation rows.
        seeds: Fresh seeds of each finalist.
        disagreement: Share of examples on which the two differ, in (0, 1].
        seed_spread: Standard deviation of a score over seeds.
        level: The verdict's confidence.
        chance: How often the difference shall be shown.

    Returns:
        None with fewer than two seeds: then no verdict but ``unconfirmed`` is given.

    Raises:
        ValueError: No rows, or shares outside of their range.
    """
    if rows < 1 or not 0 < disagreement <= 1 or seed_spread < 0 or not 0 < chance < 1:
        raise ValueError(f"no power is known for {rows} rows, disagreement {disagreement}, spread {seed_spread}")
    if seeds < 2:
        return None

    def shown(rows: int, spread: float) -> float:
        return _shown(disagreement / rows, 2 * spread**2 / seeds, 2 * seeds - 2, level, chance)

    difference = shown(rows, seed_spread)
    needed: int | None = None
    if shown(MOST_ROWS, seed_spread) <= difference / 2:
        few, needed = rows, MOST_ROWS
        while needed - few > 1:
            middle = (few + needed) // 2
            few, needed = (few, middle) if shown(middle, seed_spread) <= difference / 2 else (middle, needed)
    return Power(difference, shown(rows, 0.0), needed, disagreement, seed_spread)


def _shown(examples: float, seeds: float, freedom: int, level: float, chance: float) -> float:
    from scipy.stats import norm, t

    half = (
        float(norm.ppf(0.5 + level / 2)) ** 2 * examples + float(t.ppf(0.5 + level / 2, freedom)) ** 2 * seeds
    ) ** 0.5
    return float(half + float(norm.ppf(chance)) * (examples + seeds) ** 0.5)
