"""A trial that is about to be trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from autopeft.compose.adapt import AdaptedModel
from autopeft.strategy.jobs import Train

__all__ = ["Started"]


@dataclass(frozen=True, slots=True)
class Started:
    """What a job trains.

    Attributes:
        job: The job; from row 0 where its checkpoint could not be read.
        model: The trial's model.
        optimizer: Its optimizer.
        latency: Rows -> ratio to the bare base, or None where it was not measured.
    """

    job: Train
    model: AdaptedModel
    optimizer: torch.optim.AdamW
    latency: dict[str, float] | None = None

    def at(self, first: int, last: int) -> Started:
        """The same from one step to another, counted in batches."""
        size = self.job.configuration.training.batch_size
        return replace(self, job=replace(self.job, rows_from=first * size, rows_to=last * size))
