from collections import Counter

import pytest

from autopeft.strategy.base import TrialView
from autopeft.strategy.halving import Asha, Hyperband, Median, NoHalving
from autopeft.testing.strategies import HalvingContract


class TestNone(HalvingContract):
    def build(self):
        return NoHalving()


class TestAsha(HalvingContract):
    def build(self):
        return Asha(3)


class TestAshaOfTwo(HalvingContract):
    def build(self):
        return Asha(2)


class TestHyperband(HalvingContract):
    def build(self):
        return Hyperband(3)


class TestMedian(HalvingContract):
    def build(self):
        return Median()


def at(index, *scores, status="paused"):
    return TrialView(f"t{index}", index, {}, scores, status)


def test_asha_promotes_nobody_unseen():
    first = at(0, 0.8, status="running")
    decision = Asha(3).judge(first, [first], 3)
    assert decision.action == "pause"
    assert decision.reason == "0.8 at rung 0: only 1 trial there, 3 are needed"
    assert Asha(3).promote([at(0, 0.8), at(1, 0.7)], 3) is None


def test_asha_promotes_the_best_third():
    trials = [at(i, 0.5 + i / 100) for i in range(6)]
    rule = Asha(3)
    assert rule.promote(trials, 3) == "t5"
    trials[5] = at(5, 0.55, status="running")
    assert rule.promote(trials, 3) == "t4"
    trials[4] = at(4, 0.54, 0.6)
    assert rule.promote(trials, 3) is None


def test_asha_serves_the_highest_rung_first():
    trials = [at(i, 0.5, 0.6 + i / 100) for i in range(3)] + [at(i, 0.9) for i in range(3, 9)]
    assert Asha(3).promote(trials, 3) == "t2"


def test_asha_says_why():
    trials = [at(i, 0.5 + i / 100) for i in range(8)]
    good, bad = at(8, 0.565, status="running"), at(8, 0.5412, status="running")
    assert Asha(3).judge(good, [*trials, good], 3).action == "continue"
    assert Asha(3).judge(good, [*trials, good], 3).reason == "0.565 is in the best 1/3 (0.56) of 9 trials at rung 0"
    decision = Asha(3).judge(bad, [*trials, bad], 3)
    assert decision.action == "pause"
    assert (
        decision.reason == "0.5512 is below the best 1/3 (0.5512) of 9 trials at rung 0" or "(0.55" in decision.reason
    )


def test_asha_gives_equals_to_the_earlier():
    trials = [at(i, 0.5) for i in range(3)]
    assert Asha(3).promote(trials, 2) == "t0"
    late = at(2, 0.5, status="running")
    decision = Asha(3).judge(late, [*trials[:2], late], 2)
    assert decision.action == "pause"
    assert "level with, but later than, the best" in decision.reason


def test_asha_forgets_failed_trials():
    trials = [at(0, 0.9, status="failed"), at(1, 0.8, status="infeasible"), at(2, 0.5), at(3, 0.4), at(4, 0.3)]
    assert Asha(3).promote(trials, 2) == "t2"


def test_hyperband_deals_in_the_proportions_of_the_paper():
    rule = Hyperband(3)
    assert Counter(rule.bracket(i, 3) for i in range(17)) == {0: 9, 1: 5, 2: 3}
    assert [rule.bracket(i, 3) for i in range(17, 34)] == [rule.bracket(i, 3) for i in range(17)]
    assert Counter(rule.bracket(i, 4) for i in range(27 + 12 + 6 + 4)) == {0: 27, 1: 12, 2: 6, 3: 4}
    assert {rule.bracket(i, 1) for i in range(5)} == {0}
    # Every bracket gets its first trial early in a round.
    assert {rule.bracket(i, 3) for i in range(6)} == {0, 1, 2}


def test_hyperband_judges_a_bracket_from_its_rung_on_and_within_itself():
    rule = Hyperband(3)
    of = {bracket: [i for i in range(60) if rule.bracket(i, 3) == bracket] for bracket in range(3)}
    strong = [at(i, 0.9) for i in of[0][:6]]
    weak = at(of[1][0], 0.1, status="running")
    decision = rule.judge(weak, [*strong, weak], 3)
    assert decision.action == "continue"
    assert decision.reason == "bracket 1: not judged before rung 1, this is rung 0"
    rivals = [at(i, 0.1, 0.2) for i in of[1][1:6]]
    judged = at(of[1][0], 0.1, 0.3, status="running")
    assert rule.judge(judged, [*strong, *rivals, judged], 3).action == "continue"
    last = at(of[2][0], 0.1, 0.1, status="running")
    assert rule.judge(last, [*strong, *rivals, last], 3).action == "continue"


def test_median_stops_the_lower_half():
    trials = [at(i, score, status="completed") for i, score in enumerate((0.5, 0.6, 0.7, 0.8))]
    low, high = at(4, 0.55, status="running"), at(4, 0.7, status="running")
    decision = Median().judge(low, [*trials, low], 3)
    assert (decision.action, decision.reason) == ("stop", "0.55 is below the median (0.6) of 5 trials at rung 0")
    assert Median().judge(high, [*trials, high], 3).action == "continue"
    assert Median().judge(low, [*trials[:2], low], 3).action == "continue"
    # A trial is not stopped for a dip: its best score counts.
    dipped = at(4, 0.75, 0.1, status="running")
    assert Median().judge(dipped, [*[at(i, 0.5, 0.6) for i in range(4)], dipped], 3).action == "continue"


@pytest.mark.parametrize(
    "build", [lambda: Asha(1), lambda: Asha(float("nan")), lambda: Hyperband(0.5), lambda: Median(1)]
)
def test_senseless_options_are_refused(build):
    with pytest.raises(ValueError, match="must be"):
        build()
