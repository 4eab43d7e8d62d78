"""Tokenised data as flat numpy arrays: small to keep, free to share between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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
    """

    offsets: Array
    input_ids: Array
    token_types: Array | None = None
    labels: Array | None = None
    answer_from: Array | None = None
    references: tuple[str, ...] | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Array:
        """Tokens of each row, int64 `[rows]`."""
        return np.diff(self.offsets)


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
