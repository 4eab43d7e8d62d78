"""What the report says about single rows: flipped ones, classes, eval sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from autopeft.report.contenders import ROLE_LABELS
from autopeft.report.facts import Facts
from autopeft.report.text import isolated

SHOWN_CLASSES = 20
NOTHING = "–"  # noqa: RUF001
ONE_SEED = (
    "One run of each is compared here, the one with the best validation score; the verdict, over all seeds, is the "
    "answer."
)


def flipped(facts: Facts) -> str:
    """One sentence on the rows on which winner and opponent differ; empty where nothing is known."""
    found: Mapping[str, Any] | None = facts.result.get("flips")
    if not found:
        return ""
    opponent = ROLE_LABELS.get(str(found["opponent"]), str(found["opponent"]))
    rows, won, lost = f"Of {found['rows']:,} {found['split']} rows", found["won"], found["lost"]
    p_value = _p_value(found["p_value"])
    if found["both_right"] is None:
        return (
            f"{rows} the winner is nearer to the target on {won:,}, and {opponent} on {lost:,} (sign test {p_value})."
        )
    if found["both_right"] == won == lost == 0:
        answers = facts.header.get("task", {}).get("kind") == "causal_lm"
        how, what = ("answers one exactly", "exact match") if answers else ("gets one right", "these rows")
        return f"{rows}, neither the winner nor {opponent} {how}: {what} cannot tell them apart here."
    return (
        f"{rows} the winner gets {won:,} right that {opponent} gets wrong, and {lost:,} the other way round "
        f"(McNemar {p_value}); {found['both_right']:,} both get right and {found['both_wrong']:,} both wrong."
    )


def evaluated(facts: Facts) -> list[tuple[str, ...]]:
    """Eval set, rows, and the deciding metric of each that was evaluated on it, as text."""
    lines = []
    for name, found in (facts.result.get("eval_sets") or {}).items():
        rows = f"{found['evaluated']:,}"
        if found["evaluated"] != found["rows"]:
            rows += f" of {found['rows']:,}"
        scores = [_number((found.get(role) or {}).get(facts.metric)) for role in ("winner", *_roles(facts))]
        lines.append((name, rows, *scores))
    return lines


def evaluated_lines(facts: Facts) -> list[str]:
    """The same as sentences for a terminal: who scored what."""
    names = ["the winner", *(ROLE_LABELS[role] for role in _roles(facts))]
    lines = []
    for name, rows, *scores in evaluated(facts):
        told = ", ".join(f"{who} {score}" for who, score in zip(names, scores, strict=True) if score != NOTHING)
        lines.append(f"{name}: {facts.metric} on {rows} rows: {told or 'not known'} (decided nothing)")
    return lines


def rows_section(facts: Facts, table: Callable[..., str]) -> str:
    """The sections about rows; empty before the end, and where there is nothing to say.

    Args:
        facts: What there is to say.
        table: `(heads, rows, kind) -> HTML`.
    """
    parts: list[str] = []
    sentence = flipped(facts)
    if sentence:
        parts.append(f'<h2>Row by row</h2><p>{escape(sentence)}</p><p class="quiet">{ONE_SEED}</p>')
    parts.append(_classes(facts, table))
    lines = evaluated(facts)
    if lines:
        heads = ("eval set", "rows", f"winner's {facts.metric}", *(ROLE_LABELS[role] for role in _roles(facts)))
        parts.append(
            f"<h2>Eval sets</h2><p>Scored after the test rows; nothing was decided by them.</p>{table(heads, lines)}"
        )
    files: Mapping[str, str] = facts.result.get("predictions") or {}
    if files:
        listed = ", ".join(map(isolated, files.values()))
        parts.append(f'<p class="quiet">Every prediction, without the texts: {listed}.</p>')
    body = "".join(parts)
    return f"<section>{body}</section>" if body else ""


def _classes(facts: Facts, table: Callable[..., str]) -> str:
    found: Mapping[str, Any] = facts.result.get("slices") or {}
    classes: Sequence[Mapping[str, Any]] = found.get("classes") or ()
    if not classes:
        return ""
    shown = sorted(classes[:SHOWN_CLASSES], key=lambda one: (one["winner"]["recall"], -one["rows"]))
    heads = ("class", "rows", "winner's accuracy", "opponent's", "winner's F1", "opponent's F1")
    lines = [
        (
            str(one["label"]),
            (f"{one['rows']:,}", one["rows"]),
            *(_cell((one.get(name) or {}).get(key)) for key in ("recall", "f1") for name in ("winner", "opponent")),
        )
        for one in shown
    ]
    total = len(classes) + int(found.get("left_out") or 0)
    which = f"The {len(shown)} largest of {total:,} classes" if total > len(shown) else f"All {total} classes"
    text = f"{which} on the {found['split']} rows, the worst of the winner first. Click a heading to sort."
    return f"<h2>Classes</h2><p>{escape(text)}</p>{table(heads, lines, kind='sortable')}"


def _roles(facts: Facts) -> list[str]:
    """Those beside the winner that some eval set has scores of."""
    sets: Mapping[str, Mapping[str, Any]] = facts.result.get("eval_sets") or {}
    taken = (facts.result.get("winner") or {}).get("role")
    return [role for role in ROLE_LABELS if role != taken and any(found.get(role) for found in sets.values())]


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _cell(value: float | None) -> tuple[str, float]:
    return _number(value), -1.0 if value is None else value
