"""The command line: exit codes, one JSON document, errors under the names of their flags."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.cli import _VERBS, main
from autopeft.cli.flags import FLAGS, parse_flags
from autopeft.cli.output import Boundary, stdout_reserved, write_json
from autopeft.cli.parser import build_parser, parse
from autopeft.errors import InputError, Interrupted, NothingFeasible, Problem

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
            "seed": ("3", 3),
            "workers": ("2", 2),
            "gpus_per_trial": ("0.5", 0.5),
            "executor": ("inprocess", "inprocess"),
        }
        left_out = {"preset", "resume", "task.prompt_column", "task.response_column"}
        argv, expected = ["search"], {}
        for flag in FLAGS:
            if flag.field in left_out:
                continue
            if flag.reading == "switch":
                argv.append(flag.name)
                expected[flag.field] = True
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
            (["--resume", "--out", "runs/a"], "resume", True),
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


class Search:
    """Stands for `autopeft.search.run`: leaves an event, then ends as it is told to."""

    def __init__(self, end: BaseException | int) -> None:
        self.end = end

    def __call__(self, spec: Any, on_event: Any = None) -> Any:
        print("a library writes to stdout")
        on_event(SimpleNamespace(snapshot={"phase": "explore", "done": 1, "used_seconds": 1.0}))
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
        if status == "invalid":
            assert fields(document) == ["--label-column"]
        if status == "fault":
            assert "ZeroDivisionError" in Path(document["log"]).read_text()

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
    monkeypatch.setattr(importlib.import_module("autopeft.search"), "plan", lambda spec: plan)
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
