"""Searches with many trials and many workers: bounded work, and no worker that waits without need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from space_models import bert

from autopeft.executors.simulated import SimulatedExecutor
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.search.division import Division
from autopeft.search.finals import Finals
from autopeft.search.ledger import Ledger
from autopeft.spec import Budget
from autopeft.strategy.base import TrialView
from autopeft.strategy.halving import Asha, Hyperband, Median
from autopeft.strategy.tpe import TPESampler
from autopeft.strategy.trials import Trials
from autopeft.testing.searches import simulated_search
from autopeft.testing.strategies import toy_dimensions, toy_prior, toy_trials
from autopeft.testing.worlds import SyntheticWorld, by_method

WORLD = by_method({"lora": 0.82, "parallel": 0.9, "ia3": 0.8})


def faults(job: Any, attempt: int) -> str:
    """Some configurations fail, break limits, or lose their worker once."""
    number = int(job.configuration.hash[:4], 16)
    if number % 17 == 0 and attempt == 1:
        return "dies"
    return {0: "nan", 1: "oom"}.get(number % 23, "ok")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "run"
    world = SyntheticWorld(WORLD, rows=100, fate=faults)
    simulated_search(folder, world, Budget(max_trials=150), modules=bert(), slots=16, margin=0.01)
    return folder


def test_sums_and_rankings_are_those_of_all_trials(searched: Path) -> None:
    log = SearchLog()
    for record in read_journal(searched):
        log.apply(record)
        trials = list(log.trials.values())
        assert log.index.started["explore"] == sum(t.purpose == "explore" for t in trials)
    beside = sum(p["seconds"] for p in log.probes.values()) + sum(test["seconds"] for test in log.tests.values())
    assert log.busy == pytest.approx(sum(t.seconds for t in trials) + beside)
    for status, count in log.counts.items():
        assert count == sum(t.status == status for t in trials)
    for trial in trials:
        assert log.of_configuration(trial.hash) == [t for t in trials if t.hash == trial.hash]
    fit = [t for t in trials if t.rungs and t.status not in ("failed", "infeasible")]
    for arm in ("baseline", "space", None):
        of_arm = [t for t in fit if arm in (None, t.arm)]
        first = max(of_arm, key=lambda t: (t.rungs[-1].rung, t.rungs[-1].metrics["accuracy"]))
        assert log.best(arm) == (first, first.rungs[-1].metrics["accuracy"])
    tuned = [t for t in fit if (t.arm, t.purpose) == ("baseline", "explore")]
    for rung, mark in log.index.marks().items():
        assert mark == max(r.metrics["accuracy"] for t in tuned for r in t.rungs if r.rung == rung)
    with Journal.resume(searched) as journal:
        explored = Finals(Ledger(journal), Division.from_dict(log.plan), ("baseline", "space")).explored()
    assert explored["baseline"].hash == log.finalists["baseline"]


def test_trials_put_in_one_by_one_are_as_those_put_in_at_once() -> None:
    ended = toy_trials(200, seed=3)
    grown = Trials()
    for trial in ended:
        grown.put(TrialView(trial.trial, trial.index, trial.values, (), "running"))
    for trial in ended:
        for rungs in range(1, len(trial.scores)):
            status = "paused" if rungs % 2 else "running"
            grown.put(TrialView(trial.trial, trial.index, trial.values, trial.scores[:rungs], status))
        grown.put(trial)
    whole = Trials(ended)
    assert list(grown) == list(whole) == ended
    for rule in (Asha(3), Hyperband(3), Median()):
        assert rule.promote(grown, 3) == rule.promote(ended, 3)
        for trial in ended[:30]:
            if trial.scores:
                assert rule.judge(trial, grown, 3) == rule.judge(trial, ended, 3)
    sampler = TPESampler(toy_dimensions(), toy_prior(), seed=1, mutate=0.3)
    assert [sampler.propose(i, grown) for i in range(200, 212)] == [sampler.propose(i, ended) for i in range(200, 212)]


def test_a_question_looks_at_as_many_trials_however_many_there_are() -> None:
    looked = {}
    for count in (400, 4000):
        known = Trials(toy_trials(count))
        sampler = TPESampler(toy_dimensions(), toy_prior(), window=60, prior_share=0.0)
        sampler.propose(count, known)
        Asha(3).promote(known, 3)
        Asha(3).judge(TrialView("new", count, {}, (0.8,), "running"), known, 3)
        looked[count] = known.looked_at
    assert looked[4000] <= looked[400] + 5
    assert looked[4000] < 5 * 60


def test_views_are_made_of_what_is_new_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [0]
    original = Trials.put

    def put(self: Trials, view: TrialView) -> None:
        made[0] += 1
        original(self, view)

    monkeypatch.setattr(Trials, "put", put)
    world = SyntheticWorld(WORLD, rows=100)
    log = simulated_search(tmp_path / "run", world, Budget(max_trials=120), modules=bert(), slots=8)
    records = sum(len(t.rungs) + len(t.decisions) + 2 for t in log.trials.values())
    assert made[0] <= records


class Watched(SimulatedExecutor):
    """Notes how many slots have no job, and from when to when."""

    spans: ClassVar[list[tuple[float, float, int]]] = []

    def poll(self) -> Any:
        then, free = self._clock.now, self.slots - len(self._ends)
        events = super().poll()
        self.spans.append((then, self._clock.now, free))
        return events


@pytest.mark.parametrize("budget", [Budget(max_trials=40), Budget(max_time=600.0)], ids=["trials", "time"])
def test_workers_hardly_wait_while_exploring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    monkeypatch.setattr("autopeft.testing.searches.SimulatedExecutor", Watched)
    Watched.spans.clear()
    slots, world = 8, SyntheticWorld(WORLD, rows=100)
    log = simulated_search(tmp_path / "run", world, budget, modules=bert(), slots=slots)
    over = next(r.used for r in read_journal(tmp_path / "run") if r.type in ("simplify", "finalists"))
    began = float(log.plan["started"])
    idle = sum(free * (end - start) for start, end, free in Watched.spans if start >= began and end <= over)
    # What is left to wait for is the end of the full training that was the last to start.
    assert idle < 0.2 * slots * (over - began)
    assert all(free == 0 for start, end, free in Watched.spans if began < start and end < began + 0.4 * (over - began))


def test_free_workers_take_further_seeds_at_once(tmp_path: Path) -> None:
    world = SyntheticWorld(WORLD, rows=100)
    log = simulated_search(tmp_path / "run", world, Budget(max_time=600.0), modules=bert(), slots=16)
    records = read_journal(tmp_path / "run")
    verdict = next(record.seq for record in records if record.type == "verdict")
    confirm = {t.id for t in log.trials.values() if t.purpose == "confirm"}
    started = [r.used for r in records[:verdict] if r.type == "trial_started" and r.data["trial"] in confirm]
    # Two finalists and five seeds: ten runs on sixteen workers, all at once.
    assert log.finalists is not None
    assert len(log.finalists["seeds"]) == 5
    assert len(started) == 10
    assert max(started) - min(started) < 1
