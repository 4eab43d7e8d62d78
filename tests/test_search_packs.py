"""Searches whose workers train several trials at once, on a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from test_search_simulated import Bench, explored

from autopeft.cost.memory import Fit
from autopeft.journal import SearchLog
from autopeft.space.execution import PLAIN, Execution
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Pack, Train
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.trial.pack_speed import best_size, pack_gain

SPEEDS = {1: 0.005, 2: 0.003, 4: 0.002, 8: 0.0019}


def packs(world: SyntheticWorld) -> list[Pack]:
    return [job for job in world.jobs if isinstance(job, Pack)]


def shown(log: SearchLog) -> list[tuple[object, ...]]:
    return [(t.id, t.hash, t.status, [(r.rung, r.rows, r.together) for r in t.rungs]) for t in log.trials.values()]


def test_packs_are_filled_while_exploring_and_trained_more_for_it(tmp_path: Path) -> None:
    alone = SyntheticWorld(by_method({"parallel": 0.92}))
    together = SyntheticWorld(by_method({"parallel": 0.92}), pack_speeds=SPEEDS)
    logs = [
        Bench(tmp_path / str(number), world, Budget(max_time=900.0), pack="auto").run()
        for number, world in enumerate((alone, together))
    ]
    assert not packs(alone)
    assert all(rung.together == 1 for trial in logs[0].trials.values() for rung in trial.rungs)
    sizes = [len(pack.members) for pack in packs(together)]
    assert max(sizes) == 8
    assert sum(sizes) > len(sizes) * 3
    assert len(explored(logs[1])) > 1.5 * len(explored(logs[0]))
    assert logs[1].verdict is not None
    assert logs[1].used <= 900
    assert any("trained together" in note for note in logs[1].notes)
    confirmed = [t for t in logs[1].trials.values() if t.purpose == "confirm"]
    assert confirmed
    assert all(rung.together == 1 for trial in confirmed for rung in trial.rungs)


def test_no_trial_is_in_two_places_and_all_rungs_are_journalled(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), pack_speeds=SPEEDS)
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0), pack=3).run()
    done = [
        (job.trial, job.rung)
        for given in world.jobs
        for job in (given.members if isinstance(given, Pack) else (given,))
        if isinstance(job, Train)
    ]
    assert len(done) == len(set(done))
    rungs = {(trial.id, rung.rung) for trial in log.trials.values() for rung in trial.rungs}
    assert set(done) == rungs
    assert all(len(pack.members) <= 3 for pack in packs(world))
    members = [rung.together for trial in log.trials.values() for rung in trial.rungs]
    assert members.count(1) + sum(len(pack.members) for pack in packs(world)) == len(members)
    probes, tests = 7.0, 2.0
    assert log.busy == pytest.approx(sum(trial.seconds for trial in log.trials.values()) + probes + tests)


def test_what_cannot_be_packed_is_trained_alone(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), pack_speeds=SPEEDS)
    lean = Execution(micro_batch=4)
    gate = lambda c: Fit(lean if int(c.hash[0], 16) % 2 else PLAIN)  # noqa: E731
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0), pack=4, gate=gate).run()
    assert packs(world)
    assert all(job.execution == PLAIN for pack in packs(world) for job in pack.members)
    single = [job for job in world.jobs if isinstance(job, Train) and job.execution == lean]
    assert single
    assert not [trial for trial in explored(log) if trial.status == "running"]


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_search_with_packs_is_taken_up(tmp_path: Path, stop: int) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({}), pack_speeds=SPEEDS), Budget(max_time=600.0), pack=3)
    with pytest.raises(KeyboardInterrupt):
        bench.run(stop_after=stop)
    log = bench.run(resume=True)
    assert log.verdict is not None
    assert all(trial.ended is not None for trial in log.trials.values())
    assert log.used <= 600


def test_after_a_lost_worker_its_trials_go_on_alone(tmp_path: Path) -> None:
    killed: list[Pack] = []

    def kills(job: Job) -> bool:
        if isinstance(job, Pack) and not killed:
            killed.append(job)
            return True
        return False

    world = SyntheticWorld(by_method({}), pack_speeds=SPEEDS, kills=kills)
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0), pack=3).run()
    victims = {job.trial for job in killed[0].members}
    assert len(victims) == 3
    assert all(log.trials[trial].attempts == 2 and log.trials[trial].rungs for trial in victims)
    later = [pack for pack in packs(world) if pack not in killed]
    assert later
    assert not victims & {job.trial for pack in later for job in pack.members}
    assert sum(log.trials[trial].lost_seconds for trial in victims) == pytest.approx(1.0)


def test_without_memory_packs_get_smaller(tmp_path: Path) -> None:
    class Narrow(SyntheticWorld):
        def outcome(self, job: Job, folder: str) -> Outcome | None:
            made = super().outcome(job, folder)
            if made is not None and isinstance(job, Pack) and len(job.members) > 3:
                return replace(made, values={"reason": "oom", "detail": "no memory"})
            return made

    world = Narrow(by_method({}), pack_speeds=SPEEDS)
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0), pack=6, slots=1).run()
    sizes = [len(pack.members) for pack in packs(world)]
    assert sizes[0] == 6
    assert 2 <= max(sizes[1:]) <= 3
    assert any("did not fit into memory" in note for note in log.notes)


@pytest.mark.parametrize(
    ("speeds", "most", "size"),
    [
        (SPEEDS, 8, 8),
        (SPEEDS, 4, 4),
        ({1: 1.0, 2: 0.95, 4: 0.9}, 8, 1),
        ({1: 1.0, 2: 0.5, 4: 0.6}, 8, 2),
    ],
)
def test_the_size_that_pays(speeds: Mapping[int, float], most: int, size: int) -> None:
    assert best_size(speeds, most) == size


def test_the_gain_of_sizes_between() -> None:
    assert pack_gain(SPEEDS, 3) == pytest.approx(0.005 / 0.003)
    assert pack_gain(SPEEDS, 1) == 1.0
    assert pack_gain({}, 4) == 1.0
