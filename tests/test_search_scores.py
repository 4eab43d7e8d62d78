"""What strategies see of trials where a margin is given."""

from __future__ import annotations

import pytest

from autopeft.journal import SearchLog, TrialLog
from autopeft.journal.log import ConfigurationLog, RungLog
from autopeft.search.scores import MOST, Scores
from autopeft.strategy.jobs import Arm

POINTS: list[tuple[str, Arm, int, tuple[float, ...]]] = [
    ("lora", "baseline", 50_000, (0.70, 0.80)),
    ("worse-lora", "baseline", 9_000, (0.72, 0.60)),
    ("large", "space", 90_000, (0.75, 0.85)),
    ("small", "space", 900, (0.71, 0.79)),
    ("below", "space", 100, (0.60, 0.78)),
]


def scores(margin: float | None, arm: Arm, metric: str = "accuracy") -> dict[str, tuple[float, ...]]:
    log = SearchLog(header={"task": {"metric": metric}, "procedure": {"margin": margin}})
    for number, (name, of, params, values) in enumerate(POINTS):
        log.configurations[name] = ConfigurationLog(name, {}, {"x": 1}, params, of)
        trial = TrialLog(f"t{number}", name, of, "explore", 0, number, 0)
        trial.rungs += [RungLog(r, 100 * (r + 1), {log.rung_metric: value}) for r, value in enumerate(values)]
        log.trials[trial.id] = trial
        log.index.start(trial)
        log.index.update(trial, log.rung_metric, params)
    return {t.hash: Scores(log, arm).view(t).scores for t in log.trials.values() if t.arm == arm}


def test_without_a_margin_and_for_lora_scores_are_the_metric() -> None:
    assert scores(None, "space") == {name: values for name, arm, _, values in POINTS if arm == "space"}
    assert scores(0.02, "baseline") == {name: values for name, arm, _, values in POINTS if arm == "baseline"}


def test_what_keeps_half_of_the_margin_counts_for_what_it_saves() -> None:
    seen = scores(0.02, "space")
    # Held against the best LoRA of the same rung, less half of the margin: 0.71 and 0.79.
    assert seen["small"][1] > seen["large"][1] > 0.79
    assert seen["small"][0] > seen["large"][0] > 0.71
    assert seen["below"] == (0.60, 0.78)
    assert seen["below"][1] < min(seen["small"][1], seen["large"][1])
    # A hundredth of the parameters is one step of those that one margin has room for.
    assert seen["small"][1] - seen["large"][1] == pytest.approx(0.02 / MOST)
    assert seen["small"][1] < 0.79 + 0.02


def test_a_margin_of_another_metric_says_nothing_about_rungs() -> None:
    assert scores(0.02, "space", "exact_match")["small"] == (0.71, 0.79)
