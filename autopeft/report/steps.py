"""What to do next, in order: one list for the page and the terminal."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from autopeft.report.command import BUDGET_FLAGS
from autopeft.report.facts import Facts
from autopeft.report.text import isolated
from autopeft.spec.amounts import format_at_least

FAILURES = {
    "nan": "the loss was not a number: look for faults in the data, then search lower rates",
    "oom": "the memory did not suffice: set --max-memory to what is free, so that what does not fit is passed over",
    "timeout": "jobs took too long: allow more time, or a smaller model",
    "lost": "workers died: see whether another process took their memory",
}
"""What to do about the reason for which most trials failed."""
MORE = {"max_time": "LONGER", "max_trials": "MORE", "max_compute": "MORE"}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do.

    Attributes:
        words: What, as a clause without an end.
        command: The command that does it, or empty.
    """

    words: str
    command: str = ""


def next_steps(facts: Facts) -> list[Step]:
    """What to do now, the most urgent first.

    Args:
        facts: What there is to say.
    """
    out = shlex.quote(str(facts.header.get("spec", {}).get("out") or "RUN_DIR"))
    earlier = Step(f"until then, there is an adapter in {facts.adapter}", f"autopeft predict {out} --input FILE")
    kept = [earlier] if facts.adapter and facts.extended else []
    if facts.state == "running":
        return [Step("wait, and look again", f"autopeft report {out}"), *kept]
    if facts.state in ("interrupted", "died"):
        return [Step("go on", f"autopeft search --resume --out {out}"), *kept]
    if facts.status == "infeasible":
        return _more_room(facts)
    if not facts.adapter:
        return _mend(facts)
    more = Step("", f"autopeft search --resume --out {out} {BUDGET_FLAGS[facts.ending]} {MORE[facts.ending]}")
    use = Step(
        f"use the adapter in {facts.adapter}, beside this report",
        f"autopeft predict {out} --input FILE",
    )
    doubted: set[str] = {doubt.name for doubt in facts.doubts}
    steps = []
    if doubted:
        steps.append(Step(_why_more(doubted, facts), more.command))
    if "below_probe" not in doubted:
        steps.append(use)
    if (facts.verdict or {}).get("name") == "unconfirmed" and not doubted:
        steps.append(Step("give it more, so that it can be confirmed", more.command))
    return steps + _signatures(facts, "untrained" in doubted)


def _why_more(doubted: set[str], facts: Facts) -> str:
    if "below_probe" in doubted:
        return "give the search more before this adapter is used"
    if "near_probe" in doubted:
        return "give the search more, to see whether it beats the probe"
    if (facts.verdict or {}).get("takes") == "baseline":
        return "give the search more, so that the best of the space is trained well"
    return "give the search more, so that LoRA is tuned before it is called beaten"


def _signatures(facts: Facts, opponent: bool) -> list[Step]:
    """What the signatures ask for: those of the winner, and of an opponent that did not learn."""
    of = {"winner": "", "search": "", **({"baseline": "for tuned LoRA: "} if opponent else {})}
    told: dict[str, None] = {}
    for made in facts.advice:
        if made.found and made.next_step and made.of in of and (made.of != "baseline" or made.name == "unstable_start"):
            step = made.next_step.rstrip(".")
            told[of[made.of] + step[0].lower() + step[1:]] = None
    return [Step(words) for words in told]


def _more_room(facts: Facts) -> list[Step]:
    """What a search needs in which nothing fitted."""
    smallest = facts.result.get("smallest_budget") or {}
    flags = [f"{BUDGET_FLAGS.get(name, name)} {format_at_least(name, value)}" for name, value in smallest.items()]
    if not flags:
        return [Step("allow more, use a smaller model, or another space")]
    return [Step(f"begin a new search (another --out) with {' '.join(flags)} or more: that is the least that would do")]


def _mend(facts: Facts) -> list[Step]:
    """What a search needs that has no winner."""
    if not facts.failures:
        return [Step(f"read why it ended, and begin a new one: {facts.result.get('message') or 'no reason is known'}")]
    cause, (number, words) = max(facts.failures.items(), key=lambda item: item[1][0])
    reason = cause.split(": ", 1)[-1]
    what = FAILURES.get(reason, f"mend what made {number} trials fail ({words or reason})")
    return [Step(f"{what}; then begin a new search (another --out)")]


def steps_html(facts: Facts) -> str:
    """The list for the page."""
    items = "".join(f"<li>{_html(step)}</li>" for step in next_steps(facts))
    return f'<div class="next"><b>Next</b><ol>{items}</ol></div>' if items else ""


def _html(step: Step) -> str:
    words = isolated(step.words[0].upper() + step.words[1:])
    return f"{words}: <code>{isolated(step.command)}</code>" if step.command else f"{words}."


def steps_lines(facts: Facts) -> list[str]:
    """The list for a terminal."""
    return [f"next:   {step.words}{f': {step.command}' if step.command else ''}" for step in next_steps(facts)]
