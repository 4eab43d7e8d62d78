from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.errors import InputError
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.parse import checked, load_task_file, parse_budget, parse_search, parse_task, spec_to_dict
from autopeft.spec.stored import in_memory, lay_over, stored_values

TASK = {"model": "org/model", "data": "org/data"}


def problems(call, *args) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert all(problem.rule and problem.next_step for problem in caught.value.problems)
    return {problem.field: f"{problem.rule}. {problem.next_step}" for problem in caught.value.problems}


def test_hand_made_searches_are_checked_like_all_others() -> None:
    good = SearchSpec(Task(model="m", data="d"), overrides=(("space.batch", "8"), ("strategy.name", "8")))
    assert checked(good) == good
    assert checked(replace(good, preset="minimal")).preset == "minimal"
    bad = replace(good, workers=0, budget=Budget(max_time=-1.0), evidence="none")  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        checked(bad)
    assert {problem.field for problem in caught.value.problems} == {"workers", "budget.max_time", "evidence"}


def test_budget_with_units_and_without():
    budget = Budget.from_dict(
        {
            "max_adapter_params": "0.5%",
            "max_memory": "2GiB",
            "max_time": "5m",
            "max_compute": 1200,
            "max_trials": "30",
            "max_adapter_size": "5MiB",
            "max_latency_overhead": "1.1",
            "target": "peft",
        }
    )
    assert budget == Budget(0.005, 2**31, 300.0, 1200.0, 30, 5 * 2**20, 1.1, "peft")
    assert budget.param_limit(1_000_000) == 5000


def test_all_problems_of_a_search_come_at_once_under_dotted_names():
    found = problems(
        parse_search,
        {
            "task": {"modl": "x", "data": 3, "kind": "classification", "max_length": 0},
            "budget": {"max_time": "0", "max_memory": -1, "target": "tgi", "max_latency_overhead": 0.5},
            "sapce": "hybrid",
            "seed": -1,
            "workers": 0,
            "executor": "dask",
            "evidence": "none",
        },
    )
    assert set(found) == {
        "sapce", "task.modl", "task.model", "task.data", "task.kind", "task.max_length", "budget.max_time",
        "budget.max_memory", "budget.target", "budget.max_latency_overhead", "seed", "workers", "executor", "evidence",
    }  # fmt: skip
    assert "Did you mean space?" in found["sapce"]
    assert "Did you mean model?" in found["task.modl"]


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_what_is_no_mapping_is_refused(value):
    assert problems(parse_search, value)
    assert problems(parse_search, {"task": value})


def test_columns_and_metrics_must_suit_the_kind():
    found = problems(
        parse_task,
        {**TASK, "kind": "causal_lm", "metric": "accuracy", "label_column": "y", "prompt_column": "p", "head": "mean"},
    )
    assert set(found) == {"task.metric", "task.label_column", "task.response_column", "task.head"}
    assert parse_task({**TASK, "text_columns": ["a", "b"]}).text_columns == ("a", "b")
    assert parse_task({**TASK, "text_columns": "a"}).text_columns == ("a",)
    assert "task.text_columns" in problems(parse_task, {**TASK, "text_columns": ["a", "a"]})
    assert "task.text_columns" in problems(parse_task, {**TASK, "text_columns": ["a", "b", "c"]})


def test_text_with_control_characters_is_refused():
    assert set(problems(parse_task, {"model": "a\0b", "data": "d\n", "name": "x" * 5000})) == {
        "task.model", "task.data", "task.name",
    }  # fmt: skip


def test_data_in_memory_passes_through_and_becomes_a_label():
    rows = {"train": [1, 2], "test": [3]}
    spec = parse_search({"task": {"model": "m", "data": rows}})
    assert spec.task.data is rows
    plain = spec_to_dict(spec)
    assert plain["task"]["data"] == "<dict in memory>"
    assert in_memory(plain["task"]["data"])
    assert not in_memory("org/data")
    assert not in_memory(None)
    assert json.loads(json.dumps(plain)) == plain


def test_defaults_are_those_of_the_type():
    assert parse_search({"task": TASK}) == SearchSpec(task=Task(**TASK))


def test_built_values_are_taken_and_can_be_changed():
    task, budget = Task(**TASK, text_columns=("a", "b")), Budget(max_time=5.0)
    assert parse_search({"task": task, "budget": budget}) == SearchSpec(task=task, budget=budget)
    spec = parse_search({"task": task, "budget": budget, "set": {"task.max_length": 64, "budget.max_time": "1h"}})
    assert (spec.task.max_length, spec.task.text_columns, spec.budget.max_time) == (64, ("a", "b"), 3600.0)


def test_built_values_are_read_like_mappings(tmp_path: Path):
    rows = {"train": [1], "test": [2]}
    task = Task(model=tmp_path, data=rows, text_columns="a", max_length="64")
    budget = Budget(max_time="5m", max_adapter_params="1%", max_memory="2GiB", max_trials="7", max_latency_overhead=2)
    spec = parse_search({"task": task, "budget": budget})
    assert spec.task == Task(model=str(tmp_path), data=rows, text_columns=("a",), max_length=64)
    assert spec.task.data is rows
    assert spec.budget == Budget(0.01, 2**31, 300.0, None, 7, None, 2.0)
    assert parse_search({"task": spec.task, "budget": spec.budget}) == spec


def test_built_values_that_are_wrong_are_told_at_once():
    found = problems(
        parse_search,
        {
            "task": Task(model="", data=None, kind="clasification", head="top"),
            "budget": Budget(max_trials=0, max_time=-1.0, max_adapter_params=1.5, target="tgi"),
        },
    )
    assert set(found) == {
        "task.model", "task.data", "task.kind", "task.head", "budget.max_trials", "budget.max_time",
        "budget.max_adapter_params", "budget.target",
    }  # fmt: skip


def test_a_python_search_checks_what_is_built():
    import autopeft

    given = (Task(**TASK), Budget(max_trials=0))
    assert set(problems(lambda: autopeft.search(*given))) == {"budget.max_trials"}


def test_set_reads_text_as_yaml_and_keeps_the_order():
    changes = [("space.batch", "[8, 16]"), ("strategy.halving.eta", "4"), ("space.rates.lora", "[1e-4, 1e-3, 1e-2]")]
    spec = parse_search({"task": TASK, "set": changes})
    assert spec.overrides == (
        ("space.batch", [8, 16]), ("strategy.halving.eta", 4), ("space.rates.lora", [1e-4, 1e-3, 1e-2]),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["spac.x", "space", "space.", "space..x", "seed", ""])
def test_set_outside_its_four_tables_is_refused(name):
    assert f"set.{name}" in problems(parse_search, {"task": TASK, "set": {name: 1}})


def test_a_preset_excludes_what_it_sets():
    assert set(problems(parse_search, {"task": TASK, "preset": "p", "space": "s", "strategy": "t"})) == {
        "space",
        "strategy",
    }
    assert parse_search({"task": TASK, "preset": "p"}).preset == "p"


def test_overwrite_and_resume_exclude_each_other():
    assert "overwrite" in problems(parse_search, {"task": TASK, "out": "o", "overwrite": True, "resume": True})
    assert "out" in problems(parse_search, {"task": TASK, "resume": True})


def test_task_file_resolves_its_own_neighbours(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "own.yaml").write_text("name: own\n")
    file = tmp_path / "TASK.yaml"
    file.write_text(
        "task:\n  model: ../base\n  data: rows\n  kind: regression\nbudget:\n  max_time: 5m\n  max_adapter_params: 1%\n"
        "space: own.yaml\nstrategy: tpe\n"
    )
    values = load_task_file(file)
    assert values["task"]["data"] == str(tmp_path / "rows")
    assert values["task"]["model"] == str(tmp_path.parent / "base")
    assert values["space"] == str(tmp_path / "own.yaml")
    assert values["strategy"] == "tpe"
    assert parse_search(values).budget == Budget(max_adapter_params=0.01, max_time=300.0)


def test_a_hub_id_in_a_task_file_stays_one(tmp_path: Path):
    file = tmp_path / "TASK.yaml"
    file.write_text("task: {model: org/model, data: org/data}\n")
    assert load_task_file(file)["task"] == {"model": "org/model", "data": "org/data"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"task:\n  model: x\n bad\n", "line 3"),
        (b"task: {model: a\n", "line"),
        (b"a: 1\na: 2\n", "'a' is given twice"),
        (b"a: &x [1]\nb: *x\n", "aliases"),
        (b"a: !!python/object/apply:os.system ['true']\n", "line 1"),
        (b"task: \xff\n", "UTF-8"),
        (b"[1, 2]\n", "fields and values"),
        (b"", "fields and values"),
        (b"[" * 2000, "nested"),
        (b"# " + b"x" * 1_100_000, "larger"),
    ],
)
def test_bad_task_files_are_refused_by_line(tmp_path: Path, content: bytes, said: str):
    file = tmp_path / "TASK.yaml"
    file.write_bytes(content)
    found = problems(load_task_file, file)
    assert list(found) == ["task_file"]
    assert said in found["task_file"]


def test_an_absent_task_file_is_refused(tmp_path: Path):
    assert "task_file" in problems(load_task_file, tmp_path / "none.yaml")
    assert "task_file" in problems(load_task_file, "a\0b")


def test_budget_alone():
    assert parse_budget({}) == Budget()
    assert set(problems(parse_budget, {"max_params": 1})) == {"budget.max_params"}


FULL = SearchSpec(
    task=Task(**TASK, kind="sequence_classification", text_columns=("a", "b"), max_length=64, head="cls"),
    budget=Budget(1.0, 2**31, 300.0, None, 30, 5 * 2**20, 1.1, "peft"),
    space={"name": "own", "methods": ["lora"]},
    evidence="quick",
    until="decided",
    within=0.5,
    objective="pareto",
    overrides=(("space.batch", [8, 16]), ("space.name", "1e-3"), ("strategy.name", "8"), ("space.note", "it's: #1")),
    workers=2,
    gpus_per_trial=0.5,
    pack=4,
    executor="inprocess",
    cache_bytes=0,
    seed=3,
    tracking_uri="none",
)


@pytest.mark.parametrize("spec", [SearchSpec(task=Task(**TASK)), FULL])
def test_what_is_stored_reads_back_as_the_same_search(spec: SearchSpec):
    stored = json.loads(json.dumps(spec_to_dict(replace(spec, out="o", overwrite=True))))
    assert parse_search(stored_values(stored)) == spec


def test_the_latest_budget_goes_over_the_first():
    stored = spec_to_dict(FULL)
    assert parse_search(stored_values(stored, {"max_time": 600.0, "max_trials": None})).budget == Budget(max_time=600.0)


def test_what_is_given_goes_over_what_is_stored():
    given = {
        "task": {"name": "new", "head": None},
        "budget": {"max_time": "1h"},
        "workers": 4,
        "seed": None,
        "out": "o",
        "resume": True,
        "set": {"budget.max_trials": 40},
    }
    spec = parse_search(lay_over(stored_values(spec_to_dict(FULL)), given))
    assert spec == replace(
        FULL,
        task=replace(FULL.task, name="new"),
        budget=replace(FULL.budget, max_time=3600.0, max_trials=40),
        workers=4,
        out="o",
        resume=True,
    )


def test_what_is_given_wrongly_over_what_is_stored_is_told():
    found = problems(lambda: parse_search(lay_over(stored_values(spec_to_dict(FULL)), {"task": 3, "set": 4})))
    assert {"task", "set"} <= set(found)


def test_a_preset_is_stored_beside_what_it_stands_for():
    # Preparing a search fills space and strategy in.
    stored = stored_values(spec_to_dict(SearchSpec(Task(**TASK), preset="p", space="s", strategy={"name": "t"})))
    again = parse_search(lay_over(stored, {}))
    assert (again.preset, again.space) == ("p", "hybrid")
    other = parse_search(lay_over(stored, {"preset": "q"}))
    assert (other.preset, other.space) == ("q", "hybrid")
    parts = parse_search(lay_over(stored, {"space": "s2"}))
    assert (parts.preset, parts.space, parts.strategy) == (None, "s2", {"name": "t"})


def test_local_paths_are_stored_for_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = tmp_path / "here"
    for name in ("base", "rows", "adapter"):
        (here / name).mkdir(parents=True)
    (here / "own.yaml").write_text("name: own\n")
    # What a hub's cache holds: a name that says what the file is, linking to one that does not.
    (here / "blob").write_text("x")
    (here / "m.gguf").symlink_to(here / "blob")
    (tmp_path / "hybrid").mkdir()
    monkeypatch.chdir(here)
    spec = SearchSpec(Task("base", Path("./rows")), space="own.yaml", strategy="tpe-asha", incumbent="../here/adapter")
    plain = spec_to_dict(spec)
    root = here.resolve()
    assert plain["task"]["model"] == str(root / "base")
    assert plain["task"]["data"] == str(root / "rows")
    assert plain["incumbent"] == str(root / "adapter")
    assert plain["space"] == str(root / "own.yaml")
    assert plain["strategy"] == "tpe-asha"
    assert spec_to_dict(SearchSpec(Task("m.gguf", "rows")))["task"]["model"] == str(root / "m.gguf")
    monkeypatch.setenv("HOME", str(here))
    assert spec_to_dict(SearchSpec(Task("~/base", "rows")))["task"]["model"] == os.path.join(here, "base")
    monkeypatch.chdir(tmp_path)
    hub = spec_to_dict(SearchSpec(Task("org/model", "org/data"), space="hybrid"))
    assert (hub["task"]["model"], hub["task"]["data"], hub["space"]) == ("org/model", "org/data", "hybrid")
    assert spec_to_dict(SearchSpec(Task("a\0b", "x" * 5000)))["task"]["data"] == "x" * 5000
