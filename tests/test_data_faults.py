"""Data that is refused, each by a real file, with its row, line, byte or column; and nothing in it is run."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autopeft.data import files, frames
from autopeft.data.read import read
from autopeft.errors import InputError, Problem
from autopeft.spec import Task

GOOD = "".join(f"text {i},{i % 2}\n" for i in range(40))


def problems(data: object, **fields: object) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        read(Task("model", data, **fields), seed=0)  # type: ignore[arg-type]
    assert all(problem.rule and problem.next_step for problem in caught.value.problems)
    return caught.value.problems


def one(data: object, **fields: object) -> Problem:
    found = problems(data, **fields)
    assert len(found) == 1, found
    return found[0]


def folder(path: Path, content: str | bytes, name: str = "train.csv") -> Path:
    file = path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "field", "rule"),
    [
        ("", "data.train", "empty"),
        ("text,label\n", "data.train", "no rows"),
        ("text,label\na,1\nb\nc,1,2\n" + GOOD, "data.train[1]", "record 3 of train.csv has 1 fields"),
        ("text,label\na,1\nb,\n" + GOOD, "data.train[1].label", "label is missing"),
        ("text,label\na,1\nb,1\n", "data.train.label", "same label"),
        ("text,text,label\na,b,1\n", "data.train", "'text'"),
        (b"text,label\na,1\nb\xff\xfe,0\n", "data.train", "line 3, byte 16"),
        ("text,label\na,1\nb,0\n".encode("utf-16"), "data.train", "line 1, byte 0"),
        (b"text,label\na,1\nb\xc3", "data.train", "ends inside"),
        ('text,label\na,1\n"b,0\nc,1\n', "data.train[1]", "1 fields"),
        ("label,text\n" + "1,a\n0,b\n" * 9 + '0,"c\n1,d\n0,e\n', "data.train[18]", "never closed"),
        ("text,score\na,1.5\nb,nan\n" + GOOD, "data.train[1].score", "finite"),
        ("text,score\na,1.5\nb,-inf\n" + GOOD, "data.train[1].score", "finite"),
        ("text,score\na,1.5\nb,many\n", "data.train[1].score", "number"),
        ("text,label\n" + " ,1\n,0\n" * 20, "data.train.text", "every text is empty"),
        ("text,label\n" + "".join(f"t{i},{i}x\n" for i in range(50)), "data.train.label", "hardly classes"),
    ],
)
def test_csv(tmp_path: Path, content: str | bytes, field: str, rule: str) -> None:
    fields = {"kind": "regression"} if b"score" in (content if isinstance(content, bytes) else content.encode()) else {}
    found = problems(folder(tmp_path, content), **fields)
    assert found[0].field == field
    assert rule in found[0].rule


@pytest.mark.parametrize(
    ("content", "field", "rule"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b", "label": }\n', "data.train[line 2]", "line 2 of train.jsonl"),
        ('{"text": "a", "label": 1}\n\n["b", 0]\n', "data.train[1]", "line 3 of train.jsonl is not a JSON object"),
        ('{"text": "a", "label": 1, "label": 0}\n', "data.train[line 1]", "'label' occurs twice"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "data.train[1].label", "line 2"),
        ('{"text": "a", "label": 1}\n{"text": "b"}\n' * 8, "data.train[1].label", "label is missing"),
        ('{"text": null, "label": 1}\n{"text": "b", "label": 0}\n' * 8, "data.train[0].text", "text is missing"),
        ('{"text": 5, "label": 1}\n{"text": 6, "label": 0}\n' * 8, "data.train.text", "must hold text"),
        ('{"text": "\\ud800", "label": 1}\n', "data.train.text", "cannot be stored"),
        ('{"text": "a", "label": 99999999999999999999999}\n', "data.train.label", "cannot be stored"),
        ("[" * 100_000 + "\n", "data.train[line 1]", "nested too deeply"),
        ('{"text": "a", "label": 0.5}\n{"text": "b", "label": NaN}\n' * 8, "data.train[1].label", "finite"),
    ],
)
def test_json_lines(tmp_path: Path, content: str, field: str, rule: str) -> None:
    found = problems(folder(tmp_path, content, "train.jsonl"))
    assert found[0].field == field
    assert rule in found[0].rule


def test_faults_of_all_splits_are_told_at_once(tmp_path: Path) -> None:
    folder(tmp_path, "text,label\n,1\nb,\n" + GOOD)
    folder(tmp_path, "text\na\n", "validation.csv")
    folder(tmp_path, "text,label\n", "test.csv")
    assert [problem.field for problem in problems(tmp_path)] == [
        "data.train[1].label",
        "data.validation.label",
        "data.test",
    ]
    folder(tmp_path, b"\xff", "train.csv")
    folder(tmp_path, b"", "test.csv")
    assert [problem.field for problem in problems(tmp_path)] == ["data.test", "data.train"]


def test_repeated_faults_are_counted(tmp_path: Path) -> None:
    folder(tmp_path, "text,label\na,\nb,\nc,\n" + GOOD)
    assert "2 more such rows" in one(tmp_path).rule


def test_a_class_without_training_rows(tmp_path: Path) -> None:
    folder(tmp_path, "text,label\n" + GOOD)
    folder(tmp_path, "text,label\nx,0\ny,7\n", "test.csv")
    folder(tmp_path, "text,label\nx,0\ny,1\nz,8\nw,9\n", "validation.csv")
    found = problems(tmp_path)
    assert [problem.field for problem in found] == ["data.validation[2].label", "data.test[1].label"]
    assert [problem.value for problem in found] == ["8", "7"]


def test_fractions_are_no_classes() -> None:
    table = pa.table({"text": ["a", "b"] * 10, "label": [0.5, 1.0] * 10})
    assert one(table, kind="sequence_classification").field == "data.train[0].label"


def test_declared_class_numbers_are_checked(tmp_path: Path) -> None:
    table = pa.table({"text": [f"t{i}" for i in range(30)], "label": [i % 2 for i in range(29)] + [5]})
    names = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "train.parquet")
    assert problems(tmp_path)[0].field == "data.train[29].label"


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.csv", "text,label\n")


@pytest.mark.parametrize(
    ("name", "write", "rule"),
    [
        ("train.zip", _zip, "archives"),
        ("train.csv.gz", lambda path: path.write_bytes(gzip.compress(b"text,label\n" + b"a,1\n" * 9)), "archives"),
        ("train.tar", lambda path: path.write_bytes(b"x"), "archives"),
        ("train.pkl", lambda path: path.write_bytes(pickle.dumps([1])), "pickled"),
        ("train.pt", lambda path: path.write_bytes(pickle.dumps([1])), "pickled"),
        ("train.xlsx", lambda path: path.write_bytes(b"x"), "unknown"),
        ("train", lambda path: path.write_bytes(b"x"), "unknown"),
    ],
)
def test_formats_that_are_refused_by_name(
    tmp_path: Path, name: str, write: Callable[[Path], object], rule: str
) -> None:
    write(tmp_path / name)
    assert rule in one(tmp_path / name).rule
    if name.count(".") == 1:
        assert rule in problems(tmp_path)[0].rule


@pytest.mark.parametrize("content", [gzip.compress(b"text,label\n"), pickle.dumps([1]), b"PK\x03\x04rest"])
def test_disguised_binary_files(tmp_path: Path, content: bytes) -> None:
    assert "not text" in one(folder(tmp_path, content)).rule


@pytest.mark.parametrize("data", ["", "a\0b.csv", "./missing", "missing.csv", "/no/such/folder", "../x", "a/b/c"])
def test_paths_that_are_nothing(data: str) -> None:
    assert one(data).field == "task.data"


@pytest.mark.parametrize("data", [3, None, ["a"], b"x"])
def test_values_that_are_no_data(data: object) -> None:
    assert one(data).field == "task.data"


def test_the_hub_offline_is_said_plainly() -> None:
    problem = one("somebody/some-dataset")
    assert problem.field == "task.data"
    assert "hub" in problem.rule


def test_folders_without_a_clear_train_file(tmp_path: Path) -> None:
    assert "no files" in one(tmp_path).rule
    folder(tmp_path, "text,label\n" + GOOD, "a.csv")
    folder(tmp_path, "text,label\n" + GOOD, "b.csv")
    assert "a.csv, b.csv" in one(tmp_path).rule
    folder(tmp_path, "text,label\n" + GOOD, "test.csv")
    assert "no train split" in one(tmp_path).rule
    folder(tmp_path, "text,label\n" + GOOD, "train.csv")
    folder(tmp_path, "[]", "train.json")
    assert "more than one file" in one(tmp_path).rule


def test_a_huge_line_is_refused(tmp_path: Path) -> None:
    row = '{"text": "' + "x" * files.MAX_LINE_BYTES + '", "label": 1}\n'
    assert "line 2 is longer" in one(folder(tmp_path, '{"text": "a", "label": 0}\n' + row, "train.jsonl")).rule


def test_an_endless_quoted_field_is_refused(tmp_path: Path) -> None:
    content = 'text,label\n"' + "words on a line\n" * (files.MAX_LINE_BYTES // 4) + '",1\n'
    assert "row is larger" in one(folder(tmp_path, content)).rule


def test_a_table_that_expands_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"text": ["x" * 1000] * 2000, "label": [0, 1] * 1000})
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd")
    stored = (tmp_path / "train.parquet").stat().st_size
    assert stored < 100_000
    monkeypatch.setattr(files, "MAX_TABLE_BYTES", 1_000_000)
    assert "expands" in one(tmp_path).rule
    assert frames.MAX_TABLE_BYTES > 1_000_000


def test_files_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    assert "bytes" in one(folder(tmp_path, "text,label\n" + GOOD)).rule


class _Tripwire(pa.ExtensionType):  # type: ignore[misc]
    """An extension type that, like the vulnerable ones, would run code when a schema is parsed."""

    parsed = 0

    def __init__(self) -> None:
        super().__init__(pa.string(), "autopeft.tests.tripwire")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> _Tripwire:
        cls.parsed += 1
        return cls()


@pytest.fixture
def tripwire() -> object:
    pa.register_extension_type(_Tripwire())
    yield _Tripwire
    pa.unregister_extension_type("autopeft.tests.tripwire")


@pytest.mark.parametrize("before", [0, 1, 2, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_arrow_extension_types_are_refused_before_they_are_parsed(
    tmp_path: Path, tripwire: type, nested: bool, before: int
) -> None:
    column = pa.ExtensionArray.from_storage(tripwire(), pa.array(["a", "b"] * 10))
    if nested:
        column = pa.StructArray.from_arrays([column], ["inside"])
    pq.write_table(
        pa.table({"text" + "t" * before: ["a"] * 20, "x": column, "label": [0, 1] * 10}), tmp_path / "train.parquet"
    )
    _Tripwire.parsed = 0
    assert "extension type" in one(tmp_path).rule
    assert _Tripwire.parsed == 0


def test_damaged_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 20, "label": [0, 1] * 10}), tmp_path / "train.parquet")
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[: len(content) // 2])
    assert "not valid Parquet" in one(tmp_path).rule


def test_saved_datasets_may_not_reach_outside(tmp_path: Path) -> None:
    import datasets

    place = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a"] * 20, "label": [0, 1] * 10}).save_to_disk(str(place))
    state = json.loads((place / "state.json").read_text())
    state["_data_files"] = [{"filename": "../elsewhere.arrow"}]
    (place / "state.json").write_text(json.dumps(state))
    assert "beside it" in one(place).rule


def test_frames_with_repeated_or_mixed_columns() -> None:
    frame = pd.DataFrame([["a", "b", 1]], columns=["text", "text", "label"])
    assert "more than once" in one(frame).rule
    mixed = pd.DataFrame({"text": ["a", 3], "label": [0, 1]}, dtype=object)
    assert "mixes types" in one(mixed).rule


def test_targets_that_are_all_the_same(tmp_path: Path) -> None:
    rows = "".join(f"text {i},1.0\n" for i in range(40))
    problem = one(str(folder(tmp_path, f"text,score\n{rows}")))
    assert problem.field == "data.train.score"
    assert "nothing to learn" in problem.rule
