"""Tokenised data as flat numpy arrays: small to keep, free to share between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PAD_MULTIPLE = 8
"""Padded lengths are multiples of this, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The rows of one split.

    Row i has the tokens ``input_ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        offsets: int64 `[rows + 1]`.
        input_ids: int32 `[tokens]`.
        token_types: int8 `[tokens]`, or None when the tokenizer makes none.
        labels: int64 `[rows]` class numbers, or float32 `[rows]` targets; None for language models.
        answer_from: int32 `[rows]`: position in the row where the answer begins and the loss starts; None otherwise.
        references: For language models, the answer texts (exact match); None otherwise.
        pad_multiple: Batches of these rows are padded to multiples of this.
    """

    offsets: Array
    input_ids: Array
    token_types: Array | None = None
    labels: Array | None = None
    answer_from: Array | None = None
    references: tuple[str, ...] | None = None
    pad_multiple: int = PAD_MULTIPLE

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """Tokens of each row, int64 `[rows]`."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Padded length of the longest row."""
        return self.padded(int(self.lengths.max(initial=0)))

    def padded(self, length: int) -> int:
        """The length to which a batch is padded whose longest row has this many tokens."""
        return padded_length(length, self.pad_multiple)


@dataclass(frozen=True, slots=True)
class EncodedData:
    """A task's data, ready for training.

    Attributes:
        splits: ``train``, ``validation`` and ``test``.
        kind: The task kind.
        label_names: Class names in the order of their numbers; empty for other kinds.
        pad_token: Token that fills up a batch.
        max_length: Longest row in tokens, after truncation.
        hashes: Split name -> sha256 of its tokens and labels.
    """

    splits: Mapping[str, EncodedSplit]
    kind: str
    label_names: tuple[str, ...]
    pad_token: int
    max_length: int
    hashes: Mapping[str, str]

    def padded_to(self, multiple: int) -> EncodedData:
        """The same rows, padded to multiples of another number."""
        return replace(self, splits={n: replace(s, pad_multiple=multiple) for n, s in self.splits.items()})


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows, padded to one length.

    Attributes:
        rows: int64 `[batch]`: their numbers in the split.
        input_ids: int64 `[batch, length]`.
        attention_mask: int64 `[batch, length]`.
        token_types: int64 `[batch, length]`, or None.
        labels: `[batch]` classes or targets; for language models int64 `[batch, length]` with -100 outside the answer.
    """

    rows: Array
    input_ids: Array
    attention_mask: Array
    token_types: Array | None
    labels: Array


def padded_length(length: int, multiple: int = PAD_MULTIPLE) -> int:
    """A length rounded up to a multiple, and never 0."""
    return max(multiple, -(-length // multiple) * multiple)
