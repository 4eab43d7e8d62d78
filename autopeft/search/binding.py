"""Which limit binds where every configuration that was tried broke one, and the least that would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from autopeft.errors import NothingFeasible
from autopeft.journal import SearchLog

__all__ = ["nothing_feasible"]

MEASURED = ("max_latency_overhead", "max_adapter_size")
"""Limits of the budget that are held against what a trial measures; all their trials had fitted into the memory."""
MEMORY = ("max_memory", "oom")


def nothing_feasible(log: SearchLog, least: Callable[[], Collection[int]], limit: int | None) -> NothingFeasible | None:
    """What to say of a search of which every trial was infeasible; None where that is not how it ended.

    Where trials broke another limit, that one binds, even though others were refused for their memory: what was
    trained had fitted.

    Args:
        log: The journal, folded.
        least: Says how many bytes the leanest configurations of the arms need, as predicted now; asked if it matters.
        limit: Bytes that were allowed, or None for what the machine has.
    """
    trials = list(log.trials.values())
    refused = any(refusal["constraint"] == "max_memory" for refusal in log.rejected)
    if any(trial.status != "infeasible" for trial in trials) or not (trials or refused):
        return None
    reasons = Counter(str(trial.reason) for trial in trials)
    broken = [name for name, _ in reasons.most_common() if name in MEASURED]
    if not broken and (refused or any(name in MEMORY for name in reasons)):
        peaks = [trial.peak_bytes for trial in trials if trial.peak_bytes]
        known = [*peaks, *least()]
        # A prediction that keeps the limit was refuted by what was measured.
        needed = [count for count in known if limit is None or count > limit]
        smallest = min(needed or known)
        what = "a worker's share of what is free here (fewer workers on it get more)" if limit is None else "max_memory"
        text = f"no configuration fits into {what}; the smallest needs {smallest:,} bytes.{_first(log, MEMORY)}"
        return NothingFeasible("max_memory", {"max_memory": smallest}, text)
    binds = broken[0] if broken else reasons.most_common(1)[0][0]
    measured = [trial.measured for trial in trials if trial.reason == binds and trial.measured]
    text = f"every configuration that was tried broke a limit.{_first(log, (binds,))}"
    return NothingFeasible(binds, {binds: min(measured)} if broken and measured else {}, text)


def _first(log: SearchLog, reasons: Collection[str]) -> str:
    first = next((trial for trial in log.trials.values() if trial.reason in reasons and trial.detail), None)
    return f" The first: {first.reason}: {first.detail}" if first else ""
