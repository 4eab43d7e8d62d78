"""Why a verdict, sure as it may be, is about less than it seems: an opponent or a winner that did not learn much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopeft.evidence.signatures import spike
from autopeft.journal import SearchLog
from autopeft.report.contenders import PROBE_LABEL, ROLE_LABELS, Contender, by_role
from autopeft.report.figures import LoraRates


@dataclass(frozen=True, slots=True)
class Doubt:
    """One reason for caution.

    Attributes:
        name: ``below_probe`` (the winner does no better than the base without an adapter), ``untrained`` (the opponent
            did not learn), ``near_probe`` (the winner's interval reaches down to the probe), or ``untuned`` (too few
            trials of LoRA).
        badge: In two or three words.
        short: The end of a sentence that begins with "But".
        words: All of it, in a sentence or two.
    """

    name: Literal["below_probe", "untrained", "near_probe", "untuned"]
    badge: str
    short: str
    words: str


def doubts(log: SearchLog, contenders: tuple[Contender, ...], lora: LoraRates) -> tuple[Doubt, ...]:
    """The reasons for caution, the gravest first; empty before a verdict.

    Args:
        log: The journal, folded.
        contenders: What was compared.
        lora: What is known of LoRA's learning rate.
    """
    taken = next((one for one in contenders if one.taken), None)
    if taken is None or log.verdict is None:
        return ()
    probe = next((one.validation for one in contenders if one.label == PROBE_LABEL), None)
    opponent = next((one for one in by_role(contenders).values() if one is not taken and one.hash is not None), None)
    made = [
        _below(taken, probe),
        None if opponent is None else _untrained(log, opponent, probe),
        _near(taken, probe),
        None if taken.label != ROLE_LABELS["challenger"] or opponent is None else _untuned(log, lora),
    ]
    return tuple(doubt for doubt in made if doubt is not None)


def _below(taken: Contender, probe: float | None) -> Doubt | None:
    if probe is None or taken.validation is None or probe < taken.validation:
        return None
    words = (
        f"A {PROBE_LABEL} on the frozen base scores {probe:.4f} on validation, no less than this adapter: either "
        "nothing more is to be had here, or the budget was too small to train one well."
    )
    return Doubt("below_probe", "no better than a probe", f"a {PROBE_LABEL} on the frozen base does as well", words)


def _near(taken: Contender, probe: float | None) -> Doubt | None:
    if probe is None or taken.validation is None or taken.low is None or not taken.low <= probe < taken.validation:
        return None
    words = (
        f"A {PROBE_LABEL} on the frozen base scores {probe:.4f} on validation, and this adapter's interval begins at "
        f"{taken.low:.4f}: that it beats the probe is not shown."
    )
    return Doubt("near_probe", "hardly above a probe", f"it is not shown to beat a {PROBE_LABEL}", words)


def _untrained(log: SearchLog, opponent: Contender, probe: float | None) -> Doubt | None:
    """An opponent that the base without an adapter equals, or whose loss rose and did not come down again."""
    runs = log.of_configuration(str(opponent.hash), "confirm") or log.of_configuration(str(opponent.hash))
    scores = [score for run in runs if (score := run.score(log.rung_metric)) is not None]
    stayed = sum((found := spike(run.losses)) is not None and found.stayed for run in runs)
    low = probe is not None and opponent.validation is not None and opponent.validation <= probe
    if not low and not stayed:
        return None
    same = len(scores) > 1 and len(set(scores)) == 1
    told = []
    if opponent.validation is not None:
        told.append(f"scores {opponent.validation:.4f} on validation{', the same with every seed' if same else ''}")
    if low:
        told.append(f"does no better than a {PROBE_LABEL} on the frozen base ({probe:.4f})")
    if stayed:
        told.append(f"its training loss rose and stayed up in {stayed} of {len(runs)} trainings")
    lora = opponent.label == ROLE_LABELS["baseline"]
    name = "LoRA" if lora else "the space's best"
    if stayed or (low and same):
        badge, short = f"{name} not trained well", f"that {name if lora else 'opponent'} was not trained well"
    else:
        badge, short = f"{name} below a probe", f"{name} does no better here than a {PROBE_LABEL}"
    said = ", ".join(told[:-1]) + (" and " if len(told) > 1 else "") + told[-1]
    label = f"{opponent.label[0].upper()}{opponent.label[1:]}"
    return Doubt("untrained", badge, short, f"{label} {said}: beating it says little.")


def _untuned(log: SearchLog, lora: LoraRates) -> Doubt | None:
    tried = {trial.hash for trial in log.trials.values() if trial.arm == "baseline" and trial.purpose == "explore"}
    if lora.judged is not None or not tried or (log.verdict or {}).get("name") == "unconfirmed":
        return None
    trials = f"{len(tried)} {'trial' if len(tried) == 1 else 'trials'}"
    return Doubt(
        "untuned",
        "LoRA hardly tuned",
        f"LoRA had only {trials} here, too few to be tuned",
        f"Tuned LoRA had {trials}: whether another learning rate would have done better is not known.",
    )
