"""The signatures of a search, read off its journal: the same for the result and for every report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from autopeft.evidence.limits import ending
from autopeft.evidence.metrics import ALL_METRICS, Floats, bounds
from autopeft.evidence.outlook import WORTH, Gain, Outlook, labels_gain, outlook, search_gain
from autopeft.evidence.power import COUNTED
from autopeft.evidence.signatures import (
    Curve,
    Signature,
    Step,
    capacity,
    forgetting,
    latency,
    overfitting,
    unstable_start,
)
from autopeft.journal import SearchLog, TrialLog
from autopeft.methods import METHODS

__all__ = ["advise"]

COOLDOWN_GAIN = 0.5
"""Largest share of the last rung's gain that is put down to its falling rates."""


def advise(log: SearchLog) -> list[Signature]:
    """All that was looked for, found or not: what asks for something first.

    Args:
        log: The journal, folded.
    """
    made: list[Signature] = []
    for of, arm, hash in _subjects(log):
        made += _of_configuration(log, of, arm, hash)
        made.append(_latency(log, of, arm, hash))
        test = log.tests.get("baseline" if arm == "baseline" else "challenger") or {}
        made.append(forgetting(of, str((log.header.get("task") or {}).get("kind")), test.get("ability")))
    made.append(overfitting(_steps(log)))
    made.append(_outlook(log))
    return sorted(made, key=lambda signature: (signature.found is not True, signature.found is None))


def _subjects(log: SearchLog) -> list[tuple[str, str, str]]:
    """``winner`` and ``baseline`` with their arms and configurations; once where they are the same."""
    finalists, takes = log.finalists or {}, (log.verdict or {}).get("takes")
    hashes = {"baseline": finalists.get("baseline"), "space": finalists.get("challenger")}
    for arm in hashes:
        best = log.best(arm)
        hashes[arm] = hashes[arm] or (best[0].hash if best else None)
    winning = {"challenger": "space", "baseline": "baseline"}.get(str(takes))
    if winning is None:
        best = log.best()
        winning = best[0].arm if best else "space"
    found = [("winner", winning), ("baseline", "baseline")] if winning != "baseline" else [("winner", winning)]
    return [(of, arm, str(hash)) for of, arm in found if (hash := hashes.get(arm)) in log.configurations]


def _latency(log: SearchLog, of: str, arm: str, hash: str) -> Signature:
    lora = (log.finalists or {}).get("baseline")
    budget = log.plan.get("budget") or (log.header.get("spec") or {}).get("budget") or {}
    return latency(
        of,
        log.latency(hash),
        mergeable=_mergeable(log.configurations[hash].configuration),
        lora=log.latency(lora) if lora and arm != "baseline" else None,
        limit=budget.get("max_latency_overhead"),
    )


def _mergeable(configuration: Mapping[str, Any]) -> bool:
    parts = [part for site in (configuration.get("sites") or {}).values() for part in site]
    return all(str(part["method"]) in METHODS and METHODS[str(part["method"])].mergeable for part in parts)


def _of_configuration(log: SearchLog, of: str, arm: str, hash: str) -> list[Signature]:
    known = log.configurations[hash]
    runs = log.of_configuration(hash, "confirm") or log.of_configuration(hash)
    curves = [curve for run in runs if (curve := run.losses)]
    space: Mapping[str, Any] = log.header.get("space") or {}
    limits = (space.get("baseline") or {}) if arm == "baseline" else space
    params = limits.get("params")
    made = []
    if params:
        made.append(capacity(of, known.adapter_params, params, _mean(curves), _steady(log, runs)))
    else:
        made.append(Signature("capacity", of, None, "The journal does not say how large an adapter could have been."))
    trials = [trial for trial in log.trials.values() if trial.arm == arm]
    nans = sum(trial.status == "failed" and trial.reason == "nan" for trial in trials)
    rates = (known.configuration.get("training") or {}).get("rates") or {}
    ranges, offset = limits.get("rates") or {}, limits.get("rate_offset")
    made.append(unstable_start(of, curves, (nans, len(trials)), rates, ranges, offset, plain=arm == "baseline"))
    return made


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean of curves of one length; the first where they differ."""
    if not curves or any([rows for rows, _ in curve] != [rows for rows, _ in curves[0]] for curve in curves):
        return curves[0] if curves else ()
    losses = np.mean([[loss for _, loss in curve] for curve in curves], axis=0)
    return [(rows, float(loss)) for (rows, _), loss in zip(curves[0], losses, strict=True)]


def _steady(log: SearchLog, runs: Sequence[TrialLog]) -> float:
    """Rows until which the rates of these runs were constant."""
    rungs, cooldown = log.plan.get("rungs") or (), log.plan.get("cooldown_rows") or 0
    rows = max((run.rows for run in runs), default=0)
    full = any(run.rungs and run.rungs[-1].rung == len(rungs) - 1 for run in runs)
    return rows * (1 - cooldown / rungs[-1]) if full and rungs else math.inf


def _shift(log: SearchLog, score: float, last: bool) -> float | None:
    """Standard deviation of what the last rung's other validation rows add to all scores; None where unknown."""
    few, many = (int(log.plan.get(name) or 0) for name in ("rung_evaluated", "final_evaluated"))
    if not last or few == many:
        return 0.0
    if log.rung_metric not in COUNTED or not few or not many:
        return None
    return math.sqrt(max(score * (1 - score), 0.0) * (1 / few + 1 / many))


def _steps(log: SearchLog) -> list[Step]:
    """What the exploration's trials gained between neighbouring rungs."""
    rungs = len(log.plan.get("rungs") or ())
    found = []
    for index in range(1, rungs):
        pairs = [
            (before, after)
            for trial in log.trials.values()
            if trial.purpose == "explore"
            for before, after in pairwise(trial.rungs)
            if after.rung == index and before.rung == index - 1 and log.rung_metric in after.metrics
        ]
        scores = [(before.metrics[log.rung_metric], after.metrics[log.rung_metric]) for before, after in pairs]
        if not pairs:
            continue
        shift = _shift(log, float(np.mean([after for _, after in scores])), index == rungs - 1)
        if shift is not None:
            losses = [(b.loss, a.loss) for b, a in pairs if b.loss is not None and a.loss is not None]
            found.append(Step((pairs[0][0].rows, pairs[0][1].rows), scores, losses, shift))
    return found


def _full(log: SearchLog) -> list[TrialLog]:
    """The exploration's full trainings that went through every rung."""
    rungs = len(log.plan.get("rungs") or ())
    return [
        trial
        for trial in log.trials.values()
        if trial.purpose == "explore" and trial.status == "completed" and len(trial.rungs) == rungs
    ]


def _outlook(log: SearchLog) -> Signature:
    """More labels or more search?"""
    metric, finalists = log.rung_metric, log.finalists or {}
    full = [trial for trial in _full(log) if all(metric in rung.metrics for rung in trial.rungs)]
    tops = [trial.rungs[-1].metrics[metric] for trial in full]
    most = bounds(metric)[1] if metric in ALL_METRICS else math.inf
    rungs = list(log.plan.get("rungs") or ())
    total = int(((log.header.get("task") or {}).get("rows") or {}).get("train") or 0)
    labels, rows = _labels(log, full, total, most)
    runs = [log.of_configuration(str(finalists.get(role)), "confirm") for role in ("baseline", "challenger")]
    seeds = [
        [s for run in of_one if run.status == "completed" and (s := run.score(metric)) is not None] for of_one in runs
    ]
    search = search_gain(tops, seeds, most=most)
    why = "" if labels is not None else _unknown_labels(len(full), rungs, total)
    return _said(outlook(labels, search), rows, total, len(full), why, f"--{ending(log).replace('_', '-')}")


def _labels(log: SearchLog, full: Sequence[TrialLog], total: int, most: float) -> tuple[Floats | None, int]:
    """Draws of the gain from more labels, and the rows that they start from.

    Only the rungs within one pass over the training rows are used, and the last one only where its other validation
    rows can be allowed for.
    """
    metric, rungs = log.rung_metric, list(log.plan.get("rungs") or ())
    seen = [index for index, rows in enumerate(rungs) if rows <= total]
    last = bool(seen) and seen[-1] == len(rungs) - 1
    shift: float | None = 0.0
    if last and full:
        shift = _shift(log, float(np.mean([trial.rungs[-1].metrics[metric] for trial in full])), True)
    if shift is None:
        seen, last, shift = seen[:-1], False, 0.0
    if len(seen) < 2:
        return None, 0
    gains = labels_gain(
        [rungs[index] for index in seen],
        [[trial.rungs[index].metrics[metric] for index in seen] for trial in full],
        shift=shift,
        bonus=COOLDOWN_GAIN if last and log.plan.get("cooldown_rows") else 0.0,
        most=most,
    )
    return gains, int(rungs[seen[-1]])


def _unknown_labels(full: int, rungs: Sequence[int], total: int) -> str:
    if full < 3:
        return f"only {full} trials went through all rungs"
    if len(rungs) < 2:
        return "trials were scored once, at their end"
    if total and sum(rows <= total for rows in rungs) < 2:
        return f"the {total:,} training rows were seen more than once, and rows seen again are no new labels"
    return "the rungs were scored on different validation rows"


def _said(found: Outlook, rows: int, total: int, full: int, why: str, flag: str) -> Signature:
    """The answer in words; `flag` raises the limit that ended the search."""
    parts = []
    if found.labels is not None:
        parts.append(f"seeing {2 * rows:,} labelled rows instead of {rows:,} would add {_gain(found.labels)}")
    if found.search is not None:
        parts.append(f"twice the search would add {_gain(found.search)}")
    said = "; ".join(parts)
    ends = max((gain.high for gain in (found.labels, found.search) if gain is not None), default=0.0)
    # Only time makes trials longer; more of them are no longer.
    train = "raise --max-time" if flag == "--max-time" else "search with a larger --max-time"
    if 2 * rows <= total:
        longer = f"Train on more of the {total:,} rows that are there: {train}."
    else:
        longer = "Label more rows; twice as many need about twice the time (--max-time)."
    more = f"Search longer: raise {flag}."
    name = "labels_or_search"
    match found.answer:
        case "labels":
            return Signature(name, "search", True, f"More labels rather than more search: {said}.", longer)
        case "search":
            return Signature(name, "search", True, f"More search rather than more labels: {said}.", more)
        case "neither":
            words = f"Neither more labels nor more search shows a gain above {max(ends, 0.0):.4f}: {said}."
            return Signature(
                name, "search", False, words, "Stop here, or change something else: the base model, the task."
            )
        case "open":
            words = f"It cannot be told whether more labels or more search would help more: {said}."
            return Signature(name, "search", None, words)
    if found.search is None:
        words = f"It cannot be said whether more labels or more search would help: too few full trainings ({full})."
        return Signature(name, "search", None, words, f"A longer search ({flag}) can say it.")
    none = found.search.high < WORTH
    known = f"more search shows no gain above {found.search.high:.4f}" if none else said
    return Signature(name, "search", None, f"Of more labels nothing can be said: {why}; {known}.")


def _gain(gain: Gain) -> str:
    return f"{gain.mid:+.4f} (95 %: {gain.low:+.4f} to {gain.high:+.4f})"
