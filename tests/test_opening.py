"""An ended search under other limits: what opens, and what is said where nothing does."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_search_simulated import Bench

from autopeft.cli.flags import with_flag_names
from autopeft.cost.memory import Fit
from autopeft.errors import InputError
from autopeft.journal import Journal, SearchLog, TrialLog, read_journal
from autopeft.search.division import FINALIST_SEEDS, Division, Speed
from autopeft.search.finals import ROLES, Finals
from autopeft.search.ledger import Ledger
from autopeft.search.opening import check_opening, opening
from autopeft.search.resume import limits, note_nothing_new, take_up
from autopeft.spec import Budget
from autopeft.testing.worlds import SyntheticWorld, by_method

DIVISION = Division(
    rungs=(1000, 3000), warmup_rows=10, cooldown_rows=10, seeds=FINALIST_SEEDS[:3], baseline_share=1 / 3,
    max_trials=None, rung_evaluated=100, final_evaluated=600, explore_until=None, confirm_until=None, deadline=None,
    speed=Speed(train=0.011, evaluate=0.001), workers=2,
)  # fmt: skip
"""A first rung takes 11 s (20 s with its share), a round of finalists 33.6 s (37.3 s)."""


def an_ended_search(folder: Path, budget: Budget, trials: int, used: float, **more: Any) -> SearchLog:
    """A journal that ended under a budget after so many trials and seconds; 5 busy seconds for each trial."""
    default = 24 if budget.max_time is budget.max_trials is budget.max_compute is None else None
    now = [0.0]
    with Journal.create(folder, clock=lambda: now[0]) as journal:
        spec = {"budget": limits(budget), "until": more.get("until")}
        journal.append("search_started", spec=spec)
        plan = replace(DIVISION, max_trials=budget.max_trials or default)
        journal.append("plan", **plan.to_dict(), started=0.0)
        for number in range(trials):
            trial = {"trial": f"t{number}", "arm": "space", "seed": 0, "index": number, "hash": "h"}
            journal.append("trial_started", **trial, purpose="explore", slot=0)
            journal.append("trial_ended", trial=f"t{number}", status="failed", reason="nan", detail=None, seconds=5.0)
        challenger = None if more.get("alone") else "b"
        journal.append("finalists", baseline="a", challenger=challenger, seeds=[], rows=3000, rung=1)
        seeds, name = more.get("seeds", 5), more.get("verdict", "tie")
        journal.append("verdict", name=name, difference=0, low=0, high=0, takes="baseline", reason="", seeds=seeds)
        now[0] = used
        journal.append("finished", status=more.get("status", "found"), result={})
    return SearchLog.fold(read_journal(folder))


TIME, TRIALS, COMPUTE = "budget.max_time", "budget.max_trials", "budget.max_compute"

CASES: list[tuple[Budget, int, float, dict[str, Any], Budget, bool, list[str]]] = [
    # Before; trials, seconds used; more of it; now; whether it opens, which limits keep it shut.
    # By time.
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=900), True, []),
    (Budget(max_time=600), 9, 595, {}, Budget(), True, []),
    (Budget(max_time=600), 9, 595, {}, Budget(max_trials=12), True, []),
    (Budget(max_time=600), 9, 595, {}, Budget(max_trials=9), False, [TRIALS]),
    (Budget(max_time=600), 30, 595, {}, Budget(), False, [TRIALS]),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=600, max_trials=12), False, [TIME]),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=300), False, [TIME]),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=624), False, [TIME]),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=626), True, []),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=600, max_compute=900), False, [TIME]),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=900, max_compute=40), False, [COMPUTE]),
    (Budget(max_time=600), 9, 595, {}, Budget(max_time=900, max_trials=9), False, [TRIALS]),
    (Budget(max_time=600), 9, 300, {"verdict": "better"}, Budget(max_time=500), False, [TIME]),
    # By trials.
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=8), True, []),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=4), False, [TRIALS]),
    (Budget(max_trials=6), 6, 300, {}, Budget(), True, []),
    (Budget(max_trials=30), 30, 300, {}, Budget(), False, [TRIALS]),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=6, max_time=1200), False, [TRIALS]),
    (Budget(max_trials=6), 6, 300, {"seeds": 3}, Budget(max_trials=6, max_time=1200), False, [TRIALS]),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=6, max_compute=1200), False, [TRIALS]),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_time=1200), True, []),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=8, max_time=1200), True, []),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=8, max_time=200), False, [TIME]),
    (Budget(max_trials=6), 6, 300, {}, Budget(max_trials=6, max_time=200), False, [TRIALS, TIME]),
    # By the trials that a search without limits has.
    (Budget(), 24, 300, {}, Budget(max_trials=40), True, []),
    (Budget(), 24, 300, {}, Budget(max_trials=24), False, [TRIALS]),
    (Budget(), 24, 300, {}, Budget(max_time=900), True, []),
    (Budget(), 24, 300, {}, Budget(max_time=300), False, [TIME]),
    (Budget(), 24, 300, {}, Budget(max_compute=900), True, []),
    # By compute.
    (Budget(max_compute=50), 9, 300, {}, Budget(max_compute=100), True, []),
    (Budget(max_compute=50), 9, 300, {}, Budget(max_compute=64), False, [COMPUTE]),
    (Budget(max_compute=50), 9, 300, {}, Budget(max_compute=66), True, []),
    (Budget(max_compute=50), 9, 300, {}, Budget(max_compute=50, max_time=900), False, [COMPUTE]),
    (Budget(max_compute=50), 9, 300, {}, Budget(max_time=900), True, []),
    (Budget(max_compute=50), 9, 300, {}, Budget(max_compute=50, max_trials=20), False, [COMPUTE]),
    # Time and trials: more time without more trials pays for seeds that lack, and for nothing else.
    (Budget(max_time=600, max_trials=6), 6, 300, {}, Budget(max_time=900, max_trials=6), False, [TRIALS]),
    (Budget(max_time=600, max_trials=6), 6, 300, {}, Budget(max_trials=6), False, [TRIALS]),
    (Budget(max_time=600, max_trials=6), 6, 300, {}, Budget(max_time=600, max_trials=8), True, []),
    (Budget(max_time=600, max_trials=6), 6, 300, {}, Budget(max_time=600), True, []),
    (Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 3}, Budget(max_time=900, max_trials=6), True, []),
    (Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 0}, Budget(max_time=900, max_trials=6), True, []),
    (Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 3}, Budget(max_time=640, max_trials=6), False, [TIME]),
    (Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 3}, Budget(max_time=645, max_trials=6), True, []),
    (Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 3}, Budget(max_trials=6), False, [TRIALS]),
    (Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 2}, Budget(max_trials=6), True, []),
    (
        Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 3, "alone": True},
        Budget(max_time=900, max_trials=6), False, [TRIALS],
    ),
    (
        Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 2, "until": "decided", "verdict": "better"},
        Budget(max_time=900, max_trials=6), False, [TRIALS],
    ),
    (
        Budget(max_time=600, max_trials=6), 6, 595, {"seeds": 2, "until": "decided"},
        Budget(max_time=900, max_trials=6), True, [],
    ),
    (
        Budget(max_compute=600, max_trials=6), 6, 595, {"seeds": 3},
        Budget(max_compute=104, max_trials=6), False, [TRIALS],
    ),
    (
        Budget(max_compute=80, max_trials=6), 6, 595, {"seeds": 3},
        Budget(max_compute=100, max_trials=6), False, [COMPUTE],
    ),
    (
        Budget(max_compute=80, max_trials=6), 6, 595, {"seeds": 3},
        Budget(max_compute=106, max_trials=6), True, [],
    ),
    # Time and compute.
    (Budget(max_time=600, max_compute=50), 9, 300, {}, Budget(max_time=900, max_compute=50), False, [COMPUTE]),
    (Budget(max_time=600, max_compute=50), 9, 300, {}, Budget(max_time=600, max_compute=90), True, []),
    (Budget(max_time=600, max_compute=50), 9, 595, {}, Budget(max_time=600, max_compute=90), False, [TIME]),
    (Budget(max_time=600, max_compute=50), 9, 595, {}, Budget(max_time=600), False, [TIME]),
    # Nothing binds, and nothing is raised: it ended early.
    (Budget(max_time=600, max_trials=60), 9, 300, {}, Budget(max_time=500, max_trials=60), False, [TIME]),
]  # fmt: skip


@pytest.mark.parametrize(("before", "trials", "used", "more", "now", "opens", "shut"), CASES)
def test_what_other_limits_open(
    tmp_path: Path,
    before: Budget,
    trials: int,
    used: float,
    more: dict[str, Any],
    now: Budget,
    opens: bool,
    shut: list[str],
) -> None:
    log = an_ended_search(tmp_path, before, trials, used, **more)
    found = opening(log, now)
    assert (found.opens, [problem.field for problem in found.problems]) == (opens, shut)
    if opens:
        assert check_opening(log, now) is None
        return
    with pytest.raises(InputError) as error:
        check_opening(log, now)
    assert error.value.problems == found.problems
    # What it says to give does open it.
    for problem in found.problems:
        assert problem.field in problem.next_step
        assert "nothing" in problem.rule or "no other limit" in problem.rule


def test_what_is_advised_opens(tmp_path: Path) -> None:
    log = an_ended_search(tmp_path, Budget(max_time=600), 9, 595)
    (problem,) = opening(log, Budget(max_time=610)).problems
    assert problem.next_step == "Give budget.max_time of 625s or more."
    assert opening(log, Budget(max_time=625)).opens
    assert problem.rule == (
        "opens nothing: 10 min 5 s are used, and what is left does not pay for the 20 s of one more training"
    )
    (problem,) = opening(log, Budget(max_time=300)).problems
    assert problem.rule == "opens nothing: 10 min 5 s are used"


@pytest.mark.parametrize(
    ("before", "now", "rule"),
    [
        (6, 6, "ended this search (6 trials have started), and no other limit opens it again"),
        (6, 4, "opens nothing: 6 trials have started"),
        (None, 6, "opens nothing: 6 trials have started"),
        (30, None, "is 30 where nothing is limited, and 30 trials have started: nothing is opened"),
    ],
)
def test_trials_are_said_to_have_ended_it_only_if_they_did(
    tmp_path: Path, before: int | None, now: int | None, rule: str
) -> None:
    first = Budget(max_trials=before, max_time=None if before else 600)
    log = an_ended_search(tmp_path, first, before or 6, 595)
    told = opening(log, Budget(max_trials=now)).problems
    assert [problem.rule for problem in told] == [rule]


def test_the_same_limits_open_nothing_and_are_no_fault(tmp_path: Path) -> None:
    log = an_ended_search(tmp_path / "trials", Budget(max_trials=6), 6, 300)
    told = check_opening(log, Budget(max_trials=6))
    assert told == (
        "This search has ended, and its limits are as they were: nothing was opened. Give budget.max_trials above 6."
    )
    log = an_ended_search(tmp_path / "early", Budget(max_time=600), 6, 300)
    told = check_opening(log, Budget(max_time=600))
    assert told == "This search has ended, and its limits are as they were: nothing was opened."


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_search_without_a_result_just_goes_on(tmp_path: Path, status: str) -> None:
    log = an_ended_search(tmp_path, Budget(max_trials=6), 6, 300, status=status)
    assert check_opening(log, Budget(max_trials=6, max_time=1200)) is None
    assert not opening(log, Budget(max_trials=8)).opens


def test_the_command_line_names_the_limit_that_ended_it(tmp_path: Path) -> None:
    log = an_ended_search(tmp_path, Budget(max_trials=6), 6, 300)
    args = argparse.Namespace(file=None, set=None, eval_set=None, max_time="20m")
    with pytest.raises(InputError) as error:
        check_opening(log, Budget(max_trials=6, max_time=1200))
    assert str(with_flag_names(error.value, args)) == (
        "--max-trials = 6: ended this search (6 trials have started), and no other limit opens it again. "
        "Give --max-trials above 6."
    )


def ended(bench: Bench) -> SearchLog:
    log = bench.run()
    with Journal.resume(bench.folder, clock=bench.clock) as journal:
        Ledger(journal).write("finished", status="found", result={})
    return log


def test_a_limit_that_opens_nothing_is_not_left_behind(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_trials=3), evidence="quick")
    plan = dict(ended(bench).plan)
    bench.budget = Budget(max_trials=3, max_time=5000.0)
    jobs = len(bench.world.jobs)
    log = bench.run(resume=True)
    assert (len(bench.world.jobs), log.plan) == (jobs, plan)
    assert log.verdict is not None


def test_more_time_trains_the_seeds_that_it_lacked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_trials=23, max_time=400.0))
    assert 2 <= ended(bench).verdict["seeds"] < 5
    bench.budget = Budget(max_trials=23, max_time=4000.0)
    assert bench.run(resume=True).verdict["seeds"] == 5


def test_finalists_that_have_more_seeds_than_planned_get_still_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_trials=3), evidence="quick")
    log = bench.run()
    with Journal.resume(bench.folder, clock=bench.clock) as journal:
        ledger = Ledger(journal)
        finals = Finals(ledger, Division.from_dict(log.plan), ("baseline", "space"))
        # Of a session before, in which there was time for a third seed.
        for arm, role in ROLES.items():
            run = finals.runs(role)[0]
            trial = {"trial": f"third-{role}", "hash": run.hash, "arm": arm, "index": 0, "slot": 0}
            ledger.write("trial_started", **trial, purpose="confirm", seed=FINALIST_SEEDS[2])
            ledger.write("rung", **{"trial": f"third-{role}", "rung": run.rungs[-1].rung, **_rung(run)})
            ledger.write("trial_ended", trial=f"third-{role}", status="completed", reason=None, detail=None)
        assert len(ledger.log.finalists["seeds"]) == 2
        assert finals.further_seed() == FINALIST_SEEDS[2]


def _rung(run: TrialLog) -> dict[str, Any]:
    last = run.rungs[-1]
    return {"rows": last.rows, "metrics": dict(last.metrics), "outputs": last.outputs, "sha256": last.sha256}


def test_lifting_the_limit_on_trials_lifts_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), Budget(max_trials=3), evidence="quick")
    ended(bench)
    bench.budget = Budget()
    log = bench.run(resume=True)
    assert sum(trial.purpose == "explore" for trial in log.trials.values()) == 24


def test_more_time_reads_the_eval_sets_that_it_lacked_for(tmp_path: Path) -> None:
    budget = Budget(max_time=600, max_trials=6)
    an_ended_search(tmp_path, budget, 6, 300)
    with Journal.resume(tmp_path) as journal:
        ledger = Ledger(journal)
        more = Budget(max_time=900, max_trials=6)
        assert opening(ledger.log, more).ended
        unread = {"metrics": {}, "outputs": None, "sha256": "s", "rows": 0}
        ledger.write("evaluated", set="web", name="baseline", **unread, reason="time")
        assert not opening(ledger.log, more).ended
        assert check_opening(ledger.log, more) is None
        assert take_up(ledger, more, 2) is False
        assert ledger.log.plan["budget"]["max_time"] == 900


def test_a_search_that_was_given_more_and_found_nothing_to_train_says_so(tmp_path: Path) -> None:
    budget = Budget(max_trials=3, max_memory=10**9)
    bench = Bench(tmp_path / "run", SyntheticWorld(by_method({})), budget, evidence="quick")
    trials = len(ended(bench).trials)
    # Nothing else is ever admitted: as a space of which all was tried.
    bench.gate = lambda configuration: Fit(None, 10**12)
    bench.budget = replace(budget, max_trials=30)
    bench.run(resume=True)
    with Journal.resume(bench.folder, clock=bench.clock) as journal:
        ledger = Ledger(journal)
        note_nothing_new(ledger, trials - 1)
        assert not any("nothing further was trained" in note for note in ledger.log.notes)
        note_nothing_new(ledger, trials)
        assert sum("nothing further was trained" in note for note in ledger.log.notes) == 1


@pytest.mark.parametrize(("first", "then"), [("decided", None), (None, "decided")])
def test_what_counts_is_how_the_latest_session_was_to_end(tmp_path: Path, first: str | None, then: str | None) -> None:
    """A settled verdict ends a search only if that was asked for now, or by the session before."""
    budget, more = Budget(max_time=600, max_trials=6), Budget(max_time=900, max_trials=6)
    log = an_ended_search(tmp_path, budget, 6, 595, seeds=2, verdict="better", until=first)
    assert opening(log, more).opens is (first is None)
    assert opening(log, more, until_decided=then == "decided").opens is (then is None)
    if then is None:
        assert check_opening(log, more, until_decided=False) is None
    else:
        with pytest.raises(InputError):
            check_opening(log, more, until_decided=True)
    with Journal.resume(tmp_path, clock=lambda: 600.0) as journal:
        ledger = Ledger(journal)
        take_up(ledger, budget, 2, until_decided=then == "decided")
        ledger.write("finished", status="found", result={})
        assert ledger.log.until == then
        assert opening(ledger.log, more).opens is (then is None)
    # A journal of before says nothing of it when it is taken up: the first record holds.
    older = SearchLog.fold(read_journal(tmp_path)[:-2])
    assert older.until == first


def test_a_resume_that_says_nothing_of_it_keeps_it(tmp_path: Path) -> None:
    an_ended_search(tmp_path, Budget(max_time=600, max_trials=6), 6, 595, until="decided")
    with Journal.resume(tmp_path, clock=lambda: 600.0) as journal:
        ledger = Ledger(journal)
        take_up(ledger, Budget(max_time=600, max_trials=6), 2)
        assert ledger.log.until == "decided"
        ledger.write("resumed", records=1, reopened=False)
        assert ledger.log.until == "decided"
