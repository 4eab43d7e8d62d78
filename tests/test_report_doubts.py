"""A verdict is not praised where the opponent, or the winner, did not learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch
from wide_search import WideSearch

from autopeft.journal import SearchLog, read_journal
from autopeft.report.answer import difference
from autopeft.report.facts import Facts, gather

FLAT = [1.3, 1.5, 1.6, 1.6, 1.7, 1.6, 1.6, 1.7]
ROSE = [1.5, 1.2, 0.9, 0.7, 0.5, 1.8, 1.8, 1.8]
FELL = [1.5, 1.2, 0.9, 0.7, 0.5, 0.4, 0.4, 0.3]


class Collapsed(WideSearch):
    """LoRA was tried with five rates; its fresh runs end at one score, with the loss of `curve`."""

    curve: list[float] = FELL
    ends: tuple[float, ...] = (0.316, 0.316)
    taken = (0.866, 0.885, 0.904)

    def add(self, type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "trial_started" and data["purpose"] == "confirm" and data["arm"] == "baseline":
            self.collapsing = data["trial"]
        if type == "rung" and data["trial"] == getattr(self, "collapsing", ""):
            used, self.ends = self.ends[0], (*self.ends[1:], self.ends[0])
            data["metrics"] = {**data["metrics"], "accuracy": used}
            data["losses"] = [(1000 * (n + 1), loss) for n, loss in enumerate(self.curve)]
        if type == "finished":
            theirs = {**data["result"]["baseline"]}
            theirs["validation"] = {**theirs["validation"], "mean": sum(self.ends) / 2, "low": None, "high": None}
            low, mean, high = self.taken
            ours = {**data["result"]["challenger"]}
            ours["validation"] = {**ours["validation"], "low": low, "mean": mean, "high": high}
            data["result"] = {**data["result"], "baseline": theirs, "challenger": ours}
        super().add(type, later, **data)


def told(search: ExampleSearch) -> Facts:
    search.whole()
    return gather(SearchLog.fold(read_journal(search.journal.folder)))


def names(facts: Facts) -> list[str]:
    return [doubt.name for doubt in facts.doubts]


def test_a_search_without_faults_leaves_no_doubt(tmp_path: Path) -> None:
    facts = told(WideSearch(tmp_path / "run"))
    assert facts.doubts == ()
    assert "But" not in facts.headline
    assert "Caution" not in facts.detail
    assert "excludes 0: a difference is shown" in difference(facts)[0][2]


@pytest.mark.parametrize(("curve", "loss"), [(FELL, False), (ROSE, True)])
def test_a_collapsed_lora_is_not_praised_as_beaten(tmp_path: Path, curve: list[float], loss: bool) -> None:
    search = Collapsed(tmp_path / "run")
    search.curve = curve
    facts = told(search)
    assert names(facts) == ["untrained"]
    assert "better than the LoRA trained here" in facts.headline
    assert facts.headline.endswith("But that LoRA was not trained well.")
    assert "scores 0.3160 on validation, the same with every seed" in facts.detail
    assert "no better than a linear probe on the frozen base (0.8120)" in facts.detail
    assert ("stayed up in 2 of 2 trainings" in facts.detail) is loss
    assert "a difference is shown" not in difference(facts)[0][2]
    assert "not trained well" in difference(facts)[0][2]


def test_a_loss_that_stayed_up_is_a_doubt_though_the_score_is_above_the_probe(tmp_path: Path) -> None:
    search = Collapsed(tmp_path / "run")
    search.ends, search.curve = (0.87, 0.86), ROSE
    facts = told(search)
    assert names(facts) == ["untrained"]
    assert "the same with every seed" not in facts.detail
    assert "linear probe" not in facts.detail
    search = Collapsed(tmp_path / "flat")
    search.ends, search.curve = (0.87, 0.86), FLAT
    assert names(told(search)) == []


def test_a_lora_just_below_the_probe_is_not_called_untrained(tmp_path: Path) -> None:
    search = Collapsed(tmp_path / "run")
    search.ends = (0.811, 0.805)
    facts = told(search)
    assert facts.headline.endswith("But LoRA does no better here than a linear probe.")


@pytest.mark.parametrize(
    ("taken", "found"),
    [((0.80, 0.82, 0.84), ["near_probe"]), ((0.79, 0.80, 0.81), ["below_probe"]), ((0.813, 0.83, 0.84), [])],
)
def test_a_winner_near_the_probe_is_said_to_be(
    tmp_path: Path, taken: tuple[float, float, float], found: list[str]
) -> None:
    search = Collapsed(tmp_path / "run")
    search.ends, search.taken = (0.83, 0.82), taken
    facts = told(search)
    assert names(facts) == found
    assert ("probe" in facts.headline) is bool(found)


def test_few_trials_of_lora_are_no_tuning(tmp_path: Path) -> None:
    facts = told(ExampleSearch(tmp_path / "run"))
    assert names(facts) == ["untuned"]
    assert facts.headline.endswith("But LoRA had only 1 trial here, too few to be tuned.")


def test_before_a_verdict_there_is_nothing_to_doubt(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    search.explore()
    assert gather(SearchLog.fold(search.journal.records)).doubts == ()
