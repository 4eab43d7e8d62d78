"""Text to tokens, once, for the whole search; and the same for rows to be predicted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from autopeft.data.encoded import PAD_MULTIPLE, Array, EncodedData, EncodedSplit, padded_length
from autopeft.data.language import Rendered, encode_answers, encode_prompts, renderer
from autopeft.data.plan import TextPlan
from autopeft.data.read import RawData
from autopeft.errors import InputError, Problem

LENGTH_CAP = 512
"""Longest row in tokens unless the user asks for more."""
_PERCENTILE = 99.5
# Some tokenizers say "no limit" by an astronomic number.
_NO_LIMIT = 10**7
_CHUNK = 4096


def encode(
    raw: RawData, tokenizer: Any, *, max_length: int | None, model_max: int | None
) -> tuple[EncodedData, tuple[str, ...]]:
    """Tokenise all splits.

    One text is encoded as the tokenizer does, two as a pair, truncated longest first. For ``causal_lm`` a row is prompt
    + answer + end of sequence: through the tokenizer's chat template where it has one (a user turn, an assistant turn),
    else with a line break between them; truncation cuts the prompt from the left, and the answer only when it does not
    fit alone.

    Args:
        raw: The rows.
        tokenizer: A `transformers` tokenizer.
        max_length: Longest row in tokens; None takes the 99.5th percentile of the training and validation rows rounded
            up to a multiple of 8, but no more than 512.
        model_max: Longest row that the model's positions allow; None for no limit.

    Returns:
        The tokens, and notes on the length taken, truncated rows and the template.

    Raises:
        InputError: When `max_length` is more than model and tokenizer allow.
    """
    limit = _limit(tokenizer, max_length, model_max)
    if raw.kind == "causal_lm":
        return _encode_language(raw, tokenizer, max_length, limit)
    tokens = {split: _tokenise(tokenizer, _texts(table, raw.text_columns), None) for split, table in raw.splits.items()}
    length = _length({split: parts[0] for split, parts in tokens.items()}, max_length, limit)
    splits: dict[str, EncodedSplit] = {}
    notes = [_length_note(length, max_length)]
    for split, table in raw.splits.items():
        offsets, ids, types, cut = _truncated(tokenizer, _texts(table, raw.text_columns), tokens.pop(split), length)
        splits[split] = EncodedSplit(offsets, ids, types, labels=labels_of(raw, table))
        notes += _cut_note(split, cut, table.num_rows)
    return _data(raw, tokenizer, splits, length), tuple(notes)


def plan_of(raw: RawData, data: EncodedData, tokenizer: Any) -> TextPlan:
    """The plan by which `data` was encoded, to be stored with a winner."""
    chat = raw.kind == "causal_lm" and renderer(tokenizer).chat
    return TextPlan(raw.kind, raw.text_columns, raw.prompt_column, data.max_length, raw.label_names, chat)


def encode_rows(plan: TextPlan, rows: Sequence[Mapping[str, Any]] | pa.Table, tokenizer: Any) -> EncodedSplit:
    """Tokenise rows without labels, exactly as the training rows were.

    Args:
        plan: How the winner's data was encoded.
        rows: Rows as mappings of columns to texts, or a table; other columns are ignored.
        tokenizer: The winner's tokenizer.

    Returns:
        The split, without labels. For ``causal_lm`` a row is the prompt up to where the answer begins, and
        ``answer_from`` is its length; room for the answer is the caller's business.

    Raises:
        InputError: With every row that lacks a text.
    """
    texts = _columns(plan, rows)
    if plan.kind == "causal_lm":
        prompts = encode_prompts(renderer(tokenizer, chat=plan.chat), texts[0])
        cut = [_keep_end(prompt, plan.max_length, tokenizer.bos_token_id) for prompt in prompts]
        offsets, ids = _flat(cut)
        return EncodedSplit(offsets, ids, answer_from=np.diff(offsets).astype(np.int32))
    offsets, ids, types, _ = _truncated(tokenizer, texts, _tokenise(tokenizer, texts, None), plan.max_length)
    return EncodedSplit(offsets, ids, types)


def _columns(plan: TextPlan, rows: Sequence[Mapping[str, Any]] | pa.Table) -> list[list[str]]:
    problems: list[Problem] = []
    texts: list[list[str]] = []
    if isinstance(rows, pa.Table):
        for name in plan.columns:
            if name not in rows.column_names:
                have = ", ".join(rows.column_names)
                problems.append(Problem(f"rows.{name}", None, f"the column is missing (there are: {have})", "Add it"))
        if problems:
            raise InputError(problems)
        rows = rows.select(list(plan.columns)).to_pylist()
    for name in plan.columns:
        column = [row.get(name) for row in rows]
        for index, text in enumerate(column):
            if not isinstance(text, str) and len(problems) < 10:
                rule = "the text is missing" if text is None else "must be text"
                problems.append(Problem(f"rows[{index}].{name}", text, f"{rule} (rows are counted from 0)", "Add it"))
        texts.append([str(text) for text in column])
    if problems:
        raise InputError(problems)
    return texts


def _limit(tokenizer: Any, max_length: int | None, model_max: int | None) -> int | None:
    """Longest padded row that model and tokenizer allow, a multiple of 8; None for no limit.

    Rounded down because batches are padded up to multiples of 8 and must still fit the model's positions.
    """
    if max_length is not None and max_length < PAD_MULTIPLE:
        raise InputError.one("task.max_length", max_length, f"must be at least {PAD_MULTIPLE}", "Use more tokens")
    known = [int(value) for value in (tokenizer.model_max_length, model_max) if value and value < _NO_LIMIT]
    if not known:
        return None
    limit = min(known) // PAD_MULTIPLE * PAD_MULTIPLE
    if limit == 0 or (max_length is not None and max_length > min(known)):
        raise InputError.one(
            "task.max_length", max_length, f"the model takes at most {min(known)} tokens", f"Use at most {min(known)}"
        )
    return limit


def _length(offsets: Mapping[str, Array], max_length: int | None, limit: int | None) -> int:
    if max_length is not None:
        return max_length if limit is None else min(max_length, limit)
    # The test rows have no say: nothing may be chosen by them.
    lengths = np.concatenate([np.diff(offsets[split]) for split in ("train", "validation")])
    wanted = padded_length(int(np.ceil(np.percentile(lengths, _PERCENTILE))))
    return min(wanted, LENGTH_CAP, limit or LENGTH_CAP)


def _texts(table: pa.Table, columns: Sequence[str]) -> list[list[str]]:
    return [table.column(name).to_pylist() for name in columns]


def _tokenise(tokenizer: Any, texts: list[list[str]], max_length: int | None) -> tuple[Array, Array, Array | None]:
    """Offsets int64 `[rows + 1]`, tokens int32 `[tokens]`, token types int8 `[tokens]` or None."""
    parts: list[Array] = []
    types: list[Array] = []
    lengths: list[Array] = [np.zeros(1, dtype=np.int64)]
    filler = _filler(tokenizer)
    for start in range(0, len(texts[0]), _CHUNK):
        encoded = tokenizer(
            *(column[start : start + _CHUNK] for column in texts),
            truncation="longest_first" if max_length else False,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )
        # A row without any token would have no position to attend to.
        offsets, ids = _flat([row or [filler] for row in encoded["input_ids"]])
        parts.append(ids)
        lengths.append(np.diff(offsets))
        if "token_type_ids" in encoded:
            types.append(_flat([row or [0] for row in encoded["token_type_ids"]])[1].astype(np.int8))
    offsets = np.cumsum(np.concatenate(lengths))
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return offsets, ids, np.concatenate(types) if types else None


def _flat(rows: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
    return offsets, ids


def _truncated(
    tokenizer: Any, texts: list[list[str]], whole: tuple[Array, Array, Array | None], max_length: int
) -> tuple[Array, Array, Array | None, int]:
    """The same with the rows that are too long encoded again, truncated; and how many these are."""
    offsets, ids, types = whole
    lengths = np.diff(offsets)
    long = np.flatnonzero(lengths > max_length)
    if not len(long):
        return offsets, ids, types, 0
    again = _tokenise(tokenizer, [[column[row] for row in long] for column in texts], max_length)
    # A pair in which both texts are cut keeps its own separators, so only the tokenizer can cut.
    kept = np.repeat(lengths <= max_length, lengths)
    new_lengths = lengths.copy()
    new_lengths[long] = np.diff(again[0])
    new_offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(new_lengths)])
    is_old = np.repeat(lengths <= max_length, new_lengths)

    def joined(old: Array, new: Array) -> Array:
        out = np.empty(int(new_offsets[-1]), dtype=old.dtype)
        out[is_old], out[~is_old] = old[kept], new
        return out

    new_types = joined(types, again[2]) if types is not None and again[2] is not None else None
    return new_offsets, joined(ids, again[1]), new_types, len(long)


def labels_of(raw: RawData, table: pa.Table) -> Array:
    """Class numbers, int64 `[rows]`, or targets, float32 `[rows]`, of the rows of a table."""
    values = table.column(str(raw.label_column)).to_pylist()
    if raw.kind == "regression":
        return np.asarray(values, dtype=np.float32)
    numbers = {name: number for number, name in enumerate(raw.label_names)}
    return np.asarray([numbers[value] for value in values], dtype=np.int64)


def _encode_language(
    raw: RawData, tokenizer: Any, max_length: int | None, limit: int | None
) -> tuple[EncodedData, tuple[str, ...]]:
    rendered = renderer(tokenizer)
    rows = {
        split: _language_rows(rendered, table, str(raw.prompt_column), str(raw.response_column))
        for split, table in raw.splits.items()
    }
    offsets = {
        split: np.cumsum([0, *(len(prompt) + len(answer) for prompt, answer in pairs)]) for split, pairs in rows.items()
    }
    length = _length(offsets, max_length, limit)
    notes = [_length_note(length, max_length), rendered.note]
    splits: dict[str, EncodedSplit] = {}
    for split, pairs in rows.items():
        whole = int(np.sum(np.diff(offsets[split]) > length))
        fitted = [_fit(prompt, answer, length, tokenizer.bos_token_id) for prompt, answer in pairs]
        starts, ids = _flat([prompt + answer for prompt, answer in fitted])
        splits[split] = EncodedSplit(
            starts,
            ids,
            answer_from=np.asarray([len(prompt) for prompt, _ in fitted], dtype=np.int32),
            references=tuple(raw.splits[split].column(str(raw.response_column)).to_pylist()),
        )
        notes += _cut_note(split, whole, len(pairs))
        lost = sum(len(kept[1]) < len(pair[1]) for kept, pair in zip(fitted, pairs, strict=True))
        if lost:
            notes.append(f"{lost:,} {split} answers are longer than {length} tokens alone and were cut.")
    return _data(raw, tokenizer, splits, length), tuple(notes)


def _language_rows(
    rendered: Rendered, table: pa.Table, prompt: str, response: str
) -> list[tuple[list[int], list[int]]]:
    prompts = encode_prompts(rendered, table.column(prompt).to_pylist())
    answers = encode_answers(rendered, table.column(response).to_pylist())
    return list(zip(prompts, answers, strict=True))


def _fit(prompt: list[int], answer: list[int], length: int, first: int | None) -> tuple[list[int], list[int]]:
    if len(prompt) + len(answer) <= length:
        return prompt, answer
    # One token stays before the answer: without any, its first token could not be predicted.
    answer = answer[: length - 1]
    return _keep_end(prompt, length - len(answer), first), answer


def _keep_end(prompt: list[int], length: int, first: int | None) -> list[int]:
    """The end of a prompt, behind the token that begins every sequence where it has one and there is room."""
    if len(prompt) <= length:
        return prompt
    if length > 1 and prompt[0] == first:
        return [prompt[0], *prompt[len(prompt) - length + 1 :]]
    return prompt[len(prompt) - length :]


def _length_note(length: int, asked: int | None) -> str:
    if asked is None:
        return f"Rows have at most {length} tokens (taken from the data)."
    if length < asked:
        return f"Rows have at most {length} tokens: {asked} rounded down to a multiple of {PAD_MULTIPLE}."
    return f"Rows have at most {length} tokens (as asked for)."


def _cut_note(split: str, cut: int, rows: int) -> list[str]:
    return [f"{cut:,} of {rows:,} {split} rows ({cut / rows:.1%}) are longer and were truncated."] if cut else []


def _data(raw: RawData, tokenizer: Any, splits: dict[str, EncodedSplit], length: int) -> EncodedData:
    return EncodedData(
        splits=splits,
        kind=raw.kind,
        label_names=raw.label_names,
        pad_token=_filler(tokenizer),
        max_length=length,
        hashes={split: digest(encoded) for split, encoded in splits.items()},
    )


def _filler(tokenizer: Any) -> int:
    """The padding token; without one any will do, because padding is masked out."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in known if token is not None))


def digest(split: EncodedSplit) -> str:
    """sha256 of the tokens and labels of a split."""
    digest = hashlib.sha256()
    for name in ("offsets", "input_ids", "token_types", "labels", "answer_from"):
        array = getattr(split, name)
        if array is not None:
            digest.update(f"{name}:{array.dtype.str}:{len(array)};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    for reference in split.references or ():
        digest.update(f"{len(reference)}:{reference}".encode())
    return digest.hexdigest()
