"""How a configuration's steps are computed: the same gradients in less memory, for more time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PLAIN", "Execution", "executions"]

SMALL = 4
"""Rows below which smaller pieces cost more time than recomputing does."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How the batches of a configuration are computed. Not part of what is trained: gradients are the same.

    Attributes:
        micro_batch: Rows that go through the model at once; the gradients of a batch's pieces are added up (gradient
            accumulation). None for the whole batch.
        checkpointing: Whether the activations of every block are recomputed in the backward pass instead of kept
            (Chen et al. 2016, arXiv 1604.06174).
    """

    micro_batch: int | None = None
    checkpointing: bool = False

    def rows(self, batch_size: int) -> int:
        """Rows that go through the model at once."""
        return batch_size if self.micro_batch is None else min(self.micro_batch, batch_size)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the journal."""
        return {"micro_batch": self.micro_batch, "checkpointing": self.checkpointing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Execution:
        """The inverse of `to_dict`; None is the plain one."""
        return PLAIN if values is None else cls(values["micro_batch"], values["checkpointing"])


PLAIN = Execution()


def executions(batch_size: int, *, checkpoints: bool = True) -> Iterator[Execution]:
    """Ways to compute a batch in ever less memory, those that cost the least time first.

    Args:
        batch_size: Rows of the batch.
        checkpoints: Whether the model's blocks can be recomputed.
    """
    yield PLAIN
    pieces = list(_halves(batch_size))
    yield from (Execution(rows) for rows in pieces if rows >= SMALL or not checkpoints)
    if checkpoints:
        yield Execution(None, checkpointing=True)
        yield from (Execution(rows, checkpointing=True) for rows in pieces)


def _halves(rows: int) -> Iterator[int]:
    while rows > 1:
        rows //= 2
        yield rows
