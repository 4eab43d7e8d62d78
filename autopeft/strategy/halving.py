"""Rules that spend rows on the trials that deserve them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from autopeft.strategy.base import Decision, Halving, TrialView
from autopeft.strategy.trials import Trials, median, middle, usable


class NoHalving(Halving):
    """Every trial is trained to the end."""

    def judge(self, trial: TrialView, trials: Sequence[TrialView], rungs: int) -> Decision:
        """Always goes on."""
        return Decision("continue", "every trial is trained to the end")

    def promote(self, trials: Sequence[TrialView], rungs: int) -> str | None:
        """The first paused trial, if something else paused one."""
        return next((trial.trial for trial in Trials.of(trials).paused() if len(trial.scores) < rungs), None)


class Asha(Halving):
    """Asynchronous successive halving (Li et al. 2020, MLSys, "A System for Massively Parallel Hyperparameter Tuning").

    A trial that has reached a rung goes on at once when it is in the best 1/eta of those that were ever there, and
    pauses otherwise. Whenever a worker is free, the highest rung with a paused trial that has come into the best 1/eta
    is served first. A rung with fewer than eta trials has no best 1/eta: its trials pause, and the worker, which
    promotes nothing, starts a new one, so that no worker idles and the first trial is not promoted unseen.

    Args:
        eta: Of how many trials one goes on; above 1.

    Raises:
        ValueError: `eta` is not above 1.
    """

    def __init__(self, eta: float = 3.0) -> None:
        if not eta > 1:
            raise ValueError(f"eta must be above 1, not {eta}")
        self._eta = eta

    def judge(self, trial: TrialView, trials: Sequence[TrialView], rungs: int) -> Decision:
        """Goes on in the best 1/eta of its rung, pauses otherwise."""
        rung, known = len(trial.scores) - 1, Trials.of(trials)
        reached = known.reached(rung)
        places = math.floor(len(reached) / self._eta)
        own = trial.scores[rung]
        best = f"best 1/{self._eta:g}"
        if places == 0:
            wanted = math.ceil(self._eta)
            return Decision(
                "pause", f"{own:.4g} at rung {rung}: only {_count(len(reached))} there, {wanted} are needed"
            )
        threshold = -reached[places - 1][0]
        where = f"({threshold:.4g}) of {_count(len(reached))} at rung {rung}"
        if usable(trial) and known.rank(trial, rung) < places:
            return Decision("continue", f"{own:.4g} is in the {best} {where}")
        relation = "below" if own < threshold else "level with, but later than,"
        return Decision("pause", f"{own:.4g} is {relation} the {best} {where}")

    def promote(self, trials: Sequence[TrialView], rungs: int) -> str | None:
        """The best paused trial of the highest rung where one is in the best 1/eta."""
        return next(self.promotable(Trials.of(trials), rungs), None)

    def promotable(self, known: Trials, rungs: int) -> Iterator[str]:
        """The best paused trial of every rung where it is in the best 1/eta, the highest rung first."""
        for rung in range(rungs - 2, -1, -1):
            reached, waiting = known.reached(rung), known.waiting(rung)
            if waiting is not None and bisect_left(reached, waiting) < math.floor(len(reached) / self._eta):
                yield waiting[2]


class Hyperband(Halving):
    """Hyperband (Li et al. 2018, JMLR 18), asynchronous: several brackets of successive halving side by side.

    A trial of bracket b is trained to rung b without being judged, and competes from there on with the trials of its
    bracket only: insurance against configurations that start slowly. Trials are dealt to brackets by their index, in
    the proportions of the paper: with R rungs, bracket b has ceil(R / (R - b) * eta ** (R - 1 - b)) of a round.

    Args:
        eta: Of how many trials one goes on; above 1.

    Raises:
        ValueError: `eta` is not above 1.
    """

    def __init__(self, eta: float = 3.0) -> None:
        self._asha = Asha(eta)
        self._eta = eta
        self._deals: dict[int, tuple[int, ...]] = {}

    def bracket(self, index: int, rungs: int) -> int:
        """The bracket of a trial: the rung at which it is judged first."""
        deal = self._deal(rungs)
        return deal[index % len(deal)]

    def judge(self, trial: TrialView, trials: Sequence[TrialView], rungs: int) -> Decision:
        """Goes on below the bracket's first rung; from there on as `Asha` within the bracket."""
        rung, bracket = len(trial.scores) - 1, self.bracket(trial.index, rungs)
        if rung < bracket:
            return Decision("continue", f"bracket {bracket}: not judged before rung {bracket}, this is rung {rung}")
        decision = self._asha.judge(trial, self._rivals(bracket, trials, rungs), rungs)
        return Decision(decision.action, f"bracket {bracket}: {decision.reason}")

    def promote(self, trials: Sequence[TrialView], rungs: int) -> str | None:
        """The first that `Asha` promotes in a bracket, the bracket with the longest trainings first."""
        for bracket in range(rungs - 1, -1, -1):
            promoted = self._asha.promote(self._rivals(bracket, trials, rungs), rungs)
            if promoted is not None:
                return promoted
        return None

    def _rivals(self, bracket: int, trials: Sequence[TrialView], rungs: int) -> Trials:
        parts = Trials.of(trials).split(("hyperband", self._eta, rungs), lambda trial: self.bracket(trial.index, rungs))
        return parts.get(bracket) or Trials()

    def _deal(self, rungs: int) -> tuple[int, ...]:
        """The brackets of one round of trials, each bracket spread evenly over it."""
        if rungs not in self._deals:
            # Without the small slack a share such as 3 / 3 * 3.0 ** 2 could be rounded up to 10.
            sizes = [math.ceil(rungs / (rungs - b) * self._eta ** (rungs - 1 - b) - 1e-9) for b in range(rungs)]
            slots = sorted(((place + 0.5) / size, b) for b, size in enumerate(sizes) for place in range(size))
            self._deals[rungs] = tuple(b for _, b in slots)
        return self._deals[rungs]


class Median(Halving):
    """The median rule of Golovin et al. (2017, KDD, "Google Vizier"), at equal rows.

    A trial whose best score so far lies below the median of what the others had at the same rung is stopped for good.
    It wastes more rows than halving and loses fewer late starters.

    Args:
        minimum: Trials that must have reached a rung before it is judged; at least 2.

    Raises:
        ValueError: `minimum` is below 2.
    """

    def __init__(self, minimum: int = 4) -> None:
        if minimum < 2:
            raise ValueError(f"minimum must be at least 2, not {minimum}")
        self._minimum = minimum

    def judge(self, trial: TrialView, trials: Sequence[TrialView], rungs: int) -> Decision:
        """Stops below the median of its rung."""
        rung = len(trial.scores) - 1
        reached = Trials.of(trials).reached(rung)
        best = max(trial.scores)
        if len(reached) < self._minimum:
            return Decision("continue", f"{best:.4g} at rung {rung}: only {_count(len(reached))} there to compare with")
        halfway = median([-place[0] for place in middle(reached)])
        where = f"the median ({halfway:.4g}) of {_count(len(reached))} at rung {rung}"
        if best < halfway:
            return Decision("stop", f"{best:.4g} is below {where}")
        return Decision("continue", f"{best:.4g} is not below {where}")

    def promote(self, trials: Sequence[TrialView], rungs: int) -> str | None:
        """None: the rule pauses nothing."""
        return None


def _count(trials: int) -> str:
    return "1 trial" if trials == 1 else f"{trials} trials"
