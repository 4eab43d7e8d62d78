"""What the first screen of the page adds to the headline: by how much, and whether that is sure."""

from __future__ import annotations

from html import escape

from autopeft.report.contenders import ROLE_LABELS
from autopeft.report.facts import Facts
from autopeft.report.steps import steps_html
from autopeft.report.strip import strip
from autopeft.report.tables import count, interval, latency, limit, number, share, size
from autopeft.report.text import isolated
from autopeft.report.worth import in_pieces
from autopeft.spec.amounts import format_seconds


def difference(facts: Facts) -> list[tuple[str, str, str]]:
    """The difference between the finalists as `(label, value, how sure)`; empty before a verdict."""
    verdict = facts.verdict or {}
    values = [verdict.get(name) for name in ("difference", "low", "high")]
    if any(value is None for value in values):
        return []
    gap, low, high = (float(value) for value in values if value is not None)
    ours = next((item.methods for item in facts.contenders if item.label == ROLE_LABELS["challenger"]), "")
    name = f"{ours or 'best of the space'} minus tuned LoRA"
    if verdict.get("name") == "unconfirmed":
        return [(name, f"{gap:+.4f}", "too few runs to be sure")]
    sure = "includes 0: not sure which is better" if low <= 0 <= high else "excludes 0: a difference is shown"
    if facts.doubts and not low <= 0 <= high:
        sure = f"excludes 0, but {facts.doubts[0].short}"
    if verdict.get("name") == "within":
        sure = f"above minus the margin of {verdict.get('margin')}"
    return [(name, f"{gap:+.4f}", f"95 %: {low:+.4f} to {high:+.4f}, {sure}")]


def badges(facts: Facts) -> list[tuple[str, str]]:
    """How sure the answer is, as `(class, words)`, and why it is not; empty while there is none."""
    name = (facts.verdict or {}).get("name")
    if facts.status in ("infeasible", "failed"):
        return [("unsure", "nothing found")]
    if name is None:
        return []
    kind, words = {"tie": ("tie", "a tie"), "unconfirmed": ("unsure", "not confirmed")}.get(
        str(name), ("unsure", "not sure") if facts.doubts else ("sure", "shown at 95 %")
    )
    return [(kind, words), *(("unsure", doubt.badge) for doubt in facts.doubts)]


def answer_section(facts: Facts) -> str:
    """The first screen: the answer, how sure it is, by how much, and what to do next."""
    marks = "".join(f'<span class="badge {kind}">{escape(words)}</span>' for kind, words in badges(facts))
    cautions = "".join(f'<p class="caution"><b>Caution:</b> {isolated(doubt.words)}</p>' for doubt in facts.doubts)
    reason = f"<p>{isolated(facts.reason)}</p>" if facts.reason else ""
    rate = ""
    if facts.calibration is not None:
        short, long = facts.calibration
        rate = (
            f"<details><summary>How often such a verdict errs: {escape(short)}</summary><p>{escape(long)}</p></details>"
        )
    boxes = "".join(
        f'<div{" class=lead" if index == 0 and facts.verdict else ""}><span class="quiet">{escape(label)}</span>'
        f'<b>{escape(value)}</b><span class="quiet">{escape(more)}</span></div>'
        for index, (label, value, more) in enumerate(_boxes(facts))
    )
    return (
        f'<section class="answer">{f"<p>{marks}</p>" if marks else ""}<h1>{isolated(facts.headline)}</h1>{reason}'
        f'{strip(facts)}{cautions}{steps_html(facts)}<div class="boxes">{boxes}</div>{rate}</section>'
    )


def _boxes(facts: Facts) -> list[tuple[str, str, str]]:
    taken = next((contender for contender in facts.contenders if contender.taken), None)
    boxes = difference(facts)
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
    return [*boxes, ("time", format_seconds(facts.used), time)]


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
