"""With a limit on latency every run measures it: that time is part of the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_search_simulated import Bench
from transformers import BertConfig

import autopeft
from autopeft.search.state import PATIENCE, State
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Pack, Probe, Train
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.trial.latency import latency_seconds

EVALUATE = 0.2
EACH = latency_seconds(EVALUATE, limited=True, merged=False)


class Timed(SyntheticWorld):
    """Measuring a configuration's latency takes as long as it is expected to, and gives more every time."""

    asked: dict[str, int]

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is None:
            return None
        if isinstance(job, Probe) and job.kind == "speed":
            return replace(made, values={**made.values, "evaluate_seconds_per_row": EVALUATE})
        if isinstance(job, Train) and job.latency:
            hash = job.configuration.hash
            self.asked[hash] = self.asked.get(hash, 0) + 1
            if self.asked[hash] > 1:
                values = {"measured": 2.5}
                return Outcome(job, "infeasible", "max_latency_overhead", "too slow", seconds=EACH, values=values)
            return replace(made, seconds=made.seconds + EACH)
        return made


@pytest.mark.parametrize("seconds", [600.0, 900.0, 1500.0])
def test_a_configuration_that_kept_the_limit_is_not_refused_by_a_later_measurement(
    tmp_path: Path, seconds: float
) -> None:
    assert EACH > 20
    world = Timed(by_method({}), rows=100)
    world.asked = {}
    log = Bench(tmp_path / "run", world, Budget(max_time=seconds, max_latency_overhead=2.0)).run()
    runs = [trial for trial in log.trials.values() if trial.purpose == "confirm"]
    assert len(runs) >= 2 * len(log.finalists["seeds"]) >= 4
    assert {trial.status for trial in runs} == {"completed"}
    assert max(trial.ended for trial in runs) <= log.plan["confirm_until"]
    # Every configuration, those without some parts too, was held against it once.
    assert set(world.asked) == {trial.hash for trial in log.trials.values()}
    assert all(log.latency(hash) for hash in world.asked)


def test_no_trial_is_begun_whose_measurement_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explored(folder: str) -> int:
        budget = Budget(max_time=600.0, max_latency_overhead=2.0)
        log = Bench(tmp_path / folder, SyntheticWorld(by_method({})), budget).run()
        return sum(trial.purpose == "explore" for trial in log.trials.values())

    assert explored("usual") > 6
    monkeypatch.setattr(State, "limited_seconds", lambda state: 1e6)
    # One of each arm in any case.
    assert explored("slow") == 2


def test_packs_have_time_for_the_measurements_of_all_their_trials(tmp_path: Path) -> None:
    world = Timed(by_method({}), rows=100, pack_speeds={1: 0.005, 2: 0.003, 4: 0.002})
    world.asked = {}
    Bench(tmp_path / "run", world, Budget(max_trials=16, max_latency_overhead=2.0), pack=4).run()
    packs = [job for job in world.jobs if isinstance(job, Pack)]
    first = [pack for pack in packs if sum(member.latency for member in pack.members) > 1]
    assert first
    assert all(pack.time_limit > PATIENCE * EACH * sum(m.latency for m in pack.members) for pack in first)


def test_a_plan_counts_it_too(tmp_path: Path, tiny_reviews: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    BertConfig(**sizes, vocab_size=300, max_position_embeddings=128).save_pretrained(tmp_path / "bert")
    task = {"model": str(tmp_path / "bert"), "data": str(tiny_reviews)}
    budget = {"max_time": "20m", "max_latency_overhead": 1.5}
    time = autopeft.plan(task, budget, device_tflops=0.001).to_dict()["time"]
    each = time["seconds_of_a_full_training"] + time["latency_seconds_of_a_measurement"]
    assert time["latency_seconds_of_a_measurement"] > 0
    left = time["explore_seconds"] - time["of_these_simplify_seconds_at_most"]
    assert time["full_trainings_that_exploration_affords"] == pytest.approx(time["workers"] * left / each)
