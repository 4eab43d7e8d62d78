"""Tuned LoRA over the learning rate: whether its optimum was inside what was tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.journal import SearchLog
from autopeft.report.axes import below, log_axis, score_axis
from autopeft.report.drawing import Drawing, dot, frame, path

FEWEST = 3
"""Trials at one rung, from which on something is said about where the best rate lies."""
NEAR_END = 0.05
"""A rate this close to an end of the allowed range, as a share of its logarithmic width, lies at that end."""
OTHER = 1.5
"""A rung has another best rate where it differs by this factor."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Scores of tuned LoRA after as many rows, over its learning rate.

    Attributes:
        rung: Index of the rung.
        rows: Rows seen.
        points: `(learning rate, score, trial)`, the smallest rate first.
    """

    rung: int
    rows: int
    points: tuple[tuple[float, float, str], ...]

    @property
    def best(self) -> tuple[float, float, str]:
        """The point with the highest score."""
        return max(self.points, key=lambda point: point[1])

    @property
    def envelope(self) -> list[tuple[float, float]]:
        """`(rate, score)` of those that nothing further from the best rate beats: a curve with one top."""
        kept: list[tuple[float, float]] = []
        for side in (self.points, self.points[::-1]):
            highest = -math.inf
            for rate, score, _ in side:
                if score > highest:
                    highest = score
                    kept.append((rate, score))
        return sorted(set(kept))


@dataclass(frozen=True, slots=True)
class LoraRates:
    """What is known of LoRA's learning rate.

    Attributes:
        curves: One for each rung that was reached, the first rung first.
        allowed: Lowest and highest rate that the search could give it, or None where the journal does not say.
    """

    curves: tuple[RateCurve, ...]
    allowed: tuple[float, float] | None

    @property
    def judged(self) -> RateCurve | None:
        """The highest rung with enough trials to say something, or None."""
        return next((curve for curve in reversed(self.curves) if len(curve.points) >= FEWEST), None)

    @property
    def inside(self) -> bool | None:
        """Whether worse rates lie on both sides of the best one; None where too little is known."""
        return all(_sides(self.judged)) if self.judged is not None and any(_sides(self.judged)) else None

    def sentence(self) -> str:
        """Where the best rate lies, in words."""
        if not self.curves:
            return "No trial of tuned LoRA has reached a rung."
        curve = self.judged
        if curve is None:
            return "Too few trials of tuned LoRA to say where its best learning rate lies."
        lowest, highest = (not side for side in _sides(curve))
        rates = [point[0] for point in curve.points]
        if lowest and highest:
            return f"All {len(rates)} trials after {curve.rows:,} rows scored the same at every learning rate."
        rate = max(point[0] for point in curve.points if point[1] == curve.best[1]) if highest else curve.best[0]
        after = f"Of {len(rates)} trials after {curve.rows:,} rows, the best has the learning rate {rate:.2g}"
        if self.inside:
            told = f"{after}, inside the range that was tried ({min(rates):.2g} to {max(rates):.2g})"
            return f"{told}: lower and higher rates did worse, in one run each.{self._more(curve)}"
        end, beyond = ("highest", "higher") if highest else ("lowest", "lower")
        told = f"{after}, the {end} of them"
        tried = {point[0] for earlier in self.curves for point in earlier.points}
        further = [other for other in tried if (other > rate * 1.01 if highest else other < rate / 1.01)]
        if further:
            word = "one" if len(further) == 1 else str(len(further))
            return f"{told}; {word} with a {beyond} rate got less far.{self._more(curve)}"
        if self.allowed is None:
            return f"{told}: a {beyond} one may do better; which were allowed is not in this journal."
        low, high = self.allowed
        gap = math.log(high / rate) if highest else math.log(rate / low)
        if gap <= NEAR_END * math.log(high / low) or high == low:
            return f"{told} and at the edge of what is allowed ({low:.2g} to {high:.2g}): a {beyond} one may do better."
        return f"{told}: {beyond} ones were allowed (down to {low:.2g}, up to {high:.2g}) and not tried."

    def _more(self, curve: RateCurve) -> str:
        """What another rung says, where it says something else."""
        first = self.curves[0]
        if first is curve or abs(math.log(first.best[0] / curve.best[0])) < math.log(OTHER):
            return ""
        return f" After {first.rows:,} rows, {first.best[0]:.2g} was the best of {len(first.points)}."


def lora_rates(log: SearchLog) -> LoraRates:
    """Tuned LoRA's scores over its learning rate, from the exploration of the baseline arm."""
    found: dict[int, tuple[int, list[tuple[float, float, str]]]] = {}
    for trial in log.trials.values():
        known = log.configurations.get(trial.hash)
        rate = known and known.configuration.get("training", {}).get("rates", {}).get("lora")
        if trial.arm != "baseline" or trial.purpose != "explore" or not rate:
            continue
        for rung in trial.rungs:
            score = rung.metrics.get(log.rung_metric)
            if score is not None:
                found.setdefault(rung.rung, (rung.rows, []))[1].append((float(rate), score, trial.id))
    # Journals of earlier versions say it twice, the first ones only there.
    span = ((log.header.get("space") or {}).get("baseline") or {}).get("rates", {}).get("lora")
    allowed = [span[0], span[-1]] if span else log.header.get("procedure", {}).get("baseline_rates")
    return LoraRates(
        tuple(RateCurve(rung, rows, tuple(sorted(points))) for rung, (rows, points) in sorted(found.items())),
        (float(allowed[0]), float(allowed[1])) if allowed else None,
    )


def rates_drawing(rates: LoraRates, metric: str) -> Drawing:
    """The highest rung that is judged, and the first rung in which every rate was tried."""
    if not rates.curves:
        return Drawing("", (), empty=rates.sentence())
    last = rates.judged or rates.curves[-1]
    shown = [(last, "baseline")]
    if rates.curves[0] is not last:
        shown.append((rates.curves[0], "other"))
    values = [point[0] for curve, _ in shown for point in curve.points]
    horizontal = log_axis([*values, *(rates.allowed or ())], 1.15)
    vertical = score_axis([point[1] for curve, _ in shown for point in curve.points], clip=True)
    drawn = [frame(horizontal, vertical, "learning rate of tuned LoRA", metric)]
    if rates.allowed:
        for end in rates.allowed:
            x = horizontal.place(end)
            title = f"<title>allowed: {rates.allowed[0]:.2g} to {rates.allowed[1]:.2g}</title>"
            drawn.append(
                f'<path class="line other dashed" d="M{x:.1f} {vertical.start:.1f}V{vertical.end:.1f}">{title}</path>'
            )
    for curve, kind in reversed(shown):
        drawn.append(path([(horizontal.place(x), vertical.clipped(y)) for x, y in curve.envelope], kind))
        drawn += [
            dot(
                horizontal.place(rate),
                vertical.clipped(score),
                kind,
                f"{trial}: {score:.4f} at {rate:.2g}, {curve.rows:,} rows",
            )
            for rate, score, trial in curve.points
        ]
    note = "Lines: the best at a rate or further out; rank, places and scale vary along."
    dashes = " Dashed: ends of the range allowed." if rates.allowed else ""
    return Drawing(
        f"{metric} of tuned LoRA against its learning rate", drawn, _keys(shown), note + dashes + below(vertical)
    )


def _keys(shown: Sequence[tuple[RateCurve, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (kind, f"after {curve.rows:,} rows ({len(curve.points)} trial{'s' * (len(curve.points) > 1)})")
        for curve, kind in shown
    )


def _sides(curve: RateCurve) -> tuple[bool, bool]:
    """Whether there are worse trials at lower rates than all of the best ones, and at higher ones."""
    equal = [rate for rate, score, _ in curve.points if score == curve.best[1]]
    return curve.points[0][0] < min(equal) / 1.01, curve.points[-1][0] > max(equal) * 1.01
