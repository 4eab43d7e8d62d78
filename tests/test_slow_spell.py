"""A machine that gets slower for a while takes time from the exploration, and leaves the finalists theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_search_simulated import Bench

from autopeft.executors.simulated import VirtualClock
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Train
from autopeft.testing.worlds import SyntheticWorld, by_method

SLOWER = 12.0


class Spell(SyntheticWorld):
    """In a slow spell jobs get on a small part as fast; those that take too long are given up, as by workers."""

    clock: VirtualClock
    spell: tuple[float, float]

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is None or not isinstance(job, Train):
            return made
        before, inside = max(0.0, self.spell[0] - self.clock.now), self.spell[1] - max(self.clock.now, self.spell[0])
        # What is left of it when the spell begins takes as long as the spell lasts, and what is then still left.
        left = max(0.0, made.seconds - before)
        more = min(left * (SLOWER - 1), max(0.0, inside) * (1 - 1 / SLOWER))
        made = replace(made, seconds=made.seconds + more, train_seconds=made.train_seconds + more)
        if job.time_limit is not None and made.seconds > job.time_limit:
            return Outcome(job, "failed", "timeout", "the job took too long", seconds=job.time_limit)
        return made


@pytest.mark.parametrize(("evidence", "spell"), [("quick", (240.0, 428.0)), ("standard", (250.0, 420.0))])
def test_finalists_have_time_for_a_verdict_after_a_slow_spell(
    tmp_path: Path, evidence: str, spell: tuple[float, float]
) -> None:
    world = Spell(by_method({"parallel": 0.92}))
    bench = Bench(tmp_path / "run", world, Budget(max_time=600.0), evidence=evidence)
    world.clock, world.spell = bench.clock, spell
    log = bench.run()
    assert log.verdict["name"] != "unconfirmed"
    assert log.verdict["seeds"] >= 2
    assert log.used <= 600.0
    half = (log.plan["explore_until"] + log.plan["confirm_until"]) / 2
    late = [t for t in log.trials.values() if t.reason == "timeout" and t.ended > log.plan["explore_until"] + 10]
    assert late
    assert all(trial.purpose != "confirm" and half - 2 <= trial.ended <= half + 1 for trial in late if trial.rungs)
    # What they had reached is as good as ever.
    assert {trial.status for trial in late if trial.rungs} <= {"stopped"}
    assert evidence == "standard" or any(trial.rungs for trial in late)


@pytest.mark.parametrize("seconds_per_row", [0.05, 0.1])
def test_the_first_trial_of_an_arm_is_trained_whatever_the_time(tmp_path: Path, seconds_per_row: float) -> None:
    world = Spell(by_method({}), seconds_per_row=seconds_per_row)
    bench = Bench(tmp_path / "run", world, Budget(max_time=60.0), slots=1)
    world.clock, world.spell = bench.clock, (1e9, 1e9)
    log = bench.run()
    for arm in ("baseline", "space"):
        first = next(trial for trial in log.trials.values() if trial.arm == arm)
        # Only the end of the whole budget ends it.
        assert first.rungs or first.ended >= log.plan["deadline"] - 1.0, (arm, first.status, first.reason)
    assert any(trial.rungs for trial in log.trials.values())
