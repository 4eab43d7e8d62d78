"""Dividing a number of parameters among blocks, in sizes that are legal."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.space.groups import Cell

__all__ = ["Claim", "allot", "allot_uniform", "lean"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A cell and its ideal share of the parameters (any unit; only ratios count)."""

    cell: Cell
    ideal: float


def lean(cells: Sequence[Cell], tilt: float, share: float) -> list[Claim]:
    """Claims of the cells of one group: sizes ideally proportional to exp(tilt * z).

    Args:
        cells: By ascending block.
        tilt: 0 for equal sizes, above 0 for larger ones at the top.
        share: What the cells claim together.
    """
    low, high = cells[0].block, cells[-1].block
    weights = []
    for cell in cells:
        depth = 2 * (cell.block - low) / (high - low) - 1 if high > low else 0.0
        # Blocks of other widths pay more for the same size.
        weights.append(math.exp(tilt * depth) * cell.costs[0])
    total = sum(weights)
    return [Claim(cell, share * weight / total) for cell, weight in zip(cells, weights, strict=True)]


def allot(claims: Sequence[Claim], budget: int) -> list[int]:
    """The index of the size that each claim gets.

    A divisor method (as in the apportionment of seats): everyone starts at the smallest size, and the next step goes to
    whoever would be served least after it in proportion to his claim. A claim whose next step no longer fits is served;
    the others go on, so that less than one step of anybody is left over.

    Args:
        claims: Whom to serve; all cells have sizes.
        budget: Parameters, at least the sum of the smallest sizes' costs.

    Returns:
        For each claim an index into its cell's sizes.
    """
    taken = [0] * len(claims)
    left = budget - sum(claim.cell.costs[0] for claim in claims)
    # Ties go to the top: later blocks matter more on most tasks, and the order must be fixed.
    queue = [
        (claim.cell.costs[1] / claim.ideal, -claim.cell.block, index)
        for index, claim in enumerate(claims)
        if len(claim.cell.costs) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, block, index = heapq.heappop(queue)
        costs = claims[index].cell.costs
        step = costs[taken[index] + 1] - costs[taken[index]]
        if step > left:
            continue
        left -= step
        taken[index] += 1
        if taken[index] + 1 < len(costs):
            heapq.heappush(queue, (costs[taken[index] + 1] / claims[index].ideal, block, index))
    return taken


def allot_uniform(cells: Sequence[Cell], budget: int) -> list[int]:
    """Like `allot`, with the same size for all cells: the largest that fits, or each cell's smallest."""
    shared = set(cells[0].sizes).intersection(*(cell.sizes for cell in cells[1:]))
    for size in sorted(shared, reverse=True):
        indices = [cell.sizes.index(size) for cell in cells]
        if sum(cell.costs[index] for cell, index in zip(cells, indices, strict=True)) <= budget:
            return indices
    return [0] * len(cells)
