"""Per-example outputs of a model on a split: what every score, interval and verdict is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import StoppingCriteria

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.lookup import Entry
from autopeft.cost.step import StepTensors, answer_logits, step_tensors
from autopeft.data.batches import evaluation_batches, pad
from autopeft.data.encoded import Array, Batch, EncodedSplit
from autopeft.trial.clock import JobClock
from autopeft.trial.setup import WorkSetup

GENERATED_ROWS = 24
LOGIT_POSITIONS = 2048
"""Positions per batch for language models, whose logits are as wide as the vocabulary."""


def autocast(setup: WorkSetup, device: torch.device) -> Any:
    """Mixed precision as in training: float32 adapters over a bfloat16 base."""
    if setup.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def tensors(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch as the keyword arguments of a model, int64 `[rows, length]`."""
    values = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_types is not None:
        values["token_type_ids"] = batch.token_types
    return {name: torch.from_numpy(value).to(device) for name, value in values.items()}


def subset(split: EncodedSplit, rows: int | None) -> Array:
    """`chosen_rows` of a split."""
    return chosen_rows(split.rows, rows)


def chosen_rows(total: int, rows: int | None) -> Array:
    """A fixed random choice of rows, the same for every trial, sorted; all rows for None or when there are no more."""
    if rows is None or total <= rows:
        return np.arange(total)
    chosen = np.random.default_rng(20240319).choice(total, size=rows, replace=False)
    return np.sort(chosen)


class _Ticking(StoppingCriteria):
    """Stops nothing; asks the clock."""

    def __init__(self, clock: JobClock) -> None:
        self._clock = clock

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self._clock.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def batches_of(split: EncodedSplit, rows: Array, setup: WorkSetup) -> Iterator[Batch]:
    """Some rows of a split in padded batches, the longest first."""
    for group in evaluation_batches(split, setup.evaluation_rows, rows):
        step = len(group)
        if setup.kind == "causal_lm":
            step = max(1, LOGIT_POSITIONS // int(split.lengths[group].max()))
        for start in range(0, len(group), step):
            yield pad(split, group[start : start + step], setup.data.pad_token)


@torch.inference_mode()
def outputs(
    model: nn.Module,
    split: EncodedSplit,
    setup: WorkSetup,
    device: torch.device,
    *,
    rows: Array,
    clock: JobClock | None = None,
    entry: Callable[[Array, int], Entry] | None = None,
) -> dict[str, Array]:
    """The per-example outputs that metrics are computed from.

    Args:
        model: The model; put into evaluation mode.
        split: The rows.
        setup: Kind and precision.
        device: Where the model is.
        rows: int64 `[n]`: the rows to use, sorted.
        clock: The job's clock, asked after every batch.
        entry: Row numbers and padded length -> where their forward pass begins; None for whole ones.

    Raises:
        TrialFailure: ``timeout`` past the clock's limit.

    Returns:
        Arrays of length n in the order of `rows`: ``prediction``, ``label`` and ``log_likelihood`` for classification,
        ``prediction`` and ``label`` for regression, ``log_likelihood`` (mean over the answer's tokens) for
        ``causal_lm``.
    """
    model.eval()
    clock = clock or JobClock()
    place = np.full(split.rows, -1)
    place[rows] = np.arange(len(rows))
    result: dict[str, Array] = {}

    def put(name: str, batch: Batch, values: torch.Tensor) -> None:
        array = values.cpu().numpy()
        result.setdefault(name, np.zeros(len(rows), dtype=array.dtype))[place[batch.rows]] = array

    for batch in batches_of(split, rows, setup):
        clock.check()
        beginning = nullcontext() if entry is None else entry(batch.rows, batch.input_ids.shape[1]).passing()
        if setup.kind == "causal_lm":
            with beginning:
                put("log_likelihood", batch, _answer_log_likelihood(model, batch, setup, device))
            continue
        with autocast(setup, device), beginning:
            logits = model(**tensors(batch, device))
        labels = torch.from_numpy(batch.labels).to(device)
        for name, values in label_outputs(logits, labels, setup.kind).items():
            put(name, batch, values)
    return result


def label_outputs(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """What is kept of some rows of a task with labels: see `outputs`.

    Args:
        logits: `[rows, labels]`.
        labels: `[rows]`.
        kind: The task kind.
    """
    if kind == "regression":
        return {"label": labels, "prediction": logits.float().squeeze(-1)}
    logp = logits.float().log_softmax(-1)
    likely = logp.gather(-1, labels[:, None]).squeeze(-1)
    return {"label": labels, "prediction": logp.argmax(-1), "log_likelihood": likely}


def _answer_log_likelihood(model: nn.Module, batch: Batch, setup: WorkSetup, device: torch.device) -> torch.Tensor:
    """Mean log-probability of the answer's tokens, `[rows]`; logits are made at the answers only."""
    step = step_tensors(batch, setup.kind, device)
    with autocast(setup, device):
        logits = answer_logits(model, step)
    return answer_outputs(logits, step)


def answer_outputs(logits: torch.Tensor, step: StepTensors) -> torch.Tensor:
    """Mean log-probability of the answer's tokens of each row, `[rows]`.

    Args:
        logits: At the answers, `[answers, vocabulary]`.
        step: The rows.
    """
    if step.positions is None:
        raise ValueError("a language model's batch has answer positions")
    rows, length = step.input_ids.shape
    token = logits.float().log_softmax(-1).gather(-1, step.labels[:, None]).squeeze(-1)
    row = step.positions // length
    total = torch.zeros(rows, device=token.device).index_add_(0, row, token)
    count = torch.zeros(rows, device=token.device).index_add_(0, row, torch.ones_like(token))
    return total / count.clamp(min=1)


@torch.inference_mode()
def generated(
    model: AdaptedModel,
    split: EncodedSplit,
    setup: WorkSetup,
    device: torch.device,
    *,
    rows: Array,
    clock: JobClock | None = None,
) -> list[str]:
    """Answers made greedily from the prompts alone, in the order of `rows`.

    Prompts of similar length are batched, padded on the left. An answer ends where the model has no more positions.
    The clock is asked after every token.

    Raises:
        TrialFailure: ``timeout`` past the clock's limit.

    Returns:
        The texts, without special tokens, stripped.
    """
    model.eval()
    clock = clock or JobClock()
    if split.answer_from is None:
        raise ValueError("only language-model rows have prompts")
    lengths = split.answer_from[rows]
    order = np.argsort(lengths, kind="stable")
    texts = [""] * len(rows)
    positions = model.positions
    for begin in range(0, len(rows), GENERATED_ROWS):
        group = order[begin : begin + GENERATED_ROWS]
        width = int(lengths[group].max())
        room = setup.generate_tokens if positions is None else min(setup.generate_tokens, positions - width)
        if room < 1:
            continue
        prompts = np.full((len(group), width), setup.data.pad_token, dtype=np.int64)
        mask = np.zeros_like(prompts)
        for line, row in enumerate(rows[group]):
            length, first = int(split.answer_from[row]), int(split.offsets[row])
            prompts[line, width - length :] = split.input_ids[first : first + length]
            mask[line, width - length :] = 1
        with autocast(setup, device):
            answer = model.generate(
                input_ids=torch.from_numpy(prompts).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                max_new_tokens=room,
                do_sample=False,
                pad_token_id=setup.data.pad_token,
                stopping_criteria=[_Ticking(clock)],
            )
        decoded = setup.tokenizer.batch_decode(answer[:, width:], skip_special_tokens=True)
        for index, text in zip(group, decoded, strict=True):
            texts[index] = text.strip()
    return texts
