"""Several adapters instead of one: those that are worth their size, memory or time (``--objective pareto``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.journal import SearchLog, TrialLog

__all__ = ["FRONT_SIZE", "confirmed", "nondominated", "spread"]

FRONT_SIZE = 3
"""Configurations that are confirmed beside the two finalists."""
Costs = tuple[float | None, ...]


def nondominated(points: Sequence[tuple[float, Costs]]) -> list[int]:
    """Numbers of the points that no other one beats: at least as good in everything, and better in something.

    Args:
        points: Score (larger is better) and costs (smaller is better; None where one is not known, which beats nothing
            and is beaten by nothing).
    """

    def beats(one: tuple[float, Costs], other: tuple[float, Costs]) -> bool:
        pairs = list(zip(one[1], other[1], strict=True))
        if one[0] < other[0] or any(a is None or b is None or a > b for a, b in pairs):
            return False
        return one[0] > other[0] or any(a is not None and b is not None and a < b for a, b in pairs)

    return [n for n, point in enumerate(points) if not any(beats(other, point) for other in points)]


def spread(log: SearchLog, taken: Sequence[str], reference: float | None = None) -> list[str]:
    """Up to `FRONT_SIZE` explored configurations that deserve fresh seeds beside the finalists.

    Of those that went furthest and that no other beats in score, parameters, memory and latency, the ones whose sizes
    differ most from each other's and from the finalists'.

    Args:
        log: The journal, folded.
        taken: Hashes of the finalists.
        reference: A score that an adapter must beat to be worth anything: the linear probe's; None for none.
    """
    tried = [
        trial
        for trial in log.trials.values()
        if trial.purpose == "explore" and trial.rungs and trial.status not in ("failed", "infeasible")
    ]
    top = max((trial.rungs[-1].rung for trial in tried), default=-1)
    furthest = [trial for trial in tried if trial.rungs[-1].rung == top]
    # Latency counts where it was measured of all.
    timed = all(log.latency(trial.hash, "explore") for trial in furthest)
    points = [(float(trial.rungs[-1].metrics[log.rung_metric]), _costs(trial, log, timed)) for trial in furthest]
    front = {furthest[n].hash: points[n][0] for n in nondominated(points)}
    offered = [hash for hash, score in front.items() if hash not in taken and (reference is None or score > reference)]

    def size(hash: str) -> float:
        return math.log(max(1, log.configurations[hash].adapter_params))

    chosen: list[str] = []
    while offered and len(chosen) < FRONT_SIZE:
        there = [size(hash) for hash in (*taken, *chosen)]
        farthest = max(offered, key=lambda hash: (min((abs(size(hash) - s) for s in there), default=math.inf), hash))
        offered.remove(farthest)
        chosen.append(farthest)
    return sorted(chosen, key=size)


def confirmed(blocks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those blocks of result.json that no other beats in score, parameters, memory and latency, the smallest first.

    Args:
        blocks: Of all configurations that were trained with fresh seeds.
    """
    points = [
        (float(block["validation"]["mean"]), (float(block["adapter_params"]), block["peak_bytes"], _slowest(block)))
        for block in blocks
    ]
    kept = [blocks[n] for n in nondominated(points)]
    return sorted(kept, key=lambda block: int(block["adapter_params"]))


def _costs(trial: TrialLog, log: SearchLog, timed: bool) -> Costs:
    ratios = log.latency(trial.hash, "explore") if timed else None
    slowest = (round(max(ratios.values()), 2),) if ratios else ()
    return float(log.configurations[trial.hash].adapter_params), trial.peak_bytes, *slowest


def _slowest(block: Mapping[str, Any]) -> float | None:
    """Its largest latency, in hundredths: finer differences are noise."""
    return round(max(block["latency"].values()), 2) if block.get("latency") else None
