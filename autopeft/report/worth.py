"""What the report says about the winner's parts, about the others that are worth their size, and about how it fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from autopeft.report.contenders import ROLE_LABELS
from autopeft.report.facts import Facts
from autopeft.spec.amounts import format_bytes, format_count

NOTHING = "–"  # noqa: RUF001


def corrected(facts: Facts) -> str:
    """One sentence on what having been chosen adds to the winner's score; empty where nothing is known of it."""
    validation: Mapping[str, Any] = (facts.result.get("winner") or {}).get("validation") or {}
    if validation.get("optimism") is None:
        return ""
    if validation["optimism"] == 0:
        return "That the winner was chosen by these rows adds nothing to its score (BBC-CV)."
    return (
        f"That the winner was chosen by these rows adds about {validation['optimism']:.4f} to its score (BBC-CV): "
        f"{validation['corrected']:.4f} is to be expected on others like them."
    )


def in_pieces(execution: Mapping[str, Any] | None) -> str:
    """How batches were computed to fit the memory; empty where they were computed as a whole."""
    ways = []
    if execution and execution.get("micro_batch"):
        ways.append(f"in pieces of {execution['micro_batch']} rows")
    if execution and execution.get("checkpointing"):
        ways.append("activations recomputed")
    return ", ".join(ways)


def dropped(facts: Facts) -> str:
    """One sentence on the parts that did not earn their place; empty where none was put to the test."""
    found = facts.simplified
    if found is None:
        return ""
    tried = len(found["differences"])
    if not found["dropped"]:
        return f"Each part of the challenger that was put to the test earns its place ({tried} tried)."
    left = ", ".join(map(str, found["dropped"]))
    return f"Left out of the challenger, because it did as well without (within one standard error): {left}."


def worth_section(facts: Facts, table: Callable[..., str]) -> str:
    """The sections about parts and about other adapters; empty where there is nothing to say.

    Args:
        facts: What there is to say.
        table: `(heads, rows, kind) -> HTML`.
    """
    parts = []
    if sentence := dropped(facts):
        names = ("without", f"difference of {facts.rung_metric}", "standard error", "")
        tried = [_part(label, values, facts) for label, values in (facts.simplified or {})["differences"].items()]
        told = "Trained again from one new seed, whole and without each; fresh seeds then judged what was left."
        body = f'<p>{escape(sentence)}</p><p class="quiet">{told}</p>'
        parts.append(f"<h2>Parts of the challenger</h2>{body}{table(names, tried) if tried else ''}")
    front = facts.result.get("front") or ()
    if front:
        heads = ("folder", "", "method", f"validation {facts.metric}", "95 % interval", "adapter", "memory", "latency")
        told = "Trained with the same fresh seeds; none is beaten by another in score, parameters, memory and latency."
        rows = [_member(block) for block in front]
        parts.append(f"<h2>Other adapters that are worth their size</h2><p>{told}</p>{table(heads, rows)}")
    return "".join(f"<section>{part}</section>" for part in parts)


def _part(label: str, values: list[float], facts: Facts) -> tuple[str, ...]:
    names = (facts.simplified or {})["dropped"]
    gone = label in names or label == " and ".join(names)
    return (label, f"{values[0]:+.4f}", f"{values[1]:.4f}", "left out" if gone else "stays")


def _member(block: Mapping[str, Any]) -> tuple[str, ...]:
    validation, latency = block["validation"], block.get("latency")
    return (
        str(block["folder"]),
        ROLE_LABELS.get(str(block["role"]), ""),
        " + ".join(block["methods"]),
        f"{validation['mean']:.4f}",
        f"{validation['low']:.4f} to {validation['high']:.4f}",
        format_count(block["adapter_params"]),
        NOTHING if block["peak_bytes"] is None else format_bytes(block["peak_bytes"]),
        NOTHING if not latency else f"{max(latency.values()):.2f}",
    )
