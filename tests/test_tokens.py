"""Tokens from the cache are those that tokenising gives, and are not used where anything differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_data_encode import word_tokenizer

from autopeft.compose.base import load_tokenizer
from autopeft.data import tokens
from autopeft.data.cache import Shelf, cache_folder
from autopeft.data.encode import encode
from autopeft.data.encoded import EncodedData
from autopeft.data.read import RawData, read
from autopeft.data.tokens import encode_once
from autopeft.spec import Task

LIMITS: dict[str, Any] = {"max_length": None, "model_max": 512}


@pytest.fixture
def raw(minilm: Path, tiny_reviews: Path, monkeypatch: pytest.MonkeyPatch) -> RawData:
    monkeypatch.setattr(tokens, "LEAST_BYTES", 0)
    return read(Task(model=str(minilm), data=str(tiny_reviews)), seed=0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times that rows were tokenised."""
    times: list[str] = []

    def counting(*args: Any, **more: Any) -> Any:
        times.append("once")
        return encode(*args, **more)

    monkeypatch.setattr(tokens, "encode", counting)
    return times


def same(one: EncodedData, other: EncodedData) -> None:
    assert replace(one, splits={}) == replace(other, splits={})
    for name, split in one.splits.items():
        for part in ("offsets", "input_ids", "token_types", "labels", "answer_from"):
            left, right = getattr(split, part), getattr(other.splits[name], part)
            assert (left is None) == (right is None), (name, part)
            if left is not None:
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
        assert split.references == other.splits[name].references


def made_once_and_alike(raw: RawData, tokenizer: Any, made: list[str]) -> None:
    plain, notes = encode(raw, tokenizer, **LIMITS)
    for _ in range(2):
        found, told = encode_once(raw, tokenizer, **LIMITS)
        same(found, plain)
        assert told == notes
    assert made == ["once"]


def test_a_hit_equals_a_miss(raw: RawData, minilm: Path, made: list[str]) -> None:
    made_once_and_alike(raw, load_tokenizer(str(minilm)), made)


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RawData:
    monkeypatch.setattr(tokens, "LEAST_BYTES", 0)
    lines = [json.dumps({"prompt": f"Name number {n}.", "response": f"It is {n}."}) for n in range(60)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    return read(Task(model="m", data=str(file), kind="causal_lm"), seed=0)


def test_so_it_does_for_a_language_model(questions: RawData, made: list[str]) -> None:
    made_once_and_alike(questions, word_tokenizer(), made)


@pytest.mark.slow
def test_so_it_does_for_a_real_one(questions: RawData, smollm2: Path, made: list[str]) -> None:
    made_once_and_alike(questions, load_tokenizer(str(smollm2)), made)


def changed_text(raw: RawData) -> RawData:
    table = raw.splits["train"]
    column = raw.text_columns[0]
    texts = table.column(column).to_pylist()
    texts[0] += "!"
    index = table.column_names.index(column)
    return replace(raw, splits={**raw.splits, "train": table.set_column(index, column, pa.array(texts))})


def test_other_texts_limits_or_tokenizers_are_tokenised_anew(raw: RawData, minilm: Path, made: list[str]) -> None:
    tokenizer = load_tokenizer(str(minilm))
    first, _ = encode_once(raw, tokenizer, **LIMITS)
    other, _ = encode_once(changed_text(raw), tokenizer, **LIMITS)
    assert len(made) == 2
    assert other.hashes["train"] != first.hashes["train"]
    encode_once(raw, tokenizer, max_length=8, model_max=512)
    encode_once(raw, tokenizer, max_length=None, model_max=8)
    assert len(made) == 4
    grown = load_tokenizer(str(minilm))
    grown.add_tokens(["delightful film"])
    found, _ = encode_once(raw, grown, **LIMITS)
    assert len(made) == 5
    same(found, encode(raw, grown, **LIMITS)[0])
    assert found.hashes["train"] != first.hashes["train"]


def test_other_labels_of_the_same_texts_are_those_of_the_rows(raw: RawData, minilm: Path, made: list[str]) -> None:
    tokenizer = load_tokenizer(str(minilm))
    encode_once(raw, tokenizer, **LIMITS)
    turned = replace(raw, label_names=raw.label_names[::-1])
    found, _ = encode_once(turned, tokenizer, **LIMITS)
    assert made == ["once"]
    same(found, encode(turned, tokenizer, **LIMITS)[0])


@pytest.mark.parametrize("damage", ["torn", "without a split", "of other rows"])
def test_a_damaged_entry_is_made_anew(raw: RawData, minilm: Path, made: list[str], damage: str) -> None:
    tokenizer = load_tokenizer(str(minilm))
    plain, _ = encode_once(raw, tokenizer, **LIMITS)
    folder = cache_folder()
    assert folder is not None
    (entry,) = (folder / "tokens").iterdir()
    shelf = Shelf("tokens")
    arrays = shelf.arrays(entry.name)
    assert arrays is not None
    if damage == "torn":
        entry.write_bytes(entry.read_bytes()[:-5])
    elif damage == "without a split":
        shelf.put_arrays(entry.name, {name: a for name, a in arrays.items() if not name.startswith("test/")})
    else:
        shelf.put_arrays(entry.name, {**arrays, "train/offsets": arrays["train/offsets"][:-1]})
    found, _ = encode_once(raw, tokenizer, **LIMITS)
    same(found, plain)
    assert made == ["once", "once"]


def test_small_data_is_not_kept(minilm: Path, tiny_reviews: Path, made: list[str]) -> None:
    small = read(Task(model=str(minilm), data=str(tiny_reviews)), seed=0)
    assert sum(table.nbytes for table in small.splits.values()) < tokens.LEAST_BYTES
    encode_once(small, load_tokenizer(str(minilm)), **LIMITS)
    folder = cache_folder()
    assert folder is not None
    assert not (folder / "tokens").exists()
