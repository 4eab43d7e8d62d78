"""Measurements on the frozen base: which head to use, and how fast this worker is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from autopeft.compose.base import Carrier
from autopeft.data.batches import pad
from autopeft.data.encoded import Array, EncodedSplit
from autopeft.evidence.probe import ProbeResult, linear_probe
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import autocast, tensors
from autopeft.trial.setup import WorkSetup

PROBE_TRAIN_ROWS = 5000
PROBE_SEED = 7
MIN_ROWS = 100
EARLY_SECONDS = 4.0
"""After about so long the best head is taken if it is clearly the best; else more rows are looked at."""
CLEAR = 3.0
"""Standard errors by which the best head is better than each other one."""


def _choice(rows: int, most: int) -> Array:
    """So many rows, the same every time; fewer are a part of more."""
    return np.sort(np.random.default_rng(PROBE_SEED).permutation(rows)[:most])


def _affordable(carrier: Carrier, split: EncodedSplit, setup: WorkSetup, device: torch.device) -> tuple[int, int]:
    """Rows whose features can be computed early, and in all of the time for it, from one timed batch."""
    sample = _choice(split.rows, setup.evaluation_rows)
    features(carrier, split, sample, setup, device)
    began = time.monotonic()
    features(carrier, split, sample, setup, device)
    each = (time.monotonic() - began) / len(sample)
    in_all = max(4 * MIN_ROWS, int(setup.probe_seconds / each))
    return min(in_all, max(4 * MIN_ROWS, int(EARLY_SECONDS / each))), in_all


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
    longest_first = rows[np.argsort(-split.lengths[rows], kind="stable")]
    for start in range(0, len(rows), setup.evaluation_rows):
        group = longest_first[start : start + setup.evaluation_rows]
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
    *,
    whole: bool = False,
) -> dict[str, Any]:
    """A linear probe per head on frozen features; the best head and its outputs.

    Args:
        carrier: The base.
        heads: To choose from.
        setup: Data, kind and metric.
        device: Where the base is.
        clock: The job's clock.
        whole: Whether to look at all rows for which there is time at once, instead of at few first.

    Returns:
        ``scores`` by head, ``head``, ``score``, ``rows``, ``seconds``, ``whole`` (whether more rows would have been
        looked at but for the head that few of them told), and ``outputs`` (arrays over the validation rows).
    """
    began = time.monotonic()
    train, validation = setup.data.splits["train"], setup.data.splits["validation"]
    if train.labels is None or validation.labels is None:
        raise ValueError("a linear probe needs labels")
    found: dict[str, ProbeResult] = {}
    known: dict[str, _Known] = {"train": _Known(), "validation": _Known()}
    chosen: Array = np.zeros(0, dtype=np.int64)
    amounts = sorted(set(_affordable(carrier, train, setup, device)))
    for rows in amounts[-1:] if whole else amounts:
        chosen = _choice(train.rows, min(PROBE_TRAIN_ROWS, round(0.7 * rows)))
        seen = _choice(validation.rows, max(MIN_ROWS, round(0.3 * rows)))
        of_train, of_validation = (
            known[name].extended(carrier, split, wanted, setup, device, clock)
            for name, split, wanted in (("train", train, chosen), ("validation", validation, seen))
        )
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
        if rows < amounts[-1] and _clear(found, setup.kind):
            break
    best = max(heads, key=lambda head: found[head].score)
    return {
        "scores": {head: probe.score for head, probe in found.items()},
        "head": best,
        "score": found[best].score,
        "rows": len(chosen),
        "whole": rows == amounts[-1] or len(chosen) == min(PROBE_TRAIN_ROWS, train.rows),
        "outputs": found[best].outputs,
        "seconds": time.monotonic() - began,
    }


class _Known:
    """Features that were computed already."""

    def __init__(self) -> None:
        self._rows: Array = np.zeros(0, dtype=np.int64)
        self._features: dict[str, Array] = {}

    def extended(
        self,
        carrier: Carrier,
        split: EncodedSplit,
        rows: Array,
        setup: WorkSetup,
        device: torch.device,
        clock: JobClock | None,
    ) -> dict[str, Array]:
        """The features of rows among which all earlier ones are."""
        new = features(carrier, split, np.setdiff1d(rows, self._rows), setup, device, clock)
        both = np.concatenate([self._rows, np.setdiff1d(rows, self._rows)])
        order = np.argsort(both, kind="stable")
        joined = {
            name: np.concatenate([self._features[name], values])[order] if self._features else values
            for name, values in new.items()
        }
        self._rows, self._features = rows, joined or self._features
        return self._features


def _clear(found: Mapping[str, ProbeResult], kind: str) -> bool:
    """Whether one head is better than each other one by more than chance makes of it."""
    quality = {}
    for head, probe in found.items():
        label, told = probe.outputs["label"], probe.outputs["prediction"]
        quality[head] = -np.square(told - label) if kind == "regression" else (told == label).astype(np.float64)
    best = max(found, key=lambda head: found[head].score)
    for head, values in quality.items():
        difference = quality[best] - values
        error = float(difference.std()) / len(difference) ** 0.5
        if head != best and float(difference.mean()) <= CLEAR * error:
            return False
    return True
