"""What a search spends beside its trials and its finalists' runs: known before anything runs, for plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.search.division import Division
from autopeft.search.drops import most_drops
from autopeft.space.configuration import Configuration
from autopeft.space.modules import ModuleMap
from autopeft.space.simplify import simpler
from autopeft.spec import Budget
from autopeft.spec.costs import latency_of_all
from autopeft.trial.latency import latency_seconds

__all__ = ["NOTHING_BESIDE", "Beside", "beside", "full_seconds"]


def full_seconds(division: Division) -> float:
    """Device-seconds of one full training and its evaluation."""
    speed = division.speed
    return division.final_rows * speed.train + division.final_evaluated * speed.evaluate + speed.generate


@dataclass(frozen=True, slots=True)
class Beside:
    """What a search does beside its trials and the finalists' runs.

    Attributes:
        latency: Seconds of measuring one configuration's latency.
        limited: Whether every configuration is measured, as something goes by it.
        finalists: In how many runs of each finalist it is measured.
        drops: Groups of parts of the challenger that are dropped in turn, at most.
    """

    latency: float = 0.0
    limited: bool = False
    drops: int = 0
    finalists: int = 1

    @property
    def runs(self) -> int:
        """Full trainings that dropping takes at most."""
        return self.drops + 1 + (self.drops > 1) if self.drops else 0

    def seconds(self, division: Division, trials: int) -> float:
        """Device-seconds of all of it.

        Args:
            division: The budget, divided.
            trials: Trials that start.
        """
        measured = (trials + self.runs) * self.limited + division.finalists * self.finalists
        return self.runs * full_seconds(division) + measured * self.latency


NOTHING_BESIDE = Beside()


def beside(
    drawn: Sequence[Configuration],
    modules: ModuleMap,
    division: Division,
    budget: Budget,
    evidence: str,
    *,
    cost: str = "params",
) -> Beside:
    """What a search does beside trials and finalists, as far as it can be known before.

    Args:
        drawn: Configurations of the space: the one of most parts stands for the challenger.
        modules: The module map.
        division: The budget, divided.
        budget: The limits.
        evidence: Its level; `quick` drops nothing.
        cost: What an adapter is cheap in.
    """
    limited, merged = budget.max_latency_overhead is not None, budget.target == "merged"
    groups = max((len(simpler(each, modules, budget.target)) for each in drawn), default=0)
    measured_of_all = latency_of_all(budget, cost)
    latency = latency_seconds(division.speed.evaluate, limited=limited, merged=merged)
    drops = most_drops(
        0 if evidence == "quick" else groups,
        full_seconds(division) + (latency if measured_of_all else 0.0),
        division.workers,
        division.explore_until,
        division.max_trials,
    )
    return Beside(
        latency, measured_of_all, drops, len(division.seeds) if cost == "latency" else int(not measured_of_all)
    )
