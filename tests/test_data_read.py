"""Reading: inference of kind and columns, cutting of splits, sources."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autopeft.data.read import RawData, read
from autopeft.errors import InputError
from autopeft.spec import Task


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"text": f"text number {i}", "label": i % 2} for i in range(start, start + count)]


def write_jsonl(path: Path, values: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def load(data: object, **fields: object) -> RawData:
    return read(Task("model", data, **fields), seed=0)  # type: ignore[arg-type]


def failure(data: object, **fields: object) -> InputError:
    with pytest.raises(InputError) as caught:
        load(data, **fields)
    return caught.value


def sizes(raw: RawData) -> dict[str, int]:
    return {split: table.num_rows for split, table in raw.splits.items()}


def test_a_folder_of_csv_files_is_understood(tiny_reviews: Path) -> None:
    raw = load(tiny_reviews)
    assert raw.kind == "sequence_classification"
    assert raw.metric == "accuracy"
    assert (raw.text_columns, raw.label_column) == (("text",), "label")
    assert raw.label_names == ("negative", "positive")
    assert sizes(raw) == {"train": 400, "validation": 100, "test": 100}
    assert str(tiny_reviews.parent) not in raw.source + "".join(raw.notes)
    assert any("inferred" in note for note in raw.notes)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"text": [f'a "quoted"\nline, {i}' for i in range(30)], "label": [i % 3 for i in range(30)]})
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix in (".jsonl", ".json"):
        frame.to_json(path, orient="records", lines=suffix == ".jsonl")
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    raw = load(str(path))
    assert raw.label_names == ("0", "1", "2")
    texts = [text for table in raw.splits.values() for text in table["text"].to_pylist()]
    assert sorted(texts) == sorted(frame["text"])


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("Train", "dev", "test"), ("training", "val", "TEST")]
)
def test_split_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for index, name in enumerate(names):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(10, start=100 * index))
    (tmp_path / "README.md").write_text("words")
    raw = load(tmp_path)
    assert sizes(raw) == {"train": 10, "validation": 10, "test": 10}
    assert raw.splits["validation"]["text"][0].as_py() == "text number 100"


def test_shards_are_joined(tmp_path: Path) -> None:
    for index in range(2):
        write_jsonl(tmp_path / f"train-0000{index}-of-00002.jsonl", rows(30, start=30 * index))
    assert sum(sizes(load(tmp_path)).values()) == 60


@pytest.mark.parametrize(
    ("count", "expected"),
    [(40, 10), (400, 50), (1000, 100), (50_000, 2000)],
)
def test_missing_splits_are_cut_from_train(count: int, expected: int) -> None:
    raw = load(pa.Table.from_pylist(rows(count)))
    assert sizes(raw) == {"train": count - 2 * expected, "validation": expected, "test": expected}
    assert sum("cut from train" in note for note in raw.notes) == 2
    for table in raw.splits.values():
        assert abs(np.mean([label == "1" for label in table["label"].to_pylist()]) - 0.5) <= 0.5 / expected + 0.01
    again = load(pa.Table.from_pylist(rows(count)))
    assert all(raw.splits[split].equals(again.splits[split]) for split in raw.splits)
    other = read(Task("model", pa.Table.from_pylist(rows(count))), seed=1)
    assert not raw.splits["test"].equals(other.splits["test"])


def test_only_the_missing_split_is_cut() -> None:
    data = {"train": pa.Table.from_pylist(rows(400)), "test": pa.Table.from_pylist(rows(30, start=1000))}
    raw = load(data)
    assert sizes(raw) == {"train": 350, "validation": 50, "test": 30}


def test_rows_with_the_same_text_stay_together_and_every_class_keeps_a_training_row() -> None:
    values = [{"text": f"text {i // 4}", "label": "rare" if i >= 396 else f"class {i // 4 % 5}"} for i in range(400)]
    raw = load(pa.Table.from_pylist(values))
    seen: dict[str, str] = {}
    for split, table in raw.splits.items():
        for text in table["text"].to_pylist():
            assert seen.setdefault(text, split) == split
    assert "rare" in raw.splits["train"]["label"].to_pylist()
    assert not any("Warning" in note for note in raw.notes)


def test_too_few_rows_to_cut_from() -> None:
    error = failure(pa.Table.from_pylist(rows(8)))
    assert error.problems[0].field == "data.train"
    assert "too few" in str(error)


def test_class_names_are_sorted_naturally() -> None:
    names = ["class 10", "class 2", "class 1"]
    table = pa.table({"text": [f"t{i}" for i in range(30)], "label": [names[i % 3] for i in range(30)]})
    assert load(table).label_names == ("class 1", "class 2", "class 10")
    table = pa.table({"text": [f"t{i}" for i in range(30)], "label": [(-1, 2, 10)[i % 3] for i in range(30)]})
    assert load(table).label_names == ("-1", "2", "10")
    table = pa.table({"text": [f"t{i}" for i in range(30)], "label": [i % 2 == 0 for i in range(30)]})
    assert load(table).label_names == ("False", "True")


def test_class_label_names_are_kept_in_their_order(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["zebra", "ant"]),
            "n": datasets.Value("int64"),
        }
    )
    values = {"text": [f"t{i}" for i in range(40)], "label": [i % 2 for i in range(40)], "n": list(range(40))}
    dataset = datasets.Dataset.from_dict(values, features=features)
    assert load(dataset).label_names == ("zebra", "ant")
    dataset.to_parquet(str(tmp_path / "data.parquet"))
    raw = load(tmp_path / "data.parquet")
    assert raw.label_names == ("zebra", "ant")
    by_text = dict(zip(raw.splits["train"]["text"].to_pylist(), raw.splits["train"]["label"].to_pylist(), strict=True))
    assert all(label == ("zebra", "ant")[int(text[1:]) % 2] for text, label in by_text.items())


def test_memory_and_saved_datasets_agree(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(60))
    dataset = datasets.Dataset.from_pandas(frame)
    parts = datasets.DatasetDict(
        train=dataset.select(range(40)), validation=dataset.select(range(40, 60)).shuffle(seed=1)
    )
    dataset.save_to_disk(str(tmp_path / "one"))
    parts.save_to_disk(str(tmp_path / "parts"))
    whole = [load(source) for source in (frame, dataset, pa.Table.from_pandas(frame), tmp_path / "one")]
    assert all(raw.splits["train"].equals(whole[0].splits["train"]) for raw in whole)
    split = [load(source) for source in (parts, dict(parts), tmp_path / "parts")]
    assert all(raw.splits["validation"].equals(split[0].splits["validation"]) for raw in split)
    assert sizes(split[0])["validation"] == 20


def test_hidden_test_labels_are_not_used() -> None:
    hidden = pa.table({"text": [f"h{i}" for i in range(10)], "label": [-1] * 10})
    raw = load({"train": pa.Table.from_pylist(rows(400)), "test": hidden})
    assert any("hidden" in note for note in raw.notes)
    assert sizes(raw)["test"] == 50


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"premise": str, "hypothesis": str, "label": int},
            ("sequence_classification", ("premise", "hypothesis"), "label"),
        ),
        (
            {"question1": str, "question2": str, "label": int},
            ("sequence_classification", ("question1", "question2"), "label"),
        ),
        (
            {"question": str, "sentence": str, "label": str},
            ("sequence_classification", ("question", "sentence"), "label"),
        ),
        ({"sentence1": str, "sentence2": str, "score": float}, ("regression", ("sentence1", "sentence2"), "score")),
        ({"Review": str, "Sentiment": str, "id": int}, ("sequence_classification", ("Review",), "Sentiment")),
        ({"body": str, "label": int}, ("sequence_classification", ("body",), "label")),
        ({"text": str, "score": int}, ("regression", ("text",), "score")),
    ],
)
def test_columns_are_inferred(columns: dict[str, type], expected: tuple[object, ...]) -> None:
    make = {str: lambda i: f"{'even' if i % 2 else 'odd'}", int: lambda i: i % 2, float: lambda i: i / 7}
    table = pa.table(
        {
            name: [
                make[kind](i) if name.lower() in ("label", "sentiment", "score") else f"{name} {i}" for i in range(40)
            ]
            for name, kind in columns.items()
        }
    )
    raw = load(table)
    assert (raw.kind, raw.text_columns, raw.label_column) == expected


@pytest.mark.parametrize(
    "pair", [("prompt", "response"), ("instruction", "output"), ("input", "output"), ("question", "answer")]
)
def test_prompts_and_responses_are_inferred(pair: tuple[str, str]) -> None:
    raw = load(pa.table({name: [f"{name} {i}" for i in range(40)] for name in pair}))
    assert (raw.kind, raw.prompt_column, raw.response_column) == ("causal_lm", *pair)
    assert raw.metric == "log_likelihood"
    assert raw.label_names == ()


def test_answers_to_one_prompt_stay_in_one_split() -> None:
    table = pa.table({"mr": [f"prompt {i // 5}" for i in range(400)], "ref": [f"answer {i}" for i in range(400)]})
    raw = load(table, prompt_column="mr", response_column="ref")
    prompts = [set(split["mr"].to_pylist()) for split in raw.splits.values()]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]


def test_one_named_column_is_enough_where_one_other_is_left() -> None:
    table = pa.table({"mr": [f"prompt {i}" for i in range(40)], "ref": [f"answer {i}" for i in range(40)]})
    raw = load(table, prompt_column="mr")
    assert raw.response_column == "ref"
    table = pa.table({"body": [f"text {i}" for i in range(40)], "topic": [f"{i % 2}" for i in range(40)]})
    assert load(table, text_columns=("body",)).label_column == "topic"
    assert load(table, label_column="topic").text_columns == ("body",)


def test_kinds_of_numeric_labels() -> None:
    texts = [f"t{i}" for i in range(100)]
    assert load(pa.table({"text": texts, "label": [i / 3 for i in range(100)]})).kind == "regression"
    whole = load(pa.table({"text": texts, "label": [float(i % 2) for i in range(100)]}))
    assert (whole.kind, whole.label_names) == ("sequence_classification", ("0", "1"))
    assert any("whole numbers" in note for note in whole.notes)
    many = pa.table({"text": texts, "label": list(range(100))})
    error = failure(many)
    assert error.problems[0].field == "task.kind"
    assert load(many, kind="regression").kind == "regression"


def test_numbers_in_csv_are_recognised_and_texts_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{2000 + i},{i % 2}\n" for i in range(30)) + "NA,1\nnull,0\n")
    raw = load(path)
    texts = {text for table in raw.splits.values() for text in table["text"].to_pylist()}
    assert {"2000", "NA", "null"} <= texts
    assert raw.label_names == ("0", "1")


def test_shared_rows_are_counted() -> None:
    train = pa.Table.from_pylist(rows(40))
    raw = load({"train": train, "validation": pa.Table.from_pylist(rows(20, start=100)), "test": train.slice(0, 5)})
    assert any("5 of 5 test rows (100.0%) have the same text as a train row" in note for note in raw.notes)


@pytest.mark.parametrize(
    ("table", "fields", "field", "words"),
    [
        ({"body": ["a"], "topic": ["x"]}, {}, "task.label_column", ("body (string)", "topic (string)")),
        ({"text": ["a"], "label": ["x"], "score": [1.0]}, {}, "task.label_column", ("label, score",)),
        (
            {"text": ["a"], "sentence1": ["a"], "sentence2": ["b"], "label": ["x"]},
            {},
            "task.text_columns",
            ("sentence1+sentence2", "text"),
        ),
        ({"text": ["a"], "label": ["x"], "prompt": ["p"], "response": ["r"]}, {}, "task.kind", ("causal_lm",)),
        (
            {"instruction": ["a"], "input": ["x"], "output": ["p"]},
            {},
            "task.prompt_column",
            ("instruction and output", "input and output"),
        ),
        (
            {"text": ["a"], "label": ["x"]},
            {"text_columns": ("body",)},
            "task.text_columns",
            ("text (string), label (string)",),
        ),
        (
            {"text": ["a"], "label": ["x"]},
            {"label_column": "text", "text_columns": ("text",)},
            "task.label_column",
            ("also",),
        ),
        ({"text": ["a"], "label": ["x"]}, {"text_columns": ("text", "text")}, "task.text_columns", ("twice",)),
        ({"text": ["a"], "label": ["x"]}, {"metric": "pearson"}, "task.metric", ("macro_f1",)),
        ({"text": ["a"], "label": ["x"]}, {"kind": "poetry"}, "task.kind", ("causal_lm",)),
        (
            {"text": ["a"], "label": ["x"], "nested": [[1]]},
            {"text_columns": ("nested",)},
            "task.text_columns",
            ("list",),
        ),
    ],
)
def test_what_cannot_be_understood_names_the_options(
    table: dict[str, list[object]], fields: dict[str, object], field: str, words: tuple[str, ...]
) -> None:
    error = failure(pa.table(table), **fields)
    problem = next(problem for problem in error.problems if problem.field == field)
    assert all(word in str(problem) for word in words)


def test_all_column_faults_are_told_at_once() -> None:
    error = failure(pa.table({"text": ["a"]}), text_columns=("x",), label_column="y", kind="poetry")
    assert [problem.field for problem in error.problems] == ["task.kind", "task.text_columns", "task.label_column"]


def test_f1_needs_two_classes() -> None:
    table = pa.table({"text": [f"t{i}" for i in range(30)], "label": [i % 3 for i in range(30)]})
    assert failure(table, metric="f1").problems[0].field == "task.metric"


def test_parquet_with_hub_metadata_and_image_columns_is_read(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"x", "path": "p"}] * 40, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": image, "text": [f"t{i}" for i in range(40)], "label": [i % 2 for i in range(40)]})
    names = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}
    }
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "train.parquet")
    assert load(tmp_path).label_names == ("no", "yes")


def test_splits_agree_on_how_classes_are_written(tmp_path: Path) -> None:
    for split, codes in (("train", ("01", "1.0", "x")), ("validation", ("01", "1.0")), ("test", ("1.0",))):
        content = "text,label\n" + "".join(f"{split} {i},{codes[i % len(codes)]}\n" for i in range(30))
        (tmp_path / f"{split}.csv").write_text(content)
    raw = load(tmp_path)
    assert set(raw.label_names) == {"01", "1.0", "x"}
    assert set(raw.splits["test"]["label"].to_pylist()) == {"1.0"}


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"a {i},{i % 2}.0\n" for i in range(30)))
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"b {i}, {i % 2}\n" for i in range(30)))
    assert load(tmp_path).label_names == ("0", "1")


def test_codes_with_leading_zeros_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"a {i},0{i % 2}\n" for i in range(30)))
    assert load(path).label_names == ("00", "01")
