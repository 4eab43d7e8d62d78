"""Measurements on the frozen base: which head to use, and how fast this worker is."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from autopeft.compose.base import Carrier
from autopeft.data.batches import evaluation_batches, pad
from autopeft.data.encoded import Array, EncodedSplit
from autopeft.evidence.probe import linear_probe
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import autocast, tensors
from autopeft.trial.setup import WorkSetup

PROBE_TRAIN_ROWS = 5000
PROBE_SEED = 7
MIN_ROWS = 100


def _choice(rows: int, most: int) -> Array:
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(PROBE_SEED).choice(rows, most, replace=False))


def _affordable(carrier: Carrier, split: EncodedSplit, setup: WorkSetup, device: torch.device) -> int:
    """Rows whose features can be computed in the time for it, from one timed batch."""
    sample = _choice(split.rows, setup.evaluation_rows)
    features(carrier, split, sample, setup, device)
    began = time.monotonic()
    features(carrier, split, sample, setup, device)
    each = (time.monotonic() - began) / len(sample)
    return max(4 * MIN_ROWS, int(setup.probe_seconds / each))


@torch.inference_mode()
def features(
    carrier: Carrier,
    split: EncodedSplit,
    rows: Array,
    setup: WorkSetup,
    device: torch.device,
    clock: JobClock | None = None,
) -> dict[str, Array]:
    """Pooled outputs of the frozen base by head name, float32 `[rows, width]` each.

    ``cls`` is the first token, ``mean`` the mean over the row's tokens, ``stock`` what the base model's own pooler
    makes of them (the first token where it has none).
    """
    place = np.full(split.rows, -1)
    place[rows] = np.arange(len(rows))
    result: dict[str, Array] = {}
    for group in evaluation_batches(split, setup.evaluation_rows):
        group = group[place[group] >= 0]
        if not len(group):
            continue
        if clock is not None:
            clock.check()
        inputs = tensors(pad(split, group, setup.data.pad_token), device)
        with autocast(setup, device):
            output = carrier.model(**inputs)
        hidden = output.last_hidden_state.float()
        mask = inputs["attention_mask"][..., None].float()
        pooler = getattr(output, "pooler_output", None)
        pooled = {
            "cls": hidden[:, 0],
            "mean": (hidden * mask).sum(1) / mask.sum(1).clamp(min=1),
            "stock": hidden[:, 0] if pooler is None else pooler.float(),
        }
        for name, values in pooled.items():
            array = values.cpu().numpy()
            target = result.setdefault(name, np.zeros((len(rows), array.shape[1]), dtype=np.float32))
            target[place[group]] = array
    return result


def choose_head(
    carrier: Carrier,
    heads: tuple[str, ...],
    setup: WorkSetup,
    device: torch.device,
    clock: JobClock | None = None,
) -> dict[str, Any]:
    """A linear probe per head on frozen features; the best head and its outputs.

    Returns:
        ``scores`` by head, ``head``, ``score``, ``seconds``, and ``outputs`` (arrays over the validation rows).
    """
    began = time.monotonic()
    train, validation = setup.data.splits["train"], setup.data.splits["validation"]
    rows = _affordable(carrier, train, setup, device)
    chosen = _choice(train.rows, min(PROBE_TRAIN_ROWS, round(0.7 * rows)))
    seen = _choice(validation.rows, max(MIN_ROWS, round(0.3 * rows)))
    if train.labels is None or validation.labels is None:
        raise ValueError("a linear probe needs labels")
    of_train = features(carrier, train, chosen, setup, device, clock)
    of_validation = features(carrier, validation, seen, setup, device, clock)
    found = {
        head: linear_probe(
            of_train[head],
            train.labels[chosen],
            of_validation[head],
            validation.labels[seen],
            kind=setup.kind,
            metric=setup.metric,
        )
        for head in heads
    }
    best = max(heads, key=lambda head: found[head].score)
    return {
        "scores": {head: probe.score for head, probe in found.items()},
        "head": best,
        "score": found[best].score,
        "rows": len(chosen),
        "outputs": found[best].outputs,
        "seconds": time.monotonic() - began,
    }
