"""Tokenised eval sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autopeft.data.encode import encode
from autopeft.data.encoded import EncodedData, EncodedSplit
from autopeft.data.read import RawData


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Further labelled rows, encoded like the validation rows.

    Attributes:
        split: The rows.
        sha256: Of their tokens and labels.
        notes: What the user should know of them, one sentence each.
    """

    split: EncodedSplit
    sha256: str
    notes: tuple[str, ...]


def encode_eval_sets(
    raw: RawData, data: EncodedData, known: tuple[str, ...], tokenizer: Any, *, model_max: int | None
) -> Mapping[str, EvalSet]:
    """Tokenise the eval sets of a task as its splits were tokenised.

    Args:
        raw: The rows.
        data: The encoded splits.
        known: Notes on how these were encoded.
        tokenizer: The one that they were encoded with.
        model_max: Longest row that the model's positions allow; None for no limit.
    """
    sets: dict[str, EvalSet] = {}
    for name, table in raw.further.items():
        own = replace(raw, splits={name: table})
        encoded, notes = encode(own, tokenizer, max_length=data.max_length, model_max=model_max)
        # The first note is on the length, which is that of the splits.
        told = tuple(note for note in notes[1:] if note not in known)
        sets[name] = EvalSet(encoded.splits[name], encoded.hashes[name], (*raw.further_notes.get(name, ()), *told))
    return sets
