"""The report as one HTML page: the answer first, then why, then everything else."""

from __future__ import annotations

from html import escape

from autopeft.report.advice import advice_section
from autopeft.report.answer import answer_section
from autopeft.report.facts import Facts
from autopeft.report.gallery import sections as drawings
from autopeft.report.rows import rows_section
from autopeft.report.sections import again, budget, environment, losses, subject, trials
from autopeft.report.style import FIGURES, SCRIPT, STYLE
from autopeft.report.tables import NOTHING, count, interval, latency, number, pairs, share, size, table
from autopeft.report.text import isolated, visible
from autopeft.report.worth import corrected, worth_section

STATES = {
    "running": "running",
    "ended": "ended",
    "interrupted": "interrupted",
    "died": "broke off",
}


def page(facts: Facts) -> str:
    """The whole page. Every text that comes from outside is escaped.

    Args:
        facts: What there is to say.
    """
    task, model = facts.header.get("task", {}), facts.header.get("model", {})
    title = str(task.get("name") or (facts.header.get("spec", {}).get("task") or {}).get("name") or "search")
    drawn = drawings(facts)
    sections = [
        answer_section(facts),
        _section("Comparison", _comparison(facts)),
        advice_section(facts),
        worth_section(facts, table),
        rows_section(facts, table),
        *(_section(title, body) for title, body, _ in drawn),
        _section("Trials", trials(facts)),
        _section("What became of the others", losses(facts)),
        _section("Budget", budget(facts)),
        _section("Task, model, space", subject(facts)),
        _section("Run it again", again(facts)),
        _section("Environment", environment(facts)),
        _missing([(title, why) for title, _, why in drawn if why]),
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


def _comparison(facts: Facts) -> str:
    if not facts.contenders:
        return ""
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
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _missing(left_out: list[tuple[str, str]]) -> str:
    """What is not drawn, and why."""
    if not left_out:
        return ""
    titles = ", ".join(title for title, _ in left_out)
    return (
        f"<section><details><summary>Not drawn, for lack of data: {escape(titles)}</summary>{pairs(dict(left_out))}"
        "</details></section>"
    )


def _test_head(facts: Facts) -> str:
    if facts.test_rows is None:
        return "test"
    return f"test ({facts.test_rows[0]:,} of {facts.test_rows[1]:,} rows)"
