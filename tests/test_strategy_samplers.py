import logging
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from autopeft.space.dimension import Choice, Real
from autopeft.strategy.base import TrialView
from autopeft.strategy.samplers import RandomSampler, estimates, inside, mutate, position
from autopeft.strategy.tpe import TPESampler
from autopeft.testing.strategies import SamplerContract, toy_dimensions, toy_prior, toy_score, toy_trials


class TestRandom(SamplerContract):
    def build(self, seed):
        return RandomSampler(toy_prior(seed))

    def test_follows_the_prior(self):
        prior = toy_prior(0)
        assert self.build(0).propose(17, toy_trials(5)) == prior(17)


class TestTPE(SamplerContract):
    def build(self, seed):
        return TPESampler(toy_dimensions(), toy_prior(seed), seed=seed)


class TestTPEWithMutation(SamplerContract):
    def build(self, seed):
        return TPESampler(
            toy_dimensions(), toy_prior(seed), seed=seed, startup=3, window=10, prior_share=0.2, mutate=0.5
        )


def scored(prior, count, good):
    return [TrialView(f"t{i}", i, prior(i), (good(prior(i)),), "completed") for i in range(count)]


def test_startup_comes_from_the_prior():
    prior = toy_prior(0)
    sampler = TPESampler(toy_dimensions(), prior, startup=10)
    assert sampler.propose(4, toy_trials(30)) == prior(4)
    few = scored(prior, 3, toy_score)
    assert sampler.propose(40, few) == prior(40)


def test_learns_where_good_points_are():
    prior = toy_prior(0)
    trials = scored(prior, 60, lambda v: -abs(v["rate"] - 0.9) - (v["attention"] != "ia3"))
    sampler = TPESampler(toy_dimensions(), prior, prior_share=0.0)
    points = [sampler.propose(60 + i, trials) for i in range(40)]
    assert np.mean([p["attention"] == "ia3" for p in points]) > 0.6
    assert np.median([abs(p["rate"] - 0.9) for p in points]) < 0.4


def test_learns_where_limits_are():
    prior = toy_prior(0)
    trials = [
        TrialView(f"t{i}", i, v, (), "infeasible", v["share"])
        if (v := prior(i))["share"] > 0.2
        else TrialView(f"t{i}", i, v, (0.8,), "completed")
        for i in range(80)
    ]
    sampler = TPESampler(toy_dimensions(), prior, prior_share=0.0)
    over = np.mean([sampler.propose(80 + i, trials)["share"] > 0.2 for i in range(60)])
    assert over < 0.2 < np.mean([prior(i)["share"] > 0.2 for i in range(200)])


def test_keeps_away_from_what_is_running():
    # One dimension, one good region: with many workers already there, the next point goes elsewhere more often.
    dimensions = (Real("x", 0.0, 1.0),)
    prior = toy_prior(0, dimensions)
    trials = scored(prior, 40, lambda v: -abs(v["x"] - 0.5))
    running = [TrialView(f"r{i}", 40 + i, {"x": 0.5}, (), "running") for i in range(30)]
    sampler = TPESampler(dimensions, prior, prior_share=0.0)

    def spread(seen):
        return np.mean([abs(sampler.propose(100 + i, seen)["x"] - 0.5) for i in range(60)])

    assert spread([*trials, *running]) > 1.3 * spread(trials)


def test_a_score_counts_while_the_trial_still_runs():
    prior = toy_prior(0)
    trials = scored(prior, 40, toy_score)
    sampler = TPESampler(toy_dimensions(), prior, prior_share=0.0)
    for status in ("running", "paused", "stopped"):
        assert sampler.propose(50, [replace(t, status=status) for t in trials]) == sampler.propose(50, trials)


def test_window_bounds_what_is_seen():
    prior = toy_prior(0)
    trials = scored(prior, 300, toy_score)
    sampler = TPESampler(toy_dimensions(), prior, window=40, prior_share=0.0)
    best = sorted(trials, key=lambda t: -t.scores[-1])[:20]
    latest = [t for t in reversed(trials) if t not in best][:20]
    assert sampler.propose(300, trials) == sampler.propose(300, sorted([*best, *latest], key=lambda t: t.index))
    assert sampler.propose(300, trials) != sampler.propose(300, trials[:40])


def test_mutation_stays_near_the_best():
    prior = toy_prior(0)
    trials = scored(prior, 60, toy_score)
    best = sorted(trials, key=lambda t: -t.scores[-1])[:3]
    sampler = TPESampler(toy_dimensions(), prior, prior_share=0.0, mutate=1.0, mutate_from=60)
    for index in range(60, 90):
        point = sampler.propose(index, trials)
        changed = min(sum(point[name] != t.values[name] for name in point) for t in best)
        assert 1 <= changed <= 2


def test_mutate_moves_to_neighbours():
    rng = np.random.default_rng(0)
    dimensions = (
        Choice("size", (1, 2, 4, 8), ordered=True),
        Choice("one", ("only",)),
        Real("rate", 1e-4, 1e-1, log=True),
    )
    for _ in range(300):
        values = {"size": 2, "one": "only", "rate": 1e-1}
        moved = mutate(values, dimensions, rng)
        assert values == {"size": 2, "one": "only", "rate": 1e-1}
        assert moved["size"] in (1, 2, 4)
        assert 1e-4 <= moved["rate"] <= 1e-1
        assert moved != values
    assert mutate({"one": "only"}, dimensions[1:2], rng) == {"one": "only"}


def test_estimates_compare_at_equal_rows():
    def trial(name, *scores, status="paused"):
        return TrialView(name, 0, {}, scores, status)

    trials = [
        trial("a", 0.70, 0.76, 0.80, status="completed"),
        trial("b", 0.72, 0.80, status="stopped"),
        trial("c", 0.74),
        trial("new", status="running"),
        trial("broken", 0.99, status="failed"),
        trial("over", 0.99, status="infeasible"),
        trial("odd", 0.7, math.nan),
    ]
    # Gains: 0.06 and 0.08 from rung 0, 0.04 from rung 1.
    found = estimates(trials)
    assert found == pytest.approx({"a": 0.80, "b": 0.84, "c": 0.85})
    assert estimates([]) == {}


def test_options_that_look_alike_stay_apart():
    options = Choice("x", (True, 1, 1.0, "1"))
    assert [position(options, value) for value in options.options] == [0, 1, 2, 3]
    # A journal may have made 0.0 of 0; what is equal to one option only is that option.
    assert position(Choice("x", (0, 0.5)), 0.0) == 0
    assert position(Choice("x", (0, 1)), True) is None
    assert not inside({"x": "2"}, (options,))
    dimensions = (options, Choice("y", (False, 0, 0.5)))
    sampler = TPESampler(dimensions, toy_prior(0, dimensions), startup=2, prior_share=0.0)
    trials = scored(toy_prior(0, dimensions), 30, lambda v: v["x"] is True)
    assert {type(sampler.propose(30 + i, trials)["x"]) for i in range(10)} == {bool}


def test_spaces_without_a_choice():
    dimensions = (Choice("only", ("one",)),)
    prior = toy_prior(0, dimensions)
    sampler = TPESampler(dimensions, prior, startup=1, mutate=0.5, mutate_from=1)
    trials = scored(prior, 5, lambda v: 0.5)
    assert sampler.propose(5, trials) == {"only": "one"}
    assert TPESampler((), lambda index: {}).propose(3, []) == {}


@pytest.mark.parametrize("options", [{"startup": 0}, {"window": 1}, {"prior_share": 0.8, "mutate": 0.3}, {"seed": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        TPESampler(toy_dimensions(), toy_prior(), **options)


def test_optuna_stays_silent(caplog, capfd):
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        TPESampler(toy_dimensions(), toy_prior()).propose(40, toy_trials(40))
    written = capfd.readouterr()
    assert written.out + written.err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


def test_validation_and_random_search_load_no_optuna():
    code = (
        "import sys; from autopeft.strategy import build, validate; values = {'name': 'r', 'sampler': 'random'};"
        "assert not validate(values); build(values, dimensions=(), prior=dict, seed=0); print('optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
