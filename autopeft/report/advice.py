"""What was looked for: the signatures of what goes wrong, and how often the test rows were looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

from autopeft.evidence.signatures import Signature

TITLES = {
    "capacity": "Capacity",
    "unstable_start": "Start and learning rate",
    "overfitting": "Over-fitting",
    "forgetting": "Forgetting",
    "latency": "Latency",
    "labels_or_search": "More labels or more search?",
}
OF = {"winner": "winner", "baseline": "tuned LoRA", "search": ""}
ANSWER = "labels_or_search"
"""The one that is always shown: its answer is worth knowing whatever it is."""


class Advised(Protocol):
    """What this part of the reports needs to know."""

    @property
    def advice(self) -> Sequence[Signature]:
        """What was looked for."""

    @property
    def looks(self) -> Mapping[str, Any] | None:
        """How often the test rows were read by all searches."""


def looks_sentence(looks: Mapping[str, Any] | None) -> str:
    """How often the test rows were read; empty where that is not known.

    Args:
        looks: ``all_searches`` reads by ``searches`` searches.
    """
    if looks is None:
        return ""
    reads, searches = int(looks["all_searches"]), int(looks["searches"])
    times = "once" if reads == 1 else f"{reads} times"
    if searches == 1:
        return f"These test rows were read {times}, by this search alone in this tracking store."
    return (
        f"These test rows were read {times} by {searches} searches in this tracking store: the more often a test split "
        "is looked at, the less it is a test."
    )


def advice_section(facts: Advised) -> str:
    """The section of the page; empty while there is nothing to say."""
    shown = [made for made in facts.advice if made.found or made.name == ANSWER]
    others = [made for made in facts.advice if made not in shown]
    parts = [f"<dl>{''.join(_entry(made) for made in shown)}</dl>"] if shown else []
    if others:
        parts.append(f"<details><summary>Also looked for</summary><dl>{''.join(map(_entry, others))}</dl></details>")
    looks = looks_sentence(facts.looks)
    if looks:
        parts.append(f"<p>{escape(looks)}</p>")
    return f"<section><h2>What was looked for</h2>{''.join(parts)}</section>" if parts else ""


def advice_lines(facts: Advised) -> list[str]:
    """The same for a terminal, in short: what was found, and the looks at test rows that others share."""
    lines = []
    for made in facts.advice:
        if made.found or (made.name == ANSWER and made.found is False):
            who = f"{OF[made.of]}: " if OF.get(made.of) else ""
            lines.append(f"seen:   {who}{made.words}")
    if facts.looks is not None and int(facts.looks["searches"]) > 1:
        lines.append(f"test:   {looks_sentence(facts.looks)}")
    return lines


def _entry(made: Signature) -> str:
    title = " - ".join(text for text in (TITLES.get(made.name, made.name), OF.get(made.of, made.of)) if text)
    step = f" {escape(made.next_step)}" if made.next_step else ""
    return f"<dt>{escape(title)}</dt><dd>{escape(made.words)}{step}</dd>"
