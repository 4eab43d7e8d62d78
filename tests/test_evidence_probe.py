import time
import warnings

import numpy as np
import pytest

from autopeft.evidence import linear_probe, score
from autopeft.evidence.probe import MAX_ROWS


def blobs(rng, rows, classes, width=32, distance=1.0):
    centres = np.random.default_rng(classes).normal(size=(classes, width)) * distance
    label = rng.integers(0, classes, rows)
    # Very unequal scales: the probe must standardise.
    return ((centres[label] + rng.normal(size=(rows, width))) * np.geomspace(1e-3, 1e3, width) + 5.0), label


def probe(train, validation, kind="sequence_classification", metric="accuracy"):
    return linear_probe(*train, *validation, kind=kind, metric=metric)


def test_separable_classes_are_told_apart():
    rng = np.random.default_rng(0)
    found = probe(blobs(rng, 400, 4), blobs(rng, 200, 4))
    assert found.score > 0.95
    assert found.score == score("accuracy", found.outputs)
    assert set(found.outputs) == {"prediction", "label", "log_likelihood"}
    likely = probe(blobs(rng, 400, 4), blobs(rng, 200, 4), metric="log_likelihood")
    assert np.log(0.5) < likely.score < 0


def test_noise_needs_strong_regularisation():
    rng = np.random.default_rng(1)
    x, x_val = rng.normal(size=(150, 100)), rng.normal(size=(3000, 100))
    y, y_val = (x[:, 0] > 0).astype(int), (x_val[:, 0] + rng.normal(size=3000) > 0).astype(int)
    found = probe((x, y), (x_val, y_val), metric="log_likelihood")
    assert found.strength < 1.0
    assert found.score > np.log(0.5)


def test_targets_are_regressed():
    rng = np.random.default_rng(2)
    x, x_val = rng.normal(size=(300, 20)), rng.normal(size=(100, 20))
    weights = rng.normal(size=20)
    found = probe((x, x @ weights), (x_val, x_val @ weights), kind="regression", metric="pearson")
    assert found.score > 0.99
    assert "log_likelihood" not in found.outputs


def test_classes_without_training_rows_and_single_classes():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 5))
    found = probe((x, np.arange(40) % 2), (x, np.full(40, 2)))
    assert found.score == 0.0
    assert np.isfinite(found.outputs["log_likelihood"]).all()
    constant = probe((x, np.ones(40, int)), (x, np.arange(40) % 2))
    assert constant.score == 0.5
    assert np.isnan(constant.strength)


def test_constant_features_do_no_harm():
    rng = np.random.default_rng(4)
    x, y = blobs(rng, 200, 2)
    x = np.hstack([x, np.full((200, 3), 0.1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe((x, y), (x, y)).score > 0.95


def test_many_rows_and_classes_are_bounded():
    rng = np.random.default_rng(5)
    train, validation = blobs(rng, 9000, 151, 384, 0.25), blobs(rng, 1000, 151, 384, 0.25)
    began = time.process_time()
    found = probe(train, validation)
    print(f"151 classes, 384 features: {time.process_time() - began:.1f} CPU s, accuracy {found.score:.3f}")
    assert found.rows == MAX_ROWS
    assert found.score > 0.7
    assert found.outputs["label"].shape == (1000,)


@pytest.mark.parametrize(
    ("x", "y", "kind", "message"),
    [
        (np.ones((3, 2)), np.ones(4), "regression", "rows, width"),
        (np.ones((0, 2)), np.ones(0), "regression", "rows, width"),
        (np.ones((3, 1)), np.ones(3), "regression", "wide"),
        (np.full((3, 2), np.nan), np.ones(3), "regression", "finite"),
        (np.ones((3, 2)), np.ones(3), "causal_lm", "causal_lm"),
    ],
)
def test_unusable_features_are_refused(x, y, kind, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(x, y, np.ones((2, 2)), np.ones(2), kind=kind, metric="pearson")
