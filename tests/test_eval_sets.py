"""Eval sets: read, checked, evaluated last, journalled, resumed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_search_simulated import Bench

from autopeft.cli.flags import parse_flags
from autopeft.cli.parser import build_parser
from autopeft.data.encoded import EncodedSplit
from autopeft.data.eval_sets import EvalSet
from autopeft.data.read import read
from autopeft.errors import InputError
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.report.command import command
from autopeft.search.eval_sets import declare
from autopeft.search.ledger import Ledger
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.parse import load_task_file, parse_search, spec_to_dict
from autopeft.spec.stored import lay_over, stored_values
from autopeft.strategy.jobs import Evaluate
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.tracking.content import summary_metrics

BUDGET = Budget(max_time=200.0)


def an_eval_set(rows: int, digest: str = "a", notes: tuple[str, ...] = ()) -> EvalSet:
    return EvalSet(EncodedSplit(np.arange(rows + 1), np.zeros(rows, np.int32)), digest, notes)


def bench(folder: Path, budget: Budget = BUDGET, world: SyntheticWorld | None = None, **options: Any) -> Bench:
    return Bench(folder, world or SyntheticWorld(by_method({})), budget, **options)


def evaluations(made: Bench) -> list[tuple[str, str]]:
    return [(job.split, job.name) for job in made.world.jobs if isinstance(job, Evaluate)]


def folded(folder: Path) -> SearchLog:
    return SearchLog.fold(read_journal(folder))


def declared(folder: Path, sets: dict[str, EvalSet], budget: Budget = BUDGET) -> None:
    with Journal.resume(folder) as journal:
        declare(Ledger(journal), sets, {name: f"{name}.csv" for name in sets}, budget)


# In the search


def test_eval_sets_come_last_and_once_for_everybody(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", eval_rows={"web": 300, "old": 50}, slots=1)
    log = made.run()
    done = evaluations(made)
    assert {split for split, _ in done[:2]} == {"test"}
    assert sorted(done[2:]) == [(s, r) for s in ("old", "web") for r in ("baseline", "challenger")]
    assert set(log.evaluations) == {"web", "old"}
    assert {data["rows"] for data in log.evaluations["web"].values()} == {300}
    assert log.used <= 200


def test_nothing_before_the_test_differs(tmp_path: Path) -> None:
    logs = [bench(tmp_path / name, eval_rows=rows).run() for name, rows in (("a", {}), ("b", {"web": 300}))]
    trials = [[(t.id, t.hash, t.seed, t.status) for t in log.trials.values()] for log in logs]
    assert trials[0] == trials[1]
    assert logs[0].verdict == logs[1].verdict


def test_the_incumbent_is_evaluated_too(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", eval_rows={"web": 300}, incumbent="/somewhere")
    log = made.run()
    assert set(log.evaluations["web"]) == {"baseline", "challenger", "incumbent"}


@pytest.mark.parametrize("stop_after", [None, 3])
def test_a_resumed_search_repeats_no_evaluation(tmp_path: Path, stop_after: int | None) -> None:
    made = bench(tmp_path / "run", eval_rows={"web": 300, "old": 50}, slots=1)
    made.run()
    if stop_after is not None:
        # As if it had died after the first evaluation on the second set.
        path = tmp_path / "run" / "journal.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]))
    before = len(evaluations(made))
    made.run(resume=True)
    assert len(evaluations(made)) - before == (0 if stop_after is None else 1)
    assert set(folded(tmp_path / "run").evaluations["old"]) == {"baseline", "challenger"}


def test_a_set_that_is_added_to_an_ended_search_is_read_whole(tmp_path: Path) -> None:
    made = bench(tmp_path / "run")
    made.run()
    with Journal.resume(tmp_path / "run", clock=made.clock) as journal:
        journal.append("finished", status="found", result={})
    made.clock.now += 1000
    declared(tmp_path / "run", {"web": an_eval_set(5000)})
    made.eval_rows = {"web": 5000}
    log = made.run(resume=True)
    assert {data["rows"] for data in log.evaluations["web"].values()} == {5000}
    assert [job.rows for job in made.world.jobs if isinstance(job, Evaluate) and job.split == "web"] == [None, None]


class SlowTest(SyntheticWorld):
    """Reading the test rows takes all the time that is left."""

    def outcome(self, job: Any, folder: str) -> Any:
        outcome = super().outcome(job, folder)
        slow = isinstance(job, Evaluate) and job.split == "test"
        return replace(outcome, seconds=200.0) if slow else outcome


def test_without_time_a_set_is_told_and_made_up_for_when_there_is_more(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", world=SlowTest(by_method({})), eval_rows={"web": 300})
    log = made.run()
    assert {data["reason"] for data in log.evaluations["web"].values()} == {"time"}
    assert sum("no time left" in note for note in log.notes) == 2
    # Later, with more of it.
    made.budget = Budget(max_time=1000.0)
    log = made.run(resume=True)
    assert all(data["metrics"] for data in log.evaluations["web"].values())


def test_rows_are_bounded_by_the_time_left_and_the_same_for_both(tmp_path: Path) -> None:
    log = bench(tmp_path / "run", Budget(max_time=300.0), eval_rows={"huge": 10**7}).run()
    rows = {data["rows"] for data in log.evaluations["huge"].values()}
    assert len(rows) == 1
    assert 100 <= rows.pop() < 10**7
    assert sum("Scores on huge" in note for note in log.notes) == 1


def rows_for(seconds: float, log: SearchLog) -> int:
    """Rows of an eval set that so many seconds are left for: 70 % of them are lent."""
    return int(0.7 * seconds / log.plan["speed"]["evaluate"])


def rows_read(log: SearchLog) -> set[int]:
    return {data["rows"] for data in log.evaluations["huge"].values()}


def test_rows_take_their_share_of_the_time_left(tmp_path: Path) -> None:
    log = bench(tmp_path / "run", Budget(max_time=300.0), eval_rows={"huge": 10**7}).run()
    asked = [record.used for record in read_journal(tmp_path / "run") if record.type == "test"][-1]
    # Two workers evaluate one adapter each.
    assert rows_read(log) == {rows_for(log.plan["deadline"] - asked, log)}


def test_rows_take_their_share_of_the_compute_left(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", Budget(max_trials=3), slots=1, evidence="quick")
    busy = made.run().busy
    made.eval_rows = {"huge": 10**7}
    made.budget = Budget(max_trials=3, max_compute=busy + 10)
    log = made.run(resume=True)
    # One worker evaluates both; wall time is left for more, as the probes came before the limit's clock.
    assert rows_read(log) == {rows_for(10 / 2, log)}
    assert log.plan["deadline"] - log.used > 10


def test_weights_that_changed_are_evaluated_anew(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", eval_rows={"web": 300})
    log = made.run()
    before = len(evaluations(made))
    with Journal.resume(tmp_path / "run", clock=made.clock) as journal:
        ledger = Ledger(journal)
        ledger.write("evaluated", **{**log.evaluations["web"]["baseline"], "sha256": "0" * 64})
    log = made.run(resume=True)
    assert evaluations(made)[before:] == [("web", "baseline")]
    assert log.evaluations["web"]["baseline"]["sha256"] == log.tests["baseline"]["sha256"]


def test_a_set_is_read_whole_only_while_the_search_is_not_given_more(tmp_path: Path) -> None:
    made = bench(tmp_path / "run")
    made.run()
    with Journal.resume(tmp_path / "run", clock=made.clock) as journal:
        journal.append("finished", status="found", result={})
    web = {"web": an_eval_set(5000)}
    for budget, whole in ((BUDGET, True), (BUDGET, True), (Budget(max_time=1000.0), False), (BUDGET, False)):
        declared(tmp_path / "run", web, budget)
        assert folded(tmp_path / "run").eval_sets["web"]["whole"] is whole
    # One that is new to a search that is given more keeps to its time as well.
    declared(tmp_path / "run", {"late": an_eval_set(50, "c")}, Budget(max_time=1000.0))
    assert folded(tmp_path / "run").eval_sets["late"]["whole"] is False


def test_an_evaluation_that_breaks_ends_nothing(tmp_path: Path) -> None:
    world = SyntheticWorld(by_method({}), kills=lambda job: isinstance(job, Evaluate) and job.split == "web")
    log = bench(tmp_path / "run", world=world, eval_rows={"web": 300}).run()
    assert {(data["reason"], len(data["metrics"])) for data in log.evaluations["web"].values()} == {("lost", 0)}
    assert set(log.tests) == {"baseline", "challenger"}


class OneRow(SyntheticWorld):
    """The eval set admits one metric of two."""

    def outcome(self, job: Any, folder: str) -> Any:
        outcome = super().outcome(job, folder)
        if isinstance(job, Evaluate) and job.split == "web":
            metrics = {"accuracy": 0.0, "matthews": 0.0}
            return replace(outcome, metrics=metrics, values={"undefined": ["matthews"]})
        return outcome


def test_a_metric_that_the_rows_do_not_admit_is_null(tmp_path: Path) -> None:
    log = bench(tmp_path / "run", world=OneRow(by_method({})), eval_rows={"web": 1}).run()
    found = {"accuracy": 0.0, "matthews": None}
    assert [log.evaluations["web"][role]["metrics"] for role in ("baseline", "challenger")] == [found, found]
    assert summary_metrics(log)["baseline.web.accuracy"] == 0.0
    assert "baseline.web.matthews" not in summary_metrics(log)


def test_other_rows_under_the_same_name_are_evaluated_anew(tmp_path: Path) -> None:
    made = bench(tmp_path / "run", eval_rows={"web": 300})
    made.run()
    declared(tmp_path / "run", {"web": an_eval_set(300, "a", ("a note",))})
    assert folded(tmp_path / "run").evaluations["web"] == {}
    made.run(resume=True)
    first = folded(tmp_path / "run")
    assert set(first.evaluations["web"]) == {"baseline", "challenger"}
    assert first.notes.count("a note") == 1
    declared(tmp_path / "run", {"web": an_eval_set(300, "a", ("a note",))})
    assert folded(tmp_path / "run").seq == first.seq
    declared(tmp_path / "run", {"web": an_eval_set(300, "b", ())})
    assert folded(tmp_path / "run").evaluations["web"] == {}


# As given


def reviews(count: int = 40) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"text {i}" for i in range(count)], "label": ["good", "bad"] * (count // 2)})


def read_with(**sets: Any) -> Any:
    return read(Task("m", reviews()), seed=0, eval_sets=sets)


def test_eval_sets_are_read_like_the_splits(tmp_path: Path) -> None:
    path = tmp_path / "web.csv"
    path.write_text("label,text,more\ngood,new one,1\nbad,text 3,2\n")
    raw = read_with(web=str(path), frame=reviews(4), rows=[{"text": "x", "label": "bad"}])
    assert {name: table.num_rows for name, table in raw.further.items()} == {"web": 2, "frame": 4, "rows": 1}
    assert raw.further["web"].column_names == ["text", "label"]
    assert set(raw.splits) == {"train", "validation", "test"}
    assert raw.notes == read_with().notes
    # Every text of the frame is one of the task's; that of `rows` is not.
    assert any("have the same text as a" in note for note in raw.further_notes["frame"])
    assert raw.further_notes["rows"] == ()


def test_rows_that_were_trained_on_or_chosen_by_are_told() -> None:
    splits = read_with().splits
    for split in ("train", "validation"):
        text, label = (splits[split][name][0].as_py() for name in ("text", "label"))
        rows = [{"text": text, "label": label}, {"text": "new", "label": "bad"}]
        assert read_with(web=rows).further_notes["web"] == (
            f"Warning: 1 of 2 web rows (50.0%) have the same text as a {split} row; scores on them are too good.",
        )
    rows = [{"text": splits["test"]["text"][0].as_py(), "label": "bad"}]
    assert read_with(web=rows).further_notes["web"] == ()


def test_numbers_are_classes_as_in_the_training_rows(tmp_path: Path) -> None:
    path = tmp_path / "web.csv"
    path.write_text("text,label\na,1\nb,0\n")
    frame = reviews().assign(label=[0, 1] * 20)
    raw = read(Task("m", frame), seed=0, eval_sets={"web": path})
    assert raw.further["web"]["label"].to_pylist() == ["1", "0"]


def test_all_that_is_wrong_with_eval_sets_is_told_at_once(tmp_path: Path) -> None:
    lacking, unknown = tmp_path / "lacking.csv", tmp_path / "unknown.csv"
    lacking.write_text("text,other\na,good\n")
    unknown.write_text("text,label\na,good\nb,awful\n")
    with pytest.raises(InputError) as error:
        read_with(gone=tmp_path / "gone.csv", lacking=lacking, number=3)
    assert {problem.field for problem in error.value.problems} == {
        "eval_sets.gone", "eval_sets.lacking.label", "eval_sets.number",
    }  # fmt: skip
    with pytest.raises(InputError) as error:
        read_with(unknown=unknown, gone=tmp_path / "gone.csv", lacking=lacking)
    told = {problem.field: problem for problem in error.value.problems}
    assert set(told) == {"eval_sets.unknown[1].label", "eval_sets.gone", "eval_sets.lacking.label"}
    assert told["eval_sets.unknown[1].label"].value == "awful"


def test_problems_of_the_data_and_of_an_eval_set_come_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(Task("m", reviews().drop(columns="label")), seed=0, eval_sets={"gone": tmp_path / "gone.csv"})
    assert {problem.field for problem in error.value.problems} == {"task.label_column", "eval_sets.gone"}
    bad = reviews(4).assign(label="awful")
    with pytest.raises(InputError) as error:
        read(Task("m", {"train": reviews(), "validation": bad}), seed=0, eval_sets={"web": bad})
    assert {p.field for p in error.value.problems} == {"data.validation[0].label", "eval_sets.web[0].label"}


TASK = {"model": "m", "data": "d"}


def test_names_are_checked() -> None:
    given = ["web=a.csv", "a b=a.csv", "Test=a.csv", "WEB=b.csv", "nothing", "empty="]
    with pytest.raises(InputError) as error:
        parse_search({"task": TASK, "eval_sets": given})
    assert [(p.field, p.value) for p in error.value.problems] == [
        ("eval_sets", "nothing"), ("eval_sets", "a b"), ("eval_sets", "Test"), ("eval_sets", "WEB"),
        ("eval_sets.empty", ""),
    ]  # fmt: skip
    assert parse_search({"task": TASK, "eval_sets": ["a=b=c.csv"]}).eval_sets == {"a": "b=c.csv"}


def test_the_search_is_stored_and_given_more_sets(tmp_path: Path) -> None:
    (tmp_path / "web.csv").write_text("text,label\n")
    spec = SearchSpec(Task("m", "d"), eval_sets={"web": str(tmp_path / "web.csv"), "rows": reviews()})
    stored = json.loads(json.dumps(spec_to_dict(spec)))
    assert stored["eval_sets"]["rows"] == "<DataFrame in memory>"
    again = parse_search(lay_over(stored_values(stored), {"eval_sets": ["more=more.csv"]}))
    assert again.eval_sets == {"web": str((tmp_path / "web.csv").resolve()), "more": "more.csv"}
    moved = parse_search(lay_over(stored_values(stored), {"eval_sets": {"web": "new.csv"}}))
    assert moved.eval_sets == {"web": "new.csv"}
    with pytest.raises(InputError):
        parse_search(lay_over(stored_values(stored), {"eval_sets": 3}))


def test_paths_of_a_file_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "web.csv").write_text("text,label\n")
    (tmp_path / "task.yaml").write_text("task: {model: m, data: d}\neval_sets: {web: web.csv}\n")
    assert load_task_file(tmp_path / "task.yaml")["eval_sets"] == {"web": str((tmp_path / "web.csv").resolve())}


def test_the_command_repeats_the_flag() -> None:
    spec = SearchSpec(Task("m", "d"), eval_sets={"web": "my web.csv", "old": "old.csv"})
    line = command(spec_to_dict(spec))
    assert line is not None
    assert parse_flags(build_parser().parse_args(shlex.split(line)[1:])).eval_sets == spec.eval_sets
    assert command(spec_to_dict(replace(spec, eval_sets={"rows": reviews()}))) is None


def test_a_resume_finds_what_earlier_sessions_were_given(tmp_path: Path) -> None:
    spec = SearchSpec(Task("m", "d"), eval_sets={"web": "web.csv"})
    with Journal.create(tmp_path / "run") as journal:
        journal.append("search_started", spec=spec_to_dict(spec))
        declare(Ledger(journal), {"late": an_eval_set(5)}, {"late": "late.csv"}, BUDGET)
    flags = ["search", "--resume", "--out", str(tmp_path / "run"), "--eval-set", "now=now.csv"]
    found = parse_flags(build_parser().parse_args(flags)).eval_sets
    assert found == {"web": "web.csv", "late": "late.csv", "now": "now.csv"}


def test_problems_have_the_name_of_the_flag() -> None:
    args = build_parser().parse_args(["search", "--model", "m", "--data", "d", "--eval-set", "web="])
    with pytest.raises(InputError) as error:
        parse_flags(args)
    assert [problem.field for problem in error.value.problems] == ["--eval-set web"]
