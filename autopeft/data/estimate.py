"""Rows as long as they would about be in tokens, for planning where no tokenizer is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from autopeft.data.encoded import PAD_MULTIPLE, Array, EncodedData, EncodedSplit, padded_length
from autopeft.data.read import RawData
from autopeft.errors import InputError

BYTES_PER_TOKEN = 4.0
"""Bytes of UTF-8 text that a token stands for, about: 3.8 to 4.7 were counted on English data."""
SPECIAL_TOKENS = 2
"""Tokens that a tokenizer adds to a row."""
LENGTH_CAP = 512
_PERCENTILE = 99.5


def estimate(raw: RawData, *, max_length: int | None, model_max: int | None) -> tuple[EncodedData, tuple[str, ...]]:
    """Data whose rows have estimated lengths and no content: every token is 0.

    Args:
        raw: The rows.
        max_length: Longest row in tokens; None takes what a tokenizer's rows would give: the 99.5th percentile of the
            training and validation rows rounded up to a multiple of 8, but no more than 512.
        model_max: Longest row that the model's positions allow; None for no limit.

    Returns:
        The data, and a note that says that it is an estimate.

    Raises:
        InputError: When `max_length` is more than the model allows, or too small for any row.
    """
    limit = None if model_max is None else model_max // PAD_MULTIPLE * PAD_MULTIPLE
    if max_length is not None and max_length < PAD_MULTIPLE:
        raise InputError.one("task.max_length", max_length, f"must be at least {PAD_MULTIPLE}", "Use more tokens")
    if limit is not None and max_length is not None and max_length > limit:
        rule, step = f"the model takes at most {limit} tokens", f"Use at most {limit}"
        raise InputError.one("task.max_length", max_length, rule, step)
    columns = raw.text_columns or (str(raw.prompt_column), str(raw.response_column))
    tokens = {name: _tokens(table, columns) for name, table in raw.splits.items()}
    whole = {name: sum(parts[1:], parts[0]) + SPECIAL_TOKENS for name, parts in tokens.items()}
    length = max_length
    if length is None:
        seen = np.concatenate([whole[name] for name in ("train", "validation")])
        length = padded_length(int(np.ceil(np.percentile(seen, _PERCENTILE))))
        length = min(length, LENGTH_CAP, limit or LENGTH_CAP)
    splits: dict[str, EncodedSplit] = {}
    for name, lengths in whole.items():
        kept = np.minimum(lengths, length)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
        # Truncation cuts the prompt; one token stays before the answer.
        answers = np.minimum(tokens[name][1], kept - 1) if raw.kind == "causal_lm" else None
        begins = None if answers is None else (kept - answers).astype(np.int32)
        # One zero, seen as all tokens: nothing is kept in memory for them.
        ids = np.broadcast_to(np.zeros(1, dtype=np.int32), (int(offsets[-1]),))
        splits[name] = EncodedSplit(offsets, ids, answer_from=begins)
    data = EncodedData(splits, raw.kind, raw.label_names, 0, length, {})
    note = f"No tokenizer is there: a token is taken for {BYTES_PER_TOKEN:g} bytes of text, so lengths are estimated."
    taken = "taken from the estimated rows" if max_length is None else "as asked for"
    return data, (note, f"Rows have at most {length} tokens ({taken}).")


def _tokens(table: pa.Table, columns: Sequence[str]) -> list[Array]:
    """Estimated tokens of each row, int64 `[rows]`, for each column."""
    return [
        np.asarray(
            [max(1, round(len(str(text).encode()) / BYTES_PER_TOKEN)) for text in table.column(name).to_pylist()],
            dtype=np.int64,
        )
        for name in columns
    ]
