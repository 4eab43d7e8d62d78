"""The report as one HTML page: the answer first, then why, then everything else."""

from __future__ import annotations

from html import escape

from autopeft.report.advice import advice_section
from autopeft.report.answer import difference
from autopeft.report.facts import Facts
from autopeft.report.gallery import sections as drawings
from autopeft.report.rows import rows_section
from autopeft.report.sections import again, budget, environment, losses, subject, trials
from autopeft.report.steps import steps_html
from autopeft.report.style import FIGURES, SCRIPT, STYLE
from autopeft.report.tables import NOTHING, count, interval, latency, limit, number, share, size, table
from autopeft.report.text import isolated, visible
from autopeft.report.worth import corrected, in_pieces, worth_section
from autopeft.spec.amounts import format_seconds

STATES = {
    "running": "running",
    "ended": "ended",
    "interrupted": "interrupted",
    "died": "ended without a result",
}


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
        worth_section(facts, table),
        rows_section(facts, table),
        *(_section(title, body) for title, body in drawings(facts)),
        _section("Trials", trials(facts)),
        _section("What became of the others", losses(facts)),
        _section("Budget", budget(facts)),
        _section("Task, model, space", subject(facts)),
        _section("Run it again", again(facts)),
        _section("Environment", environment(facts)),
    ]
    about = " · ".join(str(text) for text in (model.get("id"), task.get("kind"), STATES[facts.state]) if text)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(visible(title))} – autopeft</title><style>{FIGURES}{STYLE}</style></head><body><main>"  # noqa: RUF001
        f'<header><p class="quiet">autopeft</p><p class="name">{isolated(title)}</p>'
        f'<p class="quiet">{isolated(about)}</p></header>{"".join(sections)}</main>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _answer(facts: Facts) -> str:
    taken = next((contender for contender in facts.contenders if contender.taken), None)
    boxes: list[tuple[str, str, str]] = difference(facts)
    if taken is not None:
        boxes += [
            (f"{facts.metric} on validation", number(taken.validation), interval(taken)),
            (f"{facts.metric} on test", number(taken.test), _reads(facts)),
            ("adapter parameters", count(taken.adapter_params), share(taken.share, " of the base")),
            ("memory to train", size(taken.peak_bytes), _memory(facts)),
        ]
        if taken.latency:
            worst = f"{max(taken.latency.values()):.2f} x base"
            boxes.append(("latency", worst, latency(taken.latency)))
    time = f"of {format_seconds(facts.limit)} allowed" if facts.limit else ""
    boxes.append(("time", format_seconds(facts.used), time))
    cells = "".join(
        f'<div><span class="quiet">{escape(label)}</span><b>{escape(value)}</b>'
        f'<span class="quiet">{escape(more)}</span></div>'
        for label, value, more in boxes
    )
    detail = f"<p>{isolated(facts.detail)}</p>" if facts.detail else ""
    return (
        f'<section class="answer"><h1>{isolated(facts.headline)}</h1>{detail}<div class="boxes">{cells}</div>'
        f"{steps_html(facts)}</section>"
    )


def _comparison(facts: Facts) -> str:
    if not facts.contenders:
        return '<p class="quiet">Nothing to compare yet.</p>'
    heads = (
        "", f"validation {facts.metric}", "95 % interval", _test_head(facts), "method", "adapter", "memory",
        "latency x base", "seeds", "head",
    )  # fmt: skip
    rows = [
        (
            contender.label + (" (taken)" if contender.taken else ""),
            number(contender.validation),
            interval(contender) or NOTHING,
            number(contender.test),
            contender.methods or NOTHING,
            count(contender.adapter_params) + share(contender.share, "", " (", ")"),
            size(contender.peak_bytes),
            latency(contender.latency),
            str(contender.seeds or NOTHING),
            count(contender.head_params),
        )
        for contender in facts.contenders
    ]
    marked = [index for index, contender in enumerate(facts.contenders) if contender.taken]
    sentence = corrected(facts)
    return table(heads, rows, marked=marked) + (f'<p class="quiet">{escape(sentence)}</p>' if sentence else "")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _test_head(facts: Facts) -> str:
    if facts.test_rows is None:
        return "test"
    return f"test ({facts.test_rows[0]:,} of {facts.test_rows[1]:,} rows)"


def _memory(facts: Facts) -> str:
    way = in_pieces((facts.result.get("winner") or {}).get("execution"))
    return ", ".join(text for text in (limit(facts, "max_memory"), way) if text)


def _reads(facts: Facts) -> str:
    often = {0: "not opened", 1: "opened once, after the decision"}
    said = often.get(facts.test_reads, f"opened {facts.test_reads} times")
    if facts.test_rows is None:
        return said
    read, total = facts.test_rows
    return f"on {read:,} of the {total:,} test rows; {said}"
