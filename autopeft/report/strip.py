"""Winner, LoRA and the base without an adapter on one scale: dots, and bars for their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.report.contenders import ROLE_LABELS, Contender
from autopeft.report.facts import Facts
from autopeft.report.text import isolated

ROOM = 0.04
"""Share of the scale that is left free at each end."""
COLOURS = {
    ROLE_LABELS["challenger"]: "space",
    ROLE_LABELS["baseline"]: "baseline",
    ROLE_LABELS["incumbent"]: "incumbent",
}


def strip(facts: Facts) -> str:
    """One line for each contender with a score, as HTML; empty where there are not two to compare.

    Args:
        facts: What there is to say.
    """
    scored = [one for one in facts.contenders if one.validation is not None]
    if len(scored) < 2:
        return ""
    ends = [end for one in scored for end in (one.low, one.validation, one.high) if end is not None]
    low, high = min(ends), max(ends)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * (ROOM + (1 - 2 * ROOM) * (value - low) / width)

    lines = "".join(_line(one, place(one.validation or 0.0), _bar(one, place)) for one in scored)
    bars = " Bars: 95 % intervals." if any(one.low is not None for one in scored) else ""
    return f'<div class="strip">{lines}</div><p class="quiet small">{isolated(facts.metric)} on validation.{bars}</p>'


def _bar(one: Contender, place: Callable[[float], float]) -> str:
    if one.low is None or one.high is None:
        return ""
    start, end = place(one.low), place(one.high)
    return f'<i class="bar {_colour(one)}" style="left:{start:.1f}%;width:{end - start:.1f}%"></i>'


def _line(one: Contender, at: float, bar: str) -> str:
    name = one.methods if one.label == ROLE_LABELS["challenger"] and one.methods else one.label
    marked = " taken" if one.taken else ""
    return (
        f'<span class="who{marked}">{isolated(name).replace("+", "+<wbr>")}</span>'
        f'<span class="track">{bar}<i class="point {_colour(one)}" style="left:{at:.1f}%"></i></span>'
        f'<span class="score{marked}">{one.validation:.4f}</span>'
    )


def _colour(one: Contender) -> str:
    return COLOURS.get(one.label, "other")
