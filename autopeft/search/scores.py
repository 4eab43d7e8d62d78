"""Journalled trials as strategies see them: by what the search is after."""

from __future__ import annotations

import math

from autopeft.journal import SearchLog, TrialLog
from autopeft.spec.costs import COSTS
from autopeft.strategy.base import TrialView
from autopeft.strategy.jobs import Arm as ArmName

MOST = 64.0
"""More steps than any cost is worth, so that what keeps the margin counts above what does not."""


class Scores:
    """Scores of an arm's trials. Final.

    They are the metric's, with one exception: where a margin is given, the space is searched for the cheapest adapter
    that keeps it. A trial that is within half of the margin of the best tuned LoRA at the same rung counts for what it
    saves, above every trial that is not.

    Args:
        log: The journal, folded.
        arm: The arm.

    Attributes:
        marks: Rung -> the best score of tuned LoRA there; empty where no margin is given. The scores of one `Scores`
            and another with the same marks are the same.
    """

    def __init__(self, log: SearchLog, arm: ArmName) -> None:
        self._log = log
        self._metric = log.rung_metric
        margin = log.header.get("procedure", {}).get("margin")
        # Where rungs are judged by another metric than the final one the margin says nothing about them.
        self._margin: float | None = margin if arm == "space" and log.metric == self._metric else None
        self.marks: dict[int, float] = log.index.marks() if self._margin is not None else {}

    def view(self, trial: TrialLog) -> TrialView:
        """A trial as its strategy sees it."""
        log = self._log
        scores = tuple(self._score(trial, rung.rung, rung.metrics[self._metric]) for rung in trial.rungs)
        status = {"cancelled": "failed"}.get(trial.status, trial.status)
        values = log.configurations[trial.hash].values
        violation = 1.0 if trial.status == "infeasible" else 0.0
        limit = log.header.get("spec", {}).get("budget", {}).get("max_memory")
        if trial.reason == "max_memory" and limit and trial.peak_bytes:
            violation = trial.peak_bytes / limit - 1.0
        return TrialView(trial.id, trial.index, values, scores, status, violation)

    def _score(self, trial: TrialLog, rung: int, score: float) -> float:
        if self._margin is None or rung not in self.marks:
            return score
        mark = self.marks[rung] - self._margin / 2
        if score < mark:
            return score
        # What keeps the mark is good enough: from there on what it costs counts, in steps that stay within one margin.
        cost = self._log.cost(trial.hash, trial.purpose)
        if not math.isfinite(cost):
            return mark
        worth = COSTS[self._log.cost_name].worth
        return mark + self._margin * (1.0 - math.log(max(1.0, cost), worth) / MOST)
