"""Tokenised rows, kept for the next search on the same data with the same tokenizer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from autopeft.data.cache import Shelf, key_of
from autopeft.data.encode import digest, encode, labels_of
from autopeft.data.encoded import Array, EncodedData, EncodedSplit
from autopeft.data.read import RawData

VERSION = 1
"""Of how rows are encoded: rows of another one are not used."""
LEAST_BYTES = 1 << 16
"""Texts of fewer bytes are tokenised faster than they are found."""
_NAMES = ("offsets", "input_ids", "token_types", "answer_from")
_ABOUT = "about"


def encode_once(
    raw: RawData, tokenizer: Any, *, max_length: int | None, model_max: int | None
) -> tuple[EncodedData, tuple[str, ...]]:
    """As `encode`, from the cache where the same texts were encoded before with the same tokenizer and limits.

    Labels and reference answers are not kept: they are taken from the rows.

    Raises:
        InputError: As `encode`.
    """
    key = _key(raw, tokenizer, max_length, model_max)
    if key is None:
        return encode(raw, tokenizer, max_length=max_length, model_max=model_max)
    shelf = Shelf("tokens")
    arrays = shelf.arrays(key)
    found = None if arrays is None else _unpacked(raw, arrays)
    if found is not None:
        return found
    data, notes = encode(raw, tokenizer, max_length=max_length, model_max=model_max)
    shelf.put_arrays(key, _packed(data, notes))
    return data, notes


def _key(raw: RawData, tokenizer: Any, max_length: int | None, model_max: int | None) -> str | None:
    """All that the tokens depend on; None where the tokenizer does not say all of itself, or it does not pay."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or sum(table.nbytes for table in raw.splits.values()) < LEAST_BYTES:
        return None
    said = json.loads(backend.to_str())
    for name in ("truncation", "padding"):
        # They are left over from its last call, and set anew in each.
        said.pop(name, None)
    columns = [*raw.text_columns, *(name for name in (raw.prompt_column, raw.response_column) if name)]
    tokens = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id]
    own = [type(tokenizer).__name__, int(min(tokenizer.model_max_length, 1 << 53)), tokens]
    own += [str(tokenizer.chat_template), tokenizer.truncation_side, list(tokenizer.model_input_names)]
    versions = {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers")}
    return key_of(
        {
            "version": VERSION,
            "versions": versions,
            "kind": raw.kind,
            "texts": {split: _hash(table, columns) for split, table in raw.splits.items()},
            "tokenizer": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
            "own": own,
            "max_length": max_length,
            "model_max": model_max,
        }
    )


def _hash(table: pa.Table, columns: list[str]) -> str:
    total = hashlib.sha256()
    for name in columns:
        for text in table.column(name).to_pylist():
            content = str(text).encode("utf-8", "surrogatepass")
            total.update(len(content).to_bytes(8, "little"))
            total.update(content)
    return total.hexdigest()


def _packed(data: EncodedData, notes: tuple[str, ...]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for split, encoded in data.splits.items():
        for name in _NAMES:
            array = getattr(encoded, name)
            if array is not None:
                arrays[f"{split}/{name}"] = array
    about = {"max_length": data.max_length, "pad_token": data.pad_token, "notes": list(notes)}
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    return arrays


def _unpacked(raw: RawData, arrays: Mapping[str, Array]) -> tuple[EncodedData, tuple[str, ...]] | None:
    """What was packed, with the labels of these rows; None where it does not fit them."""
    try:
        about = json.loads(arrays[_ABOUT].tobytes())
        splits = {name: _split(raw, name, arrays) for name in raw.splits}
        data = EncodedData(
            splits=splits,
            kind=raw.kind,
            label_names=raw.label_names,
            pad_token=int(about["pad_token"]),
            max_length=int(about["max_length"]),
            hashes={name: digest(split) for name, split in splits.items()},
        )
        notes = tuple(str(note) for note in about["notes"])
    except (KeyError, TypeError, ValueError):
        return None
    return (data, notes) if all(split.rows == raw.splits[name].num_rows for name, split in splits.items()) else None


def _split(raw: RawData, name: str, arrays: Mapping[str, Array]) -> EncodedSplit:
    table = raw.splits[name]
    offsets, ids, types, answers = (arrays.get(f"{name}/{part}") for part in _NAMES)
    if offsets is None or ids is None:
        raise KeyError(name)
    split = EncodedSplit(offsets, ids, types, answer_from=answers)
    if raw.kind == "causal_lm":
        return replace(split, references=tuple(table.column(str(raw.response_column)).to_pylist()))
    return replace(split, labels=labels_of(raw, table))
