"""``--max-compute`` counts all that workers compute: probes, trials, test rows, eval sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_search_simulated import Bench

from autopeft.search.state import SHORTEST_LIMIT
from autopeft.spec import Budget
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Probe, Train
from autopeft.testing.worlds import SyntheticWorld, by_method


class Counting(SyntheticWorld):
    """Evaluations take as long as their rows say; all seconds are added up."""

    computed = 0.0

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is not None and isinstance(job, Evaluate):
            rows = job.rows or {"test": 2000, "huge": 10**6}[job.split]
            made = replace(made, seconds=0.001 * rows)
        self.computed += 0.0 if made is None else made.seconds
        return made


@pytest.mark.parametrize("slots", [1, 4])
def test_what_follows_the_finalists_stays_within_the_limit_too(tmp_path: Path, slots: int) -> None:
    world = Counting(by_method({}))
    made = Bench(tmp_path / "run", world, Budget(max_compute=300.0), slots=slots, eval_rows={"huge": 10**6})
    log = made.run()
    assert {name for name, found in log.evaluations["huge"].items() if found["rows"] > 100} == {
        "baseline",
        "challenger",
    }
    assert log.busy == pytest.approx(world.computed)
    assert world.computed <= 300.0


class LongProbe(Counting):
    """Choosing the head takes a third of the limit: more than the clocks of what follows know of."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is not None and isinstance(job, Probe) and job.kind == "heads":
            self.computed += 100.0 - made.seconds
            made = replace(made, seconds=100.0)
        return made


def test_what_the_probes_took_is_left_to_nobody(tmp_path: Path) -> None:
    world = LongProbe(by_method({}))
    log = Bench(tmp_path / "run", world, Budget(max_compute=300.0)).run()
    assert log.busy == pytest.approx(world.computed)
    assert 200.0 < world.computed <= 300.0
    assert log.verdict["name"] != "unconfirmed"


class Hanging(LongProbe):
    """After its first trials, whatever trains goes on until its own clock ends it."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is None or not isinstance(job, Train) or len(self.jobs) < 12:
            return made
        assert job.time_limit is not None
        self.computed += job.time_limit - made.seconds
        return Outcome(job, "failed", "timeout", "the job took longer than its limit", seconds=job.time_limit)


@pytest.mark.parametrize("budget", [Budget(max_time=250.0), Budget(max_compute=350.0)])
def test_jobs_that_hang_are_ended_with_the_budget(tmp_path: Path, budget: Budget) -> None:
    # Jobs of their usual patience (30 s and more) would pass the limit if it were not asked.
    world = Hanging(by_method({}))
    log = Bench(tmp_path / "run", world, budget).run()
    assert any(trial.reason == "timeout" for trial in log.trials.values())
    late = SHORTEST_LIMIT + 2.0  # a limit is never shorter, and the test rows are read anyway
    assert log.used <= (budget.max_time or 1e9) + late
    assert world.computed <= (budget.max_compute or 1e9) + 2 * late
