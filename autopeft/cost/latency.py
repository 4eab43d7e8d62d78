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

__all__ = ["Forward", "overhead", "overhead_seconds"]

Forward = Callable[[Tensor, Tensor, Tensor | None], object]

MIN_REPEATS = 5
MIN_SECONDS = 0.3
MAX_REPEATS = 1000
UNDECIDED_SECONDS = 1.5
"""A ratio that a limit may lie on either side of is measured on for so long."""


def overhead(
    adapted: Forward,
    base: Forward,
    batch: StepTensors,
    *,
    merged: bool = False,
    autocast_dtype: torch.dtype | None = None,
    most_seconds: float = math.inf,
    longest: float = math.inf,
    limit: float | None = None,
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
        longest: Seconds that the batch may take at one turn: where one row shows that it would take longer, it has
            fewer rows, down to none beside the one row.
        limit: What the ratios will be held against: while the 95 % interval of a median holds it, more turns are run,
            so that chance refuses little and admits little.
        clock: Seconds.

    Returns:
        Rows -> the ratio; 1.0 is no overhead.
    """
    rows = batch.input_ids.shape[0]
    if merged:
        return dict.fromkeys((1, rows), 1.0)
    device = batch.input_ids.device.type
    with torch.inference_mode(), torch.autocast(device, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        single, seconds = _ratio(adapted, base, _first(batch, 1), most_seconds, limit, clock)
        rows = _rows_in(rows, seconds, longest)
        if rows == 1:
            return {1: single}
        return {1: single, rows: _ratio(adapted, base, _first(batch, rows), most_seconds, limit, clock)[0]}


def overhead_seconds(
    row: float,
    rows: int,
    *,
    merged: bool = False,
    most_seconds: float = math.inf,
    longest: float = math.inf,
    limited: bool = False,
) -> float:
    """Seconds that `overhead` takes, about, where a pass of the adapted model takes as long as one of the base.

    Args:
        row: Seconds of a forward pass for each of its rows.
        rows: Rows of the batch.
        merged: As for `overhead`.
        most_seconds: As for `overhead`.
        longest: As for `overhead`.
        limited: Whether a limit is held against the ratios, which may lie near it.
    """
    if merged:
        return 0.0
    least = UNDECIDED_SECONDS if limited else MIN_SECONDS
    return sum(_turns_seconds(2 * row * each, least, most_seconds) for each in {1, _rows_in(rows, row, longest)})


def _turns_seconds(turn: float, least: float, most_seconds: float) -> float:
    """Seconds of one ratio: the passes to warm up, and then turns of so many seconds."""
    turns = min(MAX_REPEATS, max(MIN_REPEATS, math.ceil(least / turn))) if turn > 0 else MAX_REPEATS
    if turn > 0 and math.isfinite(most_seconds):
        turns = min(turns, max(1, math.floor(most_seconds / turn)))
    return turn * (1 + turns)


def _rows_in(rows: int, row: float, longest: float) -> int:
    """Rows of a batch of which the passes to warm up and one turn, four passes, take no longer than that."""
    return rows if 4 * row * rows <= longest else max(1, int(longest / (4 * row)))


def _first(batch: StepTensors, rows: int) -> StepTensors:
    types = batch.token_types
    return replace(
        batch,
        input_ids=batch.input_ids[:rows],
        attention_mask=batch.attention_mask[:rows],
        token_types=None if types is None else types[:rows],
    )


def _ratio(
    adapted: Forward,
    base: Forward,
    batch: StepTensors,
    most_seconds: float,
    limit: float | None,
    clock: Callable[[], float],
) -> tuple[float, float]:
    """The ratio, and seconds of a pass of the bare base: the median over the turns of each."""

    def timed(forward: Forward) -> float:
        _synchronise(batch.input_ids)
        begin = clock()
        forward(batch.input_ids, batch.attention_mask, batch.token_types)
        _synchronise(batch.input_ids)
        return clock() - begin

    # The first pass pays for kernels and caches that later passes find ready.
    warm = timed(base) + timed(adapted)
    ratios: list[float] = []
    passes: list[float] = []
    spent = 0.0
    while len(ratios) < MAX_REPEATS and (
        len(ratios) < MIN_REPEATS
        or spent < MIN_SECONDS
        or (spent < UNDECIDED_SECONDS and limit is not None and _may_be(limit, ratios))
    ):
        if ratios and warm + spent > most_seconds:
            break
        if len(ratios) % 2:
            second, first = timed(adapted), timed(base)
        else:
            first, second = timed(base), timed(adapted)
        ratios.append(second / first)
        passes.append(first)
        spent += first + second
    return statistics.median(ratios), statistics.median(passes)


def _may_be(median: float, values: list[float]) -> bool:
    """Whether a 95 % interval of the values' median holds a number: between two of their order statistics."""
    ordered = sorted(values)
    outside = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
    return ordered[outside] <= median <= ordered[-1 - outside]


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
