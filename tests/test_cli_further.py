"""A flag that cannot be used hides nothing that is wrong with data, space and strategy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.cli import main
from autopeft.cli.further import further_problems
from autopeft.errors import Problem


def told(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main([*argv, "--json"]) == 2
    return [problem["field"] for problem in json.loads(capsys.readouterr().out)["errors"]]


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """Labelled rows of which one has no label."""
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "good,1\nbad,0\n" * 20 + "so so,\n")
    return file


@pytest.mark.parametrize("verb", ["search", "plan"])
def test_flags_data_space_and_strategy_at_once(verb: str, torn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--max-time", "soon", "--set", "space.methods=[nosuch]", "--set", "strategy.halving.eta=0.1"]
    alone = told([verb, "--model", "m", "--data", str(torn), *wrong[:2]], capsys)
    assert alone[0] == "--max-time"
    # What the rows alone are refused for, where every flag is right.
    assert len(alone) == 2
    fields = told([verb, "--model", "m", "--data", str(torn), *wrong], capsys)
    assert fields == ["--max-time", "--set space.methods", "--set strategy.halving.eta", alone[1]]


def test_a_rate_that_is_none_is_told_with_the_rest(torn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = told(["plan", "--data", str(torn), "--device-tflops", "fast", "--space", "nosuch"], capsys)
    assert {"--device-tflops", "--model", "--space"} < set(fields)


def test_what_would_be_judged_by_a_wrong_field_is_not_looked_at(torn: Path) -> None:
    values = {"task": {"model": "m", "data": str(torn), "kind": "nosuch"}, "space": 3, "set": [("space.batch", "x")]}
    known = [Problem("task.kind", "nosuch", "is wrong", ""), Problem("space", 3, "is wrong", "")]
    assert further_problems(values, known) == []
    values = {"task": {"model": "m", "data": str(torn)}, "seed": -1}
    known = [Problem("seed", -1, "is wrong", "")]
    assert len(further_problems(values, known)) == 1
    assert further_problems({**values, "resume": True, "out": "runs/x"}, known) == []
    assert values["seed"] == -1


def test_an_unknown_preset_and_a_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    fields = told(["plan", "--model", "m", "--data", "nowhere.csv", "--preset", "nosuch", "--seed", "x"], capsys)
    assert "--seed" in fields
    assert "--data" in fields
    assert any("preset" in field for field in fields)


def test_data_of_the_hub_is_not_fetched_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopeft.data import sources

    def fetched(name: str) -> None:
        raise AssertionError(f"{name} was fetched")

    monkeypatch.setattr(sources, "_from_hub", fetched)
    known = [Problem("seed", -1, "is wrong", "")]
    assert further_problems({"task": {"model": "m", "data": "someone/something"}, "seed": -1}, known) == []
    with pytest.raises(AssertionError, match="fetched"):
        sources.gather("someone/something")


def test_it_is_told_without_loading_torch(torn: Path) -> None:
    code = (
        "import sys; from autopeft.cli import main; "
        f"assert main(['plan', '--model', 'm', '--data', {str(torn)!r}, '--seed', 'x']) == 2; "
        "assert 'torch' not in sys.modules"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "2 things cannot be used" in made.stderr
