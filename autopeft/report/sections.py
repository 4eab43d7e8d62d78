"""The sections of the page that are no drawings: trials, what became of them, budget, subject, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from autopeft.report.drawing import ARM_LABELS
from autopeft.report.facts import Facts
from autopeft.report.tables import NOTHING, Cell, count, limit, number, pairs, size, sortable, table
from autopeft.report.text import isolated
from autopeft.report.trials import TrialRow
from autopeft.spec.amounts import format_seconds


def trials(facts: Facts) -> str:
    """Every trial, to be sorted by a click."""
    if not facts.trials:
        return ""
    heads = (
        "trial", facts.rung_metric, "status", "reason", "methods", "arm", "purpose", "parameters", "layers", "rate",
        "batch", "rows", "loss", "memory", "busy",
    )  # fmt: skip
    counts = ", ".join(f"{many} {status}" for status, many in facts.counts.items() if many)
    return f"<p>{escape(counts)}. Click a heading to sort.</p>" + table(
        heads, [_trial(row) for row in facts.trials], kind="sortable"
    )


def _trial(row: TrialRow) -> tuple[Cell, ...]:
    purpose = f"confirm, seed {row.seed}" if row.purpose == "confirm" else row.purpose
    return (
        row.trial,
        (number(row.score), sortable(row.score)),
        row.status,
        row.reason or NOTHING,
        row.methods,
        ARM_LABELS.get(row.arm, row.arm),
        purpose,
        (count(row.adapter_params), sortable(row.adapter_params)),
        row.layers or NOTHING,
        (f"{row.rate:.2g}", row.rate),
        (str(row.batch_size), row.batch_size),
        (f"{row.rows:,}", row.rows),
        (number(row.loss), sortable(row.loss)),
        (size(row.peak_bytes), sortable(row.peak_bytes)),
        (format_seconds(row.seconds), row.seconds),
    )


def losses(facts: Facts) -> str:
    """Why trials were stopped, failed, or were never begun."""
    parts: list[str] = []
    if facts.stops:
        rows = [(reason, str(many)) for reason, many in _most(facts.stops)]
        parts.append("<h3>Stopped early</h3>" + table(("reason", "trials"), rows))
    if facts.failures:
        failed = [(cause, str(many), words or NOTHING) for cause, (many, words) in facts.failures.items()]
        parts.append("<h3>Failed or infeasible</h3>" + table(("cause", "trials", "for example"), failed))
    if facts.rejected:
        rows = [(name, str(many)) for name, many in _most(facts.rejected)]
        parts.append(
            "<h3>Never trained</h3><p>Proposals whose prediction broke a limit.</p>"
            + table(("limit", "proposals"), rows)
        )
    return "".join(parts)


def budget(facts: Facts) -> str:
    """Where the time went, and the limits."""
    total = sum(facts.busy.values())
    parts = [f"<p>{escape(format_seconds(facts.used))} of wall clock used"]
    parts.append(f" of {escape(format_seconds(facts.limit))}" if facts.limit else "")
    parts.append(f", in {facts.sessions} sessions.</p>" if facts.sessions > 1 else ".</p>")
    if total > 0:
        bars = "".join(
            f'<tr><td>{escape(outcome)}</td><td class="bar"><i style="width:{100 * seconds / total:.1f}%"></i></td>'
            f'<td class="number">{escape(format_seconds(seconds))}</td>'
            f'<td class="number">{seconds / total:.0%}</td></tr>'
            for outcome, seconds in sorted(facts.busy.items(), key=lambda item: -item[1])
        )
        parts.append(
            '<div class="wide"><table><thead><tr><th>busy seconds went to</th><th></th><th>time</th><th>share</th></tr>'
            f"</thead><tbody>{bars}</tbody></table></div>"
        )
        arms = [
            (ARM_LABELS.get(arm, arm), format_seconds(seconds), f"{seconds / (sum(facts.arm_busy.values()) or 1):.0%}")
            for arm, seconds in facts.arm_busy.items()
        ]
        parts.append(table(("arm", "busy with its trials", "share"), arms))
    if facts.limits:
        parts.append("<h3>Limits</h3>" + pairs({name: limit(facts, name, "") for name in facts.limits}))
    return "".join(parts)


def subject(facts: Facts) -> str:
    """What was searched for, and what was noted about it."""
    task, model, space = (facts.header.get(key, {}) for key in ("task", "model", "space"))
    rows = ", ".join(f"{name} {many:,}" for name, many in (task.get("rows") or {}).items())
    told: dict[str, Any] = {
        "model": model.get("id"),
        "revision": model.get("revision"),
        "base parameters": count(model.get("base_params")),
        "blocks": model.get("blocks"),
        "rows": rows,
        "classes": [str(name) for name in task.get("label_names") or ()],
        "longest row": task.get("max_length") and f"{task['max_length']} tokens",
        "space": space.get("name"),
        "methods": ", ".join(map(str, space.get("methods") or ())),
        "rungs": " / ".join(f"{rows:,}" for rows in facts.plan.get("rungs") or ()),
    }
    notes = "".join(f"<li>{isolated(note)}</li>" for note in facts.notes)
    left_out = "".join(f"<li>{isolated(name)}: {isolated(str(why))}</li>" for name, why in facts.left_out.items())
    return (
        pairs({name: value if isinstance(value, list) else str(value) for name, value in told.items() if value})
        + (f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "")
        + (f"<h3>Left out of the space</h3><ul>{left_out}</ul>" if left_out else "")
    )


def again(facts: Facts) -> str:
    """The command that repeats the search."""
    if facts.command is None:
        return "<p>Its data, space or strategy were given as Python values, so no command repeats it.</p>"
    return f"<pre>{isolated(facts.command)}</pre>"


def environment(facts: Facts) -> str:
    """Versions, machine, checksums."""
    values: Mapping[str, Any] = facts.header.get("environment") or {}
    flat = {
        name: ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
        for name, value in values.items()
    }
    hashes = {
        f"sha256 of {name}": str(value) for name, value in (facts.header.get("task", {}).get("hashes") or {}).items()
    }
    fingerprint = json.dumps(facts.header.get("fingerprint") or {}, indent=1)
    started = {"started": facts.started} if facts.started else {}
    return (
        pairs({**started, **flat, **hashes})
        + f"<details><summary>Fingerprint</summary><pre>{escape(fingerprint)}</pre></details>"
    )


def _most(counts: Mapping[str, int], shown: int = 12) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    rest = sum(many for _, many in ordered[shown:])
    return ordered[:shown] + ([("other reasons", rest)] if rest else [])
