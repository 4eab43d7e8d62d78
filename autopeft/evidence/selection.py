"""What choosing the best of many by the same examples adds to its score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopeft.evidence.metrics import Floats, Outputs, checked, class_count, per_example, statistic

__all__ = ["optimism"]


def optimism(metric: str, runs: Sequence[Outputs], *, resamples: int = 500, seed: int = 0) -> float:
    """By how much the best of some runs looks better than it is, because these examples chose it.

    The bootstrap bias correction of cross-validation (BBC-CV; Tsamardinos, Greasidou and Borboudakis 2018, Machine
    Learning 107, 1895-1922): the best run on a bootstrap sample of the examples is scored on the examples outside of
    it; what is missing there, on average, to the score of the run that is the best on all examples is the optimism.
    The luck of a training seed is not in it: that is what fresh seeds are for.

    Args:
        metric: A name of `autopeft.spec.METRICS`.
        runs: Outputs of one run of each configuration that was to choose from, on the same examples.
        resamples: Bootstrap samples.
        seed: Of the samples.

    Returns:
        In the metric's unit; 0.0 with fewer than two runs, and never below 0.

    Raises:
        ValueError: Examples that differ in number, or outputs that the metric cannot use.
    """
    if len(runs) < 2:
        return 0.0
    arrays = [checked(metric, run) for run in runs]
    rows = len(arrays[0][0])
    if any(len(each[0]) != rows for each in arrays):
        raise ValueError("the runs were evaluated on different numbers of examples")
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    counts = counts[(counts == 0).any(axis=1)]
    if not len(counts):
        return 0.0
    values = [per_example(metric, run) for run in runs]
    if values[0] is not None:
        table = np.array(values)
        inside, outside = _means(table, counts), _means(table, (counts == 0).astype(np.int64))
        best = float(table.mean(axis=1).max())
    else:
        classes = max(class_count(metric, each) for each in arrays)
        inside, outside = (np.empty((len(arrays), len(counts))) for _ in range(2))
        for number, drawn in enumerate(counts):
            chosen, left = np.repeat(np.arange(rows), drawn), np.flatnonzero(drawn == 0)
            for run, each in enumerate(arrays):
                inside[run, number] = statistic(metric, tuple(array[chosen] for array in each), classes)
                outside[run, number] = statistic(metric, tuple(array[left] for array in each), classes)
        best = max(statistic(metric, each, classes) for each in arrays)
    picked = inside.argmax(axis=0)
    return max(0.0, best - float(outside[picked, np.arange(len(counts))].mean()))


def _means(table: Floats, counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Floats:
    """Means of `[runs, rows]` under weights `[samples, rows]`: `[runs, samples]`."""
    return np.asarray(table @ counts.T / counts.sum(axis=1))
