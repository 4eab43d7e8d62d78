"""What a worker can be asked to do, and what it answers: plain values that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN, Execution

Arm = Literal["baseline", "space", "incumbent"]
Purpose = Literal["explore", "simplify", "confirm"]


@dataclass(frozen=True, slots=True)
class Train:
    """Train one trial up to a rung and evaluate it on the validation rows.

    Attributes:
        trial: The trial's id, e.g. ``t0007``.
        configuration: What is trained.
        seed: Seed of the initial values, the order of rows and the dropout.
        rows_from: Rows that the trial has seen already (0: a fresh start; otherwise its checkpoint is read).
        rows_to: Rows it shall have seen at the end of the job.
        warmup_rows: Rows over which the rates rise linearly from 0.
        cooldown_rows: Rows before `rows_to` over which the rates fall linearly to 0; 0 except in a final rung.
        rung: Index of the rung that this job ends at.
        head: The head on top (``stock``, ``cls``, ``mean``; ``lm`` for language models).
        evaluate_rows: Validation rows to evaluate on, a fixed choice of them; None for all.
        final: Whether generation metrics are computed as well (exact match for ``causal_lm``).
        folder: Where checkpoint and outputs are written, relative to the run folder: ``trials/<trial>``.
        time_limit: Seconds after which the job is given up, or None.
        execution: How its batches are computed.
        latency: Whether the time of a forward pass is measured against the bare base's.
        latency_limited: Whether that is held against the limit on it.
        cut: Whether its time limit is the end of the exploration, and says nothing against it.
    """

    trial: str
    configuration: Configuration
    seed: int
    rows_from: int
    rows_to: int
    warmup_rows: int
    cooldown_rows: int
    rung: int
    folder: str
    head: str
    evaluate_rows: int | None = None
    final: bool = False
    time_limit: float | None = None
    execution: Execution = PLAIN
    latency: bool = False
    latency_limited: bool = True
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """A measurement that trains no adapter.

    Attributes:
        kind: ``heads``: features of the frozen base, a linear probe for each head, the best head and its score;
            ``speed``: seconds per row of training and evaluation for a LoRA on every linear layer.
        heads: For ``heads``, the heads to choose from; for ``speed``, the one in use.
        time_limit: Seconds after which its worker is taken for hung, or None.
        whole: For ``heads``, whether all rows are looked at for which there is time, and not only as many as tell the
            best head.
    """

    kind: Literal["heads", "speed"]
    heads: tuple[str, ...]
    time_limit: float | None = None
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a stored adapter on a split.

    Attributes:
        name: A label for the outcome, e.g. ``baseline`` or ``incumbent``.
        folder: The adapter folder (absolute, or relative to the run folder).
        split: ``validation``, ``test``, or the name of an eval set.
        outputs: File for the per-example outputs, relative to the run folder.
        rows: Rows to evaluate on, a fixed choice of them; None for all.
        sha256: Checksum of the adapter's weights that must match, or None.
        time_limit: Seconds after which the job is given up, or None.
    """

    name: str
    folder: str
    split: str
    outputs: str
    rows: int | None = None
    sha256: str | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Train several trials at once on one worker: each is its own `Train`, and all share the resident base.

    Attributes:
        members: What each of them does; they are under one head.
        time_limit: Seconds after which all that is left of it is given up, or None.
    """

    members: tuple[Train, ...]
    time_limit: float | None = None


Job = Train | Probe | Evaluate | Pack


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        status: ``ok``; ``failed`` (something broke); ``infeasible`` (the configuration must not be tried again).
        reason: One word when not ok: ``nan``, ``oom``, ``timeout``, ``lost``, ``params``, ``latency``, ``error``.
        detail: One sentence when not ok.
        metrics: Metric name -> value on the split evaluated (validation for `Train`).
        loss: Mean training loss over the last quarter of the job's rows, or None.
        seconds: Wall seconds of the job on its worker.
        train_seconds: Of these, seconds in optimizer steps.
        evaluate_seconds: Of these, seconds in evaluation.
        rows: Rows trained by this job.
        peak_bytes: Highest count of live tensor bytes seen, base included, or None where it was not measured.
        outputs: File with per-example outputs (safetensors), relative to the run folder, or None.
        adapter: Folder of the checkpoint, relative to the run folder, or None.
        sha256: Checksum of the checkpoint's weights, or None.
        values: What a probe found.
        losses: A short training-loss curve: `(rows that the trial has seen, mean loss since the point before)`.
        members: For `Pack`: what became of each member, in their order; seconds of the pack are shared out among them.
    """

    job: Job
    status: Literal["ok", "failed", "infeasible"] = "ok"
    reason: str | None = None
    detail: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    rows: int = 0
    peak_bytes: int | None = None
    outputs: str | None = None
    adapter: str | None = None
    sha256: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)
    members: tuple[Outcome, ...] = ()
