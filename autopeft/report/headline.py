"""The answer of a search in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autopeft.evidence import COUNTED, error_rate
from autopeft.evidence.calibration import WITHIN
from autopeft.journal import SearchLog
from autopeft.report.doubts import Doubt
from autopeft.spec.costs import COSTS


class Named(Protocol):
    """What a sentence needs to know of a contender."""

    @property
    def methods(self) -> str:
        """Its method mix."""

    @property
    def adapter_params(self) -> int | None:
        """Its adapter parameters, or None."""


def headline(log: SearchLog, state: str, named: Mapping[str, Named], doubts: Sequence[Doubt] = ()) -> tuple[str, str]:
    """The answer, and what the evidence adds to it.

    Args:
        log: The journal, folded.
        state: As `Facts.state`.
        named: Role -> contender.
        doubts: Reasons for caution; the gravest stands in the sentence.
    """
    if log.verdict is not None:
        sentence = _verdict(log.verdict, named)
        if doubts:
            if doubts[0].name == "untrained":
                sentence = sentence.replace(" a tuned LoRA", " the LoRA trained here")
            sentence = f"{sentence} But {doubts[0].short}."
        return sentence, str(log.verdict.get("reason") or "")
    result = (log.finished or {}).get("result") or {}
    status = str((log.finished or {}).get("status") or "")
    said = str(result.get("message") or "")
    best = log.best()
    so_far = "no trial has reached a rung yet"
    if best is not None:
        trial, score = best
        arm = "tuned LoRA" if trial.arm == "baseline" else _mix(named.get("challenger"))
        so_far = f"the best so far is {arm} with {log.rung_metric} {score:.4f} on validation, not confirmed"
    if state == "running":
        return f"The search is running; {so_far}.", ""
    if state == "interrupted":
        return f"The search was stopped; {so_far}.", "It goes on with --resume."
    if state == "died":
        return f"The search ended without a result; {so_far}.", "It goes on with --resume."
    if status == "infeasible":
        return "No configuration fits the limits.", said
    return f"The search ended without a verdict; {so_far}.", said


def extended(sentence: str, state: str, replaced: bool) -> tuple[str, str]:
    """The answer of a search that is given more, or was until that was cut short, and what holds of its adapter.

    Args:
        sentence: The answer that it had before.
        state: As `Facts.state`.
        replaced: Whether its adapter gave way to the best of what was tried since.
    """
    now = {"running": "is being extended", "interrupted": "was stopped while it was extended"}
    told = f"The search {now.get(state, 'broke off while it was extended')}; its answer before: {sentence}"
    kept = "The adapter of that answer is kept until there is another one."
    best = "Its adapter gave way to the best of what was tried since, which is not confirmed."
    return told, (best if replaced else kept) + ("" if state == "running" else " It goes on with --resume.")


def calibrated(log: SearchLog) -> tuple[str, str] | None:
    """How often such a verdict errs, in short and in sentences; None where there is no verdict that could.

    Args:
        log: The journal, folded.
    """
    verdict = log.verdict or {}
    if verdict.get("name") in (None, "unconfirmed"):
        return None
    if log.metric not in COUNTED:
        told = f"This was simulated for shares of rows only ({', '.join(COUNTED)}), and is not known for {log.metric}."
        return f"not known for {log.metric}", told
    if verdict["name"] == "within":
        if (verdict.get("cost") or "params") != "params":
            cost = str(verdict["cost"])
            return (
                f"not known for {cost}",
                f"This was simulated for adapter parameters only, and is not known for {cost}.",
            )
        (wrong, said), (lossy, searches) = WITHIN.values()
        return (
            f"{lossy} of {searches:,} simulated searches",
            f"Of {searches:,} simulated searches in which nothing but LoRA keeps the margin, {lossy} ended so; and of "
            f"{said} that ended so where smaller adapters are up to a point worse, {wrong} were wrong. All of them "
            "were on 20,000 validation rows, with three to five seeds that spread by 0.1 to 0.3 points.",
        )
    rate = error_rate(int(log.plan.get("final_evaluated") or 0), _seed_count(verdict.get("seeds")))
    if rate is None:
        return None
    real = ""
    if rate.real is not None:
        wrong, silent, searches = rate.real
        unsaid = f", and {silent} had no time for a verdict" if silent else ""
        real = f" Of {searches} real ones, {wrong} ended better or worse{unsaid}."
    return (
        f"{rate.wrong} of {rate.searches:,} simulated ones",
        f"Where both were equally good, {rate.wrong} of {rate.searches:,} simulated verdicts with {rate.rows:,} "
        f"validation rows and {rate.seeds} seeds were better. Of {rate.whole} whole simulated searches between equals, "
        f"{rate.not_ties} did not end in a tie.{real}",
    )


def _seed_count(seeds: Any) -> int:
    return len(seeds) if isinstance(seeds, list) else int(seeds or 0)


def _verdict(verdict: Mapping[str, Any], named: Mapping[str, Named]) -> str:
    ours, theirs = named.get("challenger"), named.get("baseline")
    mix, takes = _mix(ours), verdict.get("takes")
    match verdict.get("name"):
        case "better":
            return f"Take {mix}: it is better than a tuned LoRA{_saved(verdict, ours, theirs)}."
        case "within":
            return f"Take {mix}: it is worse than a tuned LoRA by less than the margin{_saved(verdict, ours, theirs)}."
        case "tie" if takes == "challenger":
            return f"Take {mix}: no difference from a tuned LoRA was found{_saved(verdict, ours, theirs)}."
        case "tie" if verdict.get("margin") is not None:
            return f"Take the tuned LoRA: {mix} was not shown to be close enough to it, or is no cheaper."
        case "tie":
            known = "is not known to cost" if verdict.get("cost") == "latency" else "does not cost"
            return f"Take the tuned LoRA: no difference from {mix} was found, and {mix} {known} less."
        case "worse":
            return f"Take the tuned LoRA: nothing in this space beat it, {mix} is worse."
    if theirs is None or ours is None:
        return f"Take {'the tuned LoRA' if takes == 'baseline' else mix}: there was nothing to compare it with."
    taken = mix if takes == "challenger" else "the tuned LoRA"
    return f"Take {taken} for now: it scored higher, but that is not confirmed."


def _mix(contender: Named | None) -> str:
    return contender.methods if contender is not None else "the best of the space"


def _saved(verdict: Mapping[str, Any], ours: Named | None, theirs: Named | None) -> str:
    """How the costs compare, where that is worth a word."""
    name, costs = str(verdict.get("cost") or "params"), verdict.get("costs") or {}
    one, other = costs.get("challenger"), costs.get("baseline")
    if name == "params":
        one, other = (None if named is None else named.adapter_params for named in (ours, theirs))
    if name not in COSTS or not one or not other:
        return ""
    if one == other:
        return ", with as many adapter parameters" if name == "params" else f", with {COSTS[name].told(other)} for both"
    return f", with {COSTS[name].compared(one, other)}"
