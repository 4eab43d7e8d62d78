"""Which limit ended a search: what must be raised to go on with it."""

from __future__ import annotations

from typing import Literal

from autopeft.journal import SearchLog

__all__ = ["Extensible", "ending"]

Extensible = Literal["max_time", "max_trials", "max_compute"]


def ending(log: SearchLog) -> Extensible:
    """The limit that ended the exploration, or will end it.

    Args:
        log: The journal, folded.
    """
    budget = log.plan.get("budget") or log.header.get("spec", {}).get("budget") or {}
    time, compute = budget.get("max_time"), budget.get("max_compute")
    # A search without a limit of its own has a number of trials in its plan.
    trials = log.plan.get("max_trials") or budget.get("max_trials")
    explored = sum(trial.purpose == "explore" for trial in log.trials.values())
    if trials is not None and (explored >= trials or (time is None and compute is None)):
        return "max_trials"
    if compute is not None and (time is None or log.busy / compute > log.used / time):
        return "max_compute"
    return "max_time"
