"""Latency that an adapter adds to the forward pass, measured against the bare base model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from autopeft.cost.step import StepTensors

__all__ = ["Forward", "overhead"]

Forward = Callable[[Tensor, Tensor, Tensor | None], object]

MIN_REPEATS = 5
MIN_SECONDS = 0.3
MAX_REPEATS = 1000


def overhead(
    adapted: Forward,
    base: Forward,
    batch: StepTensors,
    *,
    merged: bool = False,
    autocast_dtype: torch.dtype | None = None,
    most_seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Time of the adapted forward pass as a multiple of the bare base model's, for a batch and for one row.

    The two are run in turns, and which goes first alternates, so that a change of the machine's load strikes both. A
    ratio is the median over the turns.

    Args:
        adapted: The adapted model, in eval mode.
        base: The bare base model with the same head, in eval mode.
        batch: A batch of typical size and length (16 rows).
        merged: Whether the adapter is served merged into the base weights: the ratios are then 1 by construction, and
            nothing is run.
        autocast_dtype: Dtype of autocast, or None.
        most_seconds: After so long, one turn is enough for each ratio.
        clock: Seconds.

    Returns:
        Rows -> the ratio; 1.0 is no overhead.
    """
    rows = batch.input_ids.shape[0]
    if merged:
        return dict.fromkeys((1, rows), 1.0)
    types = batch.token_types
    single = replace(
        batch,
        input_ids=batch.input_ids[:1],
        attention_mask=batch.attention_mask[:1],
        token_types=None if types is None else types[:1],
    )
    batches = {1: single, rows: batch}
    device = batch.input_ids.device.type
    with torch.inference_mode(), torch.autocast(device, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        return {rows: _ratio(adapted, base, each, most_seconds, clock) for rows, each in batches.items()}


def _ratio(
    adapted: Forward, base: Forward, batch: StepTensors, most_seconds: float, clock: Callable[[], float]
) -> float:
    def timed(forward: Forward) -> float:
        _synchronise(batch.input_ids)
        begin = clock()
        forward(batch.input_ids, batch.attention_mask, batch.token_types)
        _synchronise(batch.input_ids)
        return clock() - begin

    # The first pass pays for kernels and caches that later passes find ready.
    warm = timed(base) + timed(adapted)
    ratios: list[float] = []
    spent = 0.0
    while len(ratios) < MAX_REPEATS and (len(ratios) < MIN_REPEATS or spent < MIN_SECONDS):
        if ratios and warm + spent > most_seconds:
            break
        if len(ratios) % 2:
            second, first = timed(adapted), timed(base)
        else:
            first, second = timed(base), timed(adapted)
        ratios.append(second / first)
        spent += first + second
    return statistics.median(ratios)


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
