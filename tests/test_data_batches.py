"""Streams and batches: every row once, the same however a training is cut, and little padding."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.data.batches import (
    IGNORED,
    TrainStream,
    evaluation_batches,
    longest_batch,
    pad,
)
from autopeft.data.encoded import EncodedData, EncodedSplit


def split_of(lengths: list[int], **arrays: object) -> EncodedSplit:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return EncodedSplit(offsets, ids, **arrays)  # type: ignore[arg-type]


lengths_of_rows = st.lists(st.integers(1, 60), min_size=1, max_size=70)
sizes = st.integers(1, 20)
seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(lengths_of_rows, sizes, seeds, st.integers(0, 5))
def test_an_epoch_has_every_row_once_in_full_batches_but_one(
    lengths: list[int], size: int, seed: int, number: int
) -> None:
    batches = TrainStream(split_of(lengths), size, seed).epoch(number)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    full, rest = divmod(len(lengths), size)
    assert sorted(map(len, batches)) == sorted([size] * full + [rest] * (rest > 0))


@settings(deadline=None)
@given(lengths_of_rows, sizes, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_a_training_cut_into_jobs_sees_the_same_rows(lengths: list[int], size: int, seed: int, cuts: list[int]) -> None:
    split = split_of(lengths)
    end = max(cuts)
    whole = [list(rows) for rows in TrainStream(split, size, seed).batches(0, end)]
    parts: list[int] = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), end], strict=True):
        for rows in TrainStream(split, size, seed).batches(start, stop):
            parts.extend(rows)
    assert parts == [row for rows in whole for row in rows]
    assert len(parts) == end


@settings(deadline=None)
@given(lengths_of_rows, sizes, seeds, st.integers(0, 12))
def test_a_stream_goes_on_after_whole_batches_with_the_same_batches(
    lengths: list[int], size: int, seed: int, done: int
) -> None:
    stream = TrainStream(split_of(lengths), size, seed)
    first = list(islice(stream.batches(), done + 6))
    resumed = list(islice(stream.batches(sum(map(len, first[:done]))), 6))
    assert [list(rows) for rows in resumed] == [list(rows) for rows in first[done:]]


def test_seeds_and_epochs_differ() -> None:
    split = split_of(list(range(1, 65)))
    orders = {
        tuple(np.concatenate(TrainStream(split, 8, seed).epoch(number))) for seed in range(3) for number in range(3)
    }
    assert len(orders) == 9


def test_any_rows_can_meet_in_the_short_batch() -> None:
    split = split_of(list(range(1, 66)))
    stream = TrainStream(split, 8, 0)
    short = {int(rows[0]) for number in range(40) for rows in stream.epoch(number) if len(rows) == 1}
    assert len(short) > 5


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize(("multiple", "most"), [(8, 0.1), (2, 0.025)])
def test_little_of_a_batch_is_padding(size: int, multiple: int, most: float) -> None:
    lengths = np.random.default_rng(0).gamma(4, 20, size=3000).astype(int) + 8
    data = EncodedData({"train": split_of(lengths.tolist())}, "sequence_classification", (), 0, 400, {})
    split = data.padded_to(multiple).splits["train"]
    shapes = [pad(split, rows, 0).attention_mask for rows in TrainStream(split, size, 0).epoch(0)]
    waste = 1 - sum(mask.sum() for mask in shapes) / sum(mask.size for mask in shapes)
    assert waste < most


@pytest.mark.parametrize(("rows", "size"), [(0, 4), (4, 0)])
def test_streams_need_rows_and_a_size(rows: int, size: int) -> None:
    with pytest.raises(ValueError, match="stream"):
        TrainStream(split_of([3] * rows), size, 0)


@settings(deadline=None)
@given(lengths_of_rows, st.sampled_from([1, 2, 8]), st.data())
def test_padding_keeps_every_token(lengths: list[int], multiple: int, data: st.DataObject) -> None:
    types = np.arange(sum(lengths)) % 2
    split = split_of(lengths, token_types=types.astype(np.int8), labels=np.arange(len(lengths)), pad_multiple=multiple)
    rows = np.asarray(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9)))
    batch = pad(split, rows, pad_token=0)
    assert batch.input_ids.shape == batch.attention_mask.shape
    longest = max(lengths[row] for row in rows)
    assert batch.input_ids.shape[1] % multiple == 0
    assert longest <= batch.input_ids.shape[1] < longest + multiple
    assert batch.token_types is not None
    for index, row in enumerate(rows):
        start, stop = split.offsets[row], split.offsets[row + 1]
        kept = batch.attention_mask[index].astype(bool)
        assert kept.sum() == stop - start
        assert not kept[stop - start :].any()
        assert (batch.input_ids[index][kept] == split.input_ids[start:stop]).all()
        assert (batch.token_types[index][kept] == types[start:stop]).all()
        assert (batch.input_ids[index][~kept] == 0).all()
    assert (batch.labels == rows).all()


def test_labels_of_language_models_are_the_answer_only() -> None:
    split = split_of([5, 10], answer_from=np.asarray([2, 9], dtype=np.int32))
    batch = pad(split, np.asarray([1, 0]), pad_token=3)
    assert batch.labels.shape == (2, 16)
    assert batch.labels[0].tolist() == [IGNORED] * 9 + [15] + [IGNORED] * 6
    assert batch.labels[1].tolist() == [IGNORED] * 2 + [3, 4, 5] + [IGNORED] * 11


def test_rows_without_labels() -> None:
    assert pad(split_of([5, 10]), np.asarray([1, 0]), 0).labels.tolist() == [IGNORED, IGNORED]


@settings(deadline=None)
@given(lengths_of_rows, sizes)
def test_evaluation_sees_every_row_once_the_longest_first(lengths: list[int], size: int) -> None:
    rows = np.concatenate(list(evaluation_batches(split_of(lengths), size)))
    assert sorted(rows) == list(range(len(lengths)))
    seen = [lengths[row] for row in rows]
    assert seen == sorted(seen, reverse=True)


@settings(deadline=None)
@given(lengths_of_rows, sizes, seeds, st.sampled_from([1, 2, 8]))
def test_no_batch_is_larger_than_the_longest(lengths: list[int], size: int, seed: int, multiple: int) -> None:
    split = split_of(lengths, pad_multiple=multiple)
    most, longest = longest_batch(split, size)
    for rows in TrainStream(split, size, seed).epoch(0):
        shape = pad(split, rows, 0).input_ids.shape
        assert shape[0] <= most
        assert shape[1] <= longest


@settings(deadline=None)
@given(lengths_of_rows, sizes, seeds)
def test_some_rows_are_evaluated_in_full_batches_the_longest_first(lengths: list[int], size: int, seed: int) -> None:
    split = split_of(lengths)
    some = np.flatnonzero(np.random.default_rng(seed).random(len(lengths)) < 0.3)
    batches = list(evaluation_batches(split, size, some))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == -(-len(some) // size)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == some.tolist()
    assert sorted(split.lengths[order], reverse=True) == split.lengths[order].tolist()
