"""What a running search tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a search stands.

    Attributes:
        phase: ``prepare``, ``probe``, ``explore``, ``confirm``, ``test`` or ``done``.
        done: Trials that were trained in full.
        stopped: Trials that were stopped early.
        paused: Trials that wait for promotion.
        infeasible: Trials and proposals that broke a limit.
        failed: Trials that broke.
        running: For each busy worker: trial, arm, methods, params, rung, rows, rows_to, score.
        best: The best trial of the user's space: trial, methods, params, score, rung; None before the first rung.
        baseline_best: Likewise for tuned LoRA.
        used_seconds: Seconds used.
        left_seconds: Seconds left, or None without a limit.
        trials_started: Trials started while exploring.
        stop_now: What stopping now would give, as a sentence.
        notes: Sentences for the user so far.
    """

    phase: str
    done: int = 0
    stopped: int = 0
    paused: int = 0
    infeasible: int = 0
    failed: int = 0
    running: tuple[Mapping[str, Any], ...] = ()
    best: Mapping[str, Any] | None = None
    baseline_best: Mapping[str, Any] | None = None
    used_seconds: float = 0.0
    left_seconds: float | None = None
    trials_started: int = 0
    stop_now: str = "nothing yet"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened.

    Attributes:
        type: A journal record's type, or ``tick`` about once a second.
        data: The record's members; empty for a tick.
        snapshot: Where the search stands now.
    """

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=lambda: Snapshot("prepare"))


Listener = Callable[[Event], None]
