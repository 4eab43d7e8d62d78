"""What a running search shows: computed from the journal and the workers' latest progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.journal import SearchLog, TrialLog
from autopeft.search.controller import Controller
from autopeft.search.events import Snapshot
from autopeft.search.state import State
from autopeft.strategy.jobs import Job, Pack, Train


def snapshot(controller: Controller) -> Snapshot:
    """Where the search stands now."""
    state = controller.state
    log = state.ledger.log
    statuses = Counter(str(trial.status) for trial in log.trials.values())
    best, baseline = _best(log, "space"), _best(log, "baseline")
    deadline = state.rules.budget.max_time
    used = state.ledger.used
    return Snapshot(
        phase=controller.phase,
        done=statuses["completed"],
        stopped=statuses["stopped"],
        paused=statuses["paused"],
        infeasible=statuses["infeasible"] + sum(r["constraint"] == "max_memory" for r in log.rejected),
        failed=statuses["failed"],
        running=tuple(_running(state)),
        best=best,
        baseline_best=baseline,
        used_seconds=used,
        left_seconds=None if deadline is None else max(0.0, deadline - used),
        trials_started=sum(trial.purpose == "explore" for trial in log.trials.values()),
        stop_now=_stop_now(log, best, baseline),
        notes=tuple(log.notes),
    )


def _running(state: State) -> list[Mapping[str, Any]]:
    log, metric = state.ledger.log, state.ledger.log.rung_metric
    rows: list[Mapping[str, Any]] = []
    for slot, job in _flat(state):
        if not isinstance(job, Train):
            rows.append({"slot": slot, "trial": type(job).__name__.lower(), "arm": "", "methods": [], "rung": None})
            continue
        trial, progress = log.trials[job.trial], state.progress.get(slot)
        if progress is not None and progress.trial != job.trial:
            progress = None
        rows.append(
            {
                "slot": slot,
                "trial": trial.id,
                "arm": trial.arm,
                "purpose": trial.purpose,
                "methods": list(job.configuration.methods),
                "params": log.configurations[trial.hash].adapter_params,
                "rung": job.rung,
                "rows": progress.rows if progress else job.rows_from,
                "rows_to": job.rows_to,
                "loss": progress.loss if progress else None,
                "score": trial.rungs[-1].metrics.get(metric) if trial.rungs else None,
            }
        )
    return rows


def _flat(state: State) -> Iterator[tuple[int, Job]]:
    """What every slot does, the members of packs apart."""
    for slot, job in sorted(state.running.items()):
        yield from ((slot, member) for member in (job.members if isinstance(job, Pack) else (job,)))


def _best(log: SearchLog, arm: str) -> Mapping[str, Any] | None:
    found = log.best(arm)
    return None if found is None else describe(found[0], log)


def describe(trial: TrialLog, log: SearchLog) -> dict[str, Any]:
    """A trial in a few values."""
    configuration = log.configurations[trial.hash]
    methods = sorted({str(part["method"]) for parts in configuration.configuration["sites"].values() for part in parts})
    return {
        "trial": trial.id,
        "methods": methods,
        "params": configuration.adapter_params,
        "score": trial.score(log.rung_metric),
        "rung": trial.rungs[-1].rung if trial.rungs else None,
    }


def _stop_now(log: SearchLog, best: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None) -> str:
    if log.verdict is not None:
        return f"the {log.verdict['takes']}: {log.verdict['name']}"
    chosen = max((b for b in (best, baseline) if b), key=lambda b: (b["rung"], b["score"]), default=None)
    if chosen is None:
        return "nothing yet"
    methods, metric = "+".join(chosen["methods"]), log.rung_metric
    return f"{methods}, {chosen['params']:,} parameters, {metric} {chosen['score']:.4f}, unconfirmed"
