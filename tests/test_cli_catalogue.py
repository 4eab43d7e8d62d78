"""`ls`, `cat`, `cp` and `validate` over what ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from autopeft.cli import main
from autopeft.cli.catalogue import purpose
from autopeft.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
FILES = {"spaces": ROOT / "search_spaces", "strategies": ROOT / "strategies"}


@pytest.mark.parametrize("what", sorted(FILES))
def test_every_preset_is_listed_with_its_purpose(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", what, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in entries} == {path.stem for path in FILES[what].glob("*.yaml")}
    assert all(len(entry["purpose"]) > 20 for entry in entries)
    assert main(["ls", what]) == 0
    listed = capsys.readouterr().out
    assert all(entry["name"] in listed for entry in entries)


@pytest.mark.parametrize("what", sorted(FILES))
def test_every_preset_prints_resolves_and_is_valid(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [path.stem for path in FILES[what].glob("*.yaml")]
    for name in names:
        assert main(["cat", what, name]) == 0
        assert capsys.readouterr().out == (FILES[what] / f"{name}.yaml").read_text(encoding="utf-8")
        assert main(["cat", what, name, "--resolved"]) == 0
        resolved = yaml.safe_load(capsys.readouterr().out)
        assert main(["cat", what, name, "--resolved", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == resolved
    assert main(["validate", what, *names]) == 0


def test_resolved_fills_in_what_the_file_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    main(["cat", "spaces", "lora", "--json"])
    given = json.loads(capsys.readouterr().out)
    main(["cat", "spaces", "lora", "--resolved", "--json"])
    resolved = json.loads(capsys.readouterr().out)
    assert set(given) < set(resolved)
    assert resolved["methods"] == ["lora"]


def test_a_copy_is_one_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    assert main(["cp", "spaces", "hybrid", str(mine)]) == 0
    assert capsys.readouterr().out.strip() == str(mine)
    assert main(["validate", "spaces", str(mine)]) == 0
    assert main(["cp", "spaces", "hybrid", str(mine)]) == 2, "a file of the user's is never written over"
    mine.write_text("methods: [lora, loral]\nbatsh: [8]\nstart: [3, 4]\n")
    capsys.readouterr()
    assert main(["validate", "spaces", str(mine), "nowhere", "--json"]) == 2
    told = capsys.readouterr().out
    assert len(json.loads(told)["errors"]) >= 4, "of both files, all at once"
    assert "loral" in told
    assert "nowhere" in told


def test_methods_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["ls", "methods"]) == 0
    text = capsys.readouterr().out
    assert max(len(row.rstrip()) for row in text.splitlines()) <= 80
    assert "…" not in text
    for method in METHODS.values():
        searched = method.unsearchable is None
        shown = [row for row in text.splitlines() if row.startswith(f"{method.name} ") and method.family in row]
        assert bool(shown) == searched
        assert method.name in text
    assert main(["ls", "methods", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(entries) == set(METHODS)
    assert entries["lora"]["paper"]["link"] == METHODS["lora"].paper.link
    assert entries["lora"]["rate"]["low"] < entries["lora"]["rate"]["high"]
    assert entries["vera"]["whole_model"] is True
    assert entries["poly"]["reason"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# Purpose: one\n#   two.\n# Cost: none\na: 1\n", "one two."),
        ("# Just words.\na: 1\n", "Just words."),
        ("a: 1\n# Purpose: late\n", ""),
        ("", ""),
    ],
)
def test_the_purpose_is_read_off_the_head_comment(text: str, told: str) -> None:
    assert purpose(text) == told
