"""Where the signatures of failure begin, on both sides of each threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autopeft.evidence.signatures import forgetting, spike, unstable_start


@pytest.mark.parametrize(
    ("place", "found"), [(0.0, True), (0.04, True), (0.06, False), (0.5, False), (0.94, False), (0.96, True)]
)
def test_a_rate_at_the_edge_of_its_range(place: float, found: bool) -> None:
    low, high = 1e-4, 1e-2
    rate = math.exp(math.log(low) + place * math.log(high / low))
    sign = unstable_start("winner", [], (0, 10), {"lora": rate}, {"lora": (low, 1e-3, high)})
    assert sign.found is found


def test_what_noise_does_is_no_spike_and_twice_that_is() -> None:
    def curve(seed: int, rise: float) -> list[tuple[int, float]]:
        losses = 1.0 + 0.15 * np.random.default_rng(seed).standard_normal(16)
        losses[8] += rise
        return [(100 * (number + 1), float(loss)) for number, loss in enumerate(losses)]

    seeds = range(60)
    # The highest of sixteen points is more than three standard deviations above the lowest in most of them.
    assert sum(spike(curve(seed, 0.0)) is not None for seed in seeds) <= 2
    assert sum(spike(curve(seed, 3.0)) is not None for seed in seeds) >= 57


@pytest.mark.parametrize(("loss", "high", "found"), [(0.019, -0.01, False), (0.021, -0.01, True), (0.2, 0.01, False)])
def test_a_loss_of_ability_worth_a_word(loss: float, high: float, found: bool) -> None:
    measured = {"before": -3.0, "after": -3.0 - loss, "low": -0.4, "high": high, "rows": 50}
    assert forgetting("winner", "causal_lm", measured).found is found
