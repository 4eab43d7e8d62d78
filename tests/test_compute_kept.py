"""``--max-compute`` counts all that workers compute: probes, trials, test rows, eval sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_search_simulated import Bench

from autopeft.spec import Budget
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Probe
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
