"""Training one configuration up to a rung."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.host import spare_casts
from autopeft.compose.layers import reseed
from autopeft.compose.lookup import Entry
from autopeft.cost.live import LiveBytes, measure
from autopeft.cost.step import StepTensors, compute_gradients, micro_batches, train_step
from autopeft.data.batches import TrainStream, pad
from autopeft.data.encoded import Array
from autopeft.strategy.jobs import Train
from autopeft.trial.clock import JobClock
from autopeft.trial.frozen import FrozenPrefix
from autopeft.trial.schedule import factor
from autopeft.trial.setup import Progress, WorkSetup

SMOOTHING = 0.95
CURVE_POINTS = 16


@dataclass(slots=True)
class TrainResult:
    """What a stretch of training took and showed.

    Attributes:
        rows: Rows trained.
        seconds: Wall seconds, without those that computing hidden states to keep took.
        losses: `(rows, mean loss)` of every step.
        peak_bytes: Live tensor bytes of the measured step, or None.
    """

    rows: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    peak_bytes: int | None = None

    def late_loss(self) -> float | None:
        """Row-weighted mean of the loss over the last quarter of the rows."""
        seen, total, weight = 0, 0.0, 0
        for rows, loss in self.losses:
            seen += rows
            if seen > 0.75 * self.rows:
                total += rows * loss
                weight += rows
        return total / weight if weight else None

    def curve(self, rows_from: int, points: int = CURVE_POINTS) -> list[tuple[int, float]]:
        """The losses in short: `(rows that the trial has seen, row-weighted mean loss since the point before)`.

        Args:
            rows_from: Rows that it had seen before.
            points: Most points, evenly spread over the rows.
        """
        curve: list[tuple[int, float]] = []
        seen, total, weight = 0, 0.0, 0
        for rows, loss in self.losses:
            seen, total, weight = seen + rows, total + rows * loss, weight + rows
            if seen * points >= (len(curve) + 1) * self.rows:
                curve.append((rows_from + seen, total / weight))
                total, weight = 0.0, 0
        return curve


def run(
    model: AdaptedModel,
    optimizer: torch.optim.AdamW,
    job: Train,
    setup: WorkSetup,
    device: torch.device,
    clock: JobClock | None = None,
    *,
    measured: bool = False,
    prefix: FrozenPrefix | None = None,
) -> TrainResult:
    """Train from ``job.rows_from`` to at least ``job.rows_to`` rows.

    Args:
        model: The adapted model.
        optimizer: Its optimizer.
        job: What to do.
        setup: Data, kind and precision.
        device: Where the model is.
        clock: The job's clock; None for no limit.
        measured: Whether live bytes are counted before the second step, when the optimizer's moments exist.
        prefix: The hidden states at which the forward passes begin; None for whole passes.

    Raises:
        TrialFailure: ``nan`` when the loss is not finite, ``timeout`` past the clock's limit.
    """
    split = setup.data.splits["train"]
    stream = TrainStream(split, job.configuration.training.batch_size, job.seed)
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None
    clock, prefix = clock or JobClock(), prefix or FrozenPrefix()
    result, smoothed = TrainResult(), math.nan
    began, filled = time.monotonic(), prefix.use.fill_seconds
    ahead = min(job.rows_to, job.rows_from + stream.rows_per_epoch)
    entry = prefix.entry("train", np.concatenate([*stream.batches(job.rows_from, ahead), np.zeros(0, np.int64)]))
    reseed(model, job.seed * 1_000_003 + job.rows_from)
    model.train()
    if precision is not None:
        spare_casts(model)
    for rows in stream.batches(job.rows_from):
        seen = job.rows_from + result.rows
        if seen >= job.rows_to:
            break
        scale = factor(seen, warmup_rows=job.warmup_rows, rows_to=job.rows_to, cooldown_rows=job.cooldown_rows)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        batch = _pieces(rows, job, setup, device, entry)
        if measured and len(result.losses) == 1:
            # Computing states that are missing is no part of a step.
            prefix.warm("train", longest_rows(job, setup))
            result.peak_bytes = peak_bytes(model, optimizer, job, setup, device, entry)
        loss = train_step(model, batch, optimizer, setup.kind, precision)
        result.rows += len(rows)
        result.losses.append((len(rows), loss))
        smoothed = loss if math.isnan(smoothed) else SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        clock.check(Progress(job.trial, job.rows_from + result.rows, smoothed))
    result.seconds = time.monotonic() - began - (prefix.use.fill_seconds - filled)
    return result


def peak_bytes(
    model: AdaptedModel,
    optimizer: torch.optim.AdamW,
    job: Train,
    setup: WorkSetup,
    device: torch.device,
    entry: Callable[[Array, int], Entry] | None = None,
) -> int:
    """Live tensor bytes of a step at the longest batch, base included; nothing is learned from it."""
    batch = _pieces(longest_rows(job, setup), job, setup, device, entry)
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None

    def step(counter: LiveBytes) -> None:
        compute_gradients(model, batch, optimizer, setup.kind, precision, mark=counter.mark)

    moments = [value for state in optimizer.state.values() for value in state.values()]
    inputs = [tensor for piece in batch for tensor in piece.all()]
    peak = measure(step, [*model.parameters(), *model.buffers(), *moments, *inputs])
    optimizer.zero_grad(set_to_none=True)
    return peak.bytes


def longest_rows(job: Train, setup: WorkSetup) -> Array:
    """A batch of the longest training rows, int64 `[batch]`."""
    lengths = setup.data.splits["train"].lengths
    longest: Array = np.argsort(lengths, kind="stable")[-job.configuration.training.batch_size :]
    return longest


def _pieces(
    rows: Array, job: Train, setup: WorkSetup, device: torch.device, entry: Callable[[Array, int], Entry] | None
) -> list[StepTensors]:
    batch = pad(setup.data.splits["train"], rows, setup.data.pad_token)
    at_once = job.execution.rows(job.configuration.training.batch_size)
    return micro_batches(batch, setup.kind, at_once, device, entry)
