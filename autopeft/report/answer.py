"""What the first screen of the page adds to the headline: by how much, and whether that is sure."""

from __future__ import annotations

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
