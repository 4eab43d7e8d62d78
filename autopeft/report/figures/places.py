"""Which methods good configurations use, and in which blocks: a heat map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from autopeft.journal import SearchLog
from autopeft.journal.describe import WHOLE, describe
from autopeft.report.axes import RIGHT, WIDTH
from autopeft.report.drawing import Drawing

GOOD_SHARE, FEWEST_GOOD = 0.25, 4
COLUMNS = 12
"""Most columns: more blocks than these are grouped."""
MARGIN = 0.2
"""From this much above the share among all tried on, a cell is marked."""
NAMES, HEAD, ROW = 140, 30, 30
"""Pixels for the names of methods, above the cells, and of a row."""


@dataclass(frozen=True, slots=True)
class Places:
    """How many configurations of the explored space use a method at a depth.

    Attributes:
        methods: Those that were tried, in the order of the table.
        columns: `(first block, last block)` of each column.
        good: How many configurations count as good.
        furthest: How many reached the highest rung.
        tried: How many reached a rung.
        used: `(method, column)` -> `(number of good ones, number of all)`.
    """

    methods: tuple[str, ...]
    columns: tuple[tuple[int, int], ...]
    good: int
    furthest: int
    tried: int
    used: Mapping[tuple[str, int], tuple[int, int]]

    def shares(self, method: str, column: int) -> tuple[float, float]:
        """The share of the good ones that use it there, and of all tried."""
        good, tried = self.used.get((method, column), (0, 0))
        return good / self.good, tried / self.tried


def places(log: SearchLog) -> Places | None:
    """Where methods sit in the good quarter of the explored space; None where nothing can be said.

    Good are the best quarter of those that went furthest, but at least four: where fewer went as far, the best of
    those that were stopped a rung before count as well. The baseline's LoRA sits where its own space puts it, so it
    is counted only where there is no other arm.
    """
    blocks = int((log.modules or {}).get("blocks") or 0)
    best: dict[str, tuple[int, float]] = {}
    arms = {trial.arm for trial in log.trials.values() if trial.purpose == "explore" and trial.rungs}
    arm = "space" if "space" in arms else "baseline"
    for trial in log.trials.values():
        score = trial.score(log.rung_metric)
        counts = trial.arm == arm and trial.purpose == "explore" and trial.hash in log.configurations
        if counts and score is not None and trial.status not in ("failed", "infeasible"):
            best[trial.hash] = max(best.get(trial.hash, (-1, 0.0)), (trial.rungs[-1].rung, score))
    if not blocks or not best:
        return None
    order = sorted(best, key=lambda hash: best[hash], reverse=True)
    furthest = sum(rung == best[order[0]][0] for rung, _ in best.values())
    good = min(len(order), max(FEWEST_GOOD, math.ceil(GOOD_SHARE * furthest)))
    columns = _columns(blocks)
    counted: dict[tuple[str, int], tuple[int, int]] = {}
    for place, hash in enumerate(order):
        for key in _uses(log.configurations[hash].configuration, log.modules or {}, columns):
            number, tried = counted.get(key, (0, 0))
            counted[key] = (number + (place < good), tried + 1)
    used = {method for method, _ in counted}
    everything = {"sites": {str(n): [{"method": method}] for n, method in enumerate(sorted(used))}}
    ordered = tuple(name for name in describe(everything).methods.split("+") if name in used)
    return Places(ordered, columns, good, furthest, len(order), counted)


def _columns(blocks: int) -> tuple[tuple[int, int], ...]:
    number = min(blocks, COLUMNS)
    edges = [round(index * blocks / number) for index in range(number + 1)]
    return tuple((low, high - 1) for low, high in pairwise(edges))


def _uses(
    configuration: Mapping[str, Any], modules: Mapping[str, Any], columns: tuple[tuple[int, int], ...]
) -> Iterable[tuple[str, int]]:
    """The cells that a configuration fills, each once."""
    blocks = {str(site["name"]): int(site["block"]) for site in modules["sites"]}
    cells: set[tuple[str, int]] = set()
    for name, parts in configuration.get("sites", {}).items():
        for part in parts:
            for column, (low, high) in enumerate(columns):
                # A method about the whole model reaches every block.
                if name == WHOLE or (name in blocks and low <= blocks[name] <= high):
                    cells.add((str(part["method"]), column))
    return cells


def places_drawing(found: Places | None) -> Drawing:
    """Rows are methods, columns are blocks from the input to the output; the number in a cell is a percentage."""
    if found is None:
        return Drawing("", (), empty="No trial of the space has reached a rung yet.")
    step = (WIDTH - RIGHT - NAMES) / len(found.columns)
    drawn = []
    for column, (low, high) in enumerate(found.columns):
        x = NAMES + (column + 0.5) * step
        drawn.append(f'<text x="{x:.1f}" y="20" text-anchor="middle">{low if low == high else f"{low}-{high}"}</text>')
    for row, method in enumerate(found.methods):
        top = HEAD + row * ROW
        drawn.append(f'<text x="{NAMES - 10}" y="{top + 19}" text-anchor="end">{escape(method)}</text>')
        for column, (low, high) in enumerate(found.columns):
            share, tried = found.shares(method, column)
            good, all_good = found.used.get((method, column), (0, 0))
            where = f"block {low}" if low == high else f"blocks {low} to {high}"
            words = (
                f"{method} in {where}: {good} of {found.good} good ones ({share:.0%}), "
                f"{all_good} of {found.tried} tried ({tried:.0%})"
            )
            marked = " marked" if share - tried > MARGIN - 1e-9 else ""
            x = NAMES + column * step
            drawn.append(
                f'<g><title>{escape(words)}</title><rect class="cell{marked}" x="{x + 2:.1f}" y="{top + 2}" '
                f'width="{step - 4:.1f}" height="{ROW - 4}" rx="3"/>'
                f'<rect class="heat" x="{x + 2:.1f}" y="{top + 2}" width="{step - 4:.1f}" height="{ROW - 4}" rx="3" '
                f'fill-opacity="{share:.2f}"/>'
                f'<text class="{"strong" if share > 0.6 else "inked"}" x="{x + step / 2:.1f}" y="{top + 19}" '
                f'text-anchor="middle">{f"{100 * share:.0f}" if good else ""}</text></g>'
            )
    height = HEAD + len(found.methods) * ROW + 24
    drawn.append(
        f'<text x="{(NAMES + WIDTH - RIGHT) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        "block of the model, from the input</text>"
    )
    return Drawing("Where good configurations use which method", drawn, note=_note(found), height=height)


def _note(found: Places) -> str:
    if found.good == found.tried:
        if found.tried == 1:
            return "Only one configuration was tried."
        return f"The percentage of all {found.tried} configurations: too few to tell good ones from others."
    chosen = f"Of the best {found.good} of {found.tried} configurations, the percentage that use the method there."
    marks = f" Outlined: at least {100 * MARGIN:.0f} points more often than among all tried."
    few = "" if found.furthest >= FEWEST_GOOD else f" Only {found.furthest} of them went furthest."
    small = " With so few, take it as a hint." if found.good < 8 else ""
    return chosen + marks + few + small
