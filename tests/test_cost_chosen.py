"""What an adapter is cheap in is chosen: parameters, memory of training, or latency."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from space_models import bert

from autopeft.errors import InputError
from autopeft.evidence import compare
from autopeft.journal import SearchLog, TrialLog
from autopeft.journal.log import ConfigurationLog, RungLog
from autopeft.report.headline import calibrated, headline
from autopeft.search.scores import MOST, Scores
from autopeft.space.configuration import Configuration
from autopeft.spec import Budget
from autopeft.spec.costs import COSTS
from autopeft.spec.parse import parse_search
from autopeft.strategy.jobs import Train
from autopeft.testing.searches import simulated_search
from autopeft.testing.worlds import SyntheticWorld

RIGHT = {"prediction": np.ones(100), "label": np.ones(100)}


def by_sites(configuration: Configuration) -> float:
    """A latency that has nothing to do with parameters: every adapted module costs one percent."""
    return 1.2 + 0.01 * len(configuration.sites)


def params(log: SearchLog, role: str) -> int:
    return log.configurations[log.finalists[role]].adapter_params


def latency(log: SearchLog, hash: str) -> float:
    return max((log.latency(hash) or {}).values())


@pytest.mark.parametrize(
    ("cost", "costs", "takes", "told"),
    [
        ("params", (5, 10), "challenger", "taken with 5 adapter parameters against 10."),
        ("memory", (3 << 20, 2 << 20), "baseline", "taken with 2.0 MiB of memory in training against 3.0 MiB"),
        ("latency", (1.02, 1.3), "challenger", "taken with 1.02 times the time of the bare base's forward pass"),
        ("latency", (1.24, 1.25), "baseline", "the baseline is taken with 1.25 times"),
        ("latency", (1.1, math.inf), "baseline", "what both cost is not known"),
        ("latency", (math.inf, math.inf), "baseline", "what both cost is not known"),
    ],
)
def test_a_tie_goes_to_what_costs_less(cost: str, costs: tuple[float, float], takes: str, told: str) -> None:
    verdict = compare("accuracy", [RIGHT, RIGHT], [RIGHT, RIGHT], costs=costs, cost=COSTS[cost])
    assert (verdict.name, verdict.takes) == ("tie", takes)
    assert told in verdict.reason


def test_what_is_saved_is_said_in_its_own_words() -> None:
    verdict = compare("accuracy", [RIGHT] * 2, [RIGHT] * 2, costs=(1.1, 2.2), cost=COSTS["latency"], margin=0.2)
    assert verdict.name == "within"
    assert "with 50% less time for a forward pass" in verdict.reason
    for costs in ((1.1, math.inf), (1.24, 1.25)):
        # Nothing is known to be saved.
        same = compare("accuracy", [RIGHT] * 2, [RIGHT] * 2, costs=costs, cost=COSTS["latency"], margin=0.2)
        assert (same.name, same.takes) == ("tie", "baseline")
        assert "nothing known to be cheaper" in same.reason


def test_while_exploring_the_chosen_cost_counts() -> None:
    header = {"task": {"metric": "accuracy"}, "procedure": {"margin": 0.02, "cost": "memory"}}
    log = SearchLog(header=header)
    # Name, arm, parameters, live bytes or None where none were measured: many parameters need not mean much memory.
    made = [("lora", "baseline", 500, 4 << 20), ("many", "space", 900, 1 << 20), ("few", "space", 10, 2 << 20)]
    made.append(("unmeasured", "space", 1, None))
    for number, (name, arm, count, peak) in enumerate(made):
        log.configurations[name] = ConfigurationLog(name, {}, {"x": 1}, count, arm)
        trial = TrialLog(f"t{number}", name, arm, "explore", 0, number, 0)
        trial.rungs.append(RungLog(0, 100, {"accuracy": 0.8}, peak_bytes=peak))
        log.trials[trial.id] = trial
        log.index.start(trial)
        log.index.update(trial, "accuracy", log.cost(name))
    seen = {t.hash: Scores(log, "space").view(t).scores[0] for t in log.trials.values() if t.arm == "space"}
    assert seen["many"] > seen["few"] > seen["unmeasured"] == pytest.approx(0.79)
    # Half of the memory is one step, and all steps together stay within one margin.
    assert seen["many"] - seen["few"] == pytest.approx(0.02 / MOST)
    assert seen["many"] < 0.79 + 0.02
    assert log.index.standings("space", "explore")[0][-1] == "t1"
    assert math.isinf(log.cost("unmeasured"))


def test_with_a_margin_the_fastest_adapter_that_keeps_it_is_returned(tmp_path: Path) -> None:
    modules, budget = bert(), Budget(max_adapter_params=0.01, max_time=900.0)

    def searched(cost: str) -> tuple[SearchLog, SyntheticWorld]:
        world = SyntheticWorld(lambda made: 0.7 + 0.02 * math.log10(made.adapter_params(modules)), latency=by_sites)
        log = simulated_search(tmp_path / cost, world, budget, modules=modules, margin=0.05, cost=cost)
        return log, world

    (fast, world), (small, _) = searched("latency"), searched("params")
    assert latency(fast, fast.finalists["challenger"]) < latency(fast, fast.finalists["baseline"])
    assert latency(fast, fast.finalists["challenger"]) < latency(small, small.finalists["challenger"])
    assert params(small, "challenger") < params(fast, "challenger")
    assert fast.verdict["cost"] == "latency"
    assert fast.verdict["costs"]["challenger"] == pytest.approx(latency(fast, fast.finalists["challenger"]), abs=0.005)
    # Every configuration is measured once, and finalists with every fresh seed: the first is why they were chosen.
    measured = Counter(job.configuration.hash for job in world.jobs if isinstance(job, Train) and job.latency)
    anew = [trial.hash for trial in fast.trials.values() if trial.purpose == "confirm"]
    assert len(anew) >= 4
    assert measured == Counter([*{trial.hash for trial in fast.trials.values()}, *anew])


def test_what_is_told_of_finalists_was_not_why_they_were_chosen(tmp_path: Path) -> None:
    """All adapters are equally fast; one measurement scatters by 5 %."""
    chance, modules = np.random.default_rng(0), bert()
    world = SyntheticWorld(lambda made: 0.8, latency=lambda made: 1.3 + 0.05 * float(chance.standard_normal()))
    budget = Budget(max_time=900.0)
    log = simulated_search(tmp_path, world, budget, modules=modules, margin=0.2, cost="latency")
    first = {
        role: next(r.latency for t in log.of_configuration(hash, "explore") for r in t.rungs if r.latency)
        for role in ("challenger", "baseline")
        if (hash := log.finalists[role])
    }
    fresh = {
        role: [max(r.latency.values()) for t in log.of_configuration(log.finalists[role], "confirm") for r in t.rungs]
        for role in first
    }
    assert all(len(ratios) >= 2 and max(first[role].values()) not in ratios for role, ratios in fresh.items())
    assert log.verdict["costs"] == {role: round(median(ratios), 2) for role, ratios in fresh.items()}
    # What it was chosen by flatters it.
    assert max(first["challenger"].values()) < 1.3


def test_a_tie_between_arms_goes_by_the_chosen_cost(tmp_path: Path) -> None:
    modules = bert()
    world = SyntheticWorld(lambda made: 0.8, seed_noise=0.0, peak=lambda made: 10**9 - made.adapter_params(modules))
    log = simulated_search(tmp_path / "run", world, Budget(max_time=600.0), modules=modules, cost="memory")
    assert log.verdict["name"] == "tie"
    # In this world more parameters take less memory.
    costs = {role: log.cost(log.finalists[role]) for role in ("challenger", "baseline")}
    assert costs == log.verdict["costs"]
    cheaper = min(costs, key=lambda role: costs[role])
    assert log.verdict["takes"] == cheaper
    assert params(log, cheaper) == max(params(log, role) for role in costs)


def test_merged_adapters_cannot_be_chosen_by_latency() -> None:
    task = {"task": {"model": "m", "data": "d"}, "cost": "latency"}
    assert parse_search(task).cost == "latency"
    with pytest.raises(InputError, match="merged"):
        parse_search({**task, "budget": {"target": "merged"}})
    with pytest.raises(InputError, match="params"):
        parse_search({**task, "cost": "money"})


def test_the_answer_speaks_of_the_chosen_cost() -> None:
    verdict = {"name": "tie", "takes": "challenger", "cost": "latency", "costs": {"challenger": 1.05, "baseline": 1.4}}
    log = SearchLog(header={"task": {"metric": "accuracy"}}, verdict=verdict)
    sentence, _ = headline(log, "found", {})
    assert sentence.endswith("no difference from a tuned LoRA was found, with 25% less time for a forward pass.")
    verdict["costs"] = {"challenger": 1.05, "baseline": 1.06}
    assert headline(log, "found", {})[0].endswith("with 0.9% less time for a forward pass.")
    verdict["costs"] = {"challenger": 1.05, "baseline": 1.05}
    assert headline(log, "found", {})[0].endswith("with 1.05 times the time of the bare base's forward pass for both.")
    log.header["task"]["metric"] = "accuracy"
    assert calibrated(SearchLog(header=log.header, verdict={**verdict, "name": "within"}))[0] == "not known for latency"
