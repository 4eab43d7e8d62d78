"""A linear probe on frozen features: what the base model gives away without any adapter.

It is a reference line of the report and picks the head before a search, so it must be cheap: regularisation is chosen
among a few strengths on the validation rows, training rows are capped.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from autopeft.evidence.metrics import Array, Outputs, score

MAX_ROWS = 5000
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths (C) for classification; multiplied by the number of rows and inverted they are Ridge's alpha."""
_ITERATIONS = 100
_SMALLEST = 1e-12


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe found.

    Attributes:
        score: The metric on the validation rows.
        strength: The regularisation that gave it: C of the logistic regression, alpha of the ridge regression; NaN when
            the training rows hold one class only and the probe is a constant.
        rows: Training rows used.
        outputs: Its per-example outputs on the validation rows.
    """

    score: float
    strength: float
    rows: int
    outputs: Outputs


def linear_probe(
    features_train: Array,
    labels_train: Array,
    features_val: Array,
    labels_val: Array,
    *,
    kind: str,
    metric: str,
    seed: int = 0,
) -> ProbeResult:
    """Fit a linear model on frozen features, at the best of a few regularisation strengths.

    Features are standardised by the training rows; beyond `MAX_ROWS` a random subset is used. The strength is chosen on
    the validation rows, so the score is a slightly favourable estimate of what a probe can do: the right direction for
    a reference that adapters have to beat.

    Args:
        features_train: `[rows, width]`.
        labels_train: Class numbers or targets, `[rows]`.
        features_val: `[validation rows, width]`.
        labels_val: `[validation rows]`.
        kind: ``sequence_classification`` or ``regression``.
        metric: One of the kind's metrics.
        seed: Of the subset.

    Raises:
        ValueError: Another kind, no rows, shapes that do not fit together, or features that are not finite.
    """
    x, y = np.asarray(features_train), np.asarray(labels_train)
    x_val, y_val = np.asarray(features_val), np.asarray(labels_val)
    _check(x, y, x_val, y_val, kind)
    if len(x) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(x), MAX_ROWS, replace=False))
        x, y = x[chosen], y[chosen]
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    # A constant feature carries nothing; dividing by its spread would blow up rounding errors.
    spread = np.where(spread > 1e-6 * np.maximum(np.abs(mean), 1e-6), spread, np.inf)
    # float32 halves the time of the solver and changes no score beyond the fourth digit.
    x, x_val = ((part - mean) / spread for part in (x, x_val))
    x, x_val = x.astype(np.float32), x_val.astype(np.float32)
    if kind == "sequence_classification" and len(np.unique(y)) == 1:
        outputs = _class_outputs(np.ones((len(y_val), 1)), np.unique(y), y_val)
        return ProbeResult(score(metric, outputs), float("nan"), len(x), outputs)
    fit = _classify if kind == "sequence_classification" else _regress
    best: ProbeResult | None = None
    for strength in STRENGTHS:
        used, outputs = fit(x, y, x_val, y_val, strength)
        value = score(metric, outputs)
        if best is None or value > best.score:
            best = ProbeResult(value, used, len(x), outputs)
    assert best is not None
    return best


def _check(x: Array, y: Array, x_val: Array, y_val: Array, kind: str) -> None:
    if kind not in ("sequence_classification", "regression"):
        raise ValueError(f"a linear probe predicts classes or targets, not {kind!r}")
    for name, features, labels in (("training", x, y), ("validation", x_val, y_val)):
        if features.ndim != 2 or len(features) == 0 or labels.shape != (len(features),):
            raise ValueError(
                f"{name} features {features.shape} and labels {labels.shape}: not [rows, width] and [rows]"
            )
        if not (np.isfinite(features).all() and np.isfinite(labels).all()):
            raise ValueError(f"{name} features or labels hold values that are not finite numbers")
    if x.shape[1] != x_val.shape[1]:
        raise ValueError(f"training features are {x.shape[1]} wide, validation features {x_val.shape[1]}")


def _classify(x: Array, y: Array, x_val: Array, y_val: Array, strength: float) -> tuple[float, Outputs]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # The cap bounds the time; an unconverged fit is an early-stopped one and is judged on validation like the rest.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return strength, _class_outputs(model.predict_proba(x_val), model.classes_, y_val)


def _class_outputs(probabilities: Array, classes: Array, labels: Array) -> Outputs:
    column: dict[Any, int] = {label: number for number, label in enumerate(classes.tolist())}
    places = np.array([column.get(label, -1) for label in labels.tolist()])
    right = np.where(places >= 0, probabilities[np.arange(len(labels)), places], 0.0)
    # A class that no training row had gets the smallest probability instead of minus infinity.
    likelihood = np.log(np.maximum(right.astype(np.float64), _SMALLEST))
    return {"prediction": classes[probabilities.argmax(1)], "label": labels, "log_likelihood": likelihood}


def _regress(x: Array, y: Array, x_val: Array, y_val: Array, strength: float) -> tuple[float, Outputs]:
    from sklearn.linear_model import Ridge

    # Per row, as C is for a mean loss: standardised features have a Gram matrix of about `rows` on its diagonal.
    alpha = len(x) * 0.01 / strength
    model = Ridge(alpha=alpha).fit(x, y.astype(np.float32))
    prediction = np.asarray(model.predict(x_val), dtype=np.float64)
    return alpha, {"prediction": prediction, "label": y_val}
