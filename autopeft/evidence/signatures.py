"""Signatures of what goes wrong in fine-tuning with adapters, each with the next step.

The surveys of the field name them: a size at its bound while the training loss still falls (capacity), loss spikes or a
rate at its bound (an unstable start), a validation score that falls while the training loss does (over-fitting), what
the base could do before and cannot after (forgetting), and forward passes that got slower (Han et al. 2024,
arXiv 2403.14608, secs. III-V). All functions here are over plain values; `autopeft.evidence.advice` reads them off a
journal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = [
    "Curve",
    "Signature",
    "Step",
    "capacity",
    "fall",
    "forgetting",
    "latency",
    "overfitting",
    "spike",
    "unstable_start",
]

Curve = Sequence[tuple[int, float]]
"""A training-loss curve: `(rows seen by then, mean loss since the point before)`."""
NEAR = 0.9
"""Share of the largest possible size from which an adapter counts as of that size."""
EDGE = 0.05
"""Share of a range of rates, on the log scale, that counts as its edge."""
SELECTED, MANY_NANS = 2.0, 0.1
SLOWER, ABOVE_LORA = 1.25, 1.15
"""Times of the bare base's forward pass with the largest batch, and of the tuned LoRA's with any, that are bearable."""
LEAST_POINTS = 6
LEAST_LOSS = 0.02
"""Nats of a token below which nothing worth a word was forgotten."""
LEAST_FALL, LEAST_SPIKE = 0.02, 0.3
"""A fall of the loss below this share of it, and a rise below this share of the first loss, are not worth a word."""
SPIKE = 8.0
"""Rises below so many standard deviations happen without a spike: the lowest of several noisy points is low, and so few
points hardly show how noisy they are."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One thing that was looked for.

    Attributes:
        name: Which, e.g. ``capacity``.
        of: ``winner``, ``baseline``, or ``search`` for what is about all of it.
        found: Whether it is there; None where it cannot be said.
        words: What was seen, as a sentence.
        next_step: What to do about it; empty where there is nothing to do.
    """

    name: str
    of: str
    found: bool | None
    words: str
    next_step: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``result.json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Step:
    """What trials gained between two rungs.

    Attributes:
        rows: Rows at the two rungs.
        scores: `(score before, score after)` of each trial.
        losses: `(training loss before, after)` of each trial.
        shift: Standard deviation of what the two rungs' different validation rows add to all scores alike; 0 where the
            rows are the same.
    """

    rows: tuple[int, int]
    scores: Sequence[tuple[float, float]]
    losses: Sequence[tuple[float, float]]
    shift: float = 0.0


def noise(losses: Sequence[float]) -> float:
    """Robust standard deviation of single points about their trend (MAD of the differences between neighbours)."""
    steps = np.diff(np.asarray(losses, dtype=float))
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2)) if len(steps) > 1 else 0.0


def fall(curve: Curve, until: float = math.inf) -> float | None:
    """By what share the loss fell from the middle third of a curve to its last third.

    Args:
        curve: The curve.
        until: Rows at which the rates began to fall: from there on the loss falls because of that.

    Returns:
        A share of the middle third's loss; 0 for a fall within twice its standard error; None with too few points.
    """
    steady = [loss for rows, loss in curve if rows <= until]
    losses = steady if len(steady) >= LEAST_POINTS else [loss for _, loss in curve]
    if len(losses) < LEAST_POINTS:
        return None
    third = len(losses) // 3
    before, late = float(np.mean(losses[-2 * third : -third])), float(np.mean(losses[-third:]))
    error = noise(losses) * math.sqrt(2 / third)
    return (before - late) / abs(before) if before - late > 2 * error and before else 0.0


@dataclass(frozen=True, slots=True)
class Spike:
    """The highest rise of a loss above the lowest that it had been before.

    Attributes:
        rows: Rows seen by then.
        rise: By how much it rose.
        stayed: Whether it ended well above the lowest, by half of the rise or half of the first loss.
    """

    rows: int
    rise: float
    stayed: bool


def spike(curve: Curve) -> Spike | None:
    """The worst spike of a curve; None where rises are within what noise does, or small."""
    losses = [float(loss) for _, loss in curve]
    if len(losses) < LEAST_POINTS:
        return None
    lowest = np.minimum.accumulate(losses)
    rises = [losses[i] - float(lowest[i - 1]) for i in range(1, len(losses))]
    highest = int(np.argmax(rises))
    rise = rises[highest]
    if rise <= max(SPIKE * noise(losses), LEAST_SPIKE * abs(losses[0])):
        return None
    late = float(np.mean(losses[-2:])) - float(lowest[highest])
    return Spike(curve[highest + 1][0], rise, late > rise / 2 or late > abs(losses[0]) / 2)


def capacity(of: str, params: int, bounds: Mapping[str, Any], curve: Curve, until: float = math.inf) -> Signature:
    """Whether the adapter seems too small: as large as it can be, and the training loss still falling.

    Args:
        of: What it is about.
        params: Its adapter parameters.
        bounds: ``most`` parameters that its space admits, and the ``limit`` that ends them, or None.
        curve: Its training loss.
        until: As for `fall`.
    """
    share, falling = params / bounds["most"], fall(curve, until)
    size = f"the adapter has {share:.0%} of the parameters that are possible here ({params:,} of {bounds['most']:,})"
    if share < NEAR:
        return Signature("capacity", of, False, f"There was room: {size}.")
    if falling is None:
        return Signature("capacity", of, None, f"Its training loss has too few points; {size}.")
    if falling < LEAST_FALL:
        return Signature("capacity", of, False, f"Its training loss no longer falls, though {size}.")
    steps = {
        "max_adapter_params": "Allow more parameters (a larger --max-params)",
        "max_adapter_size": "Allow a larger adapter (a larger --max-size)",
        "space.max_share": "Allow a larger share of the base (a larger space.max_share)",
    }
    larger = steps.get(str(bounds.get("limit")), "Allow more with a larger --max-params, or a space with larger sizes")
    words = f"The size may be too small: {size}, and the training loss still fell by {falling:.0%}"
    return Signature("capacity", of, True, f"{words} towards the end.", f"{larger}, or train longer (--max-time).")


def unstable_start(
    of: str,
    curves: Sequence[Curve],
    nans: tuple[int, int],
    rates: Mapping[str, float],
    ranges: Mapping[str, Sequence[float]],
    offset: Sequence[float] | None = None,
    *,
    plain: bool = False,
) -> Signature:
    """Whether training started badly, or the best rate lies at the edge of what was searched.

    Args:
        of: What it is about.
        curves: The loss of each of its trainings.
        nans: Trials of its arm whose loss was not finite, and all trials of the arm.
        rates: Method -> its learning rate.
        ranges: Method -> `(lowest, default, highest)` rate that was searched; methods without one are passed over.
        offset: `(low, high)` of the space's ``rate_offset``, for the next step.
        plain: Whether the space is that of the baseline, whose ranges are fixed.
    """
    spikes = [found for curve in curves if (found := spike(curve)) is not None]
    ends = {name: end for name, rate in rates.items() if name in ranges and (end := _end(rate, ranges[name]))}
    words, steps = [], []
    if spikes:
        worst = max(spikes, key=lambda found: found.rise)
        stayed = sum(found.stayed for found in spikes)
        words.append(
            f"the loss rose by up to {worst.rise:.3g} (after {worst.rows:,} rows) in {len(spikes)} of {len(curves)} "
            f"trainings" + (f", and stayed up in {stayed}" if stayed else "")
        )
    many = nans[0] > 0 and nans[0] >= MANY_NANS * nans[1]
    if many:
        words.append(f"the loss was not a number in {nans[0]} of {nans[1]} trials of this arm")
    if spikes or many:
        steps.append("search lower rates")
    for name, end in ends.items():
        words.append(f"the rate of {name}, {rates[name]:.3g}, lies at the {end} end of what was searched")
    if ends:
        steps.append(_wider(ends, ranges, offset, plain))
    if not words:
        known = any(len(curve) >= LEAST_POINTS for curve in curves) or bool(ranges)
        said = "No loss spikes, no failures, and rates inside of their range." if known else "No loss curve is known."
        return Signature("unstable_start", of, False if known else None, said)
    step = "; ".join(dict.fromkeys(steps))
    return Signature("unstable_start", of, True, _sentence(" and ".join(words)), _sentence(step))


def _end(rate: float, span: Sequence[float]) -> str:
    low, high = math.log(span[0]), math.log(span[-1])
    if high - low < 1e-6:
        return ""
    place = (math.log(rate) - low) / (high - low)
    return "low" if place <= EDGE else "high" if place >= 1 - EDGE else ""


def _wider(
    ends: Mapping[str, str], ranges: Mapping[str, Sequence[float]], offset: Sequence[float] | None, plain: bool
) -> str:
    """The words for a wider range of rates, on the side where the best one lies."""
    if offset is None:
        return "search a wider range of rates"
    low, high = float(offset[0]), float(offset[1])
    # A method's own bounds may cut the range before the offset does.
    cut = [
        name
        for name, end in ends.items()
        if (end == "low" and ranges[name][0] > 1.001 * ranges[name][1] * math.exp(low))
        or (end == "high" and ranges[name][-1] < 0.999 * ranges[name][1] * math.exp(high))
    ]
    if cut:
        return f"give {', '.join(cut)} wider bounds in a space file (rates: [low, default, high])"
    wider = f"[{low - ('low' in ends.values()):.3g}, {high + ('high' in ends.values()):.3g}]"
    alone = " with --space lora" if plain else ""
    return f"search wider rates{alone}: --set space.rate_offset={wider}"


def overfitting(steps: Sequence[Step]) -> Signature:
    """Whether validation fell from one rung to the next while the training loss fell, or whether it still rose.

    Trials were chosen by their score at the rung before, so that it falls a little by itself; that is about one
    standard deviation of the changes where nothing but luck told them apart, and not called a fall.

    Args:
        steps: Between neighbouring rungs, in order; the last one with three trials or more is looked at.
    """
    usable = [step for step in steps if len(step.scores) >= 3]
    if not usable:
        return Signature("overfitting", "search", None, "Fewer than three trials went from one rung to the next.")
    step = usable[-1]
    changes = np.array([after - before for before, after in step.scores])
    learned = float(np.mean([after - before for before, after in step.losses])) if step.losses else 0.0
    from scipy.stats import t

    mean, spread, count = float(changes.mean()), float(changes.std(ddof=1)), len(changes)
    half = float(t.ppf(0.975, count - 1)) * spread / math.sqrt(count)
    half = math.hypot(half, 1.96 * step.shift)
    change = (
        f"From {step.rows[0]:,} to {step.rows[1]:,} rows the validation score changed by {mean:+.4f} "
        f"(95 %: {mean - half:+.4f} to {mean + half:+.4f}) over {count} trainings"
    )
    if mean + half < 0 and -mean > SELECTED * spread and learned < 0:
        words = f"{change}, while the training loss fell: they learn the rows by heart."
        return Signature(
            "overfitting", "search", True, words, "Train less, or with more dropout, smaller sizes or more labels."
        )
    return Signature("overfitting", "search", False, f"{change}.")


def forgetting(of: str, kind: str, measured: Mapping[str, Any] | None) -> Signature:
    """Whether the base's own ability suffered.

    Args:
        of: What it is about.
        kind: The task kind.
        measured: Log-likelihood of a token of held-out prompts ``before`` and ``after``, ``low`` and ``high`` of the
            difference after - before, ``rows``; None where it was not measured.
    """
    if measured is None:
        why = "it was not reached" if kind == "causal_lm" else "the base's own task is not among what is evaluated here"
        return Signature("forgetting", of, None, f"Not measured: {why}.")
    before, after, low, high = (float(measured[name]) for name in ("before", "after", "low", "high"))
    words = (
        f"A token of {measured['rows']} held-out prompts, which no loss was on, had a log-likelihood of {before:.3f} "
        f"before and has {after:.3f} after (95 % of the difference: {low:+.3f} to {high:+.3f})."
    )
    if high < 0 and before - after >= LEAST_LOSS:
        step = "Search lower rates or smaller adapters, train on fewer rows, or mix other text into the data."
        return Signature("forgetting", of, True, words, step)
    return Signature("forgetting", of, False, words)


def latency(
    of: str,
    ratios: Mapping[str, Any] | None,
    *,
    mergeable: bool = False,
    lora: Mapping[str, Any] | None = None,
    limit: float | None = None,
) -> Signature:
    """Whether an adapter makes forward passes slower than serving has to bear.

    Any adapter adds some calls that show at one row, LoRA's too; merged into the weights it adds nothing. So it is
    worth a word where merging is impossible and a limit that was set does not hold it anyway: if it is clearly slower
    than the tuned LoRA of the same search, or slow with a whole batch, where the cost of a call hardly counts.

    Args:
        of: What it is about.
        ratios: Rows in a batch -> seconds of the adapted model over those of the bare base; None where unmeasured.
        mergeable: Whether every method of it can be folded into the weights.
        lora: The same ratios of the tuned LoRA, measured on the same machine; None where they are unknown or its own.
        limit: The limit on these ratios that the search kept, or None.
    """
    measured, compared = _by_rows(ratios), _by_rows(lora)
    if not measured:
        return Signature("latency", of, None, "Its forward passes were not timed.")
    beside = {rows: ratio / compared[rows] for rows, ratio in measured.items() if compared.get(rows)}
    words = f"A forward pass takes as long as the bare base's {_times(measured)}"
    if beside:
        words += f" (that of the tuned LoRA: {_times(compared)})"
    if mergeable:
        return Signature("latency", of, False, f"{words}; merged into the weights (merge_and_unload) it adds nothing.")
    if limit is not None:
        return Signature("latency", of, False, f"{words}, within the limit of {limit:g} that was set.")
    above = max(beside.values(), default=1.0)
    if above <= ABOVE_LORA and measured[max(measured)] <= SLOWER:
        return Signature("latency", of, False, f"{words}, and it cannot be merged.")
    # Rounded up, so that tuned LoRA itself keeps it.
    like = max(compared.values()) if beside and above > ABOVE_LORA else SLOWER
    step = (
        "It cannot be merged: where latency matters, search with "
        f"--max-latency {math.ceil(100 * like) / 100:g}, or with --target merged."
    )
    return Signature("latency", of, True, f"{words}, and it cannot be merged.", step)


def _by_rows(ratios: Mapping[str, Any] | None) -> dict[int, float]:
    """Rows in a batch -> ratio, the smallest batch first; what is no ratio is left out."""
    found = {
        int("".join(c for c in str(rows) if c.isdigit())): float(ratio)
        for rows, ratio in (ratios or {}).items()
        if isinstance(ratio, int | float) and any(c.isdigit() for c in str(rows))
    }
    return dict(sorted(found.items()))


def _times(ratios: Mapping[int, float]) -> str:
    return ", ".join(f"times {ratio:.2f} with {rows} row{'s' * (rows > 1)}" for rows, ratio in ratios.items())


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
