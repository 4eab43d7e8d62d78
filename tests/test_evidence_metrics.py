import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from autopeft.evidence import bounds, per_example, score
from autopeft.evidence.metrics import ALL_METRICS, undefined

RNG = np.random.default_rng(0)


def classes(count, rows=300):
    label = RNG.integers(0, count, rows)
    prediction = np.where(RNG.random(rows) < 0.6, label, RNG.integers(0, count, rows))
    return {"prediction": prediction, "label": label}


@pytest.mark.parametrize("count", [2, 3, 17])
def test_class_metrics_equal_scikit_learn(count):
    for _ in range(20):
        outputs = classes(count)
        label, prediction = outputs["label"], outputs["prediction"]
        average = "binary" if count == 2 else "weighted"
        assert score("accuracy", outputs) == pytest.approx(sklearn.metrics.accuracy_score(label, prediction))
        assert score("f1", outputs) == pytest.approx(sklearn.metrics.f1_score(label, prediction, average=average))
        macro = sklearn.metrics.f1_score(label, prediction, labels=np.unique(label), average="macro")
        assert score("macro_f1", outputs) == pytest.approx(macro)
        assert score("matthews", outputs) == pytest.approx(sklearn.metrics.matthews_corrcoef(label, prediction))


def test_target_metrics_equal_scipy():
    label = RNG.normal(size=200)
    prediction = np.round(label + RNG.normal(size=200), 1)
    outputs = {"prediction": prediction, "label": label}
    assert score("pearson", outputs) == pytest.approx(scipy.stats.pearsonr(prediction, label).statistic)
    assert score("spearman", outputs) == pytest.approx(scipy.stats.spearmanr(prediction, label).statistic)
    mse = sklearn.metrics.mean_squared_error(label, prediction)
    assert score("neg_rmse", outputs) == pytest.approx(-np.sqrt(mse))


def test_language_metrics_are_means():
    outputs = {"log_likelihood": np.array([-1.0, -3.0]), "exact": np.array([1, 0])}
    assert score("log_likelihood", outputs) == -2.0
    assert score("exact_match", outputs) == 0.5


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "matthews"])
def test_nothing_learnt_scores_zero_not_nan(metric):
    outputs = {"prediction": np.zeros(10, int), "label": np.ones(10, int)}
    assert score(metric, outputs) == 0.0


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_predictions_have_no_correlation(metric, constant):
    outputs = {"prediction": np.full(7, constant, np.float32), "label": np.arange(7.0)}
    assert score(metric, outputs) == 0.0
    assert score(metric, {"prediction": np.arange(7.0), "label": np.full(7, constant)}) == 0.0


@pytest.mark.parametrize(
    ("prediction", "label", "without"),
    [
        ([0, 1, 0], [1, 1, 1], {"matthews"}),
        ([0, 1, 0], [0, 0, 0], {"matthews", "f1"}),
        ([0, 2, 0], [0, 2, 0], set()),
        ([1, 1, 1], [0, 1, 0], set()),
        ([0.1], [0.4], {"pearson", "spearman"}),
        ([1.0, 2.0], [0.1, 0.1], {"pearson", "spearman"}),
        ([1.0, 1.0], [0.1, 0.2], set()),
    ],
)
def test_labels_that_admit_no_value(prediction, label, without):
    outputs = {"prediction": np.array(prediction), "label": np.array(label)}
    classified = isinstance(label[0], int)
    names = ("accuracy", "f1", "macro_f1", "matthews") if classified else ("pearson", "spearman", "neg_rmse")
    assert {name for name in names if undefined(name, outputs)} == without
    assert not undefined("log_likelihood", {"log_likelihood": np.array([-1.0])})


def test_per_example_values_average_to_the_score():
    outputs = {**classes(3), "log_likelihood": RNG.normal(size=300), "exact": RNG.integers(0, 2, 300)}
    means = {metric for metric in ALL_METRICS if per_example(metric, outputs) is not None}
    assert means == {"accuracy", "log_likelihood", "exact_match"}
    for metric in means:
        assert per_example(metric, outputs).mean() == pytest.approx(score(metric, outputs))


@pytest.mark.parametrize(
    ("metric", "outputs", "message"),
    [
        ("bleu", {}, "no metric 'bleu'"),
        ("accuracy", {"label": np.ones(3)}, "missing: prediction"),
        ("accuracy", {"label": np.ones(3), "prediction": np.ones(2)}, "differ in length"),
        ("accuracy", {"label": np.ones(0), "prediction": np.ones(0)}, "at least one row"),
        ("pearson", {"label": np.ones(2), "prediction": np.array([1.0, np.nan])}, "prediction holds values"),
        ("log_likelihood", {"log_likelihood": np.array([-np.inf])}, "not finite"),
        ("f1", {"label": np.ones(2), "prediction": np.array([0.5, 1.0])}, "fractions"),
        ("f1", {"label": np.ones(2), "prediction": np.array([-1, 1])}, "from 0"),
    ],
)
def test_unusable_outputs_are_refused(metric, outputs, message):
    with pytest.raises(ValueError, match=message):
        score(metric, outputs)


def test_scores_stay_within_their_bounds():
    for metric in ALL_METRICS:
        outputs = {**classes(4), "log_likelihood": -RNG.random(300), "exact": RNG.integers(0, 2, 300)}
        low, high = bounds(metric)
        assert low <= score(metric, outputs) <= high
