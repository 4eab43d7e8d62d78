"""Which limit is told to bind where several are broken, and what is told to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_search_simulated import Bench

from autopeft.cost.memory import Fit
from autopeft.errors import NothingFeasible
from autopeft.journal import SearchLog, read_journal
from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Train
from autopeft.testing.worlds import SyntheticWorld, by_method

LIMIT = 1_000_000_000


def heavy_prefix(configuration: Configuration) -> Fit:
    return Fit(None, 2 * LIMIT) if "prefix" in configuration.methods else Fit(PLAIN, LIMIT // 2)


def caught(bench: Bench) -> NothingFeasible:
    with pytest.raises(NothingFeasible) as error:
        bench.run()
    return error.value


def test_what_fitted_and_was_too_slow_is_not_told_to_lack_memory(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), fate=lambda job, attempt: "slow")
    budget = Budget(max_memory=LIMIT, max_latency_overhead=1.01, max_trials=12)
    found = caught(Bench(tmp_path / "run", world, budget, gate=heavy_prefix))
    log = SearchLog.fold(read_journal(tmp_path / "run"))
    assert any(refusal["constraint"] == "max_memory" for refusal in log.rejected)
    assert found.binds == "max_latency_overhead"
    assert found.smallest == {"max_latency_overhead": min(trial.measured for trial in log.trials.values())}


class Unsupported(SyntheticWorld):
    """Nothing can be built; some words of it carry a number."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if made is None or not isinstance(job, Train):
            return made
        return Outcome(job, "infeasible", "unsupported", "too long", seconds=1.0, values={"measured": 512})


def test_what_is_no_limit_of_the_budget_is_not_told_to_be_raised(tmp_path: Path) -> None:
    found = caught(Bench(tmp_path / "run", Unsupported(by_method({})), Budget(max_trials=4)))
    assert found.smallest == {}
    assert "unsupported: too long" in str(found)


class Hungry(SyntheticWorld):
    """Trials need more than was predicted."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        return replace(made, peak_bytes=3 * LIMIT) if made is not None and isinstance(job, Train) else made


def test_the_least_memory_that_is_told_is_more_than_was_allowed(tmp_path: Path) -> None:
    # The stand-in predicts nothing at all, which what was measured refutes.
    found = caught(Bench(tmp_path / "run", Hungry(by_method({})), Budget(max_memory=LIMIT, max_trials=4)))
    assert found.smallest == {"max_memory": 3 * LIMIT}
