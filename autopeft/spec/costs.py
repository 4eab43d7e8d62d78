"""What an adapter may be cheap in: where scores do not tell two apart, the cheaper one is taken (``--cost``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autopeft.spec.budget import Budget

__all__ = ["COSTS", "Cost", "CostName", "latency_of_all"]

CostName = Literal["params", "memory", "latency"]


@dataclass(frozen=True, slots=True)
class Cost:
    """One of them; less is better.

    Attributes:
        less: What the cheaper one has, as words behind a percentage.
        more: What the other one has.
        number: Spells a value.
        what: What that is of, behind the number.
        worth: Where a margin is kept, costing so many times less counts as one step while exploring.
        noise: Differences up to this may be chance: they make nothing cheaper.
    """

    less: str
    more: str
    number: Callable[[float], str]
    what: str
    worth: float
    noise: float = 0.0

    def cheaper(self, ours: float, theirs: float) -> bool:
        """Whether one is known to cost less than another."""
        return math.isfinite(ours) and math.isfinite(theirs) and ours < theirs - self.noise

    def told(self, value: float) -> str:
        """A value in words."""
        return f"{self.number(value)} {self.what}"

    def compared(self, ours: float, theirs: float) -> str:
        """How much less or more one costs than another, in words; empty where it is not known."""
        if not (math.isfinite(ours) and math.isfinite(theirs) and ours > 0 and theirs > 0):
            return ""
        ratio = ours / theirs
        share = f"{abs(1 - ratio):.0%}"
        if share in ("0%", "1%"):
            share = f"{abs(1 - ratio):.1%}"
        return f"{share} {self.less if ratio <= 1 else self.more}"


COSTS: dict[str, Cost] = {
    "params": Cost(
        "fewer adapter parameters", "more adapter parameters", "{:,.0f}".format, "adapter parameters", 100.0
    ),
    "memory": Cost(
        "less memory in training",
        "more memory in training",
        lambda value: f"{value / 2**20:,.1f} MiB",
        "of memory in training",
        2.0,
    ),
    "latency": Cost(
        "less time for a forward pass",
        "more time for a forward pass",
        "{:.2f} times".format,
        "the time of the bare base's forward pass",
        1.1,
        noise=0.05,
    ),
}
"""Name -> cost. Memory is that of live tensors, on GPUs what is reserved, base included; latency is the larger of the
ratios to the bare base at one row and at a batch, in hundredths."""


def latency_of_all(budget: Budget, cost: str) -> bool:
    """Whether every configuration's latency is measured, and not only that of finalists."""
    return budget.max_latency_overhead is not None or cost == "latency"
