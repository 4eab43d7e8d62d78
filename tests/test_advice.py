"""Signatures and looks at the test rows, from journals and in the reports."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_search import ExampleSearch
from rich.console import Console
from space_models import bert
from test_search_simulated import Bench

from autopeft import catalogue
from autopeft.evidence.advice import advise
from autopeft.evidence.signatures import Signature
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.report import report, summary
from autopeft.report.advice import looks_sentence
from autopeft.search.ledger import Ledger
from autopeft.search.result import build_result
from autopeft.space import bind, resolve
from autopeft.spec import Budget
from autopeft.strategy.jobs import Outcome, Train
from autopeft.testing.worlds import SyntheticWorld, by_method


class Told(ExampleSearch):
    """The example with loss curves, and with more full trainings whose truth is known."""

    limits: dict[str, Any] = {  # noqa: RUF012
        "params": {"least": 100, "most": 21_000, "limit": "max_adapter_params"},
        "rates": {"lora": [6e-4, 3e-3, 9e-3], "bias": [1e-4, 1e-3, 1e-2]},
        "rate_offset": [-1.6, 1.2],
    }
    curve: list[float] = [1.0 * math.exp(-index / 8) for index in range(16)]  # noqa: RUF012

    def add(self, type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "search_started":
            baseline = {**self.limits, "params": {"least": 100, "most": 80_000, "limit": None}}
            data["space"] = {**data["space"], **self.limits, "baseline": baseline}
        if type == "rung" and data["rung"] == 2:
            step = data["rows"] / len(self.curve)
            data["losses"] = [(round(step * (index + 1)), loss) for index, loss in enumerate(self.curve)]
        super().add(type, later, **data)

    def more(self, mix: str, scores: list[tuple[float, float, float]]) -> None:
        for score in scores:
            trial = self.begin(mix, "space")
            for rung, rows in enumerate((1000, 3000, 9000)):
                self.rung(trial, rung, rows, score[rung], 1.0)
            self.end(trial, "completed")


def told(folder: Path, scores: list[tuple[float, float, float]], **changes: Any) -> SearchLog:
    search = Told(folder)
    for name, value in changes.items():
        setattr(search, name, value)
    search.head()
    lora, mix = search.explore()
    search.more(mix, scores)
    search.confirm(lora, mix)
    search.journal.close()
    return SearchLog.fold(read_journal(folder))


def named(signatures: list[Signature], name: str, of: str | None = None) -> Signature:
    (found,) = (made for made in signatures if made.name == name and of in (None, made.of))
    return found


RISING = [(0.70 + d, 0.80 + d, 0.86 + d) for d in (0.0, 0.001, 0.002, 0.003, 0.001)]
FLAT = [(0.88, 0.88, 0.88)] * 5


def test_the_winner_and_the_baseline_are_looked_at(tmp_path: Path) -> None:
    made = advise(told(tmp_path / "run", RISING))
    full = named(made, "capacity", "winner")
    assert full.found is True
    assert "99% of the parameters" in full.words
    room = named(made, "capacity", "baseline")
    assert room.found is True
    assert "a space with larger sizes" in room.next_step
    start = named(made, "unstable_start", "winner")
    assert start.found is True
    # One trial of the space's arm failed with NaN in the example.
    assert "not a number in 1 of 10 trials" in start.words
    assert named(made, "unstable_start", "baseline").found is False
    assert made[0].found is True
    assert named(made, "overfitting").found is False


def test_rungs_within_one_pass_tell_of_labels(tmp_path: Path) -> None:
    found = named(advise(told(tmp_path / "run", RISING)), "labels_or_search")
    assert found.found is True
    assert found.words.startswith("More labels rather than more search: seeing 18,000 labelled rows instead of 9,000")
    assert "95 %" in found.words
    assert "20,000 rows that are there" in found.next_step


def test_flat_rungs_say_that_neither_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExampleSearch, "rung", _flat(ExampleSearch.rung))
    found = named(advise(told(tmp_path / "run", FLAT)), "labels_or_search")
    assert found.found is False
    assert found.words.startswith("Neither more labels nor more search shows a gain above 0.00")


def _flat(original: Any) -> Any:
    def rung(self: ExampleSearch, trial: str, rung: int, rows: int, score: float, seconds: float = 9.0) -> None:
        original(self, trial, rung, rows, 0.88, seconds)

    return rung


def test_rows_seen_twice_are_no_new_labels(tmp_path: Path) -> None:
    search = Told(tmp_path / "run")
    original = search.add

    def few(type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "search_started":
            data["task"]["rows"] = {"train": 2000, "validation": 1000, "test": 872}
        original(type, later, **data)

    search.add = few  # type: ignore[method-assign]
    search.head()
    lora, mix = search.explore()
    search.more(mix, RISING)
    search.confirm(lora, mix)
    search.journal.close()
    found = named(advise(SearchLog.fold(search.journal.records)), "labels_or_search")
    assert found.found is None
    assert "the 2,000 training rows were seen more than once" in found.words


def test_too_few_full_trainings_are_said_to_be(tmp_path: Path) -> None:
    found = named(advise(told(tmp_path / "run", [])), "labels_or_search")
    assert found.found is None
    assert "too few full trainings (2)" in found.words


def test_latency_is_that_of_the_winner(tmp_path: Path) -> None:
    log = told(tmp_path / "run", [])
    assert named(advise(log), "latency", "winner").found is None
    runs = log.of_configuration(str((log.finalists or {})["challenger"]), "confirm")
    runs[0].rungs[-1] = replace(runs[0].rungs[-1], latency={"1": 1.31, "16": 1.04})
    assert "times 1.31" in named(advise(log), "latency", "winner").words
    assert named(advise(log), "latency", "baseline").found is None
    lora = log.of_configuration(str((log.finalists or {})["baseline"]), "confirm")
    lora[0].rungs[-1] = replace(lora[0].rungs[-1], latency={"1": 1.25, "16": 1.02})
    assert "tuned LoRA: times 1.25" in named(advise(log), "latency", "winner").words
    assert "tuned LoRA:" not in named(advise(log), "latency", "baseline").words
    assert "adds nothing" in named(advise(log), "latency", "baseline").words
    known = log.configurations[runs[0].hash]
    changed = json.loads(json.dumps(dict(known.configuration)))
    next(iter(changed["sites"].values()))[0]["method"] = "serial"
    log.configurations[runs[0].hash] = replace(known, configuration=changed)
    assert "it cannot be merged" in named(advise(log), "latency", "winner").words
    log.plan["budget"] = {"max_latency_overhead": 1.4}
    assert "within the limit of 1.4" in named(advise(log), "latency", "winner").words


def test_a_journal_of_an_earlier_version_gives_only_what_it_holds(tmp_path: Path) -> None:
    ExampleSearch(tmp_path / "run").whole()
    made = advise(SearchLog.fold(read_journal(tmp_path / "run")))
    assert named(made, "capacity", "winner").found is None
    assert [one.name for one in made if one.found] == ["unstable_start"]
    assert advise(SearchLog())[-1].found is None


def shown(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=400, color_system=None)
    console.print(summary(folder))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_reports_say_what_to_do_next(tmp_path: Path) -> None:
    told(tmp_path / "run", RISING)
    page = Path(report(tmp_path / "run")).read_text(encoding="utf-8")
    assert page.index("Comparison") < page.index("What was looked for") < page.index("Progress")
    for fact in ("More labels rather than more search", "99% of the parameters", "Also looked for", "Not measured"):
        assert fact in page, fact
    text = shown(tmp_path / "run")
    assert "seen:   winner: The size may be too small" in text
    assert "seen:   More labels rather than more search" in text
    assert "next:   allow more parameters (a larger --max-params), or train longer (--max-time)" in text


def test_looks_at_the_test_rows_are_shown(tmp_path: Path) -> None:
    search = Told(tmp_path / "run")
    search.head()
    search.confirm(*search.explore())
    search.add("looks", test_hash="c" * 64, this_search=1, all_searches=7, searches=5)
    search.journal.close()
    sentence = "These test rows were read 7 times by 5 searches in this tracking store: the more often"
    assert sentence in Path(report(tmp_path / "run")).read_text(encoding="utf-8")
    assert f"test:   {sentence}" in shown(tmp_path / "run")
    alone = {"this_search": 1, "all_searches": 1, "searches": 1}
    assert looks_sentence(alone) == "These test rows were read once, by this search alone in this tracking store."
    assert looks_sentence(None) == ""


def test_opening_the_test_rows_again_makes_an_earlier_count_stale(tmp_path: Path) -> None:
    search = Told(tmp_path / "run")
    search.head()
    search.confirm(*search.explore())
    search.add("looks", test_hash="c" * 64, this_search=1, all_searches=2, searches=2)
    assert SearchLog.fold(search.journal.records).looks is not None
    search.add("resumed", records=9, reopened=True)
    search.add("test_opened", winner_sha256="a" * 64, test_hash="c" * 64)
    search.journal.close()
    assert SearchLog.fold(search.journal.records).looks is None


@pytest.mark.parametrize("space", ["hybrid", "lora", "autopeft", "whole", "bipeft-s1"])
@pytest.mark.parametrize("limit", [None, 20_000])
def test_a_space_says_what_it_admits_at_most(space: str, limit: int | None) -> None:
    modules = bert()
    bound = bind(resolve(catalogue.read("spaces", space)), modules, kind="sequence_classification", param_limit=limit)
    about = bound.about()
    made = [bound.decode(bound.draw(index, 3)) for index in range(60)]
    sizes = [one.adapter_params(modules) for one in made]
    assert about["params"]["least"] <= min(sizes)
    assert max(sizes) <= about["params"]["most"]
    if limit is not None and about["params"]["most"] > 0.9 * limit:
        assert about["params"]["limit"] == "max_adapter_params"
    rates = [(method, rate) for one in made for method, rate in one.training.rates]
    for method, rate in rates:
        low, default, high = about["rates"][method]
        assert low * 0.999 <= rate <= high * 1.001
        assert low <= default <= high
    shares = [
        math.log(rate / about["rates"][m][0]) / math.log(about["rates"][m][2] / about["rates"][m][0])
        for m, rate in rates
    ]
    assert min(shares) < 0.1
    assert max(shares) > 0.9


def test_a_simulated_search_journals_curves_and_ends_with_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulated workers store no adapters.
    monkeypatch.setattr("autopeft.search.result.describe", lambda folder: {})
    quality = by_method({"lora": 0.82, "parallel": 0.9})
    bench = Bench(tmp_path / "run", Curved(quality, rows=1000), Budget(max_adapter_params=0.01, max_time=900.0))
    log = bench.run()
    curves = [trial.losses for trial in log.trials.values() if trial.rungs]
    assert curves
    assert all(curve for curve in curves)
    assert all(earlier[0] < later[0] for curve in curves for earlier, later in pairwise(curve))
    made = advise(log)
    assert {one.of for one in made} == {"winner", "baseline", "search"}
    assert named(made, "unstable_start", "baseline").found is not None
    assert named(made, "labels_or_search").words
    with Journal.resume(tmp_path / "run", clock=bench.clock) as journal:
        result = build_result(Ledger(journal), status="cancelled", budget=bench.budget, environment={})
    assert result["signatures"] == [one.to_dict() for one in made]
    assert result["test_looks"] is None


class Curved(SyntheticWorld):
    """Gives the loss curve of every job too."""

    def _train(self, job: Train, folder: str) -> Outcome | None:
        outcome = super()._train(job, folder)
        if outcome is None or outcome.status != "ok":
            return outcome
        rows = np.linspace(job.rows_from, job.rows_to, 17)[1:]
        return replace(outcome, losses=[(int(row), float(np.exp(-row / 3000))) for row in rows])
