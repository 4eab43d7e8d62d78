"""What putting a challenger's parts to the test costs: known to the phase that does it and to plans alike."""

from __future__ import annotations

from autopeft.search.finals import makespan

__all__ = ["CAUTION", "SHARE", "drops_seconds", "most_drops"]

SHARE = 0.25
"""Share of the exploration's time, or of its trials, that dropping parts may take."""
CAUTION = 1.3


def drops_seconds(each: float, drops: int, slots: int) -> float:
    """Wall seconds that so many drops take: the challenger beside them, and then the run without all that can go.

    Args:
        each: Seconds of one run.
        drops: Groups of parts that are dropped one at a time; 0 takes no time.
        slots: Workers.
    """
    together = each if drops > 1 else 0.0
    return CAUTION * (makespan([each] * (drops + 1), slots) + together) if drops else 0.0


def most_drops(groups: int, each: float, slots: int, explore_seconds: float | None, max_trials: int | None) -> int:
    """As many of the groups as there is time for.

    Args:
        groups: Groups of parts that the challenger has.
        each: Seconds of one run.
        slots: Workers.
        explore_seconds: Wall seconds that exploration has in all, or None without a clock.
        max_trials: Trials that exploration may start; asked where there is no clock.
    """
    if explore_seconds is None:
        return min(groups, max(0, int(SHARE * (max_trials or 0)) - 2))
    room = SHARE * explore_seconds
    return sum(drops_seconds(each, drops, slots) <= room for drops in range(1, groups + 1))
