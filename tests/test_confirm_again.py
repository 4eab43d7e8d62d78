"""A finalist's run that came to nothing gets another chance when the search is given more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from test_search_simulated import Bench

from autopeft.journal import Journal, SearchLog, TrialLog
from autopeft.search.division import FINALIST_SEEDS
from autopeft.search.ledger import Ledger
from autopeft.spec import Budget
from autopeft.strategy.jobs import Train
from autopeft.testing.worlds import SyntheticWorld, by_method

BROKEN = FINALIST_SEEDS[1]


def finish(bench: Bench, budget: Budget, *, resume: bool) -> SearchLog:
    """Run under a budget, and end as a session does that has found something."""
    bench.budget = budget
    bench.run(resume=resume)
    with Journal.resume(bench.folder, clock=bench.clock) as journal:
        ledger = Ledger(journal)
        ledger.write("finished", status="found", result={})
        return ledger.log


def of_the_broken_seed(log: SearchLog) -> list[TrialLog]:
    return [t for t in log.trials.values() if (t.purpose, t.seed, t.arm) == ("confirm", BROKEN, "baseline")]


def bench(folder: Path, fails: int) -> Bench:
    """A search whose second seed of the baseline fails so many times."""
    left = [fails]

    def fate(job: Train, attempt: int) -> str:
        # The baseline is plain LoRA alone.
        if job.seed == BROKEN and job.configuration.plain_lora and left[0]:
            left[0] -= 1
            return "nan"
        return "ok"

    world = SyntheticWorld(by_method({"lora": 0.9, "parallel": 0.91}), fate=fate)
    return Bench(folder / "run", world, Budget(), evidence="standard")


def test_a_run_that_failed_is_made_once_more_when_more_is_given(tmp_path: Path) -> None:
    made = bench(tmp_path, fails=1)
    log = finish(made, Budget(max_trials=4), resume=False)
    assert [run.status for run in of_the_broken_seed(log)] == ["failed"]
    assert log.verdict is not None
    assert log.verdict["seeds"] == 2
    log = finish(made, Budget(max_trials=5), resume=True)
    runs = of_the_broken_seed(log)
    same = [run for run in runs if run.hash == log.finalists["baseline"]]  # type: ignore[index]
    assert [run.status for run in runs][-1] == "completed"
    assert same
    assert same[-1].status == "completed"
    assert log.verdict["seeds"] == 3


def test_a_run_that_fails_again_is_left(tmp_path: Path) -> None:
    made = bench(tmp_path, fails=99)
    finish(made, Budget(max_trials=4), resume=False)
    for trials in (5, 6, 7):
        log = finish(made, Budget(max_trials=trials), resume=True)
    counted = Counter(run.hash for run in of_the_broken_seed(log))
    assert max(counted.values()) == 2
    assert {run.status for run in of_the_broken_seed(log)} == {"failed"}


def test_a_resume_that_gives_nothing_more_makes_nothing_anew(tmp_path: Path) -> None:
    made = bench(tmp_path, fails=1)
    finish(made, Budget(max_trials=4), resume=False)
    log = finish(made, Budget(max_trials=4), resume=True)
    assert [run.status for run in of_the_broken_seed(log)] == ["failed"]
