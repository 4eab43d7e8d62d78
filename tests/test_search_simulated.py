"""Whole searches on a virtual clock."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from space_models import bert

from autopeft.cost.memory import Fit
from autopeft.errors import AutopeftError, NothingFeasible
from autopeft.evidence import LEVEL
from autopeft.executors.simulated import SimulatedExecutor, VirtualClock
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.search import finals
from autopeft.search.controller import Controller
from autopeft.search.division import Speed
from autopeft.search.ledger import Ledger
from autopeft.search.resume import limits, take_up
from autopeft.search.state import Field, Rules
from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN, Execution
from autopeft.spec import Budget
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Probe, Train
from autopeft.testing.searches import field_of
from autopeft.testing.worlds import SyntheticWorld, by_method

HEADER = {
    "schema": 1, "version": "0", "spec": {"budget": {}}, "fingerprint": {},
    "task": {"kind": "sequence_classification", "metric": "accuracy", "notes": [], "rows": {}, "hashes": {}},
    "model": {"id": "local:0", "base_params": 22_000_000}, "space": {}, "environment": {}, "procedure": {},
}  # fmt: skip


class Bench:
    """A search over the real spaces and strategies in a synthetic world."""

    def __init__(self, folder: Path, world: SyntheticWorld, budget: Budget, **options: object) -> None:
        self.folder, self.world, self.budget = folder, world, budget
        self.clock = VirtualClock()
        self.space = str(options.get("space", "hybrid"))
        self.strategy = str(options.get("strategy", "tpe-asha"))
        self.evidence = str(options.get("evidence", "standard"))
        self.until_decided = bool(options.get("until_decided", False))
        self.margin = options.get("margin")
        self.objective = str(options.get("objective", "best"))
        self.slots = int(options.get("slots", 2))  # type: ignore[call-overload]
        self.eval_rows: dict[str, int] = options.get("eval_rows", {})  # type: ignore[assignment]
        self.pack: int | str = options.get("pack", "off")  # type: ignore[assignment]
        self.incumbent: str | None = options.get("incumbent")  # type: ignore[assignment]
        self.gate: Callable[[Configuration], Fit] = options.get("gate", lambda c: Fit(PLAIN))  # type: ignore[assignment]

    def field(self, head: str, speed: Speed) -> Field:
        return field_of(bert(), self.budget, speed, space=self.space, strategy=self.strategy, gate=self.gate)

    def run(self, *, resume: bool = False, stop_after: int | None = None) -> SearchLog:
        opener = Journal.resume if resume else Journal.create
        with opener(self.folder, clock=self.clock) as journal:
            ledger = Ledger(journal)
            if not resume:
                asked = {
                    "spec": {"budget": limits(self.budget)},
                    "procedure": {"margin": self.margin, "objective": self.objective},
                }
                ledger.write("search_started", **{**HEADER, **asked})
            else:
                take_up(ledger, self.budget, self.slots)
            rules = Rules(
                self.budget, self.evidence, self.until_decided, ("mean",), 7000, self.world.rows, 2000, "hash",
                self.incumbent, 0, self.eval_rows, self.objective, self.pack,
            )  # fmt: skip
            controller = Controller(ledger, rules, self.field, slots=self.slots)
            if stop_after is not None:
                original, count = controller.on_event, [0]

                def on_event(event: object) -> None:
                    original(event)  # type: ignore[arg-type]
                    count[0] += 1
                    if count[0] >= stop_after:
                        raise KeyboardInterrupt

                controller.on_event = on_event  # type: ignore[method-assign,assignment]
            SimulatedExecutor(self.slots, self.world, self.clock).run(
                controller,
                SimpleNamespace(folder=str(self.folder)),  # type: ignore[arg-type]
            )
            return ledger.log


def explored(log: SearchLog, arm: str | None = None) -> list:
    return [t for t in log.trials.values() if t.purpose == "explore" and arm in (None, t.arm)]


def test_a_better_method_is_found_and_confirmed(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({"lora": 0.82, "parallel": 0.92}), rows=2000)
    bench = Bench(tmp_path / "run", world, Budget(max_adapter_params=0.01, max_time=600.0))
    log = bench.run()
    assert log.verdict is not None
    assert log.verdict["name"] == "better"
    winner = log.configurations[log.finalists["challenger"]].configuration
    assert "parallel" in {part["method"] for parts in winner["sites"].values() for part in parts}
    assert set(log.tests) == {"baseline", "challenger"}
    assert len(log.test_opened) == 1
    assert log.used <= 600


def test_lora_gets_its_share_of_the_exploration(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}))
    log = Bench(tmp_path / "run", world, Budget(max_time=900.0)).run()
    seconds = {arm: sum(t.seconds for t in explored(log, arm)) for arm in ("baseline", "space")}
    assert 0.27 < seconds["baseline"] / sum(seconds.values()) < 0.45
    assert not any(
        log.configurations[t.hash].configuration["sites"] and _plain(log, t.hash) for t in explored(log, "space")
    )


def _plain(log: SearchLog, hash: str) -> bool:
    return Configuration.from_dict(log.configurations[hash].configuration).plain_lora


def test_finalists_run_with_fresh_seeds_on_all_rows(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}))
    log = Bench(tmp_path / "run", world, Budget(max_time=900.0)).run()
    confirm = [t for t in log.trials.values() if t.purpose == "confirm"]
    assert {t.hash for t in confirm} == {log.finalists["baseline"], log.finalists["challenger"]}
    assert len(confirm) == 2 * len(log.finalists["seeds"]) >= 4
    assert not {t.seed for t in confirm} & {t.seed for t in explored(log)}


def test_no_configuration_is_trained_twice(tmp_path: Path) -> None:
    log = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_time=900.0)).run()
    hashes = [t.hash for t in explored(log)]
    assert len(hashes) == len(set(hashes)) > 10


@pytest.mark.parametrize("strategy", ["random", "tpe", "tpe-asha", "hyperband"])
def test_every_strategy_ends_in_time_with_a_verdict(tmp_path: Path, strategy: str) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_time=500.0), strategy=strategy)
    log = bench.run()
    assert log.verdict is not None
    assert log.used <= 500
    assert all(t.ended is not None for t in log.trials.values())


def test_max_trials_is_kept(tmp_path: Path) -> None:
    log = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_trials=7)).run()
    assert len(explored(log)) == 7
    assert log.verdict is not None


def test_a_resumed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}))
    budget = Budget(max_time=600.0)
    bench = Bench(tmp_path / "run", world, budget)
    with pytest.raises(KeyboardInterrupt):
        bench.run(stop_after=9)
    before = SearchLog.fold(read_journal(tmp_path / "run"))
    rungs = {(t.id, r.rung) for t in before.trials.values() for r in t.rungs}
    assert rungs
    done = len(world.jobs)
    bench.run(resume=True)
    again = {(job.trial, job.rung) for job in world.jobs[done:] if hasattr(job, "trial")}
    assert not rungs & again
    log = SearchLog.fold(read_journal(tmp_path / "run"))
    assert log.verdict is not None
    # Trials that were running when the driver died were taken up, not forgotten.
    assert all(t.ended is not None for t in log.trials.values())


def test_more_of_any_limit_makes_an_ended_search_explore_on(tmp_path: Path) -> None:
    for number, (less, more) in enumerate(
        (
            (Budget(max_time=600.0), Budget(max_time=800.0)),
            (Budget(max_compute=600.0), Budget(max_compute=800.0)),
            (Budget(max_trials=6), Budget(max_trials=8)),
        )
    ):
        bench = Bench(tmp_path / str(number), SyntheticWorld(by_method({})), less)
        before = bench.run()
        tests, trials, opened = dict(before.tests), len(explored(before)), len(before.test_opened)
        with Journal.resume(bench.folder, clock=bench.clock) as journal:
            Ledger(journal).write("finished", status="found", result={})
        bench.budget = more
        log = bench.run(resume=True)
        assert len(explored(log)) > trials, more
        assert log.verdict is not None
        if more.max_time is not None:
            assert log.used <= more.max_time
        # Where the winner is the same, the test rows are not read again.
        same = {name: test["sha256"] for name, test in tests.items()} == {
            name: test["sha256"] for name, test in log.tests.items()
        }
        assert len(log.test_opened) == opened + (not same)


def test_a_reopening_that_was_killed_at_once_is_taken_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_time=600.0))
    before = bench.run()
    trials, ended = len(explored(before)), before.used
    with Journal.resume(bench.folder, clock=bench.clock) as journal:
        ledger = Ledger(journal)
        ledger.write("finished", status="found", result={})
        # All that the killed session wrote.
        ledger.write("resumed", records=len(journal.records), reopened=True)
    bench.budget = Budget(max_time=1000.0)
    log = bench.run(resume=True)
    assert len(explored(log)) > trials
    assert log.verdict is not None
    assert not log.reopening
    # What is left is divided anew, from where the search had ended.
    assert log.plan["started"] >= ended
    assert log.plan["busy_before"] > 0


def test_time_that_the_finalists_cannot_use_is_explored_with(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), seconds_per_row=0.0005)
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0)).run()
    named = next(r for r in read_journal(tmp_path / "run") if r.type == "finalists")
    assert named.used > 0.6 * 600
    assert len(log.finalists["seeds"]) == 5
    assert 0.8 * 600 < log.used <= 600


def test_a_search_goes_on_from_wherever_its_journal_ends(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), rows=200)
    budget = Budget(max_time=300.0)
    Bench(tmp_path / "whole", world, budget, evidence="quick").run()
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    ends: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        ends.setdefault(json.loads(line)["type"], []).append(number)
    del ends["finalists"][1:]
    cuts = sorted({cut for numbers in ends.values() for cut in (numbers[0], numbers[len(numbers) // 2], numbers[-1])})
    assert len(cuts) > 15
    for cut in cuts:
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
        bench = Bench(folder, world, budget, evidence="quick")
        done = {(t.id, r.rung) for t in SearchLog.fold(read_journal(folder)).trials.values() for r in t.rungs}
        before = len(world.jobs)
        log = bench.run(resume=True)
        again = {(job.trial, job.rung) for job in world.jobs[before:] if isinstance(job, Train)}
        assert log.verdict is not None, cut
        read = {job.rows for job in world.jobs[before:] if isinstance(job, Evaluate) and job.split == "test"}
        assert read <= {log.test_opened[-1]["rows"]}, cut
        assert not done & again, cut
        assert all(trial.ended is not None for trial in log.trials.values()), cut


def test_with_a_margin_the_smallest_adapter_that_keeps_it_is_returned(tmp_path: Path) -> None:
    def params(log: SearchLog, role: str) -> int:
        return log.configurations[log.finalists[role]].adapter_params

    modules = bert()
    # Larger is a little better, so that the best is not the smallest.
    world = SyntheticWorld(lambda made: 0.7 + 0.02 * math.log10(made.adapter_params(modules)), rows=2000)
    budget = Budget(max_adapter_params=0.01, max_time=600.0)
    best = Bench(tmp_path / "best", world, budget).run()
    small = Bench(tmp_path / "small", world, budget, margin=0.05).run()
    assert params(small, "challenger") < params(best, "challenger")
    assert params(small, "challenger") < params(small, "baseline")
    assert small.verdict["name"] == "within"
    assert small.verdict["takes"] == "challenger"
    assert small.verdict["low"] > -0.05
    assert small.verdict["margin"] == 0.05

    strict = Bench(tmp_path / "strict", world, budget, margin=1e-4).run()
    assert strict.verdict["name"] in ("tie", "better", "worse")
    assert (strict.verdict["takes"] == "challenger") == (strict.verdict["name"] == "better")


def test_an_arm_that_always_fails_does_not_starve_the_other(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), fate=lambda job, attempt: "nan" if job.configuration.plain_lora else "ok")
    log = Bench(tmp_path / "run", world, Budget(max_trials=12)).run()
    assert len(explored(log, "space")) >= 6
    assert all(t.status == "failed" for t in explored(log, "baseline"))
    assert log.verdict["name"] == "unconfirmed"
    assert log.verdict["takes"] == "challenger"


def test_an_evaluation_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), kills=lambda job: isinstance(job, Evaluate))
    log = Bench(tmp_path / "run", world, Budget(max_trials=4)).run()
    assert not log.tests["baseline"]["metrics"]
    assert any("could not be evaluated" in note for note in log.notes)


def test_probes_that_kill_their_workers_end_the_search(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), kills=lambda job: isinstance(job, Probe))
    with pytest.raises(AutopeftError, match="workers die"):
        Bench(tmp_path / "run", world, Budget(max_trials=4)).run()


def test_max_compute_is_kept(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}))
    log = Bench(tmp_path / "run", world, Budget(max_compute=400.0)).run()
    busy = sum(trial.seconds for trial in log.trials.values())
    assert 200 < busy <= 400


def test_a_latency_that_nothing_keeps_is_told_with_the_smallest_that_would_do(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), fate=lambda job, attempt: "slow")
    with pytest.raises(NothingFeasible) as caught:
        Bench(tmp_path / "run", world, Budget(max_trials=4, max_latency_overhead=1.01)).run()
    measured = [t.measured for t in SearchLog.fold(read_journal(tmp_path / "run")).trials.values()]
    assert caught.value.smallest == {"max_latency_overhead": min(measured)}


def test_what_cannot_be_built_is_passed_over(tmp_path: Path) -> None:
    def broken(configuration: Configuration) -> Fit:
        if "prefix" in configuration.methods:
            raise RuntimeError("no room for so many positions")
        return Fit(PLAIN, 10)

    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_trials=8))
    bench.gate = broken
    log = bench.run()
    assert log.verdict is not None
    assert len(explored(log)) == 8
    assert any(refusal["constraint"] == "unsupported" for refusal in log.rejected)
    for trial in explored(log, "space"):
        assert "prefix" not in Configuration.from_dict(log.configurations[trial.hash].configuration).methods


def test_every_job_has_a_time_limit_that_ends_with_the_budget(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}))
    bench = Bench(tmp_path / "run", world, Budget(max_time=600.0, max_compute=700.0))
    bench.run()
    assert all(job.time_limit is not None and 0 < job.time_limit <= 600 for job in world.jobs)
    assert any(isinstance(job, Evaluate) for job in world.jobs)


def test_time_that_is_left_buys_further_seeds(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}))
    log = Bench(tmp_path / "run", world, Budget(max_time=4000.0), evidence="quick").run()
    runs = [t for t in log.trials.values() if t.purpose == "confirm"]
    assert len(log.finalists["seeds"]) > 2
    assert len(runs) == 2 * len(log.finalists["seeds"])


def test_a_dying_worker_costs_one_rung(tmp_path: Path) -> None:
    world = SyntheticWorld(
        by_method({}), fate=lambda job, attempt: "dies" if attempt == 1 and job.trial == "t0002" else "ok"
    )
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0)).run()
    assert log.trials["t0002"].attempts >= 2
    assert log.trials["t0002"].rungs
    assert log.counts["failed"] == 0


def test_a_trial_that_always_dies_is_given_up(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), fate=lambda job, attempt: "dies" if job.trial == "t0001" else "ok")
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0)).run()
    assert log.trials["t0001"].status == "failed"
    assert log.trials["t0001"].attempts == 3
    assert log.verdict is not None


def test_nan_and_oom_end_only_their_trial(tmp_path: Path) -> None:
    def fate(job, attempt):  # type: ignore[no-untyped-def]
        return {"t0000": "nan", "t0003": "oom"}.get(job.trial, "ok")

    log = Bench(tmp_path / "run", SyntheticWorld(by_method({}), fate=fate), Budget(max_time=600.0)).run()
    assert (log.trials["t0000"].status, log.trials["t0000"].reason) == ("failed", "nan")
    assert (log.trials["t0003"].status, log.trials["t0003"].reason) == ("infeasible", "oom")
    assert log.verdict is not None


@pytest.mark.parametrize("both", [False, True])
def test_a_finalist_that_does_not_fit_is_not_tried_again_and_not_returned(tmp_path: Path, both: bool) -> None:
    def fate(job, attempt):  # type: ignore[no-untyped-def]
        unfit = job.seed >= 900_000 and (both or not job.configuration.plain_lora)
        return "oom" if unfit else "ok"

    world = SyntheticWorld(by_method({"lora": 0.8, "parallel": 0.9}), fate=fate)
    bench = Bench(tmp_path / "run", world, Budget(max_trials=8), slots=1)
    if both:
        with pytest.raises(AutopeftError, match="both finalists broke a limit"):
            bench.run()
        return
    log = bench.run()
    tried = log.of_configuration(log.finalists["challenger"], "confirm")
    assert [(run.status, run.reason) for run in tried] == [("infeasible", "oom")]
    assert (log.verdict["name"], log.verdict["takes"]) == ("unconfirmed", "baseline")


def test_a_lora_that_was_never_trained_well_is_not_beaten(tmp_path: Path) -> None:
    # The probe of this world scores 0.7.
    world = SyntheticWorld(by_method({"lora": 0.62, "parallel": 0.95, "ia3": 0.9, "dora": 0.9}), rows=4000)
    log = Bench(tmp_path / "run", world, Budget(max_time=2000.0)).run()
    assert log.verdict["low"] > 0
    assert (log.verdict["name"], log.verdict["takes"]) == ("unconfirmed", "challenger")
    assert "no more than the frozen base" in log.verdict["reason"]


def test_where_one_finalist_was_not_confirmed_both_are_judged_by_their_exploration(tmp_path: Path) -> None:
    def fate(job, attempt):  # type: ignore[no-untyped-def]
        return "nan" if job.seed >= 900_000 and job.configuration.plain_lora else "ok"

    world = SyntheticWorld(by_method({}), fate=fate, seed_noise=0.02)
    bench = Bench(tmp_path / "run", world, Budget(max_trials=8))
    log = bench.run()
    assert log.verdict["name"] == "unconfirmed"
    explored_best = {}
    for arm, role in (("baseline", "baseline"), ("space", "challenger")):
        (best,) = [t for t in explored(log, arm) if t.hash == log.finalists[role]]
        explored_best[role] = best.rungs[-1].metrics["accuracy"]
    assert log.verdict["difference"] == pytest.approx(explored_best["challenger"] - explored_best["baseline"])


def test_when_everything_fails_the_cause_is_told(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), fate=lambda job, attempt: "nan")
    with pytest.raises(AutopeftError, match="not finite"):
        Bench(tmp_path / "run", world, Budget(max_trials=6)).run()


def test_memory_limit_that_nothing_meets(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path / "run",
        SyntheticWorld(by_method({})),
        Budget(max_memory=1000, max_trials=6),
        gate=lambda configuration: Fit(None, 5000),
    )
    with pytest.raises(NothingFeasible) as error:
        bench.run()
    assert error.value.smallest == {"max_memory": 5000}


def test_memory_limit_refuses_before_training(tmp_path: Path) -> None:
    def gate(configuration: Configuration) -> Fit:
        return Fit(None, 2000) if "prefix" in configuration.methods else Fit(PLAIN, 500)

    bench = Bench(
        tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_memory=1_000_000_000, max_time=600.0), gate=gate
    )
    log = bench.run()
    refused = [r for r in log.rejected if r["constraint"] == "max_memory"]
    assert refused
    trained = [log.configurations[t.hash].configuration for t in log.trials.values()]
    assert not any(p["method"] == "prefix" for c in trained for parts in c["sites"].values() for p in parts)


def test_what_fits_only_in_pieces_is_trained_in_pieces(tmp_path: Path) -> None:
    lean = Execution(4, checkpointing=True)
    world = SyntheticWorld(by_method({}))
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0), gate=lambda c: Fit(lean, 10**8, exact=True)).run()
    trained = [job for job in world.jobs if isinstance(job, Train)]
    assert {job.execution for job in trained} == {lean}
    assert all(Execution.from_dict(known.execution) == lean for known in log.configurations.values())


def test_measured_memory_above_the_limit_is_infeasible(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_memory=50_000_000, max_trials=4))
    with pytest.raises(NothingFeasible) as error:
        bench.run()
    assert error.value.binds == "max_memory"
    log = SearchLog.fold(read_journal(tmp_path / "run"))
    assert {t.status for t in log.trials.values()} == {"infeasible"}


def test_until_decided_saves_seeds(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({"lora": 0.78, "parallel": 0.97}), rows=4000)
    options = {"evidence": "strict", "until_decided": True}
    log = Bench(tmp_path / "run", world, Budget(max_time=3000.0), **options).run()
    assert log.verdict["name"] == "better"
    assert log.verdict["seeds"] < len(log.finalists["seeds"])


class Uneven(SyntheticWorld):
    """One method takes three times as long as what the planner knows of its parts would say."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is None or not isinstance(job, Train) or "parallel" not in job.configuration.methods:
            return made
        slower = 2 * made.train_seconds
        return replace(made, seconds=made.seconds + slower, train_seconds=made.train_seconds + slower)


@pytest.mark.parametrize("seconds", [240.0, 300.0, 480.0, 900.0])
def test_finalists_of_unequal_length_get_their_seeds_in_time(tmp_path: Path, seconds: float) -> None:
    world = Uneven(by_method({"lora": 0.84, "parallel": 0.9, "serial": 0.7}), rows=1000)
    log = Bench(tmp_path / "run", world, Budget(max_adapter_params=0.01, max_time=seconds)).run()
    assert log.used <= 1.05 * seconds + 15
    assert log.verdict["name"] != "unconfirmed"
    for role in ("baseline", "challenger"):
        runs = [t for t in log.of_configuration(log.finalists[role], "confirm") if t.status == "completed"]
        assert len(runs) == len(log.finalists["seeds"]) >= 2


def test_a_race_of_seeds_ends_early_only_at_a_higher_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []
    real = finals.compare

    def compare(*arguments: Any, level: float, **options: Any) -> Any:
        asked.append((level, len(arguments[1])))
        return real(*arguments, level=level, **options)

    monkeypatch.setattr(finals, "compare", compare)
    world = SyntheticWorld(by_method({"lora": 0.78, "parallel": 0.97}), rows=4000)
    options = {"evidence": "strict", "until_decided": True}
    Bench(tmp_path / "run", world, Budget(max_time=3000.0), **options).run()
    assert asked[-1][0] == LEVEL
    assert {level for level, _ in asked[:-1]} == {0.99}
    assert min(seeds for _, seeds in asked) >= 2


def test_the_lora_space_against_itself_is_no_news(tmp_path: Path) -> None:
    names = []
    for seed in range(4):
        world = SyntheticWorld(by_method({"lora": 0.85}), rows=1000)
        bench = Bench(tmp_path / f"run{seed}", world, Budget(max_time=400.0), space="lora")
        names.append(bench.run().verdict["name"])
    assert names.count("better") <= 1


def test_a_head_that_few_rows_told_is_kept_and_held_against_all_rows(tmp_path: Path) -> None:
    world = SyntheticWorld(lambda made: 0.8, early_probe=0.6)
    log = Bench(tmp_path / "run", world, Budget(max_time=600.0)).run()
    probes = [r for r in read_journal(tmp_path / "run") if r.type == "probe" and r.data["kind"] == "heads"]
    assert [record.data["values"]["score"] for record in probes] == [0.6, 0.7]
    assert [record.data["seconds"] for record in probes] == [5.0, 10.0]
    assert {record.data["values"]["head"] for record in probes} == {"mean"}
    # It stands in nobody's way: the other worker trains meanwhile.
    first = next(record.used for record in read_journal(tmp_path / "run") if record.type == "trial_started")
    assert probes[0].used <= first < probes[1].used
    assert log.probes["heads"]["whole"]


def test_a_probe_of_all_rows_that_fails_leaves_the_one_of_few(tmp_path: Path) -> None:
    class Failing(SyntheticWorld):
        def outcome(self, job: Job, folder: str) -> Outcome | None:
            if isinstance(job, Probe) and job.whole:
                return Outcome(job, "failed", "timeout", "too slow", seconds=3.0)
            return super().outcome(job, folder)

    log = Bench(tmp_path / "run", Failing(lambda made: 0.8, early_probe=0.6), Budget(max_time=600.0)).run()
    assert log.probes["heads"]["score"] == 0.6
    assert log.verdict is not None
    assert any("timeout" in note for note in log.notes)
