"""What choosing by the same examples adds, held to a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest

from autopeft.evidence import optimism, score

ROWS = 300


def _runs(rng: np.random.Generator, count: int, metric: str, rows: int = ROWS) -> list[dict[str, np.ndarray]]:
    """Equally good runs that err on examples of their own: choosing the best of them chooses luck alone."""
    label = rng.integers(0, 2, rows)
    return [{"label": label, "prediction": np.where(rng.random(rows) < 0.8, label, 1 - label)} for _ in range(count)]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_luck_of_the_best_of_equals_is_found(metric: str) -> None:
    found, true = [], []
    for trial in range(30):
        rng = np.random.default_rng(trial)
        runs = _runs(rng, 20, metric)
        found.append(optimism(metric, runs, resamples=100, seed=trial))
        true.append(max(score(metric, run) for run in runs) - 0.8)
    # The best of 20 equals at 300 examples looks four points better than it is.
    assert np.mean(true) > 0.03
    assert np.mean(found) == pytest.approx(np.mean(true), abs=0.012)


def test_there_is_none_where_one_stands_out() -> None:
    rng = np.random.default_rng(0)
    runs = _runs(rng, 10, "accuracy")
    runs[3] = {**runs[3], "prediction": runs[3]["label"].copy()}
    assert optimism("accuracy", runs) == 0.0
    assert optimism("accuracy", runs[:1]) == 0.0


def test_it_is_the_same_every_time_and_needs_the_same_examples() -> None:
    rng = np.random.default_rng(1)
    runs = _runs(rng, 5, "accuracy")
    assert optimism("accuracy", runs, seed=4) == optimism("accuracy", runs, seed=4)
    with pytest.raises(ValueError, match="different numbers"):
        optimism("accuracy", [*runs, *_runs(rng, 1, "accuracy", rows=299)])
