"""What the first screen of the page adds to the headline: by how much, whether that is sure, and what to do next."""

from __future__ import annotations

import shlex
from html import escape

from autopeft.report.contenders import ROLE_LABELS
from autopeft.report.facts import Facts


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


def next_step(facts: Facts) -> str:
    """What to do now, as HTML; empty where the headline says it."""
    out = escape(shlex.quote(str(facts.header.get("spec", {}).get("out") or "RUN_DIR")))
    steps = []
    if facts.state == "running":
        steps.append(f"wait, and look again with <code>autopeft report {out}</code>")
    elif facts.state in ("interrupted", "died"):
        steps.append(f"go on with <code>autopeft search --resume --out {out}</code>")
    if facts.state == "ended" and facts.adapter:
        longer = f"<code>autopeft search --resume --out {out} --max-time LONGER</code>"
        if any(doubt.name == "below_probe" for doubt in facts.doubts):
            steps.append(f"give the search more time before this adapter is used: {longer}")
        else:
            steps.append(
                f"use the adapter in <code>{escape(facts.adapter)}</code> beside this page, for example with "
                f"<code>autopeft predict {out} --input FILE</code>"
            )
            if (facts.verdict or {}).get("name") == "unconfirmed":
                steps.append(f"give it more time, so that it can be confirmed: {longer}")
    return f'<p class="next"><b>Next:</b> {"; ".join(steps)}.</p>' if steps else ""
