"""Encoding: against the tokenizer's own output, truncation, templates, and the same for rows to be predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from autopeft.data.encode import encode, encode_rows, plan_of
from autopeft.data.encoded import EncodedData, EncodedSplit
from autopeft.data.plan import TextPlan
from autopeft.data.read import RawData, read
from autopeft.errors import DamagedFile, InputError
from autopeft.spec import Task

WORDS = [f"w{i}" for i in range(50)]
TEMPLATE = (
    "{% for m in messages %}<t>{{ m['role'] }} {{ m['content'] }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant {% endif %}"
)


def word_tokenizer(template: str | None = None, *, bos: bool = False, **fields: Any) -> PreTrainedTokenizerFast:
    """A causal tokenizer: one token a word, ``<e>`` ends a sequence."""
    special = ["<u>", "<e>", "<b>", "<t>"]
    words = [*special, "\n", "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    if template is None:
        newline = pre_tokenizers.Split("\n", "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), newline])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<b> $A", special_tokens=[("<b>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<u>", eos_token="<e>", bos_token="<b>", **fields
    )
    made.add_special_tokens({"additional_special_tokens": ["<t>"]})
    made.chat_template = template
    return made


def sentence(count: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % 50] for i in range(count))


def raw_of(columns: dict[str, list[Any]], **fields: Any) -> RawData:
    table = pa.table(columns)
    return read(Task("model", dict.fromkeys(("train", "validation", "test"), table), **fields), seed=0)


def row(split: EncodedSplit, index: int) -> list[int]:
    return split.input_ids[split.offsets[index] : split.offsets[index + 1]].tolist()


@pytest.fixture(scope="module")
def minilm_tokenizer(minilm: Path) -> Any:
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture
def pairs() -> RawData:
    first = [f"the {'very ' * (i % 30)}long premise number {i}" for i in range(60)]
    second = [f"a hypothesis {'that goes on ' * (i % 7)}" for i in range(60)]
    return raw_of({"premise": first, "hypothesis": second, "label": [("no", "yes")[i % 2] for i in range(60)]})


@pytest.mark.parametrize("max_length", [None, 16, 512])
def test_pairs_are_encoded_as_the_tokenizer_does(minilm_tokenizer: Any, pairs: RawData, max_length: int | None) -> None:
    data, notes = encode(pairs, minilm_tokenizer, max_length=max_length, model_max=512)
    table = pairs.splits["train"]
    expected = minilm_tokenizer(
        table["premise"].to_pylist(),
        table["hypothesis"].to_pylist(),
        truncation="longest_first",
        max_length=data.max_length,
    )
    split = data.splits["train"]
    assert split.token_types is not None
    assert split.labels is not None
    for index in range(60):
        start, stop = split.offsets[index], split.offsets[index + 1]
        assert row(split, index) == expected["input_ids"][index]
        assert split.token_types[start:stop].tolist() == expected["token_type_ids"][index]
    assert split.labels.tolist() == [i % 2 for i in range(60)]
    assert data.label_names == ("no", "yes")
    assert data.pad_token == minilm_tokenizer.pad_token_id
    whole = minilm_tokenizer(table["premise"].to_pylist(), table["hypothesis"].to_pylist())
    lengths = [len(ids) for ids in whole["input_ids"]]
    from_data = int(np.ceil(np.percentile(lengths, 99.5) / 8)) * 8
    assert data.max_length == (max_length or from_data)
    assert any("truncated" in note for note in notes) == (max(lengths) > data.max_length)


def test_length_from_the_data_leaves_out_the_longest_and_the_test_rows(minilm_tokenizer: Any) -> None:
    texts = ["good film " * (4 if i else 200) for i in range(1000)]
    table = pa.table({"text": texts, "label": [i % 2 for i in range(1000)]})
    endless = pa.table({"text": ["film " * 400] * 10, "label": [0, 1] * 5})
    raw = read(Task("model", {"train": table, "validation": table, "test": endless}), seed=0)
    data, notes = encode(raw, minilm_tokenizer, max_length=None, model_max=512)
    assert data.max_length == 16
    assert any(note.startswith("1 of 1,000 train rows (0.1%)") for note in notes)
    assert any(note.startswith("10 of 10 test rows (100.0%)") for note in notes)
    assert int(data.splits["test"].lengths.max()) == 16


def test_long_data_is_capped_by_512_and_by_the_model(minilm_tokenizer: Any) -> None:
    raw = raw_of({"text": ["film " * 2000] * 20, "label": [0, 1] * 10})
    assert encode(raw, minilm_tokenizer, max_length=None, model_max=None)[0].max_length == 512
    assert encode(raw, minilm_tokenizer, max_length=None, model_max=100)[0].max_length == 96
    data, notes = encode(raw, minilm_tokenizer, max_length=100, model_max=100)
    assert data.max_length == 96
    assert "rounded down" in notes[0]


@pytest.mark.parametrize(("max_length", "model_max"), [(513, None), (101, 100), (4, 100), (None, 7)])
def test_lengths_that_cannot_be(minilm_tokenizer: Any, max_length: int | None, model_max: int | None) -> None:
    raw = raw_of({"text": ["film"] * 20, "label": [0, 1] * 10})
    with pytest.raises(InputError) as caught:
        encode(raw, minilm_tokenizer, max_length=max_length, model_max=model_max)
    assert caught.value.problems[0].field == "task.max_length"


def test_regression_targets(minilm_tokenizer: Any) -> None:
    raw = raw_of({"text": [f"film {i}" for i in range(20)], "score": [i / 3 for i in range(20)]})
    labels = encode(raw, minilm_tokenizer, max_length=None, model_max=512)[0].splits["train"].labels
    assert labels is not None
    assert labels.dtype == np.float32
    assert labels == pytest.approx([i / 3 for i in range(20)])


def test_empty_texts_get_a_token() -> None:
    tokenizer = word_tokenizer()
    raw = raw_of({"text": ["", "w1", ""] * 10, "label": [0, 1, 0] * 10})
    split = encode(raw, tokenizer, max_length=None, model_max=None)[0].splits["train"]
    assert row(split, 0) == [tokenizer.eos_token_id]
    assert int(split.lengths.min()) == 1


def test_hashes_follow_the_content(minilm_tokenizer: Any) -> None:
    def hashes(texts: list[str], labels: list[int]) -> dict[str, str]:
        raw = raw_of({"text": texts, "label": labels})
        return dict(encode(raw, minilm_tokenizer, max_length=16, model_max=512)[0].hashes)

    texts, labels = [f"film {i}" for i in range(20)], [0, 1] * 10
    first = hashes(texts, labels)
    assert set(first) == {"train", "validation", "test"}
    assert first == hashes(texts, labels)
    assert first["train"] != hashes(["film x", *texts[1:]], labels)["train"]
    assert first["train"] != hashes(texts, labels[::-1])["train"]


def language(tokenizer: Any, prompts: list[str], answers: list[str], max_length: int | None) -> EncodedData:
    raw = raw_of({"prompt": prompts, "response": answers})
    return encode(raw, tokenizer, max_length=max_length, model_max=None)[0]


def test_plain_prompts_are_followed_by_a_line_break() -> None:
    tokenizer = word_tokenizer(bos=True)
    split = language(tokenizer, ["w1 w2"] * 12, ["w3"] * 12, None).splits["train"]
    assert tokenizer.convert_ids_to_tokens(row(split, 0)) == ["<b>", "w1", "w2", "\n", "w3", "<e>"]
    assert split.answer_from is not None
    assert split.answer_from[0] == 4
    assert split.references == ("w3",) * 12
    assert split.labels is None


def test_the_chat_template_is_used() -> None:
    tokenizer = word_tokenizer(TEMPLATE)
    split = language(tokenizer, ["w1 w2"] * 12, ["w3"] * 12, None).splits["train"]
    expected = ["<t>", "user", "w1", "w2", "<e>", "<t>", "assistant", "w3", "<e>"]
    assert tokenizer.convert_ids_to_tokens(row(split, 0)) == expected
    assert split.answer_from is not None
    assert split.answer_from[0] == 7


def test_a_template_that_refuses_is_not_used() -> None:
    tokenizer = word_tokenizer("{{ raise_exception('system turn needed') }}")
    raw = raw_of({"prompt": ["w1"] * 12, "response": ["w2"] * 12})
    data, notes = encode(raw, tokenizer, max_length=None, model_max=None)
    assert any("system turn needed" in note for note in notes)
    assert not plan_of(raw, data, tokenizer).chat


def test_long_prompts_lose_their_beginning_and_answers_stay_whole() -> None:
    tokenizer = word_tokenizer(bos=True)
    split = language(tokenizer, [sentence(30)] * 12, ["w3 w4"] * 12, 8).splits["train"]
    assert tokenizer.convert_ids_to_tokens(row(split, 0)) == ["<b>", "w27", "w28", "w29", "\n", "w3", "w4", "<e>"]


def test_answers_that_do_not_fit_alone_are_cut_and_counted() -> None:
    tokenizer = word_tokenizer()
    raw = raw_of({"prompt": ["w1 w2"] * 12, "response": [sentence(20, start=5)] * 12})
    data, notes = encode(raw, tokenizer, max_length=8, model_max=None)
    split = data.splits["train"]
    assert tokenizer.convert_ids_to_tokens(row(split, 0)) == ["\n", *WORDS[5:12]]
    assert split.answer_from is not None
    assert split.answer_from[0] == 1
    assert any("12 train answers are longer" in note for note in notes)


@pytest.mark.parametrize("max_length", [None, 16])
def test_rows_to_predict_are_encoded_like_training_rows(
    minilm_tokenizer: Any, pairs: RawData, max_length: int | None
) -> None:
    data, _ = encode(pairs, minilm_tokenizer, max_length=max_length, model_max=512)
    plan = TextPlan.from_dict(json.loads(json.dumps(plan_of(pairs, data, minilm_tokenizer).to_dict())))
    for rows in (pairs.splits["test"], pairs.splits["test"].to_pylist()):
        split = encode_rows(plan, rows, minilm_tokenizer)
        assert np.array_equal(split.input_ids, data.splits["test"].input_ids)
        assert np.array_equal(split.offsets, data.splits["test"].offsets)
        assert np.array_equal(split.token_types, data.splits["test"].token_types)
        assert split.labels is None
    assert encode_rows(plan, [], minilm_tokenizer).rows == 0


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_prompts_to_predict_end_where_the_answer_begins(template: str | None) -> None:
    tokenizer = word_tokenizer(template)
    raw = raw_of({"prompt": [sentence(i % 5 + 1) for i in range(20)], "response": ["w3"] * 20})
    data, _ = encode(raw, tokenizer, max_length=None, model_max=None)
    train = data.splits["train"]
    split = encode_rows(plan_of(raw, data, tokenizer), raw.splits["train"], tokenizer)
    assert train.answer_from is not None
    assert np.array_equal(split.answer_from, train.answer_from)
    for index in range(20):
        assert row(split, index) == row(train, index)[: train.answer_from[index]]


def test_rows_to_predict_without_text(minilm_tokenizer: Any) -> None:
    plan = TextPlan("sequence_classification", ("a", "b"), None, 16, ("x", "y"))
    with pytest.raises(InputError) as caught:
        encode_rows(plan, [{"a": "t", "b": "u"}, {"a": 3, "b": "u"}, {"a": "t"}], minilm_tokenizer)
    assert [problem.field for problem in caught.value.problems] == ["rows[1].a", "rows[2].b"]
    with pytest.raises(InputError, match="missing"):
        encode_rows(plan, pa.table({"a": ["t"]}), minilm_tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "poetry"},
        {"max_length": 0},
        {"max_length": "16"},
        {"text_columns": "text"},
        {"text_columns": []},
        {"label_names": [1]},
        {"chat": 1},
        {"prompt_column": "p"},
    ],
)
def test_damaged_plans(change: dict[str, Any]) -> None:
    values = TextPlan("sequence_classification", ("text",), None, 16, ("x", "y")).to_dict()
    assert TextPlan.from_dict(values).to_dict() == values
    with pytest.raises(DamagedFile):
        TextPlan.from_dict({**values, **change})


@pytest.mark.slow
def test_a_real_chat_template(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    raw = raw_of({"prompt": [f"Say {i}." for i in range(20)], "response": [f"It is {i}." for i in range(20)]})
    data, _ = encode(raw, tokenizer, max_length=None, model_max=2048)
    split = data.splits["train"]
    turns = [{"role": "user", "content": "Say 3."}, {"role": "assistant", "content": "It is 3."}]
    assert tokenizer.decode(row(split, 3)) == tokenizer.apply_chat_template(turns, tokenize=False).strip()
    assert split.answer_from is not None
    assert tokenizer.decode(row(split, 3)[split.answer_from[3] :]) == "It is 3.<|im_end|>"
