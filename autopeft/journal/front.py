"""Which configurations are worth their size."""

from __future__ import annotations

from typing import Any

from autopeft.journal.log import SearchLog


def furthest(log: SearchLog) -> list[dict[str, Any]]:
    """The configurations that reached the highest rung that any trial reached.

    Args:
        log: The journal, folded.

    Returns:
        ``hash``, ``adapter_params``, ``score`` (the mean over its runs there; over its fresh ones alone where it
        has any, as what chose it was partly luck) and ``runs``, the smallest first.
    """
    reached = [t for t in log.trials.values() if t.rungs and t.status not in ("failed", "infeasible")]
    top = max((t.rungs[-1].rung for t in reached), default=-1)
    scores: dict[str, list[float]] = {}
    confirmed = {trial.hash for trial in reached if trial.purpose == "confirm" and trial.rungs[-1].rung == top}
    for trial in reached:
        score = trial.score(log.rung_metric)
        lucky = trial.hash in confirmed and trial.purpose != "confirm"
        if trial.rungs[-1].rung == top and score is not None and trial.hash in log.configurations and not lucky:
            scores.setdefault(trial.hash, []).append(score)
    points: list[dict[str, Any]] = [
        {
            "hash": hash,
            "adapter_params": log.configurations[hash].adapter_params,
            "score": sum(values) / len(values),
            "runs": len(values),
        }
        for hash, values in scores.items()
    ]
    return sorted(points, key=lambda point: (point["adapter_params"], -point["score"]))


def pareto(log: SearchLog) -> list[dict[str, Any]]:
    """Those of `furthest` that no other beats in both score and adapter parameters."""
    front: list[dict[str, Any]] = []
    for point in furthest(log):
        if not front or point["score"] > front[-1]["score"]:
            front.append(point)
    return front
