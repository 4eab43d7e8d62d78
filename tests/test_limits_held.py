"""Limits at their edge: a hair below what is needed refuses, what is needed admits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_cost_memory import _bert_model, _one, bert
from test_search_simulated import Bench

from autopeft.cost.memory import MemoryGate
from autopeft.search.state import Field
from autopeft.space.configuration import Configuration
from autopeft.space.execution import Execution
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Train
from autopeft.testing.executors import lora_job
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.trial import workbench
from autopeft.trial.setup import WorkSetup

__all__ = ["bert"]


@pytest.mark.parametrize("method", ["lora", "parallel"])
def test_the_gate_refuses_what_fits_in_no_way(bert: Path, method: str) -> None:
    model = _bert_model(bert)
    configuration = _one(model.modules, method)
    least = MemoryGate(model, None).least(configuration)
    assert least > 1.01 * model.base_bytes()  # it is not the floor that refuses
    refused = MemoryGate(model, least - 1).fits(configuration)
    assert (refused.execution, refused.bytes, refused.exact) == (None, least, True)
    assert MemoryGate(model, least).fits(configuration).bytes == least


def test_what_choosing_by_fisher_information_needs_is_in_what_is_predicted(bert: Path) -> None:
    model = _bert_model(bert)
    configuration = _one(model.modules, "fishmask")
    sums = model.choosing_bytes(configuration)
    assert sums == sum(2 * 4 * model.modules[name].params for name, _ in configuration.parts())
    step = model.predict(configuration, execution=model.leanest(configuration)).bytes
    assert MemoryGate(model, None).least(configuration) == pytest.approx(step + sums, rel=0.002)


@pytest.mark.parametrize("ratios", [{1: 3.0, 16: 1.0}, {1: 1.0, 16: 3.0}])
def test_one_row_and_a_batch_both_keep_the_latency_limit(
    setup: WorkSetup, monkeypatch: pytest.MonkeyPatch, ratios: dict[int, float]
) -> None:
    asked: list[float | None] = []
    monkeypatch.setattr(workbench, "measure_latency", lambda *_, limit: asked.append(limit) or ratios)
    job = replace(lora_job(setup, "t", rows=16), latency=True)
    held = workbench.Workbench(replace(setup, max_latency_overhead=2.9)).run(job)
    assert (held.status, held.reason, held.values["measured"]) == ("infeasible", "max_latency_overhead", 3.0)
    kept = workbench.Workbench(replace(setup, max_latency_overhead=3.0)).run(job)
    assert (kept.status, kept.values["latency"]) == ("ok", {str(rows): ratio for rows, ratio in ratios.items()})
    # Measured anew, it is told and refuses nothing.
    told = workbench.Workbench(replace(setup, max_latency_overhead=2.9)).run(replace(job, latency_limited=False))
    assert (told.status, told.values["latency"]) == ("ok", kept.values["latency"])
    assert asked == [2.9, 3.0, None]


class Short(SyntheticWorld):
    """The third job finds no memory, after so many bytes."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        made = super().outcome(job, folder)
        if isinstance(job, Train) and job.trial == "t0002":
            return Outcome(job, "infeasible", "oom", "out of memory", seconds=1.0, peak_bytes=7_000_000)
        return made


def test_the_prediction_learns_from_a_lack_of_memory(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def measured(configuration: Configuration, count: int, execution: Execution) -> None:
        told.append((configuration.hash, count))

    made = Bench(tmp_path / "run", Short(by_method({})), Budget(max_trials=6))
    bound = made.field

    def field(*arguments: object) -> Field:
        return replace(bound(*arguments), measured=measured)  # type: ignore[arg-type]

    made.field = field  # type: ignore[method-assign]
    log = made.run()
    assert log.trials["t0002"].reason == "oom"
    assert (log.trials["t0002"].hash, 7_000_000) in told
    # Never again unchanged.
    assert [trial.id for trial in log.trials.values() if trial.hash == log.trials["t0002"].hash] == ["t0002"]
