"""Intervals and verdicts: how sure a score, or a difference of scores, is.

Two things vary from one evaluation to the next: the training seed, and which examples happen to be in the validation
set. With S seeds of an arm on the same N examples, the variance of the arm's mean score has a component for each:

* ``examples``: the variance of the score when examples are drawn again (all seeds keep the same draw, and in a
  comparison both arms do, so that what they share cancels). For a metric that is a mean over examples it is the
  variance of the per-example (difference of) seed means over N, the closed form of the bootstrap; for others the
  variance over bootstrap resamples (Efron and Tibshirani 1993, ch. 6).
* ``seeds``: the sample variance of the S scores over S. A bootstrap over seeds would find only (S - 1) / S of it, half
  with two seeds, and would not know that a variance from one or two degrees of freedom is itself a guess: that is why
  the seed level is not resampled but enters with its unbiased variance and Student's quantile.

A *verdict* adds the two half-widths as sides of a right angle (Howe 1974, JASA 69, 789-794):

    h^2 = z^2 * examples + t^2 * seeds,    t with (S_challenger + S_baseline - 2) degrees of freedom,

which is exact where either component dominates and errs on the safe side between. Each component also contains the
interaction of seed and example; it is left counted twice, which makes a verdict a little more cautious still and pays
for the finalists having been chosen on these examples. ``benchmarks/verdict_error_rate.py`` measures the outcome.

The *interval* of a single arm decides nothing, and Student's quantile with S - 1 = 1 is 12.7; it takes the total
variance with Welch and Satterthwaite's degrees of freedom instead. In simulation its 95 % interval covers 95 to 97 %
at a seed spread of 0.4 points, and 89 % at worst (two seeds that differ far more than 3,100 examples can explain).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from autopeft.evidence.metrics import Array, Floats, Outputs, bounds, checked, class_count, per_example, statistic
from autopeft.spec.costs import COSTS, Cost

VerdictName = Literal["better", "within", "tie", "worse", "unconfirmed"]
_BINARY = ("accuracy", "exact_match")
LEVEL = 0.95
"""Confidence of intervals and verdicts."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and how sure it is.

    Attributes:
        mean: Mean over seeds.
        low: Lower end.
        high: Upper end.
        seeds: Number of seeds; with 1 the interval knows only of the examples' part.
    """

    mean: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a challenger compares with a baseline.

    Attributes:
        name: ``better`` or ``worse``: zero lies outside the interval of the difference; ``tie``: inside; ``within``: a
            margin was given, the whole interval lies above its negative, and the challenger is the cheaper one;
            ``unconfirmed``: fewer than two seeds in an arm.
        difference: Mean score of the challenger less that of the baseline.
        low: Lower end of its interval.
        high: Upper end.
        takes: The arm to use: the better one; on a tie the cheaper one, or with a margin, which
            was not shown to be kept, the baseline.
        reason: One sentence for the user.
    """

    name: VerdictName
    difference: float
    low: float
    high: float
    takes: Literal["challenger", "baseline"]
    reason: str


def interval(
    metric: str, runs: Sequence[Outputs], *, level: float = LEVEL, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean score of one configuration over its seeds, and the interval around it.

    Args:
        metric: A name of `autopeft.spec.METRICS`.
        runs: Outputs of one run per seed, on the same examples.
        level: Share of such intervals that hold the expected score over seeds and examples, in (0, 1).
        resamples: Bootstrap resamples, for metrics that are no mean over examples.
        seed: Of the resamples.

    Raises:
        ValueError: No runs, examples that differ between runs, or outputs that the metric cannot use.
    """
    from scipy.stats import t

    _check_runs(metric, runs, level)
    scores = _scores(metric, runs)
    examples = _example_variance(metric, runs, (), resamples, seed)
    seeds = float(scores.var(ddof=1)) / len(scores) if len(scores) > 1 else 0.0
    total = examples + seeds
    rows = len(checked(metric, runs[0])[0])
    parts = examples**2 / max(rows - 1, 1) + seeds**2 / max(len(scores) - 1, 1)
    freedom = total**2 / parts if parts > 0 else np.inf
    half = float(t.ppf(0.5 + level / 2, freedom)) * total**0.5 if total > 0 else 0.0
    smallest, largest = bounds(metric)
    mean = float(scores.mean())
    return Interval(mean, max(smallest, mean - half), min(largest, mean + half), len(scores))


def compare(
    metric: str,
    challenger: Sequence[Outputs],
    baseline: Sequence[Outputs],
    *,
    costs: tuple[float, float],
    cost: Cost = COSTS["params"],
    margin: float | None = None,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Whether a challenger is better than a baseline, over new seeds and new examples.

    When both arms are equally good, a false ``better`` is meant to come up in at most (1 - level) / 2 of comparisons.

    Args:
        metric: A name of `autopeft.spec.METRICS`.
        challenger: Outputs of one run per seed.
        baseline: Likewise, on the same examples; numbers of seeds may differ.
        costs: Of challenger and baseline: the cheaper one is taken on a tie, the baseline if neither is; infinite where
            one is not known.
        cost: What these are.
        margin: By how much a cheaper challenger may be worse (a test of non-inferiority: Blackwelder 1982, Controlled
            Clinical Trials 3, 345-353), in the metric's unit, above 0. A false ``within`` is meant to come up in at
            most (1 - level) / 2 of comparisons of a challenger that is worse by the margin.
        level: Confidence of the interval, in (0, 1).
        resamples: Bootstrap resamples, for metrics that are no mean over examples.
        seed: Of the resamples.

    Raises:
        ValueError: An arm without runs, examples that differ, outputs that the metric cannot use, or a margin of 0.
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"a margin must be above 0, not {margin}")
    if not challenger or not baseline:
        raise ValueError("both arms need at least one run")
    _check_runs(metric, [*challenger, *baseline], level)
    ours, theirs = _scores(metric, challenger), _scores(metric, baseline)
    difference = float(ours.mean() - theirs.mean())
    half = _half_width(ours, theirs, _example_variance(metric, challenger, baseline, resamples, seed), level)
    low, high = difference - half, difference + half
    cheaper: Literal["challenger", "baseline"] = "challenger" if cost.cheaper(*costs) else "baseline"
    shown = f"{difference:+.4f} {metric} ({level:.0%} interval {low:+.4f} to {high:+.4f})"
    seeds = f"{len(ours)} and {len(theirs)} seeds"
    if min(len(ours), len(theirs)) < 2:
        takes = cheaper if difference == 0 else ("challenger" if difference > 0 else "baseline")
        reason = f"{shown}, but {seeds}: at least 2 of each are needed to tell; the {takes} is taken by its mean."
        return Verdict("unconfirmed", difference, low, high, takes, reason)
    if low > 0:
        return Verdict(
            "better", difference, low, high, "challenger", f"{shown} over {seeds}: the challenger is better."
        )
    if margin is not None and cheaper == "challenger" and low > -margin:
        saved = cost.compared(*costs)
        reason = f"{shown} over {seeds}: the challenger is worse by less than {margin:g}, with {saved}."
        return Verdict("within", difference, low, high, "challenger", reason)
    if high < 0:
        return Verdict("worse", difference, low, high, "baseline", f"{shown} over {seeds}: the challenger is worse.")
    if margin is not None:
        kept = f"that the challenger is worse by less than {margin:g} was not shown"
        reason = f"{shown} over {seeds}: no difference shown, but {kept}; the baseline is taken."
        if cheaper == "baseline":
            reason = (
                f"{shown} over {seeds}: no difference shown, and nothing known to be cheaper; the baseline is taken."
            )
        return Verdict("tie", difference, low, high, "baseline", reason)
    one, other = costs if cheaper == "challenger" else costs[::-1]
    chosen = f"the {cheaper} is taken with {cost.told(one)} against {cost.number(other)}"
    if not (isfinite(costs[0]) and isfinite(costs[1])):
        chosen = "the baseline is taken, for what both cost is not known"
    elif costs[0] == costs[1]:
        chosen = f"the baseline is taken, both have {cost.told(one)}"
    return Verdict("tie", difference, low, high, cheaper, f"{shown} over {seeds}: no difference shown; {chosen}.")


def standard_error(
    metric: str, challenger: Outputs, baseline: Outputs, *, resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """The difference of two runs on the same examples, and its standard error over draws of examples.

    Args:
        metric: A name of `autopeft.spec.METRICS`.
        challenger: Outputs of one run.
        baseline: Outputs of one run on the same examples.
        resamples: Bootstrap resamples, for metrics that are no mean over examples.
        seed: Of the resamples.

    Raises:
        ValueError: Examples that differ, or outputs that the metric cannot use.
    """
    _check_runs(metric, [challenger, baseline], LEVEL)
    scores = _scores(metric, [challenger, baseline])
    variance = _example_variance(metric, [challenger], [baseline], resamples, seed)
    return float(scores[0] - scores[1]), variance**0.5


def paired_flips(challenger: Outputs, baseline: Outputs, metric: str = "accuracy") -> tuple[int, int, float]:
    """How many examples one run gets right that the other gets wrong.

    Args:
        challenger: Outputs of one run.
        baseline: Outputs of one run on the same examples.
        metric: ``accuracy`` or ``exact_match``.

    Returns:
        Examples won by the challenger, examples lost, and the two-sided p-value of the exact test of McNemar (1947).

    Raises:
        ValueError: Another metric, or examples that differ.
    """
    from scipy.stats import binomtest

    if metric not in _BINARY:
        raise ValueError(f"only {' and '.join(_BINARY)} are right or wrong on an example, not {metric}")
    _check_runs(metric, [challenger, baseline], LEVEL)
    change = _values(metric, challenger) - _values(metric, baseline)
    won, lost = int((change > 0).sum()), int((change < 0).sum())
    return won, lost, float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _half_width(ours: Floats, theirs: Floats, examples: float, level: float) -> float:
    from scipy.stats import norm, t

    squared = float(norm.ppf(0.5 + level / 2)) ** 2 * examples
    freedom = len(ours) + len(theirs) - 2
    if freedom > 0:
        # Pooled: two seeds of one arm alone say next to nothing about their own spread.
        spread = sum(float(((scores - scores.mean()) ** 2).sum()) for scores in (ours, theirs)) / freedom
        squared += float(t.ppf(0.5 + level / 2, freedom)) ** 2 * spread * (1 / len(ours) + 1 / len(theirs))
    return float(squared**0.5)


def _scores(metric: str, runs: Sequence[Outputs]) -> Floats:
    arrays = [checked(metric, run) for run in runs]
    return np.array([statistic(metric, each, class_count(metric, each)) for each in arrays])


def _values(metric: str, run: Outputs) -> Floats:
    values = per_example(metric, run)
    assert values is not None
    return values


def _example_variance(
    metric: str, challenger: Sequence[Outputs], baseline: Sequence[Outputs], resamples: int, seed: int
) -> float:
    """Variance, over draws of examples, of the challenger's mean score, less the baseline's where there is one."""
    if per_example(metric, challenger[0]) is None:
        return _resampled_variance(metric, challenger, baseline, resamples, seed)
    values = np.mean([_values(metric, run) for run in challenger], axis=0)
    if baseline:
        values = values - np.mean([_values(metric, run) for run in baseline], axis=0)
    centre = values.mean()
    if metric in _BINARY:
        # Counts near 0 have no variance of their own; made-up examples of each outcome give them one: one won and one
        # lost for a difference (Bonett and Price 2012, J. Educ. Behav. Stat. 37), two right and two wrong for a share
        # (Agresti and Coull 1998, Am. Stat. 52).
        values = np.append(values, [1.0, -1.0] if baseline else [1.0, 1.0, 0.0, 0.0])
    return float(((values - centre) ** 2).sum() / max(len(values) - 1, 1) / len(values))


def _resampled_variance(
    metric: str, challenger: Sequence[Outputs], baseline: Sequence[Outputs], resamples: int, seed: int
) -> float:
    if resamples < 2:
        raise ValueError(f"a variance needs at least 2 resamples, not {resamples}")
    rng = np.random.default_rng(seed)
    arms = [[checked(metric, run) for run in runs] for runs in (challenger, baseline) if runs]
    classes = max(class_count(metric, arrays) for arm in arms for arrays in arm)
    rows = len(arms[0][0][0])
    drawn = np.empty(resamples)
    for number in range(resamples):
        picked = rng.integers(0, rows, rows)
        means = [
            np.mean([statistic(metric, tuple(array[picked] for array in arrays), classes) for arrays in arm])
            for arm in arms
        ]
        drawn[number] = means[0] - (means[1] if baseline else 0.0)
    return float(drawn.var(ddof=1))


def _check_runs(metric: str, runs: Sequence[Outputs], level: float) -> None:
    if not runs:
        raise ValueError("there are no runs to judge")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    rows = {len(checked(metric, run)[0]) for run in runs}
    if len(rows) > 1:
        raise ValueError(f"the runs were evaluated on different numbers of examples: {sorted(rows)}")
    labels: list[Array] = [np.asarray(run["label"]) for run in runs if "label" in run]
    if any(not np.array_equal(labels[0], other) for other in labels[1:]):
        raise ValueError("the labels differ between runs: they were evaluated on different examples")
