"""Two adapters row by row: where one is right and the other wrong, and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autopeft.evidence.bootstrap import paired_flips
from autopeft.evidence.metrics import Array, Outputs, class_count, confusion, f1_by_class

_RIGHT = {"sequence_classification": ("accuracy", "prediction"), "causal_lm": ("exact_match", "exact")}
"""Task kind -> the metric by which a row is right or wrong, and an array that it reads."""


@dataclass(frozen=True, slots=True)
class Flips:
    """How two adapters differ on the same rows, one run of each.

    Attributes:
        rows: Rows compared.
        won: Rows that the first gets right and the second wrong; for regression, rows on which the first is nearer to
            the target.
        lost: The other way round.
        both_right: Rows that both get right; None for regression.
        both_wrong: Rows that both get wrong; None for regression.
        p_value: Two-sided, of the exact test of McNemar (1947, Psychometrika 12, 153-157); for regression of the sign
            test (Dixon and Mood 1946, J. Amer. Statist. Assoc. 41), which is the same calculation.
    """

    rows: int
    won: int
    lost: int
    both_right: int | None
    both_wrong: int | None
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How an adapter does on one class.

    Attributes:
        recall: Share of the class's rows that are predicted as it: the accuracy on these rows.
        f1: Harmonic mean of recall and precision.
    """

    recall: float
    f1: float


def flips(kind: str, first: Outputs, second: Outputs) -> Flips | None:
    """Rows on which two adapters differ.

    Args:
        kind: The task kind.
        first: Outputs of one run, `[rows]` each.
        second: Outputs of one run of the other.

    Returns:
        None where the two were not judged on the same rows, or no row is right or wrong.
    """
    if kind == "regression":
        return _nearer(first, second)
    metric, name = _RIGHT[kind]
    if not _same_rows(name, first, second):
        return None
    won, lost, p_value = paired_flips(first, second, metric)
    right = int(_right(kind, first).sum())
    rows = len(first[name])
    return Flips(rows, won, lost, right - won, rows - right - lost, p_value)


def class_scores(outputs: Outputs, classes: int) -> list[ClassScore | None]:
    """Recall and F1 of every class.

    Args:
        outputs: ``prediction`` and ``label``, int `[rows]`.
        classes: Number of classes that the task has.

    Returns:
        One for each class, None where no row has the class as its label.
    """
    pair = (np.asarray(outputs["prediction"]), np.asarray(outputs["label"]))
    counts = confusion(*pair, max(classes, class_count("macro_f1", pair)))
    own, f1 = counts.sum(1), f1_by_class(counts)
    return [ClassScore(float(counts[k, k] / own[k]), float(f1[k])) if own[k] else None for k in range(classes)]


def class_rows(label: Array, classes: int) -> Sequence[int]:
    """Rows of every class, by its number."""
    counted: list[int] = np.bincount(np.asarray(label, dtype=np.int64), minlength=classes).tolist()
    return counted


def _right(kind: str, outputs: Outputs) -> Array:
    """Whether each row is right, bool `[rows]`."""
    if kind == "causal_lm":
        return np.asarray(outputs["exact"]) > 0.5
    return np.asarray(np.asarray(outputs["prediction"]) == np.asarray(outputs["label"]))


def _nearer(first: Outputs, second: Outputs) -> Flips | None:
    from scipy.stats import binomtest

    if not _same_rows("label", first, second):
        return None
    label = np.asarray(first["label"], dtype=np.float64)
    ours, theirs = (np.abs(np.asarray(one["prediction"], dtype=np.float64) - label) for one in (first, second))
    won, lost = int((ours < theirs).sum()), int((theirs < ours).sum())
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Flips(len(label), won, lost, None, None, p_value)


def _same_rows(name: str, first: Outputs, second: Outputs) -> bool:
    if name not in first or name not in second or not 0 < len(first[name]) == len(second[name]):
        return False
    return "label" not in first or np.array_equal(first["label"], second["label"])
