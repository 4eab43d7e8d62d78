"""What a search spends beside trials and finalists is priced by plans and counted by limits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from example_search import division
from space_models import bert
from test_search_simulated import Bench
from transformers import BertConfig

import autopeft
from autopeft.methods import METHODS
from autopeft.search.beside import Beside, beside, full_seconds
from autopeft.search.division import Speed
from autopeft.search.drops import CAUTION, SHARE, drops_seconds, most_drops
from autopeft.search.hours import device_hours, unaffordable
from autopeft.search.state import PATIENCE
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Probe, Train
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.trial.latency import LIMITED_SECONDS, LONGEST, MOST_SECONDS, latency_seconds

DIVISION = replace(
    division(),
    max_trials=40,
    rung_evaluated=100,
    final_evaluated=200,
    explore_until=None,
    confirm_until=None,
    deadline=None,
    speed=Speed(train=0.01, evaluate=0.005),
)
FULL = full_seconds(DIVISION)


def mixed() -> Configuration:
    """LoRA on every query of six blocks, SSF on those of the upper third: four groups of parts."""
    sites: dict[str, list[Part]] = {}
    for site in bert().select(("query",)):
        sites[site.name] = [Part.of("lora", METHODS["lora"].knobs(site, 2))]
        if site.block >= 4:
            sites[site.name].append(Part.of("ssf", METHODS["ssf"].knobs(site)))
    return Configuration.of(sites, Training((("lora", 3e-3), ("ssf", 1e-3)), 1e-3, 16))


def test_a_quarter_of_the_exploration_may_go_to_drops() -> None:
    assert [drops_seconds(10.0, drops, 2) for drops in (0, 1, 3)] == [0.0, CAUTION * 10, CAUTION * 30]
    for seconds in (50.0, 100.0, 1000.0, 10_000.0):
        most = most_drops(9, 10.0, 2, seconds, None)
        assert drops_seconds(10.0, most, 2) <= SHARE * seconds
        assert most == 9 or drops_seconds(10.0, most + 1, 2) > SHARE * seconds
    assert [most_drops(9, 10.0, 2, None, trials) for trials in (None, 8, 24, 400)] == [0, 0, 4, 9]


def test_dropping_parts_and_measuring_latency_are_priced() -> None:
    found = beside([mixed()], bert(), DIVISION, Budget(max_trials=40), "standard")
    assert found.drops == 4
    # The challenger again, four times less one group, and without all that can go.
    assert found.runs == 6
    each = latency_seconds(0.005, limited=False, merged=False)
    assert found.latency == each > 0
    assert found.seconds(DIVISION, 40) == pytest.approx(6 * FULL + 2 * each)
    hours = device_hours(DIVISION, Budget(max_trials=40), 3.0, found)["device_hours"]
    assert hours - device_hours(DIVISION, Budget(max_trials=40), 3.0)["device_hours"] == pytest.approx(
        (6 * FULL + 2 * each) / 3600
    )
    assert beside([mixed()], bert(), DIVISION, Budget(), "quick").runs == 0
    assert beside([mixed()], bert(), replace(DIVISION, max_trials=8), Budget(max_trials=8), "strict").runs == 0


def test_a_limit_on_latency_is_measured_of_every_configuration() -> None:
    found = beside([], bert(), DIVISION, Budget(max_trials=40, max_latency_overhead=1.2), "standard")
    assert found.seconds(DIVISION, 40) == pytest.approx(40 * found.latency)
    merged = Budget(max_trials=40, max_latency_overhead=1.2, target="merged")
    assert beside([], bert(), DIVISION, merged, "standard").seconds(DIVISION, 40) == 0.0


def test_the_finalists_of_a_very_large_model_pay_for_being_measured() -> None:
    clocked = replace(DIVISION, explore_until=1000.0, confirm_until=1000.0 + 3.1 * FULL, deadline=2000.0)
    assert unaffordable(clocked) == []
    slow = Beside(latency=latency_seconds(20.0, limited=False, merged=False))
    assert slow.latency > 0.2 * FULL
    assert len(unaffordable(clocked, slow)) == 1


def test_no_measurement_takes_longer_than_its_limits() -> None:
    for row in (1e-4, 0.01, 1.0, 10.0):
        for limited, patience in ((False, MOST_SECONDS), (True, LIMITED_SECONDS)):
            assert latency_seconds(row, limited=limited, merged=False) <= 2 * max(patience, LONGEST) + 4 * row


@pytest.mark.usefixtures("few_predictions")
def test_a_plan_tells_them(tmp_path: Path, tiny_reviews: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    BertConfig(**sizes, vocab_size=300, max_position_embeddings=128).save_pretrained(tmp_path / "bert")
    task = {"model": str(tmp_path / "bert"), "data": str(tiny_reviews)}
    time = autopeft.plan(task, {"max_time": "1h"}, device_tflops=0.001).to_dict()["time"]
    json.dumps(time)
    assert 0 < time["of_these_simplify_seconds_at_most"] <= SHARE * time["explore_seconds"]
    assert time["simplify_runs_at_most"] >= 3
    left = time["explore_seconds"] - time["of_these_simplify_seconds_at_most"]
    full = time["seconds_of_a_full_training"]
    assert time["full_trainings_that_exploration_affords"] == pytest.approx(left / full)
    assert time["latency_measured_of"] == "each finalist, once"
    assert time["latency_seconds_of_a_measurement"] > 0
    quick = autopeft.plan(task, {"max_time": "1h"}, device_tflops=0.001, evidence="quick").to_dict()["time"]
    assert quick["of_these_simplify_seconds_at_most"] == quick["simplify_runs_at_most"] == 0


def test_the_job_that_measures_gets_the_time_for_it(tmp_path: Path) -> None:
    class Slow(SyntheticWorld):
        def outcome(self, job: Job, folder: str) -> Outcome | None:
            made = super().outcome(job, folder)
            if isinstance(job, Probe) and job.kind == "speed" and made is not None:
                return replace(made, values={**made.values, "evaluate_seconds_per_row": 0.5})
            return made

    def times(budget: Budget, folder: Path, purpose: str) -> dict[bool, set[float]]:
        world = Slow(by_method({}), rows=100)
        log = Bench(folder, world, budget, evidence="quick").run()
        runs = [job for job in world.jobs if isinstance(job, Train) and log.trials[job.trial].purpose == purpose]
        return {told: {round(job.time_limit, 3) for job in runs if job.latency is told} for told in (True, False)}

    found = times(Budget(max_trials=3), tmp_path / "free", "confirm")
    extra = PATIENCE * latency_seconds(0.5, limited=False, merged=False)
    assert max(found[True]) == pytest.approx(max(found[False]) + extra, rel=0.2)
    limited = Budget(max_trials=3, max_latency_overhead=2.0)
    explored = times(Budget(max_trials=3), tmp_path / "explored", "explore")
    measured = times(limited, tmp_path / "limited", "explore")
    assert not explored[True]
    assert min(measured[True]) > min(explored[False]) + extra / 2
    # It is that of the configuration: finalists are not measured again.
    assert not times(limited, tmp_path / "finalists", "confirm")[True]
