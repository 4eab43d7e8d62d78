"""Using a winner: load a run folder's adapter and predict."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopeft.compose.base import attach, load_base, load_tokenizer
from autopeft.compose.store import describe, load_adapter
from autopeft.data.batches import evaluation_batches, pad
from autopeft.data.encode import encode_rows
from autopeft.data.plan import TextPlan
from autopeft.errors import InputError
from autopeft.journal import SearchLog, read_journal

ROWS = 32
ANSWER_TOKENS = 64


class Predictor:
    """A base model with a winner's adapter on it. Final; made by `load`.

    Attributes:
        model: The adapted model, in evaluation mode.
        tokenizer: The base model's tokenizer.
        text: How rows are tokenised.
    """

    def __init__(self, model: Any, tokenizer: Any, text: TextPlan, pad_token: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.text = text
        self._pad_token = pad_token
        self._positions = model.positions

    @torch.inference_mode()
    def predict(self, rows: Sequence[str | Mapping[str, Any]] | Any) -> list[dict[str, Any]]:
        """Predictions for rows, in their order.

        Args:
            rows: Mappings with the task's columns, or strings where there is only one text column; a DataFrame.

        Returns:
            ``{"label": ..., "probability": ...}`` for classification, ``{"score": ...}`` for regression,
            ``{"response": ...}`` for language models.

        Raises:
            InputError: A row lacks a column, or a value is not a text.
        """
        columns = self.text.columns
        rows = _checked(rows)
        if any(isinstance(row, str) for row in rows) and len(columns) != 1:
            raise InputError.one(
                "rows", rows[0], f"must be mappings with the columns {', '.join(columns)}", "Give every column."
            )
        mappings = [{columns[0]: row} if isinstance(row, str) else row for row in rows]
        if not mappings:
            return []
        # No longer than the longest row: a model with few positions may have none to spare.
        split = replace(encode_rows(self.text, mappings, self.tokenizer), pad_multiple=1)
        if self.text.kind == "causal_lm":
            return [{"response": text} for text in self._answers(split)]
        logits = np.zeros((split.rows, max(1, len(self.text.label_names))), dtype=np.float32)
        for group in evaluation_batches(split, ROWS):
            batch = pad(split, group, self._pad_token)
            types = None if batch.token_types is None else torch.from_numpy(batch.token_types)
            out = self.model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask), types)
            logits[group] = out.float().numpy()
        if self.text.kind == "regression":
            return [{"score": float(value)} for value in logits[:, 0]]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        best = probabilities.argmax(axis=1)
        return [
            {"label": self.text.label_names[label], "probability": float(probabilities[row, label])}
            for row, label in enumerate(best)
        ]

    def _answers(self, split: Any) -> list[str]:
        answers = []
        for row in range(split.rows):
            ids = split.input_ids[split.offsets[row] : split.offsets[row + 1]].astype(np.int64)
            prompt = torch.from_numpy(ids)[None]
            room = ANSWER_TOKENS if self._positions is None else min(ANSWER_TOKENS, self._positions - len(ids))
            if room < 1:
                answers.append("")
                continue
            made = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=room,
                do_sample=False,
                pad_token_id=self._pad_token,
            )
            answers.append(self.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True).strip())
        return answers


def _checked(rows: Any) -> Sequence[str | Mapping[str, Any]]:
    """Rows as a sequence.

    Raises:
        InputError: It is one row, or holds something that is no row.
    """
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict("records")
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Sequence):
        raise InputError.one("rows", rows, "must be a list of rows", "Put a single row into a list.")
    for index, row in enumerate(rows):
        if not isinstance(row, str | Mapping):
            raise InputError.one(f"rows[{index}]", row, "must be a text or a mapping of columns", "Correct the row.")
    return rows


def load(run_dir: str | os.PathLike[str], model: str | None = None, *, adapter: str = "winner") -> Predictor:
    """The winner of a run folder, ready to predict.

    Args:
        run_dir: The run folder of a search.
        model: Where the base model is now; None takes what the search used.
        adapter: Another adapter of the run: ``front/1`` of a search with the objective ``pareto``, for example.

    Raises:
        InputError: There is no winner, its files are damaged, or the base model is another one.
    """
    folder = Path(run_dir)
    winner = folder / adapter
    if not (folder / "winner").is_dir():
        raise InputError.one("run_dir", str(run_dir), "holds no winner", "Give the folder of a search that found one.")
    if not winner.is_dir():
        there = ", ".join(["winner", *sorted(f"front/{path.name}" for path in folder.glob("front/*"))])
        raise InputError.one("adapter", adapter, f"is no adapter of this run; there are {there}", "Give one of them.")
    about = describe(winner)
    text = TextPlan.from_dict(about["meta"]["text"])
    revision = None
    if model is None:
        task = SearchLog.fold(read_journal(folder)).header["spec"]["task"]
        model, revision = str(task["model"]), task.get("revision")
    base = load_base(model, revision, kind=about["kind"], dtype="float32")
    carrier = attach(base, head=about["head"], labels=about["labels"])
    adapted = load_adapter(carrier, winner)
    adapted.eval()
    tokenizer = load_tokenizer(model, revision)
    return Predictor(adapted, tokenizer, text, int(tokenizer.pad_token_id or 0))
