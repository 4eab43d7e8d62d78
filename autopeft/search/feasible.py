"""Whether anything fits into the memory that a trial may take, told before anything is trained."""

from __future__ import annotations

import contextlib

from autopeft.cost.memory import MemoryGate, MemoryModel
from autopeft.errors import NothingFeasible
from autopeft.search.arms import UNBUILDABLE, lean
from autopeft.search.prepared import Prepared
from autopeft.space.bound import BoundSpace
from autopeft.spec.amounts import format_bytes

__all__ = ["check_memory"]

SHARES = {
    False: "a worker's share of the memory that is free here (fewer --workers get more)",
    True: "a worker's share of what is free on the GPU (a larger --gpus-per-trial gets more)",
}
"""By whether workers compute on GPUs: whose memory it is where no limit was given."""
FEW = 2
"""Configurations that are looked at where not even the frozen base fits."""

ALONE = "There would be nothing to compare with."


def check_memory(prepared: Prepared, memory: MemoryModel, head: str, space: BoundSpace, least: int) -> list[str]:
    """Say which arms no configuration of which fits into the memory limit, as a search would find out.

    Args:
        prepared: The search.
        memory: Predicts; what it knows already costs nothing.
        head: The head on top.
        space: The user's space, bound.
        least: Bytes of the leanest configuration of that space that was looked at.

    Returns:
        Warnings: one for an arm that would stay empty while the other one can be searched, for whatever limit.

    Raises:
        NothingFeasible: Neither a configuration of the space nor a tuned LoRA fits.
    """
    try:
        baseline = prepared.bind(prepared.baseline, head)
    except NothingFeasible as error:
        baseline, told = None, [f"Nothing of tuned LoRA fits: {error.detail} {ALONE}"]
    limit = prepared.memory_limit
    if limit is None:
        return [] if baseline is not None else told
    whose = SHARES[prepared.gpu] if prepared.spec.budget.max_memory != limit else "--max-memory"
    gate = MemoryGate(memory, limit)
    needed = None if least <= limit else _needed(gate, memory, space, limit)
    lora = None if baseline is None else _needed(gate, memory, baseline, limit)
    if needed is None:
        if baseline is None:
            return told
        return [] if lora is None else [_empty("tuned LoRA", whose, limit, lora, ALONE)]
    if baseline is not None and lora is None:
        return [_empty("the space", whose, limit, needed, "Only tuned LoRA would be searched.")]
    smallest = min(needed, lora or needed)
    text = (
        f"no configuration fits into {whose}: {format_bytes(limit)}; the leanest that was looked at needs "
        f"{smallest:,} bytes, of which the frozen base takes {memory.needed(memory.base_bytes()):,}. A smaller model "
        "or fewer tokens (--max-length) need less."
    )
    raise NothingFeasible("max_memory", {"max_memory": smallest}, text)


def _empty(arm: str, whose: str, limit: int, needed: int, so: str) -> str:
    return (
        f"No configuration of {arm} fits into {whose}: {format_bytes(limit)}, where the leanest that was looked at "
        f"needs {format_bytes(needed)}. {so}"
    )


def _needed(gate: MemoryGate, memory: MemoryModel, space: BoundSpace, limit: int) -> int | None:
    """Bytes of the leanest configuration that was looked at; None where one fits.

    Where the frozen base alone is too large only a few are looked at: the number is then for the user alone.
    """
    hopeless = memory.base_bytes() > limit
    known: list[int] = []
    for configuration in lean(space):
        with contextlib.suppress(*UNBUILDABLE):
            if not hopeless and gate.fits(configuration).execution is not None:
                return None
            known.append(gate.least(configuration))
        if hopeless and len(known) >= FEW:
            break
    # Of a space that cannot be built here nothing is known: a search says why, and it is no matter of memory.
    return min(known, default=None)
