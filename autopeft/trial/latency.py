"""What an adapter adds to a forward pass, on the longest validation rows."""

from __future__ import annotations

import torch
from torch import Tensor

from autopeft.compose.adapt import AdaptedModel
from autopeft.cost.latency import Forward, overhead, overhead_seconds
from autopeft.cost.step import StepTensors, answer_logits, step_tensors
from autopeft.data.batches import evaluation_batches, pad
from autopeft.trial.setup import WorkSetup

LATENCY_ROWS = 16
MOST_SECONDS = 4.0
"""For each of the two ratios of a finalist, about: a large model gets fewer turns."""
LIMITED_SECONDS = 20.0
"""The same where a limit is held against the ratios: of every configuration."""
LONGEST = 60.0
"""Seconds that the batch may take at one turn: of a very large model it has fewer rows."""


def patience(*, limited: bool) -> float:
    """After how many seconds one turn is enough.

    Args:
        limited: Whether a limit is held against the ratios.
    """
    return LIMITED_SECONDS if limited else MOST_SECONDS


def latency_seconds(row: float, *, limited: bool, merged: bool) -> float:
    """Seconds that measuring a trial's latency takes, about.

    Args:
        row: Seconds of evaluating a row.
        limited: Whether a limit is held against the ratios.
        merged: Whether the adapter is served merged: nothing is run.
    """
    most = patience(limited=limited)
    return overhead_seconds(row, LATENCY_ROWS, merged=merged, most_seconds=most, longest=LONGEST, limited=limited)


def measure_latency(
    model: AdaptedModel, bare: AdaptedModel, setup: WorkSetup, device: torch.device, *, limit: float | None = None
) -> dict[int, float]:
    """Rows in a batch -> time of a forward pass over the bare base's: for one row, and for 16 or all there are.

    Of a model of which a batch takes longer than `LONGEST` it has fewer rows.

    Args:
        model: The adapted model; put into evaluation mode.
        bare: The base under the same head, without any part.
        setup: Data and precision.
        device: Where both are.
        limit: What the ratios are held against, or None.
    """
    split = setup.data.splits["validation"]
    rows = next(iter(evaluation_batches(split, LATENCY_ROWS)))
    batch = step_tensors(pad(split, rows, setup.data.pad_token), setup.kind, device)
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None
    return overhead(
        _forward(model.eval(), setup.kind),
        _forward(bare.eval(), setup.kind),
        batch,
        merged=setup.merged,
        autocast_dtype=precision,
        most_seconds=patience(limited=limit is not None),
        longest=LONGEST,
        limit=limit,
    )


def _forward(model: AdaptedModel, kind: str) -> Forward:
    """A forward pass as it is served: a language model gives the logits of the last token of each row."""
    if kind != "causal_lm":
        return model

    def last(ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        rows, length = ids.shape
        ends = torch.arange(1, rows + 1, device=ids.device) * length - 1
        return answer_logits(model, StepTensors(ids, mask, types, ends, ends))

    return last
