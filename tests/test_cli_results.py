"""Rows in, predictions out."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from autopeft.cli import main
from autopeft.cli.results import ROWS_AT_A_TIME, read_rows, write_table
from autopeft.data.encode import encode_rows
from autopeft.data.plan import TextPlan
from autopeft.errors import InputError

ROWS = [{"text": 'good, "really"\nfine'}, {"text": "größer"}]


def written(folder: Path, ending: str) -> Path:
    path = folder / f"rows{ending}"
    if ending in (".csv", ".tsv"):
        separator = "," if ending == ".csv" else "\t"
        path.write_text(
            f'text{separator}id\n"good, ""really""\nfine"{separator}1\ngrößer{separator}2\n', encoding="utf-8"
        )
    elif ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_rows(ending: str, tmp_path: Path) -> None:
    rows = read_rows(str(written(tmp_path, ending)))
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "a"}\n'))
    assert read_rows("-") == [{"text": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"text,id\nx,1\ny\nz,1,2\n", "line 3, line 4"),
        ("a.csv", b"text\n\xff\xfe\n", "UTF-8"),
        ("a.jsonl", b'{"text": 1}\n[1]\n{"text"\n', "line 3"),
        ("a.parquet", b"no parquet", "Parquet"),
        ("a.xlsx", b"", "must end in"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_rows(str(tmp_path / name))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a file"):
        read_rows(str(tmp_path / "none.csv"))


def test_csv_has_the_columns_of_all_rows() -> None:
    stream = io.StringIO()
    write_table([{"label": "pos", "scores": {"pos": 0.9}}, {"label": "neg", "note": "x,y"}], stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "label,scores,note"
    assert lines[1] == 'pos,"{""pos"": 0.9}",'
    assert lines[2] == 'neg,,"x,y"'


class Predictor:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.batches.append(len(rows))
        return [{"prediction": row["text"].upper()} for row in rows]


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Predictor:
    made = Predictor()
    (tmp_path / "journal.jsonl").touch()

    def load(folder: Path, model: str | None = None, *, adapter: str) -> Predictor:
        assert (Path(folder), model, adapter) == (tmp_path, "moved", "winner")
        return made

    monkeypatch.setattr(importlib.import_module("autopeft.search"), "load", load)
    return made


def test_predict_writes_lines(predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text('{"text": "ä"}\n' * (ROWS_AT_A_TIME + 1))
    assert main(["predict", str(tmp_path), "--input", str(source), "--model", "moved"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == ROWS_AT_A_TIME + 1
    assert json.loads(lines[-1]) == {"prediction": "Ä"}
    assert predictor.batches == [ROWS_AT_A_TIME, 1]


def test_rows_are_counted_over_the_whole_input(
    predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = TextPlan("sequence_classification", ("text",), None, 64, ("no", "yes"))

    def predict(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["text"] is None for row in rows):
            encode_rows(plan, rows, None)  # refuses the rows before it needs a tokenizer
        return []

    monkeypatch.setattr(predictor, "predict", predict)
    source, bad = tmp_path / "many.jsonl", (ROWS_AT_A_TIME + 5, ROWS_AT_A_TIME + 7)
    rows = [{"text": None if number in bad else "rows[3].text"} for number in range(2 * ROWS_AT_A_TIME)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["predict", str(tmp_path), "--input", str(source), "--model", "moved"]) == 2
    told = capsys.readouterr().err
    for number in bad:
        assert f"rows[{number}].text" in told


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_predict_writes_a_file(predictor: Predictor, ending: str, tmp_path: Path) -> None:
    output = tmp_path / f"out{ending}"
    argv = ["predict", str(tmp_path), "--input", str(written(tmp_path, ".csv")), "--model", "moved"]
    assert main([*argv, "--output", str(output)]) == 0
    assert "GRÖSSER" in output.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.partial"))


def test_an_unknown_ending_is_told_before_anything_is_loaded(
    predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["predict", str(tmp_path), "--input", str(written(tmp_path, ".csv")), "--model", "moved"]
    for output in ("out.xlsx", str(tmp_path / "none" / "out.csv"), str(argv[argv.index("--input") + 1])):
        assert main([*argv, "--output", output]) == 2
    assert "--output" in capsys.readouterr().err
    assert predictor.batches == []
