"""Extrapolated learning curves."""

from __future__ import annotations

import numpy as np
import pytest

from autopeft.strategy.base import TrialView
from autopeft.strategy.curves import Curve, forecast
from autopeft.strategy.halving import Asha
from autopeft.testing.strategies import HalvingContract

RUNGS, ETA = 5, 2.0
SHARES = ETA ** (np.arange(RUNGS) - (RUNGS - 1.0))


class TestCurve(HalvingContract):
    def build(self) -> Curve:
        return Curve(3)


def curve(last: float, gain: float, exponent: float = 0.5, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A power law that ends at `last`, `gain` above where it was at the first rung."""
    left = (SHARES**-exponent - 1) / (SHARES[0] ** -exponent - 1)
    return last - gain * left + noise * np.random.default_rng(seed).standard_normal(RUNGS)


def population(noise: float = 0.002) -> np.ndarray:
    return np.array([curve(0.80 + i / 200, 0.10 + 0.01 * (i % 3), noise=noise, seed=i) for i in range(12)])


@pytest.mark.parametrize("seen", [1, 2, 4])
def test_a_forecast_finds_the_end_of_a_curve(seen: int) -> None:
    true = curve(0.9, 0.11)
    found = forecast(true[:seen], population(), ETA)
    assert abs(float(found.means @ found.weights) - 0.9) < 0.015
    # Calibrated to its order: the truth is neither ruled out nor taken for sure.
    assert found.above(0.95) < 0.01
    assert found.above(0.85) > 0.99


def test_forecasts_get_surer() -> None:
    deviations = [
        float(f.deviations @ f.weights) for f in (forecast(curve(0.9, 0.1)[:n], population(), ETA) for n in (1, 3, 5))
    ]
    assert deviations[0] > deviations[1] > deviations[2]


def test_the_stated_chances_come_true() -> None:
    known, hits, expected = population(0.01), 0, 0.0
    for seed in range(400):
        rng = np.random.default_rng([7, seed])
        true = curve(0.82 + 0.04 * rng.random(), 0.11 + 0.01 * rng.standard_normal(), noise=0.01, seed=1000 + seed)
        expected += forecast(true[:2], known, ETA).above(0.85)
        hits += true[-1] > 0.85
    assert abs(hits - expected) < 40


def full(trials: np.ndarray) -> list[TrialView]:
    return [TrialView(f"f{i}", i, {}, tuple(map(float, scores)), "completed") for i, scores in enumerate(trials)]


def test_the_hopeless_is_stopped_and_the_promising_goes_on() -> None:
    rule, known = Curve(2.0), full(population())
    poor = TrialView("poor", 50, {}, tuple(map(float, curve(0.6, 0.1)[:2])), "running")
    good = TrialView("good", 51, {}, tuple(map(float, curve(0.92, 0.1)[:2])), "running")
    stopped = rule.judge(poor, [*known, poor, good], RUNGS)
    assert stopped.action == "stop"
    assert stopped.reason.endswith("in the end with 0.0%")
    assert rule.judge(good, [*known, poor, good], RUNGS).action == "continue"


def test_the_hopeless_is_not_promoted_and_does_not_keep_others_from_it() -> None:
    known = full(population())
    # Of three that are paused at rung 3, the best is hopeless; at rung 0 one is not.
    paused = [
        TrialView(f"p{i}", 20 + i, {}, tuple(map(float, curve(0.5 - i / 100, 0.1)[:4])), "paused") for i in range(30)
    ]
    fresh = TrialView("fresh", 90, {}, (float(curve(0.95, 0.1)[0]),), "paused")
    assert Asha(2.0).promote([*known, *paused, fresh], RUNGS) == "p0"
    assert Curve(2.0).promote([*known, *paused, fresh], RUNGS) == "fresh"


def test_it_is_asha_until_enough_were_trained_in_full() -> None:
    known = full(population()[:3])
    trial = TrialView("new", 50, {}, (0.1,), "running")
    assert Curve(2.0).judge(trial, [*known, trial], RUNGS) == Asha(2.0).judge(trial, [*known, trial], RUNGS)


@pytest.mark.parametrize("options", [{"chance": 1.5}, {"minimum": 2}, {"eta": 1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Curve(**options)  # type: ignore[arg-type]
