"""The command line: exit codes, one JSON document, errors under the names of their flags."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autopeft import cli
from autopeft.cli import _VERBS, main
from autopeft.cli.flags import FLAGS, parse_flags
from autopeft.cli.output import Boundary, stdout_reserved, write_json
from autopeft.cli.parser import build_parser, parse
from autopeft.errors import InputError, Interrupted, NothingFeasible, Problem
from autopeft.journal import Journal
from autopeft.search.events import Event, Snapshot
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.parse import spec_to_dict

GIVEN = ["--model", "m", "--data", "d"]


def fields(document: dict[str, Any]) -> list[str]:
    return [error["field"] for error in document["errors"]]


class TestArguments:
    def test_every_verb_of_the_parser_runs_something(self) -> None:
        verbs = next(action for action in build_parser()._actions if action.dest == "verb").choices
        assert set(verbs) == set(_VERBS)
        for target in _VERBS.values():
            module, _, name = target.partition(":")
            assert callable(getattr(importlib.import_module(module), name))

    def test_without_arguments_the_help_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert "exit codes" in capsys.readouterr().out

    @pytest.mark.parametrize("verb", sorted(_VERBS))
    def test_every_verb_has_help(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert verb in capsys.readouterr().out

    def test_the_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        import autopeft

        assert main(["--version"]) == 0
        assert capsys.readouterr().out.strip() == autopeft.__version__

    def test_unknown_flags_are_told_at_once_with_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["search", *GIVEN, "--max-parms", "3", "--jsn", "--json"]) == 2
        errors = json.loads(capsys.readouterr().out)["errors"]
        assert [(error["value"], error["next_step"]) for error in errors] == [
            ("--max-parms", "Did you mean --max-params?"),
            ("--jsn", "Did you mean --json?"),
        ]

    def test_abbreviations_are_not_guessed(self) -> None:
        with pytest.raises(InputError):
            parse(["search", "--max-par", "3"])

    @pytest.mark.parametrize("argv", [["serch"], ["ls"], ["ls", "spoons"], ["predict", "x"], ["search", "--model"]])
    def test_what_argparse_refuses_is_bad_input(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "cannot be used" in captured.err


class TestFlags:
    def test_every_flag_reaches_its_field(self) -> None:
        values = {
            "task.kind": ("regression", "regression"),
            "task.metric": ("spearman", "spearman"),
            "task.head": ("mean", "mean"),
            "task.max_length": ("64", 64),
            "budget.max_adapter_params": ("0.5%", 0.005),
            "budget.max_memory": ("2GiB", 2**31),
            "budget.max_time": ("5m", 300.0),
            "budget.max_compute": ("20m", 1200.0),
            "budget.max_trials": ("7", 7),
            "budget.max_adapter_size": ("5MiB", 5 * 2**20),
            "budget.max_latency_overhead": ("1.1", 1.1),
            "budget.target": ("merged", "merged"),
            "evidence": ("strict", "strict"),
            "until": ("decided", "decided"),
            "within": ("0.5", 0.5),
            "cost": ("memory", "memory"),
            "objective": ("pareto", "pareto"),
            "seed": ("3", 3),
            "workers": ("2", 2),
            "max_workers": ("8", 8),
            "gpus_per_trial": ("0.5", 0.5),
            "pack": ("4", 4),
            "executor": ("inprocess", "inprocess"),
            "cache_bytes": ("4GiB", 2**32),
            "precision": ("float32", "float32"),
            "attention": ("sdpa", "sdpa"),
        }
        left_out = {"preset", "resume", "task.prompt_column", "task.response_column"}
        argv, expected = ["search"], {}
        for flag in FLAGS:
            if flag.field in left_out:
                continue
            if flag.reading == "switch":
                argv.append(flag.name)
                expected[flag.field] = True
            elif flag.field == "eval_sets":
                argv += [flag.name, "a=a.csv", flag.name, "b=b.csv"]
                expected[flag.field] = {"a": "a.csv", "b": "b.csv"}
            elif flag.reading == "texts":
                argv += [flag.name, "a", flag.name, "b"]
                expected[flag.field] = ("a", "b")
            else:
                given, read = values.get(flag.field, (f"some-{flag.key}", f"some-{flag.key}"))
                argv += [flag.name, given]
                expected[flag.field] = read
        spec = parse_flags(parse([*argv, "--set", "space.batch=[16, 32]"]))
        for field, value in expected.items():
            found: Any = spec
            for step in field.split("."):
                found = getattr(found, step)
            assert found == value, field
        assert spec.overrides == (("space.batch", [16, 32]),)

    @pytest.mark.parametrize(
        ("flags", "field", "value"),
        [
            (["--preset", "autopeft"], "preset", "autopeft"),
            (["--overwrite", "--out", "runs/a"], "overwrite", True),
        ],
    )
    def test_flags_that_exclude_others(self, flags: list[str], field: str, value: object) -> None:
        assert getattr(parse_flags(parse(["search", *GIVEN, *flags])), field) == value

    def test_columns_of_language_models(self) -> None:
        task = parse_flags(parse(["search", *GIVEN, "--prompt-column", "q", "--response-column", "a"])).task
        assert (task.prompt_column, task.response_column) == ("q", "a")

    def test_all_problems_at_once_by_flag(self, capsys: pytest.CaptureFixture[str]) -> None:
        argv = [
            "plan",
            "--data",
            "d",
            "--max-params",
            "0",
            "--max-time",
            "never",
            "--workers",
            "x",
            "--evidence",
            "much",
        ]
        assert main([*argv, "--set", "budget.max_trials=-3", "--set", "nothing", "--json"]) == 2
        document = json.loads(capsys.readouterr().out)
        assert document["status"] == "invalid"
        wanted = {
            "--model",
            "--max-params",
            "--max-time",
            "--workers",
            "--evidence",
            "--set budget.max_trials",
            "--set",
        }
        assert set(fields(document)) == wanted
        assert all(error["rule"] and error["next_step"] for error in document["errors"])

    def test_set_goes_over_a_flag_and_a_flag_over_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "task.yaml"
        file.write_text(
            "task: {model: m, data: d, metric: f1}\nbudget: {max_trials: 1, max_time: 1m, max_memory: 1GiB}\n"
            "set: {space.batch: [8]}\n"
        )
        spec = parse_flags(
            parse(
                f"search {file} --max-trials 2 --max-time 2m --set budget.max_time=3m --set space.dropout=[0]".split()
            )
        )
        assert spec.task.metric == "f1"
        assert (spec.budget.max_memory, spec.budget.max_trials, spec.budget.max_time) == (2**30, 2, 180.0)
        assert dict(spec.overrides) == {"space.batch": [8], "space.dropout": [0]}

    def test_fields_of_a_file_keep_their_names(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "task.yaml"
        file.write_text("task: {model: m}\nbudget: {max_trials: 0}\n")
        assert main(["plan", str(file), "--max-time", "never", "--json"]) == 2
        found = fields(json.loads(capsys.readouterr().out))
        assert set(found) == {"task.data", "budget.max_trials", "--max-time"}

    @pytest.mark.parametrize("text", ["task: [1, 2]\nbudget: 3\n", "- 1\n", "a: [\n", None])
    def test_a_broken_file_is_bad_input(
        self, text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "task.yaml"
        if text is not None:
            file.write_text(text)
        assert main(["plan", str(file), "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["errors"]


def begun(folder: Path, spec: SearchSpec, **latest: Any) -> Path:
    """A run folder whose search began; `latest` is the budget that a later session had."""
    with Journal.create(folder) as journal:
        journal.append("search_started", schema=1, version="0", spec=spec_to_dict(spec))
        if latest:
            budget = spec_to_dict(replace(spec, budget=replace(spec.budget, **latest)))["budget"]
            journal.append("plan", rungs=[1], budget=budget)
    return folder


class TestResume:
    SPEC = SearchSpec(
        task=Task("org/m", "org/d", text_columns=("a", "b")),
        budget=Budget(max_adapter_params=0.01, max_time=300.0, max_trials=9),
        evidence="quick",
        overrides=(("space.batch", [8]),),
        executor="inprocess",
        seed=3,
    )

    def resume(self, folder: Path, *argv: object) -> SearchSpec:
        return parse_flags(parse(["search", "--resume", "--out", str(folder), *map(str, argv)]))

    def test_the_folder_is_enough(self, tmp_path: Path) -> None:
        run = begun(tmp_path / "a", self.SPEC)
        assert self.resume(run) == replace(self.SPEC, out=str(run), resume=True)

    def test_the_limits_of_the_latest_session_are_kept(self, tmp_path: Path) -> None:
        run = begun(tmp_path / "a", self.SPEC, max_time=900.0, max_trials=None)
        assert self.resume(run).budget == Budget(max_adapter_params=0.01, max_time=900.0)
        raised = self.resume(run, "--max-time", "1h", "--set", "budget.max_trials=40").budget
        assert raised == Budget(max_adapter_params=0.01, max_time=3600.0, max_trials=40)
        assert self.resume(run, "--set", "budget.max_time=null").budget == Budget(max_adapter_params=0.01)

    def test_flags_and_files_go_over_what_is_stored(self, tmp_path: Path) -> None:
        run = begun(tmp_path / "a", self.SPEC)
        file = tmp_path / "task.yaml"
        file.write_text("budget: {max_time: 10m, max_trials: 20}\nworkers: 2\n")
        spec = self.resume(run, file, "--max-trials", 30, "--model", "moved")
        assert spec.task == replace(self.SPEC.task, model="moved")
        assert (spec.budget.max_time, spec.budget.max_trials, spec.workers) == (600.0, 30, 2)
        assert spec.overrides == self.SPEC.overrides

    def test_data_that_was_in_memory_must_be_given(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = begun(tmp_path / "a", replace(self.SPEC, task=Task("org/m", {"train": [1]})))
        assert main(["search", "--resume", "--out", str(run), "--json"]) == 2
        document = json.loads(capsys.readouterr().out)
        assert fields(document) == ["--data"]
        assert "memory" in document["errors"][0]["rule"]
        assert self.resume(run, "--data", "rows.csv").task.data == "rows.csv"

    @pytest.mark.parametrize(
        ("argv", "wanted"),
        [
            (["--resume"], {"--out"}),
            (["--resume", "--out", "nothing-here"], {"--out"}),
            (["--resume", "--out", "nothing-here", "--max-time", "never"], {"--out", "--max-time"}),
            (["--resume", "--model", ""], {"--out", "--model"}),
        ],
    )
    def test_a_folder_without_a_search_is_the_one_problem(
        self,
        argv: list[str],
        wanted: set[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["search", *argv, "--json"]) == 2
        assert sorted(fields(json.loads(capsys.readouterr().out))) == sorted(wanted)

    def test_a_search_that_never_began_still_needs_its_task(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Journal.create(tmp_path / "a").close()
        assert main(["search", "--resume", "--out", str(tmp_path / "a"), "--json"]) == 2
        assert set(fields(json.loads(capsys.readouterr().out))) == {"--model", "--data"}
        assert self.resume(tmp_path / "a", *GIVEN).task == Task("m", "d")


class TestStart:
    def test_time_counts_from_the_start_of_the_process(self) -> None:
        code = (
            "import time; first = time.monotonic(); time.sleep(0.2)\n"
            "from autopeft.cli import process_started\n"
            "print(first, process_started())"
        )
        before = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        first, started = map(float, done.stdout.split())
        # The kernel counts starts in hundredths of a second.
        assert before - 0.02 <= started <= first

    def test_without_an_answer_of_the_system_it_is_the_first_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cli, "_FIRST_READING", time.monotonic() - 5)
        for age in (None, 2.0, 3600.0):
            monkeypatch.setattr(cli, "_age", lambda age=age: age)
            assert cli.process_started() == cli._FIRST_READING
        monkeypatch.setattr(cli, "_age", lambda: 7.0)
        assert cli._FIRST_READING - 3 < cli.process_started() < cli._FIRST_READING

    def test_other_systems_are_asked_through_psutil(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(self: Path) -> str:
            raise FileNotFoundError(self)

        known = cli._age()
        monkeypatch.setattr(Path, "read_text", absent)
        assert cli._age() == pytest.approx(known, abs=5)
        monkeypatch.setitem(sys.modules, "psutil", None)
        assert cli._age() is None

    def test_a_search_is_given_its_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        search = Search(0)
        monkeypatch.setattr(importlib.import_module("autopeft.search"), "run", search)
        monkeypatch.setattr(cli, "process_started", lambda: 12.5)
        monkeypatch.setattr(sys, "argv", ["autopeft", "search", *GIVEN, "--json"])
        assert main() == 0
        assert search.started == 12.5
        before = time.monotonic()
        assert main(sys.argv[1:]) == 0
        assert search.started >= before


class Search:
    """Stands for `autopeft.search.run`: leaves an event, then ends as it is told to."""

    def __init__(self, end: BaseException | int) -> None:
        self.end = end
        self.started = 0.0

    def __call__(self, spec: Any, on_event: Any = None, *, started: float, workers: Any) -> Any:
        # The model and the data are no files here, so that no workers come up early.
        assert workers is None
        self.started = started
        print("a library writes to stdout")
        on_event(Event("tick", {}, Snapshot("explore", done=1, used_seconds=1.0)))
        if isinstance(self.end, BaseException):
            raise self.end
        statuses = {0: "found", 4: "cancelled"}
        return SimpleNamespace(
            to_dict=lambda: {"status": statuses[self.end], "folder": "runs/a"}, exit_code=self.end, folder="runs/a"
        )


class TestExitCodes:
    @pytest.mark.parametrize(
        ("end", "code", "status"),
        [
            (0, 0, "found"),
            (4, 4, "cancelled"),
            (
                NothingFeasible("max_adapter_params", {"max_adapter_params": 384.0}, "nothing is that small"),
                3,
                "infeasible",
            ),
            (InputError([Problem("task.label_column", "x", "is no column", "Choose y.")]), 2, "invalid"),
            (Interrupted("stopped"), 4, "cancelled"),
            (KeyboardInterrupt(), 4, "cancelled"),
            (ZeroDivisionError("division by zero"), 1, "fault"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_json_is_one_document(
        self,
        end: Any,
        code: int,
        status: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(importlib.import_module("autopeft.search"), "run", Search(end))
        assert main(["search", *GIVEN, "--out", str(tmp_path), "--json"]) == code
        captured = capsys.readouterr()
        document = json.loads(captured.out)
        assert document["status"] == status
        assert "a library writes" in captured.err
        assert "1 done" in captured.err
        if status == "infeasible":
            assert document["binds"] == "max_adapter_params"
            assert document["smallest"] == {"max_adapter_params": 384.0}
            assert document["would_do"] == {"--max-params": "384"}
        if status == "invalid":
            assert fields(document) == ["--label-column"]
        if status == "fault":
            assert "ZeroDivisionError" in Path(document["log"]).read_text()

    def test_the_limit_that_binds_and_what_would_do_are_told_with_units(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        smallest = {"max_adapter_params": 384.0, "max_adapter_size": 70_000.0}
        for end, wanted in (
            (
                NothingFeasible("max_adapter_size", smallest, "nothing is that small"),
                ["nothing is that small", "binds is --max-size.", "do: --max-size 68.4KiB", "do: --max-params 384"],
            ),
            (NothingFeasible("max_memory", {"max_memory": 63_500_000}, "x"), ["do: --max-memory 60.6MiB"]),
            (NothingFeasible("space.max_share", {"space.max_share": 0.0102}, "x"), ["do: space.max_share 0.01021"]),
            (NothingFeasible("target", {}, "no method"), ["binds is --target."]),
        ):
            monkeypatch.setattr(importlib.import_module("autopeft.search"), "run", Search(end))
            assert main(["search", *GIVEN]) == 3
            told = capsys.readouterr().err
            places = [told.find(text) for text in wanted]
            assert -1 not in places, told
            assert places == sorted(places)

    def test_a_fault_says_that_it_is_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(importlib.import_module("autopeft.search"), "run", Search(KeyError("gone")))
        assert main(["search", *GIVEN, "--out", str(tmp_path / "absent")]) == 1
        told = capsys.readouterr().err
        assert "This is a fault of ours. The traceback is above." in told
        assert "Traceback (most recent call last)" in told

    def test_errors_of_the_data_are_told_by_flag(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        problems = [
            Problem("task.label_column", None, "is unclear", "Give task.label_column."),
            Problem("x", 1, "is", "Go."),
        ]
        monkeypatch.setattr(
            importlib.import_module("autopeft.search"), "run", Search(InputError(problems)), raising=False
        )
        assert main(["search", *GIVEN]) == 2
        told = capsys.readouterr().err
        assert "2 things cannot be used" in told
        assert "--label-column = None: is unclear. Give --label-column." in told
        assert "x = 1" in told

    def test_a_full_disk_is_told_as_such(self, capsys: pytest.CaptureFixture[str]) -> None:
        boundary = Boundary(as_json=False, stdout=sys.stdout)
        with boundary:
            raise OSError(28, "No space left on device", "runs/a/journal.jsonl")
        assert boundary.code == 1
        assert "the disk is full (runs/a/journal.jsonl)" in capsys.readouterr().err

    def test_a_reader_that_goes_away_is_no_error(self) -> None:
        boundary = Boundary(as_json=False, stdout=io.StringIO())
        with boundary:
            raise BrokenPipeError
        assert boundary.code == 0

    def test_exits_are_not_swallowed(self) -> None:
        with pytest.raises(SystemExit), Boundary(as_json=False, stdout=sys.stdout):
            raise SystemExit(0)


class TestStdout:
    def test_what_child_processes_write_goes_to_stderr(self) -> None:
        code = (
            "import os, subprocess\n"
            "from autopeft.cli.output import stdout_reserved, write_json\n"
            "with stdout_reserved(True) as out:\n"
            "    print('python'); os.write(1, b'descriptor\\n'); subprocess.run(['echo', 'child'])\n"
            "    write_json({'a': 1}, out)\n"
            "print('after')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == '{\n  "a": 1\n}\nafter\n'
        assert {"python", "descriptor", "child"} <= set(done.stderr.split())

    def test_nothing_changes_without_it(self) -> None:
        with stdout_reserved(False) as out:
            assert out is sys.stdout

    def test_text_is_kept(self) -> None:
        stream = io.StringIO()
        write_json({"name": "Grüße", "at": Path("x")}, stream)
        assert json.loads(stream.getvalue()) == {"name": "Grüße", "at": "x"}
        assert "ü" in stream.getvalue()

    def test_a_pipe_that_closes_early(self) -> None:
        command = f"{sys.executable} -m autopeft ls methods --json | head -n 1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["[", "0"]
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_plan_prints_what_search_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "rungs": [900, 2700],
        "base_params": 22713216,
        "left_out": {"bias": "no biases"},
        "notes": [],
        "faithful": False,
        "limits": {"max_time": 480.0},
        "memory_bytes": {"smallest": 60_596_136},
    }
    plan = SimpleNamespace(to_dict=lambda: document)
    monkeypatch.setattr(importlib.import_module("autopeft.search"), "make_plan", lambda spec: plan)
    assert main(["plan", *GIVEN, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert main(["plan", *GIVEN]) == 0
    text = capsys.readouterr().out
    assert "22,713,216" in text
    assert "900, 2,700" in text
    assert "no biases" in text
    assert "8 min" in text
    assert "57.8 MiB" in text
    assert "notes" not in text


def test_a_run_folder_must_hold_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["report"], ["track"], ["predict", "--input", "x.csv"]):
        assert main([verb[0], str(tmp_path), *verb[1:]]) == 2
        assert "no journal.jsonl" in capsys.readouterr().err


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "plan", "--max-time", "0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 2
    assert "--max-time" in done.stderr
