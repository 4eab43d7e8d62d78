"""Everything that a worker needs, as one value that can be shared between processes without a copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.compose.base import Attention, DType, SharedBase
from autopeft.data.encoded import EncodedData


@dataclass(frozen=True)
class WorkSetup:
    """What stays the same for all trials of a search.

    Attributes:
        base: The base model's tensors, never written to.
        data: The tokenised data.
        kind: The task kind.
        metric: The metric that decides.
        labels: Outputs of the head (1 for regression, 0 for language models).
        folder: The run folder; a worker on another node needs it on a shared file system.
        precision: Arithmetic of the frozen part: the base's dtype.
        attention: Attention implementation of the base.
        generate_rows: Rows for which answers are generated (exact match).
        generate_tokens: Longest generated answer.
        gpu: Whether workers compute on a GPU.
        packs: Sizes of packs whose speed is measured, besides training alone; empty to measure none.
        probe_seconds: What measuring the heads may take, about.
        limited_memory: Whether the user limits memory.
        memory_limit: Bytes that a trial's training may take; held by the allocator on GPUs.
        gpu_share: Share of its GPU that a worker may fill.
        memory_of_all: Whether every trial's memory is measured, and not only that of full trainings.
        max_latency_overhead: The limit of the budget, or None where there is nothing to measure.
        merged: Whether the winner is to be served merged into the base: it then costs nothing when it is used.
        max_adapter_size: The limit of the budget on the adapter's folder, or None.
        target: What must load the winner.
        cache_bytes: What kept hidden states of frozen blocks may take on a node; 0 keeps none, None takes a share of
            its memory.
        tokenizer: For language models, to read generated answers; None otherwise.
        meta: Stored with every adapter: how new rows are tokenised.
        evaluation_rows: Rows of an evaluation batch.
        threads: Threads that a worker computes with.
    """

    base: SharedBase
    data: EncodedData
    kind: str
    metric: str
    labels: int
    folder: str
    precision: DType
    attention: Attention
    generate_rows: int = 48
    generate_tokens: int = 64
    gpu: bool = False
    packs: tuple[int, ...] = ()
    probe_seconds: float = 60.0
    limited_memory: bool = False
    memory_limit: int | None = None
    gpu_share: float = 1.0
    memory_of_all: bool = False
    max_latency_overhead: float | None = None
    merged: bool = False
    max_adapter_size: int | None = None
    target: str = "any"
    cache_bytes: int | None = None
    tokenizer: Any = None
    meta: dict[str, Any] = field(default_factory=dict)
    evaluation_rows: int = 32
    threads: int = 1

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.folder)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is.

    Attributes:
        trial: The trial.
        rows: Rows seen by the trial so far.
        loss: Smoothed training loss, or None before the first step.
    """

    trial: str
    rows: int
    loss: float | None
