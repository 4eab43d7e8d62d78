"""Successive halving that also looks ahead: what can hardly become the best is not trained further."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.strategy.base import Decision, Halving, TrialView
from autopeft.strategy.halving import Asha
from autopeft.strategy.trials import Trials, usable

Vector = npt.NDArray[np.float64]

EXPONENTS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Of the power laws that are averaged."""
SEEN = 64
"""Fully trained trials that are looked at, the best ones: theirs are the gains that a rival would need."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A score after full training, as a mixture of normal distributions.

    Attributes:
        means: One for each exponent.
        deviations: Standard deviations, the noise of one measurement included.
        weights: They sum to 1.
    """

    means: Vector
    deviations: Vector
    weights: Vector

    def above(self, mark: float) -> float:
        """The chance that the score is above a mark."""
        parts = [
            0.5 * math.erfc((mark - m) / (d * math.sqrt(2))) for m, d in zip(self.means, self.deviations, strict=True)
        ]
        return float(np.dot(self.weights, parts))


class Curve(Halving):
    """`Asha`, except that a trial which can hardly become the best is stopped for good.

    Learning curves are taken for power laws in the rows seen, one of the families of Domhan, Springenberg and Hutter
    (2015, IJCAI, "Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by Extrapolation of
    Learning Curves"). In place of their Markov chains, each exponent of a grid leaves a linear model with two unknowns,
    the score in the end and the gain from the first rung, which is solved exactly; the trials that were trained in full
    give the prior of the gain, the noise, and the weight of each exponent. Until there are `minimum` of these, it is
    `Asha`.

    Args:
        eta: Of how many trials one goes on; above 1.
        chance: A trial whose chance of beating the best score after full training is below this is stopped.
        minimum: Trials that must have been trained in full before anything is stopped; at least 3.

    Raises:
        ValueError: An option is out of its range.
    """

    def __init__(self, eta: float = 3.0, chance: float = 0.05, minimum: int = 4) -> None:
        if not 0 <= chance <= 1 or minimum < 3:
            raise ValueError(f"chance {chance} must be a share, and minimum {minimum} at least 3")
        self._asha = Asha(eta)
        self._eta = eta
        self._chance = chance
        self._minimum = minimum

    def judge(self, trial: TrialView, trials: Sequence[TrialView], rungs: int) -> Decision:
        """Stops what can hardly become the best; for the rest as `Asha`."""
        known = Trials.of(trials)
        found = self._chances(trial, known, rungs)
        if found is not None and found[0] < self._chance:
            now, best = trial.scores[-1], found[1]
            return Decision(
                "stop", f"{now:.4g} at rung {len(trial.scores) - 1} beats {best:.4g} in the end with {found[0]:.1%}"
            )
        return self._asha.judge(trial, known, rungs)

    def promote(self, trials: Sequence[TrialView], rungs: int) -> str | None:
        """As `Asha`, of what may still become the best."""
        known = Trials.of(trials)
        for name in self._asha.promotable(known, rungs):
            found = self._chances(known.named(name), known, rungs)
            if found is None or found[0] >= self._chance:
                return name
        return None

    def _chances(self, trial: TrialView, known: Trials, rungs: int) -> tuple[float, float] | None:
        """The chance of beating the best score after full training, and that score; None where nothing can be said."""
        full = known.reached(rungs - 1)
        if rungs < 3 or len(full) < self._minimum or not usable(trial):
            return None
        curves = np.array([known.named(name).scores[:rungs] for _, _, name in full[:SEEN]])
        best = -full[0][0]
        return forecast(np.array(trial.scores), curves, self._eta).above(best), best


def forecast(scores: Vector, curves: Vector, eta: float) -> Forecast:
    """What a curve that has begun comes to.

    Args:
        scores: After each rung so far, at least one.
        curves: Of trials that were trained in full, ``(trials, rungs)``, at least three of each.
        eta: Ratio of rows between neighbouring rungs.
    """
    count, rungs = curves.shape
    shares = eta ** (np.arange(rungs) - (rungs - 1.0))
    designs, gains, errors = [], [], []
    for exponent in EXPONENTS:
        # 1 at the first rung, 0 at the last: the unknowns are the last score and the gain until then.
        left = (shares**-exponent - 1.0) / (shares[0] ** -exponent - 1.0)
        design = np.stack([np.ones(rungs), -left], axis=1)
        solved: Any = curves @ np.linalg.pinv(design).T
        designs.append(design)
        gains.append(solved[:, 1])
        errors.append(float(((curves - solved @ design.T) ** 2).sum()))
    noise = max(min(errors) / (count * (rungs - 2)), 1e-12)
    weights = np.exp(-(np.array(errors) - min(errors)) / (2 * noise))
    means, deviations = [], []
    for design, gain in zip(designs, gains, strict=True):
        spread = float(gain.var(ddof=1)) + noise
        seen = design[: len(scores)]
        precision = seen.T @ seen / noise + np.diag([0.0, 1.0 / spread])
        covariance = np.linalg.inv(precision)
        solution = covariance @ (seen.T @ scores / noise + np.array([0.0, float(gain.mean()) / spread]))
        means.append(float(solution[0]))
        deviations.append(math.sqrt(float(covariance[0, 0]) + noise))
    return Forecast(np.array(means), np.array(deviations), weights / weights.sum())
