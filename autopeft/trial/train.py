"""Training one configuration up to a rung."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.host import spare_casts
from autopeft.compose.layers import reseed
from autopeft.cost.live import LiveBytes, measure
from autopeft.cost.step import StepTensors, compute_gradients, micro_batches, train_step
from autopeft.data.batches import TrainStream, pad
from autopeft.data.encoded import Array
from autopeft.strategy.jobs import Train
from autopeft.trial.clock import JobClock
from autopeft.trial.schedule import factor
from autopeft.trial.setup import Progress, WorkSetup

SMOOTHING = 0.95
CURVE_POINTS = 16


@dataclass(slots=True)
class TrainResult:
    """What a stretch of training took and showed.

    Attributes:
        rows: Rows trained.
        seconds: Wall seconds.
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

    Raises:
        TrialFailure: ``nan`` when the loss is not finite, ``timeout`` past the clock's limit.
    """
    split = setup.data.splits["train"]
    stream = TrainStream(split, job.configuration.training.batch_size, job.seed)
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None
    clock = clock or JobClock()
    result, smoothed = TrainResult(), math.nan
    began = time.monotonic()
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
        batch = _pieces(rows, job, setup, device)
        if measured and len(result.losses) == 1:
            result.peak_bytes = peak_bytes(model, optimizer, job, setup, device)
        loss = train_step(model, batch, optimizer, setup.kind, precision)
        result.rows += len(rows)
        result.losses.append((len(rows), loss))
        smoothed = loss if math.isnan(smoothed) else SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        clock.check(Progress(job.trial, job.rows_from + result.rows, smoothed))
    result.seconds = time.monotonic() - began
    return result


def peak_bytes(
    model: AdaptedModel, optimizer: torch.optim.AdamW, job: Train, setup: WorkSetup, device: torch.device
) -> int:
    """Live tensor bytes of a step at the longest batch, base included; nothing is learned from it."""
    split = setup.data.splits["train"]
    size = job.configuration.training.batch_size
    batch = _pieces(np.argsort(split.lengths, kind="stable")[-size:], job, setup, device)
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None

    def step(counter: LiveBytes) -> None:
        compute_gradients(model, batch, optimizer, setup.kind, precision, mark=counter.mark)

    moments = [value for state in optimizer.state.values() for value in state.values()]
    inputs = [tensor for piece in batch for tensor in piece.all()]
    peak = measure(step, [*model.parameters(), *model.buffers(), *moments, *inputs])
    optimizer.zero_grad(set_to_none=True)
    return peak.bytes


def _pieces(rows: Array, job: Train, setup: WorkSetup, device: torch.device) -> list[StepTensors]:
    batch = pad(setup.data.splits["train"], rows, setup.data.pad_token)
    at_once = job.execution.rows(job.configuration.training.batch_size)
    return micro_batches(batch, setup.kind, at_once, device)
