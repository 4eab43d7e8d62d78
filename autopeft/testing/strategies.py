"""The behaviour that every sampler and every halving rule must show, as tests to inherit; and a toy search.

A test class names what it builds and gets all tests::

    class TestMine(SamplerContract):
        def build(self, seed):
            return MySampler(toy_dimensions(), toy_prior(seed), seed=seed)
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from autopeft.space.configuration import Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.strategy.base import Halving, Sampler, Strategy, TrialView
from autopeft.strategy.samplers import inside

_METHODS = ("lora", "dora", "ia3", "none")
_BLOCKS = ("none", "serial", "parallel", "lora")
_EXTRAS = ("none", "bias", "norm", "scale")
_ORDER: dict[str, tuple[float, ...]] = {
    "attention": (0.0, -0.004, -0.03, -0.02),
    "block": (-0.012, 0.0, -0.002, -0.005),
    "extra": (-0.003, 0.0, -0.001, -0.002),
}


def toy_dimensions() -> tuple[Dimension, ...]:
    """Eleven dimensions of all kinds, like those of a recipe."""
    return (
        Choice("attention", _METHODS),
        Choice("block", _BLOCKS),
        Choice("extra", _EXTRAS),
        Choice("prefix", (0, 1, 2, 4, 8, 16), ordered=True),
        Choice("batch", (8, 16, 32), ordered=True),
        Choice("dropout", (0.0, 0.05, 0.1), ordered=True),
        Real("share", 0.02, 1.0, log=True),
        Real("split", 0.1, 0.9),
        Real("start", 0.0, 1.0),
        Real("tilt", -2.0, 2.0),
        Real("rate", -1.6, 1.2),
    )


def toy_prior(seed: int = 0, dimensions: Sequence[Dimension] | None = None) -> Callable[[int], Values]:
    """Point number i, drawn uniformly in each dimension (in the logarithm where it is searched so)."""
    seen = toy_dimensions() if dimensions is None else tuple(dimensions)

    def draw(index: int) -> Values:
        rng = np.random.default_rng([seed, 7919, index])
        point: dict[str, Scalar] = {}
        for dimension in seen:
            if isinstance(dimension, Choice):
                point[dimension.name] = dimension.options[int(rng.integers(len(dimension.options)))]
            elif dimension.log:
                low, high = math.log(dimension.low), math.log(dimension.high)
                point[dimension.name] = min(max(math.exp(rng.uniform(low, high)), dimension.low), dimension.high)
            else:
                point[dimension.name] = float(rng.uniform(dimension.low, dimension.high))
        return point

    return draw


def toy_score(values: Values) -> float:
    """The expected score of a point after all rows: 0.90 at best; rate, methods and start depth decide most of it."""
    at = {name: float(values[name]) for name in ("share", "split", "start", "tilt", "rate", "dropout", "prefix")}
    loss = sum(-_ORDER[name][options.index(str(values[name]))] for name, options in _NAMED.items())
    # A larger share wants a smaller rate: the dimensions interact, as they do in training.
    best_rate = 0.2 - 0.15 * math.log(at["share"] / 0.3)
    loss += 0.05 * (at["rate"] - best_rate) ** 2 * (2.0 if at["rate"] > best_rate else 1.0)
    loss += 0.05 * max(0.0, at["start"] - 0.2) ** 2 + 0.004 * math.log(at["share"]) ** 2
    loss += 0.02 * (at["split"] - 0.4) ** 2 + 0.002 * (at["tilt"] - 0.5) ** 2
    loss += 0.04 * at["dropout"] + 0.0002 * at["prefix"] + 0.001 * math.log2(int(str(values["batch"])) / 8)
    return max(0.3, 0.90 - loss)


_NAMED: dict[str, tuple[str, ...]] = {"attention": _METHODS, "block": _BLOCKS, "extra": _EXTRAS}


def toy_run(values: Values, share: float, seed: int) -> float:
    """The score measured when a share of the rows has been seen: a learning curve, with the noise of a seed.

    Args:
        values: The point.
        share: Share of all rows seen, in (0, 1].
        seed: Of the noise, which shrinks as training goes on.
    """
    # Small rates start slowly, so that early scores mislead a little.
    speed = math.exp(0.5 * float(values["rate"]))
    gap = 0.15 * math.exp(-3.0 * speed * share) / math.exp(-1.0)
    rng = np.random.default_rng([seed, round(share * 1e6)])
    return float(toy_score(values) - gap * share**0.1 + 0.003 * rng.normal() * (2.0 - share))


def toy_search(strategy: Strategy, *, trainings: float, seed: int, workers: int = 2) -> tuple[float, list[TrialView]]:
    """Run a strategy on the toy objective until it has spent a number of full trainings.

    Args:
        strategy: What explores.
        trainings: Rows to be spent, in full trainings.
        seed: Of the noise.
        workers: Trials that run at a time, each taking as long as its rows.

    Returns:
        The expected score of the point that the search would return (the best last score at the highest rung reached),
        and all trials.
    """
    shares = [strategy.eta ** (rung + 1 - strategy.rungs) for rung in range(strategy.rungs)]
    trials: list[TrialView] = []
    queue: list[tuple[float, int]] = []
    spent, now, asked = 0.0, 0.0, 0
    while True:
        while spent < trainings and len(queue) < workers:
            name = strategy.halving.promote(trials, strategy.rungs)
            if name is None:
                number = len(trials)
                trials.append(TrialView(f"t{number}", asked, strategy.sampler.propose(asked, trials), (), "running"))
                asked += 1
            else:
                number = next(place for place, trial in enumerate(trials) if trial.trial == name)
                trials[number] = replace(trials[number], status="running")
            cost = _cost(shares, len(trials[number].scores))
            spent += cost
            queue.append((now + cost, number))
        if not queue:
            break
        now, number = min(queue)
        queue.remove((now, number))
        trial = trials[number]
        measured = toy_run(trial.values, shares[len(trial.scores)], seed * 100_003 + number)
        trial = replace(trial, scores=(*trial.scores, measured))
        trials[number] = trial
        if len(trial.scores) == strategy.rungs:
            trials[number] = replace(trial, status="completed")
            continue
        action = strategy.halving.judge(trial, trials, strategy.rungs).action
        trials[number] = replace(trial, status={"continue": "paused", "pause": "paused", "stop": "stopped"}[action])
        if action == "continue" and spent < trainings:
            cost = _cost(shares, len(trial.scores))
            spent += cost
            trials[number] = replace(trial, status="running")
            queue.append((now + cost, number))
    best = max(trials, key=lambda trial: (len(trial.scores), trial.scores))
    return toy_score(best.values), trials


def _cost(shares: Sequence[float], rung: int) -> float:
    return shares[rung] - (shares[rung - 1] if rung else 0.0)


def toy_trials(count: int, seed: int = 0, rungs: int = 3) -> list[TrialView]:
    """Trials of all states, drawn from the toy prior: what a strategy may meet in the middle of a search."""
    prior, rng = toy_prior(seed + 1), np.random.default_rng([seed, 1])
    states = ("running", "paused", "completed", "stopped", "failed", "infeasible")
    trials = []
    for index in range(count):
        status = states[int(rng.integers(len(states)))]
        values = prior(index)
        reached = rungs if status == "completed" else int(rng.integers(1, rungs)) if rungs > 1 else 0
        if status in ("infeasible", "failed") or (status == "running" and rng.random() < 0.5):
            reached = 0
        shares = [3.0 ** (rung + 1 - rungs) for rung in range(reached)]
        scores = tuple(toy_run(values, share, index) for share in shares)
        over = float(rng.exponential()) + 0.01 if status == "infeasible" else 0.0
        trials.append(TrialView(f"t{index}", index, values, scores, status, over))
    return trials


class SamplerContract(ABC):
    """What every sampler must do."""

    dimensions: tuple[Dimension, ...] = toy_dimensions()

    @abstractmethod
    def build(self, seed: int) -> Sampler:
        """The sampler under test, over `dimensions`."""

    def test_values_lie_within_the_dimensions(self) -> None:
        """At any point of a search, every dimension gets a legal value and nothing else is named."""
        sampler = self.build(0)
        for count in (0, 1, 5, 40):
            for index in range(count, count + 8):
                values = sampler.propose(index, toy_trials(count))
                assert set(values) == {dimension.name for dimension in self.dimensions}
                assert inside(values, self.dimensions)

    def test_is_a_function_of_seed_index_and_trials(self) -> None:
        """A sampler rebuilt from the journal answers as the one that was lost, in any order of questions."""
        trials = toy_trials(40)
        sampler = self.build(3)
        first = [dict(sampler.propose(index, trials)) for index in range(40, 52)]
        rebuilt = self.build(3)
        assert [dict(rebuilt.propose(index, trials)) for index in reversed(range(40, 52))] == first[::-1]

    def test_questions_get_different_answers(self) -> None:
        """The randomness depends on the index, so that a refused point is not proposed for ever."""
        sampler, trials = self.build(0), toy_trials(40)
        answers = {tuple(sorted(sampler.propose(index, trials).items())) for index in range(40, 60)}
        assert len(answers) > 10

    def test_goes_on_when_nothing_works(self) -> None:
        """Only failed, only infeasible, and only running trials are no reason to stop or to repeat one point."""
        prior = toy_prior(5)
        for status, violation in (("failed", 0.0), ("infeasible", 0.5), ("infeasible", math.inf), ("running", 0.0)):
            trials = [TrialView(f"t{i}", i, prior(i), (), status, violation) for i in range(30)]
            sampler = self.build(1)
            answers = [sampler.propose(index, trials) for index in range(30, 36)]
            assert all(inside(values, self.dimensions) for values in answers)
            assert any(answers[0] != other for other in answers[1:])

    def test_survives_points_of_another_space(self) -> None:
        """A warm start may bring points that the encoding cannot express."""
        foreign = [TrialView(f"w{i}", i, {"attention": "gone"}, (0.8,), "completed") for i in range(15)]
        assert inside(self.build(0).propose(15, foreign), self.dimensions)

    def test_does_not_change_what_it_is_given(self) -> None:
        """Views are shared with the halving rule and the journal."""
        trials = toy_trials(30)
        before = [replace(trial, values=dict(trial.values)) for trial in trials]
        self.build(0).propose(30, trials)
        assert trials == before

    def test_handles_a_thousand_trials(self) -> None:
        """Long searches stay possible; the cost of a question is printed, not judged."""
        sampler = self.build(0)
        for count in (100, 1000):
            trials = toy_trials(count)
            began = time.perf_counter()
            values = [sampler.propose(count + more, trials) for more in range(5)]
            print(
                f"{type(sampler).__name__}: {(time.perf_counter() - began) * 200:.1f} ms a question at {count} trials"
            )
            assert all(inside(point, self.dimensions) for point in values)


class HalvingContract(ABC):
    """What every halving rule must do."""

    @abstractmethod
    def build(self) -> Halving:
        """The rule under test."""

    def test_promotes_only_paused_trials_short_of_the_last_rung(self) -> None:
        """A finished, failed or running trial is never given another rung."""
        rule = self.build()
        for rungs in (1, 2, 3, 4):
            for seed in range(20):
                trials = toy_trials(30, seed, rungs)
                chosen = rule.promote(trials, rungs)
                if chosen is not None:
                    trial = next(each for each in trials if each.trial == chosen)
                    assert trial.status == "paused"
                    assert 0 < len(trial.scores) < rungs

    def test_has_nothing_to_promote_where_nothing_is_paused(self) -> None:
        """No trials, only failures, only finished ones."""
        rule = self.build()
        assert rule.promote([], 3) is None
        for status in ("failed", "infeasible", "stopped", "running", "completed"):
            trials = [replace(trial, status=status) for trial in toy_trials(30)]
            assert rule.promote(trials, 3) is None

    def test_judges_with_a_reason(self) -> None:
        """Every decision is one of three and says why with the trial's numbers or the rule's."""
        rule = self.build()
        for count in (1, 2, 8, 40):
            trials = [replace(t, status="running") if i == 0 else t for i, t in enumerate(toy_trials(count))]
            trials[0] = replace(trials[0], scores=(0.8,))
            decision = rule.judge(trials[0], trials, 3)
            assert decision.action in ("continue", "pause", "stop")
            assert len(decision.reason) > 10
            assert rule.judge(trials[0], trials, 3) == decision

    def test_the_order_of_trials_does_not_matter(self) -> None:
        """A journal lists trials in any order."""
        rule, trials = self.build(), toy_trials(40)
        trials[0] = replace(trials[0], status="running", scores=(0.8,))
        assert rule.judge(trials[0], trials[::-1], 3) == rule.judge(trials[0], trials, 3)
        assert rule.promote(trials[::-1], 3) == rule.promote(trials, 3)

    def test_a_clear_winner_always_goes_on(self) -> None:
        """The best of many trials at a rung is neither paused nor stopped there."""
        rule = self.build()
        trials = [TrialView(f"t{i}", i, {}, (0.5 + i / 1000,), "paused") for i in range(60)]
        best = TrialView("best", 60, {}, (0.99,), "running")
        assert rule.judge(best, [*trials, best], 3).action == "continue"

    def test_handles_a_thousand_trials(self) -> None:
        """Long searches stay possible; the cost of a decision is printed, not judged."""
        rule, trials = self.build(), toy_trials(1000)
        trials[0] = replace(trials[0], status="running", scores=(0.8,))
        began = time.perf_counter()
        rule.judge(trials[0], trials, 3)
        rule.promote(trials, 3)
        print(f"{type(rule).__name__}: {(time.perf_counter() - began) * 1000:.1f} ms a decision at 1000 trials")
