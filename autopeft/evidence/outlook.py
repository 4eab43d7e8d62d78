"""More labels or more search? What each would add, from the rung curves and the spread of the trials.

Both gains are extrapolations with an interval, from a bootstrap over trials (Efron and Tibshirani 1993, ch. 6).

*Labels.* The score as a function of rows seen is taken for a power law (Hestness et al. 2017, arXiv 1712.00409),
`s(r) = s(R) + b (1 - (r / R)^-alpha) / alpha`, whose limit for alpha = 0 is a straight line in log r. Rows seen are
labels only while no row is seen twice, so that the rungs of one pass alone count. With two rungs alpha is unknown, and
is drawn from all that are considered.

*Search.* Twice as many trials have a higher best one: for scores with standard deviation `sigma`, by
`sigma (m(2n) - m(n))` where m(n) is the expected maximum of n standard normal draws (Blom 1958). The spread comes from
the upper half of the scores, as failed trials say nothing about the best; what seeds alone spread is taken off, as the
maximum of noise is no gain. A sampler that learns does better than this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from autopeft.evidence.metrics import Floats

__all__ = ["WORTH", "Gain", "Outlook", "labels_gain", "outlook", "search_gain"]

DRAWS = 2000
WORTH = 0.005
"""A gain below this is none, in the metric's unit."""
LEAST_CURVES, LEAST_SCORES = 3, 4
SURE = 0.9
"""In what share of the draws one gain must be the larger one to be named."""
ALPHAS = np.linspace(0.02, 2.0, 34)

Answer = Literal["labels", "search", "neither", "open", "unknown"]


@dataclass(frozen=True, slots=True)
class Gain:
    """What doubling something would add to the score: the median of the draws and their middle 95 %."""

    mid: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Floats) -> Gain:
        """From bootstrap draws `[draws]`."""
        low, mid, high = np.quantile(draws, (0.025, 0.5, 0.975))
        return cls(float(mid), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Outlook:
    """The answer.

    Attributes:
        answer: ``labels``, ``search``, ``neither`` (both gains end below `WORTH`), ``open`` (neither can be
            named over the other) or ``unknown`` (too few full trainings).
        labels: What twice the labelled rows would add, or None.
        search: What twice the trials would add, or None.
    """

    answer: Answer
    labels: Gain | None
    search: Gain | None


def labels_gain(
    rows: Sequence[int],
    scores: Sequence[Sequence[float]],
    *,
    shift: float = 0.0,
    bonus: float = 0.0,
    most: float = math.inf,
    seed: int = 0,
) -> Floats | None:
    """Draws `[draws]` of what seeing twice as many distinct rows would add to the score.

    Args:
        rows: Rows seen at each rung `[rungs]`, rising, within one pass over the labels.
        scores: Scores `[trials, rungs]` of trials that went through all of them.
        shift: Standard deviation of what other validation rows at the last rung add to all scores alike.
        bonus: Largest share of the last step that falling rates, and not rows, may have given.
        most: The metric's largest value.
        seed: Of the draws.

    Returns:
        None with fewer than three trials or two rungs.
    """
    if len(scores) < LEAST_CURVES or len(rows) < 2:
        return None
    chance = np.random.default_rng([seed, 1])
    table = np.asarray(scores, dtype=float)
    count, rungs = table.shape
    mean = table.mean(axis=0)
    picked = table[chance.integers(count, size=(DRAWS, count))].mean(axis=1)
    # Resampled means spread by (n - 1) / n of what the mean does.
    drawn = mean + (picked - mean) * math.sqrt(count / (count - 1))
    drawn[:, -1] += shift * chance.standard_normal(DRAWS)
    drawn[:, -1] -= bonus * chance.random(DRAWS) * np.maximum(drawn[:, -1] - drawn[:, -2], 0.0)
    relative = np.asarray(rows, dtype=float) / rows[-1]
    basis = (1 - relative[None, :] ** -ALPHAS[:, None]) / ALPHAS[:, None]
    centred = basis - basis.mean(axis=1, keepdims=True)
    offsets = drawn - drawn.mean(axis=1, keepdims=True)
    slopes = offsets @ centred.T / (centred**2).sum(axis=1)
    if rungs == 2:
        best = chance.integers(len(ALPHAS), size=DRAWS)
    else:
        errors = ((offsets[:, None, :] - slopes[:, :, None] * centred[None, :, :]) ** 2).sum(axis=2)
        best = errors.argmin(axis=1)
    doubled = (1 - 2.0**-ALPHAS) / ALPHAS
    gains: Floats = slopes[np.arange(DRAWS), best] * doubled[best]
    capped: Floats = np.minimum(gains, np.maximum(most - drawn[:, -1], 0.0))
    return capped


def search_gain(
    scores: Sequence[float], seeds: Sequence[Sequence[float]] = (), *, most: float = math.inf, seed: int = 0
) -> Floats | None:
    """Draws `[draws]` of what twice as many full trainings would add to the true score of the best one.

    Args:
        scores: Scores of the trials that were trained in full.
        seeds: For configurations trained with several seeds, the scores of each; none leaves the noise unknown, and
            anything up to all of the spread is drawn.
        most: The metric's largest value.
        seed: Of the draws.

    Returns:
        None with fewer than four trials.
    """
    count = len(scores)
    if count < LEAST_SCORES:
        return None
    chance = np.random.default_rng([seed, 2])
    drawn = np.asarray(scores, dtype=float)[chance.integers(count, size=(DRAWS, count))]
    above = np.maximum(drawn - np.median(drawn, axis=1, keepdims=True), 0.0)
    total = 2 * (above**2).mean(axis=1) * count / (count - 1)
    groups = [np.asarray(group, dtype=float) for group in seeds if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if freedom:
        pooled = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
        noise = pooled / chance.chisquare(freedom, size=DRAWS)
    else:
        noise = total * chance.random(DRAWS)
    signal = np.maximum(total - noise, 0.0)
    spread = np.sqrt(np.maximum(total, 1e-300))
    gains: Floats = signal / spread * (_maximum(2 * count) - _maximum(count))
    capped: Floats = np.minimum(gains, max(most - max(scores), 0.0))
    return capped


def _maximum(count: int) -> float:
    """Expected maximum of so many standard normal draws (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def outlook(labels: Floats | None, search: Floats | None) -> Outlook:
    """What to do next.

    Args:
        labels: Draws of `labels_gain`, or None.
        search: Draws of `search_gain`, or None.
    """
    gains = tuple(None if draws is None else Gain.of(draws) for draws in (labels, search))
    if labels is None or search is None or gains[0] is None or gains[1] is None:
        return Outlook("unknown", *gains)
    if max(gains[0].high, gains[1].high) < WORTH:
        return Outlook("neither", *gains)
    ahead = float(np.mean(labels > search))
    named: list[tuple[Answer, Gain, Gain, float]] = [
        ("labels", gains[0], gains[1], ahead),
        ("search", gains[1], gains[0], 1 - ahead),
    ]
    for name, gain, other, sure in named:
        if gain.low > 0 and gain.mid >= WORTH and (other.high < WORTH or sure >= SURE):
            return Outlook(name, *gains)
    return Outlook("open", *gains)
