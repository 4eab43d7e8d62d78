"""Batches whose rows and padding depend on the data, the batch size and the seed, and on nothing else.

All trials with the same batch size see the same batches, so that they can share a pass through the base model and their
memory can be predicted. Rows of similar length go together, and are padded to a multiple that their split names.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from autopeft.data.encoded import Array, Batch, EncodedSplit

IGNORED = -100
"""Label of tokens that have no part in the loss; class of a row without a label."""


class TrainStream:
    """The endless order in which a trial sees the training rows.

    In every epoch each row is seen once. Rows are shuffled, grouped by padded length, cut into batches, and the batches
    shuffled; the one short batch of an epoch is of no particular length.

    Args:
        split: The training rows.
        batch_size: Rows of a batch.
        seed: Seed of the order.

    Raises:
        ValueError: When the split is empty or the batch size not positive.
    """

    def __init__(self, split: EncodedSplit, batch_size: int, seed: int) -> None:
        if split.rows < 1 or batch_size < 1:
            raise ValueError(f"a stream needs rows and a batch size, not {split.rows} rows in batches of {batch_size}")
        self._edges = -(-split.lengths // split.pad_multiple)
        self._batch_size = batch_size
        self._seed = seed
        self.rows_per_epoch = split.rows

    def epoch(self, number: int) -> list[Array]:
        """The batches of one epoch in order: int64 `[batch]` row numbers each."""
        rng = np.random.default_rng([self._seed, number])
        rows, size = self.rows_per_epoch, self._batch_size
        shuffled = rng.permutation(rows)
        by_length = shuffled[np.argsort(self._edges[shuffled], kind="stable")]
        full, rest = divmod(rows, size)
        # If the short batch were always cut from the end, the longest rows alone would often train in small batches.
        before = int(rng.integers(full + 1)) * size
        cuts = [*range(size, before + 1, size), *range(before + (rest or size), rows, size)]
        batches = np.split(by_length, [cut for cut in cuts if cut < rows])
        return [batches[index] for index in rng.permutation(len(batches))]

    def batches(self, rows_from: int = 0, rows_to: int | None = None) -> Iterator[Array]:
        """The batches after `rows_from` rows have been seen: int64 `[batch]` row numbers each.

        The rows are the same, in the same order, however a training is cut into jobs: a batch that a cut goes through
        is given in two parts.

        Args:
            rows_from: Rows seen before.
            rows_to: Rows seen at the end; None for an endless stream.
        """
        number = rows_from // self.rows_per_epoch
        position = number * self.rows_per_epoch
        while rows_to is None or position < rows_to:
            for batch in self.epoch(number):
                start = max(0, rows_from - position)
                stop = len(batch) if rows_to is None else min(len(batch), rows_to - position)
                if start < stop:
                    yield batch[start:stop]
                position += len(batch)
            number += 1


def pad(split: EncodedSplit, rows: Array, pad_token: int) -> Batch:
    """Some rows as one batch, padded on the right.

    Args:
        split: The rows' split.
        rows: int64 `[batch]`: their numbers.
        pad_token: Fills up the rows.
    """
    starts, lengths = split.offsets[rows], split.lengths[rows]
    length = split.padded(int(lengths.max(initial=0)))
    places = np.arange(length)
    mask = places < lengths[:, None]
    source = (starts[:, None] + places)[mask]
    input_ids = np.full((len(rows), length), pad_token, dtype=np.int64)
    input_ids[mask] = split.input_ids[source]
    types = None
    if split.token_types is not None:
        types = np.zeros((len(rows), length), dtype=np.int64)
        types[mask] = split.token_types[source]
    if split.answer_from is not None:
        in_answer = mask & (places >= split.answer_from[rows][:, None])
        labels = np.where(in_answer, input_ids, IGNORED)
    elif split.labels is not None:
        labels = split.labels[rows]
    else:
        labels = np.full(len(rows), IGNORED, dtype=np.int64)
    return Batch(np.asarray(rows), input_ids, mask.astype(np.int64), types, labels)


def evaluation_batches(split: EncodedSplit, batch_rows: int, rows: Array | None = None) -> Iterator[Array]:
    """Rows once each, int64 `[batch]` row numbers, the longest first: what does not fit memory fails at once.

    Args:
        split: The rows.
        batch_rows: Rows of a batch.
        rows: int64 `[n]`: the rows to use; None for all.
    """
    chosen = np.arange(split.rows) if rows is None else rows
    order = chosen[np.argsort(-split.lengths[chosen], kind="stable")]
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]


def longest_batch(split: EncodedSplit, batch_size: int) -> tuple[int, int]:
    """Rows and padded length of the largest batch that a stream can yield."""
    return min(batch_size, split.rows), split.longest
