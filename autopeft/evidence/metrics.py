"""Metrics over stored per-example outputs; every one is better when larger.

The outputs of one trained adapter on one split are arrays of one length, by name:

* ``prediction`` `[rows]`: class numbers, or predicted targets;
* ``label`` `[rows]`: the right class numbers, or the targets;
* ``log_likelihood`` `[rows]`: mean log-probability (natural) of the right class or answer;
* ``exact`` `[rows]`: 1 where the generated answer equals the reference, else 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.spec import METRICS

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Outputs = Mapping[str, Array]
"""Per-example outputs by name, as above; each metric asks only for the arrays that it needs."""

ALL_METRICS: tuple[str, ...] = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))

_NEEDS: dict[str, tuple[str, ...]] = {"log_likelihood": ("log_likelihood",), "exact_match": ("exact",)}


def needs(metric: str) -> tuple[str, ...]:
    """Names of the arrays that a metric reads.

    Raises:
        ValueError: The metric does not exist.
    """
    if metric not in ALL_METRICS:
        raise ValueError(f"no metric {metric!r}; there are {', '.join(ALL_METRICS)}")
    return _NEEDS.get(metric, ("prediction", "label"))


def checked(metric: str, outputs: Outputs) -> tuple[Array, ...]:
    """The arrays that a metric reads, of one length, at least one row, all finite.

    Raises:
        ValueError: An array is missing, empty, of another length than the others, not one-dimensional, or not finite.
    """
    names = needs(metric)
    missing = [name for name in names if name not in outputs]
    if missing:
        raise ValueError(f"{metric} needs the arrays {', '.join(names)}; missing: {', '.join(missing)}")
    arrays = tuple(np.asarray(outputs[name]) for name in names)
    for name, array in zip(names, arrays, strict=True):
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"{name} must hold one value for each of at least one row, not the shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite numbers")
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"the arrays {', '.join(names)} differ in length: {[len(array) for array in arrays]}")
    return arrays


def score(metric: str, outputs: Outputs) -> float:
    """The value of a metric.

    Where a metric is undefined (a constant prediction has no correlation, a class that never occurs no F1) it is 0.0,
    never NaN: such a model has learnt nothing that the metric sees.

    Args:
        metric: A name of `autopeft.spec.METRICS`. ``f1`` is that of class 1 in a task of two classes, and the mean over
            classes weighted by frequency where there are more.
        outputs: Per-example outputs, `[rows]` each.

    Raises:
        ValueError: No such metric, or an array is missing, empty, of another length, or not finite.
    """
    arrays = checked(metric, outputs)
    return statistic(metric, arrays, class_count(metric, arrays))


def undefined(metric: str, outputs: Outputs) -> bool:
    """Whether the labels admit no value of a metric, whatever is predicted: there `score` says nothing of the model.

    One row, or rows of one target, have no correlation; rows of one class none of Matthews', and without a row of
    class 1 a task of two classes has no F1.

    Args:
        metric: A name of `autopeft.spec.METRICS`.
        outputs: Per-example outputs, `[rows]` each.

    Raises:
        ValueError: As `score`.
    """
    arrays = checked(metric, outputs)
    if metric == "f1":
        return class_count(metric, arrays) == 2 and not bool((arrays[1] == 1).any())
    return metric in ("matthews", "pearson", "spearman") and _constant(np.asarray(arrays[1], np.float64))


def per_example(metric: str, outputs: Outputs) -> Floats | None:
    """The values, float64 `[rows]`, whose mean is the metric; None for a metric that is no mean over examples.

    Raises:
        ValueError: As `score`.
    """
    arrays = checked(metric, outputs)
    if metric == "accuracy":
        return np.asarray(arrays[0] == arrays[1], dtype=np.float64)
    if metric in _NEEDS:
        return np.asarray(arrays[0], dtype=np.float64)
    return None


def bounds(metric: str) -> tuple[float, float]:
    """The smallest and the largest value that a metric can take."""
    if metric in ("log_likelihood", "neg_rmse"):
        return -np.inf, 0.0
    return (-1.0 if metric in ("matthews", "pearson", "spearman") else 0.0), 1.0


def statistic(metric: str, arrays: tuple[Array, ...], classes: int) -> float:
    """A metric from checked arrays: what a resampling loop calls thousands of times.

    Args:
        metric: Its name.
        arrays: Those that `checked` returned, or the same rows of each, `[rows]`.
        classes: `class_count` of the arrays before resampling.
    """
    if metric == "accuracy":
        return float((arrays[0] == arrays[1]).mean())
    if metric in _NEEDS:
        return float(arrays[0].mean())
    if metric in _CLASSIFIED:
        return _CLASSIFIED[metric](confusion(arrays[0], arrays[1], classes))
    return _REGRESSED[metric](arrays[0].astype(np.float64), arrays[1].astype(np.float64))


def class_count(metric: str, arrays: tuple[Array, ...]) -> int:
    """Number of classes that a metric over classes has to tell apart, at least 2; 0 for other metrics.

    Raises:
        ValueError: Predictions or labels are no class numbers from 0.
    """
    if metric not in _CLASSIFIED:
        return 0
    for array in arrays:
        if not np.issubdtype(array.dtype, np.integer) and not (array == np.floor(array)).all():
            raise ValueError(f"{metric} compares class numbers, but there are fractions among them")
        if array.min() < 0:
            raise ValueError(f"{metric} compares class numbers from 0, but there is a {array.min()}")
    return max(2, *(int(array.max()) + 1 for array in arrays))


# The metrics over classes work on a table of counts: a verdict recomputes them some 10,000 times, which
# scikit-learn's checks of its inputs would stretch to a minute. The tests hold them to scikit-learn's values.


def confusion(prediction: Array, label: Array, classes: int) -> Floats:
    """Rows by right class and predicted class, float64 `[classes, classes]`."""
    cells = label.astype(np.int64) * classes + prediction.astype(np.int64)
    counts = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    return np.asarray(counts, dtype=np.float64)


def f1_by_class(counts: Floats) -> Floats:
    """F1 of each class, 0.0 where it neither occurs nor is predicted: `[classes]`."""
    both = counts.sum(0) + counts.sum(1)
    values = np.zeros(len(counts))
    np.divide(2.0 * np.diag(counts), both, out=values, where=both > 0)
    return values


def _f1(counts: Floats) -> float:
    values = f1_by_class(counts)
    return float(values[1]) if len(values) == 2 else float(values @ counts.sum(1) / counts.sum())


def _macro_f1(counts: Floats) -> float:
    # Over the classes that occur in the labels: a wrong guess at a class without rows costs the others' recall already.
    return float(f1_by_class(counts)[counts.sum(1) > 0].mean())


def _matthews(counts: Floats) -> float:
    """The correlation of Gorodkin (2004, Comput. Biol. Chem. 28), which for two classes is that of Matthews."""
    total, right = counts.sum(), np.trace(counts)
    actual, guessed = counts.sum(1), counts.sum(0)
    spread = (total**2 - guessed @ guessed) * (total**2 - actual @ actual)
    return float((right * total - actual @ guessed) / np.sqrt(spread)) if spread > 0 else 0.0


def _constant(values: Floats) -> bool:
    # Below the rounding error of the values themselves the spread is noise: a constant.
    return bool(np.abs(values - values.mean()).max() <= 1e-12 * np.abs(values).max())


def _pearson(prediction: Floats, label: Floats) -> float:
    if _constant(prediction) or _constant(label):
        return 0.0
    x, y = prediction - prediction.mean(), label - label.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def _spearman(prediction: Floats, label: Floats) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(prediction), rankdata(label))


def _neg_rmse(prediction: Floats, label: Floats) -> float:
    return -float(np.sqrt(np.mean((prediction - label) ** 2)))


_CLASSIFIED: dict[str, Callable[[Floats], float]] = {"f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews}
_REGRESSED: dict[str, Callable[[Floats, Floats], float]] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "neg_rmse": _neg_rmse,
}
