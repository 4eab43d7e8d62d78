"""The report as one HTML page: the answer first, then why, then everything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from autopeft.report.advice import advice_section
from autopeft.report.answer import difference, next_step
from autopeft.report.drawing import ARM_LABELS
from autopeft.report.facts import Contender, Facts, TrialRow
from autopeft.report.gallery import sections as drawings
from autopeft.report.rows import rows_section
from autopeft.report.style import FIGURES, SCRIPT, STYLE
from autopeft.report.worth import corrected, in_pieces, worth_section
from autopeft.spec.amounts import format_bytes, format_count, format_seconds

STATES = {
    "running": "running",
    "ended": "ended",
    "interrupted": "interrupted",
    "died": "ended without a result",
}
NOTHING = "–"  # noqa: RUF001
Cell = str | tuple[str, float]
"""What a cell shows, and for numbers what it is sorted by."""


def page(facts: Facts) -> str:
    """The whole page. Every text that comes from outside is escaped.

    Args:
        facts: What there is to say.
    """
    task, model = facts.header.get("task", {}), facts.header.get("model", {})
    title = str(task.get("name") or (facts.header.get("spec", {}).get("task") or {}).get("name") or "search")
    sections = [
        _answer(facts),
        _section("Comparison", _comparison(facts)),
        advice_section(facts),
        worth_section(facts, _table),
        rows_section(facts, _table),
        *(_section(title, body) for title, body in drawings(facts)),
        _section("Trials", _trials(facts)),
        _section("What became of the others", _losses(facts)),
        _section("Budget", _budget(facts)),
        _section("Task, model, space", _subject(facts)),
        _section("Run it again", _again(facts)),
        _section("Environment", _environment(facts)),
    ]
    about = " · ".join(str(text) for text in (model.get("id"), task.get("kind"), STATES[facts.state]) if text)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – autopeft</title><style>{FIGURES}{STYLE}</style></head><body><main>"  # noqa: RUF001
        f'<header><p class="quiet">autopeft</p><p class="name">{escape(title)}</p>'
        f'<p class="quiet">{escape(about)}</p></header>{"".join(sections)}</main>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _answer(facts: Facts) -> str:
    taken = next((contender for contender in facts.contenders if contender.taken), None)
    boxes: list[tuple[str, str, str]] = difference(facts)
    if taken is not None:
        boxes += [
            (f"{facts.metric} on validation", _number(taken.validation), _interval(taken)),
            (f"{facts.metric} on test", _number(taken.test), _reads(facts)),
            ("adapter parameters", _count(taken.adapter_params), _share(taken.share, " of the base")),
            ("memory to train", _bytes(taken.peak_bytes), _memory(facts)),
        ]
        if taken.latency:
            worst = f"{max(taken.latency.values()):.2f} x base"
            boxes.append(("latency", worst, _latency(taken.latency)))
    time = f"of {format_seconds(facts.limit)} allowed" if facts.limit else ""
    boxes.append(("time", format_seconds(facts.used), time))
    cells = "".join(
        f'<div><span class="quiet">{escape(label)}</span><b>{escape(value)}</b>'
        f'<span class="quiet">{escape(more)}</span></div>'
        for label, value, more in boxes
    )
    detail = f"<p>{escape(facts.detail)}</p>" if facts.detail else ""
    return (
        f'<section class="answer"><h1>{escape(facts.headline)}</h1>{detail}<div class="boxes">{cells}</div>'
        f"{next_step(facts)}</section>"
    )


def _comparison(facts: Facts) -> str:
    if not facts.contenders:
        return '<p class="quiet">Nothing to compare yet.</p>'
    heads = (
        "", "method", f"validation {facts.metric}", "95 % interval", "seeds", "test", "adapter", "head", "memory",
        "latency x base",
    )  # fmt: skip
    rows = [
        (
            contender.label + (" (taken)" if contender.taken else ""),
            contender.methods or NOTHING,
            _number(contender.validation),
            _interval(contender) or NOTHING,
            str(contender.seeds or NOTHING),
            _number(contender.test),
            _count(contender.adapter_params) + _share(contender.share, "", " (", ")"),
            _count(contender.head_params),
            _bytes(contender.peak_bytes),
            _latency(contender.latency),
        )
        for contender in facts.contenders
    ]
    marked = [index for index, contender in enumerate(facts.contenders) if contender.taken]
    sentence = corrected(facts)
    return _table(heads, rows, marked=marked) + (f'<p class="quiet">{escape(sentence)}</p>' if sentence else "")


def _trials(facts: Facts) -> str:
    if not facts.trials:
        return '<p class="quiet">No trial has started yet.</p>'
    heads = (
        "trial", "arm", "purpose", "status", facts.rung_metric, "methods", "parameters", "layers", "rate", "batch",
        "rows", "loss", "memory", "busy", "reason",
    )  # fmt: skip
    counts = ", ".join(f"{number} {status}" for status, number in facts.counts.items() if number)
    return f"<p>{escape(counts)}. Click a heading to sort.</p>" + _table(
        heads, [_trial(row) for row in facts.trials], kind="sortable"
    )


def _trial(row: TrialRow) -> tuple[Cell, ...]:
    purpose = f"confirm, seed {row.seed}" if row.purpose == "confirm" else row.purpose
    return (
        row.trial,
        ARM_LABELS.get(row.arm, row.arm),
        purpose,
        row.status,
        (_number(row.score), _sortable(row.score)),
        row.methods,
        (_count(row.adapter_params), _sortable(row.adapter_params)),
        row.layers or NOTHING,
        (f"{row.rate:.2g}", row.rate),
        (str(row.batch_size), row.batch_size),
        (f"{row.rows:,}", row.rows),
        (_number(row.loss), _sortable(row.loss)),
        (_bytes(row.peak_bytes), _sortable(row.peak_bytes)),
        (format_seconds(row.seconds), row.seconds),
        row.reason or NOTHING,
    )


def _losses(facts: Facts) -> str:
    parts: list[str] = []
    if facts.stops:
        rows = [(reason, str(number)) for reason, number in _most(facts.stops)]
        parts.append("<h3>Stopped early</h3>" + _table(("reason", "trials"), rows))
    if facts.failures:
        failed = [(cause, str(number), words or NOTHING) for cause, (number, words) in facts.failures.items()]
        parts.append("<h3>Failed or infeasible</h3>" + _table(("cause", "trials", "for example"), failed))
    if facts.rejected:
        rows = [(limit, str(number)) for limit, number in _most(facts.rejected)]
        parts.append(
            "<h3>Never trained</h3><p>Proposals whose prediction broke a limit.</p>"
            + _table(("limit", "proposals"), rows)
        )
    return "".join(parts) or '<p class="quiet">Nothing was stopped, failed or rejected.</p>'


def _budget(facts: Facts) -> str:
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
            (ARM_LABELS.get(arm, arm), format_seconds(seconds), f"{seconds / total:.0%}")
            for arm, seconds in facts.arm_busy.items()
        ]
        parts.append(_table(("arm", "busy", "share"), arms))
    if facts.limits:
        parts.append("<h3>Limits</h3>" + _pairs({name: _limit(facts, name, "") for name in facts.limits}))
    return "".join(parts)


def _subject(facts: Facts) -> str:
    task, model, space = (facts.header.get(key, {}) for key in ("task", "model", "space"))
    rows = ", ".join(f"{name} {number:,}" for name, number in (task.get("rows") or {}).items())
    pairs: dict[str, Any] = {
        "model": model.get("id"),
        "revision": model.get("revision"),
        "base parameters": _count(model.get("base_params")),
        "blocks": model.get("blocks"),
        "rows": rows,
        "classes": ", ".join(map(str, task.get("label_names") or ())),
        "longest row": task.get("max_length") and f"{task['max_length']} tokens",
        "space": space.get("name"),
        "methods": ", ".join(map(str, space.get("methods") or ())),
        "rungs": " / ".join(f"{number:,}" for number in facts.plan.get("rungs") or ()),
    }
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts.notes)
    left_out = "".join(f"<li>{escape(name)}: {escape(str(why))}</li>" for name, why in facts.left_out.items())
    return (
        _pairs({name: str(value) for name, value in pairs.items() if value})
        + (f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "")
        + (f"<h3>Left out of the space</h3><ul>{left_out}</ul>" if left_out else "")
    )


def _again(facts: Facts) -> str:
    if facts.command is None:
        return "<p>Its data, space or strategy were given as Python values, so no command repeats it.</p>"
    return f"<pre>{escape(facts.command)}</pre>"


def _environment(facts: Facts) -> str:
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
        _pairs({**started, **flat, **hashes})
        + f"<details><summary>Fingerprint</summary><pre>{escape(fingerprint)}</pre></details>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "plain", marked: Sequence[int] = ()
) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines: list[str] = []
    for index, row in enumerate(rows):
        cells = "".join(_cell(cell) for cell in row)
        lines.append(f'<tr class="taken">{cells}</tr>' if index in marked else f"<tr>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f'<td class="number" data-value="{cell[1]!r}">{escape(cell[0])}</td>'
    return f"<td>{escape(cell)}</td>"


def _pairs(values: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in values.items()) + "</dl>"


def _most(counts: Mapping[str, int], shown: int = 12) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    rest = sum(number for _, number in ordered[shown:])
    return ordered[:shown] + ([("other reasons", rest)] if rest else [])


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _sortable(value: float | None) -> float:
    # Python spells the infinity in a way that the script reads as text and sorts last.
    return -1e308 if value is None else float(value)


def _count(value: float | None) -> str:
    return NOTHING if value is None else format_count(value)


def _bytes(value: float | None) -> str:
    return NOTHING if value is None else format_bytes(value)


def _latency(ratios: Mapping[str, float] | None) -> str:
    if not ratios:
        return NOTHING
    return ", ".join(f"{ratio:.2f} at {rows} row{'' if rows == '1' else 's'}" for rows, ratio in ratios.items())


def _share(value: float | None, more: str, before: str = "", after: str = "") -> str:
    return "" if value is None else f"{before}{100 * value:.2g} %{more}{after}"


def _memory(facts: Facts) -> str:
    way = in_pieces((facts.result.get("winner") or {}).get("execution"))
    return ", ".join(text for text in (_limit(facts, "max_memory"), way) if text)


def _interval(contender: Contender) -> str:
    return "" if contender.low is None or contender.high is None else f"{contender.low:.4f} to {contender.high:.4f}"


def _reads(facts: Facts) -> str:
    return {0: "not opened", 1: "opened once, after the decision"}.get(
        facts.test_reads, f"opened {facts.test_reads} times"
    )


def _limit(facts: Facts, name: str, before: str = "limit ") -> str:
    value = facts.limits.get(name)
    if value is None:
        return ""
    if name in ("max_memory", "max_adapter_size"):
        return before + format_bytes(value)
    if name in ("max_time", "max_compute"):
        return before + format_seconds(value)
    if name == "max_adapter_params":
        return before + (f"{100 * value:.3g} % of the base" if isinstance(value, float) else format_count(value))
    return f"{before}{value}"
