"""What the reports show of trials: one by one, and counted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from autopeft.journal import SearchLog, TrialLog, describe
from autopeft.methods import METHODS


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A line of the table of trials; the numbers are those of its last rung."""

    trial: str
    arm: str
    purpose: str
    seed: int
    status: str
    methods: str
    adapter_params: int | None
    layers: str
    rate: float
    batch_size: int
    rows: int
    score: float | None
    loss: float | None
    peak_bytes: int | None
    seconds: float
    reason: str


def trial_row(log: SearchLog, trial: TrialLog) -> TrialRow:
    """A trial as a line of the table."""
    known = log.configurations.get(trial.hash)
    about = describe(known.configuration if known else {}, log.modules)
    reason = trial.reason or (trial.decisions[-1].reason if trial.decisions and trial.ended is None else "")
    return TrialRow(
        trial=trial.id,
        arm=trial.arm,
        purpose=trial.purpose,
        seed=trial.seed,
        status=trial.status,
        methods=about.methods,
        adapter_params=known.adapter_params if known else None,
        layers=about.layers,
        rate=about.rate,
        batch_size=about.batch_size,
        rows=trial.rows,
        score=trial.score(log.rung_metric),
        loss=trial.rungs[-1].loss if trial.rungs else None,
        peak_bytes=trial.peak_bytes,
        seconds=trial.seconds,
        reason=": ".join(text for text in (reason, trial.detail) if text),
    )


def progress(log: SearchLog) -> dict[str, list[tuple[float, float]]]:
    """Arm -> `(seconds used, best score among those that had gone furthest by then)`.

    Scores of an early rung are about fewer rows, so that one that goes further takes the place of all before it.
    """
    reached = [(rung.used, trial, rung) for trial in log.trials.values() for rung in trial.rungs]
    best: dict[str, tuple[int, float]] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for used, trial, rung in sorted(reached, key=lambda point: point[0]):
        score = rung.metrics.get(log.rung_metric)
        if score is None or trial.purpose != "explore" or trial.status in ("failed", "infeasible"):
            continue
        if (rung.rung, score) > best.get(trial.arm, (-1, 0.0)):
            best[trial.arm] = (rung.rung, score)
            curves.setdefault(trial.arm, []).append((used, score))
    return curves


def rates(log: SearchLog) -> tuple[tuple[str, str, float, float, bool], ...]:
    """Of the exploration `(arm, methods, learning rate, last score, whether it was trained in full)`.

    Methods have rates of very different size: each counts as a multiple of its default, a mix by the geometric mean.
    """
    points = []
    for trial in log.trials.values():
        known, score = log.configurations.get(trial.hash), trial.score(log.rung_metric)
        if known is None or score is None or trial.purpose != "explore":
            continue
        about = describe(known.configuration)
        times = [math.log(rate / METHODS[name].rate.default) for name, rate in about.rates.items() if name in METHODS]
        if times:
            middle = math.exp(sum(times) / len(times))
            points.append((trial.arm, about.methods, middle, score, trial.status == "completed"))
    return tuple(points)


def failures(log: SearchLog) -> dict[str, tuple[int, str]]:
    """Cause -> `(number, an example's words)`."""
    causes: dict[str, tuple[int, str]] = {}
    for trial in log.trials.values():
        if trial.status in ("failed", "infeasible"):
            cause = f"{trial.status}: {trial.reason}"
            count, words = causes.get(cause, (0, ""))
            causes[cause] = (count + 1, words or trial.detail or "")
    return causes


def busy(log: SearchLog) -> dict[str, float]:
    """What workers computed -> busy seconds: explored trials by what became of them, and all that was done beside."""
    named = {"confirm": "confirming finalists", "simplify": "dropping parts in turn"}
    spent = summed((named.get(trial.purpose, trial.status), trial.seconds) for trial in log.trials.values())
    probes = sum(float(probe.get("seconds") or 0.0) for probe in log.probes.values())
    beside = {"probes": probes, "test rows and eval sets": log.evaluating}
    return {**spent, **{name: seconds for name, seconds in beside.items() if seconds > 0}}


def summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Name -> sum of its numbers."""
    sums: dict[str, float] = {}
    for name, seconds in pairs:
        sums[name] = sums.get(name, 0.0) + seconds
    return sums
