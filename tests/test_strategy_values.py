from pathlib import Path

import numpy as np
import pytest
import yaml

from autopeft.errors import InputError
from autopeft.strategy import build, validate
from autopeft.strategy.base import Sampler
from autopeft.strategy.curves import Curve
from autopeft.strategy.halving import Asha, Hyperband, NoHalving
from autopeft.strategy.samplers import RandomSampler
from autopeft.strategy.tpe import TPESampler
from autopeft.testing.strategies import toy_dimensions, toy_prior, toy_search

FOLDER = Path(__file__).parent.parent / "strategies"
SHIPPED = {
    "random": (RandomSampler, NoHalving, 1),
    "tpe": (TPESampler, NoHalving, 1),
    "tpe-asha": (TPESampler, Asha, 3),
    "hyperband": (RandomSampler, Hyperband, 3),
    "tpe-curve": (TPESampler, Curve, 4),
}


def shipped(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def made(values, seed=0):
    return build(values, dimensions=toy_dimensions(), prior=toy_prior(seed), seed=seed)


def test_every_shipped_strategy_is_listed():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_strategies_build(name):
    sampler, halving, rungs = SHIPPED[name]
    values = shipped(name)
    assert validate(values) == []
    strategy = made(values)
    assert isinstance(strategy.sampler, sampler)
    assert isinstance(strategy.halving, halving)
    assert (strategy.name, strategy.rungs, strategy.eta) == (name, rungs, 3.0)
    assert strategy.dimensions == toy_dimensions()
    head = (FOLDER / f"{name}.yaml").read_text().split("\nname:")[0]
    for key in ("# Purpose:", "# Cost:", "# Paper:", "# Command: autopeft search"):
        assert key in head
    assert f"--strategy {name}" in head


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_strategies_run_a_search(name):
    found, trials = toy_search(made(shipped(name)), trainings=12, seed=0)
    assert found > 0.75
    rungs = SHIPPED[name][2]
    assert any(len(trial.scores) == rungs for trial in trials)
    assert all(trial.status in ("completed", "paused", "stopped") for trial in trials)


def test_short_forms_and_defaults():
    strategy = made({"name": "x", "sampler": "tpe", "halving": "median"})
    assert (strategy.rungs, strategy.eta) == (3, 3.0)
    assert isinstance(made({"name": "x", "sampler": "random"}).halving, NoHalving)
    four = made({"name": "x", "sampler": "random", "halving": {"name": "asha", "eta": 2, "rungs": 4}})
    assert (four.rungs, four.eta) == (4, 2.0)


def test_all_problems_are_named_at_once():
    values = {
        "sampler": {"name": "tpe", "startup": 0, "windw": 5, "prior_share": float("nan")},
        "halving": {"name": "ascha", "eta": 1},
        "budget": 3,
    }
    problems = validate(values, "strategy")
    assert [problem.field for problem in problems] == [
        "strategy.budget",
        "strategy.name",
        "strategy.sampler.startup",
        "strategy.sampler.windw",
        "strategy.sampler.prior_share",
        "strategy.halving.name",
    ]
    assert "Did you mean window?" in str(problems[3])
    assert "Did you mean asha?" in str(problems[5])
    with pytest.raises(InputError) as caught:
        made(values)
    assert len(caught.value.problems) == 6


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ("tpe", "s"),
        (None, "s"),
        ({"name": "x"}, "s.sampler"),
        ({"name": "", "sampler": "random"}, "s.name"),
        ({"name": "x", "sampler": ["tpe"]}, "s.sampler"),
        ({"name": "x", "sampler": {"startup": 3}}, "s.sampler.name"),
        ({"name": "x", "sampler": {"name": ["tpe"]}}, "s.sampler.name"),
        ({"name": "x", "sampler": "random", "halving": {"name": "asha", "rungs": True}}, "s.halving.rungs"),
        ({"name": "x", "sampler": "random", "halving": {"name": "asha", "rungs": 2.5}}, "s.halving.rungs"),
        ({"name": "x", "sampler": "random", "halving": {"name": "asha", "eta": "3"}}, "s.halving.eta"),
        ({"name": "x", "sampler": "random", "halving": None}, "s.halving"),
        ({"name": "x", "sampler": {"name": "tpe", "mutate": 0.7, "prior_share": 0.7}}, "s.sampler"),
        ({"name": "x", "sampler": {"name": "tpe", "startup": None}}, "s.sampler.startup"),
        ({"name": "x", "sampler": "random", 3: 4}, "s.3"),
    ],
)
def test_malformed_values(values, field):
    problems = validate(values, "s")
    assert [problem.field for problem in problems] == [field]
    assert problems[0].next_step


def test_learning_and_halving_find_better_points_than_chance():
    # At equal rows. The toy's best is 0.90; the standard error of the mean over 20 seeds is about 0.003.
    found = {
        name: np.mean([toy_search(made(shipped(name), seed), trainings=30, seed=seed)[0] for seed in range(20)])
        for name in ("random", "tpe-asha")
    }
    print({name: round(float(value), 4) for name, value in found.items()})
    assert found["tpe-asha"] > found["random"] + 0.004


def test_a_search_is_repeatable():
    runs = [toy_search(made(shipped("tpe-asha"), 1), trainings=8, seed=1) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != toy_search(made(shipped("tpe-asha"), 2), trainings=8, seed=1)


def test_workers_never_idle_at_the_start():
    # The first trials of a rung are paused, not promoted; the sampler, not a wait, gives the worker its next job.
    class Counting(Sampler):
        asked = 0

        def propose(self, index, trials):
            Counting.asked += 1
            return toy_prior(0)(index)

    strategy = made(shipped("tpe-asha"))
    counting = type(strategy)("c", Counting(), strategy.halving, strategy.rungs, strategy.eta, strategy.dimensions)
    _, trials = toy_search(counting, trainings=1, seed=0, workers=4)
    assert Counting.asked == len(trials) >= 4
