"""What was predicted before training, against what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from autopeft.journal import SearchLog, describe
from autopeft.report.axes import BOTTOM, HEIGHT, TOP, Axis, cost_axis
from autopeft.report.drawing import Drawing, arm_keys, colour, dot, frame, path
from autopeft.spec.amounts import format_bytes


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted and measured memory and speed.

    Attributes:
        memory: `(arm, methods, predicted bytes, highest measured bytes, whether it is a prediction and no upper
            bound)` for each configuration that has both.
        predicted: How many configurations have a prediction or a bound.
        planned: Seconds per training row that the plan was made with, or None.
        trained: Seconds per training row of every trial's parts.
    """

    memory: tuple[tuple[str, str, int, int, bool], ...]
    predicted: int
    planned: float | None
    trained: tuple[float, ...]

    @property
    def worst(self) -> tuple[str, float] | None:
        """The configuration whose measured memory is furthest from its prediction, and by which share; or None."""
        errors = [
            (methods, measured / predicted - 1) for _, methods, predicted, measured, exact in self.memory if exact
        ]
        return max(errors, key=lambda error: abs(error[1]), default=None)

    def sentences(self) -> str:
        """How good the predictions were."""
        told = []
        worst, exact = self.worst, [one[2:4] for one in self.memory if one[4]]
        bounds = [one[2:4] for one in self.memory if not one[4]]
        if worst is not None:
            over = sum(measured > predicted for predicted, measured in exact)
            told.append(
                f"Memory of {len(exact)} configurations was predicted: the worst error is {worst[1]:+.1%} "
                f"({worst[0]}), {over} took more."
            )
        if bounds:
            over = sum(measured > bound for bound, measured in bounds)
            told.append(f"Memory of {len(bounds)} configurations was bounded from above: {over} took more than that.")
        if not self.memory:
            none = "Memory was predicted, and not measured." if self.predicted else "No memory was predicted."
            told.append(none)
        if self.planned and self.trained:
            middle = median(self.trained)
            told.append(
                f"Training was planned with {1000 * self.planned:.2g} ms per row; the median of "
                f"{len(self.trained)} parts took {1000 * middle:.2g} ms ({middle / self.planned - 1:+.0%}), from "
                f"{1000 * min(self.trained):.2g} to {1000 * max(self.trained):.2g}."
            )
        return " ".join(told)


def forecast(log: SearchLog) -> Forecast:
    """Predictions of the journal beside its measurements."""
    peaks: dict[str, int] = {}
    speeds: list[float] = []
    for trial in log.trials.values():
        if trial.peak_bytes is not None:
            peaks[trial.hash] = max(peaks.get(trial.hash, 0), trial.peak_bytes)
        before = 0
        for rung in trial.rungs:
            # A finalist's only rung covers all its rows; a retried part may begin anywhere, which the next rung mends.
            if rung.train_seconds > 0 and rung.rows > before:
                speeds.append(rung.train_seconds / (rung.rows - before))
            before = rung.rows
    named = log.finalists or {}
    exact = {str(named.get(role)): value for role, value in (named.get("predicted_bytes") or {}).items() if value}
    memory = []
    for hash, peak in peaks.items():
        known = log.configurations.get(hash)
        predicted = exact.get(hash) or (known.predicted_bytes if known else None)
        if known is not None and predicted:
            sure = hash in exact or known.predicted_exactly
            memory.append((known.arm, describe(known.configuration).methods, int(predicted), peak, sure))
    return Forecast(
        tuple(memory),
        sum(bool(known.predicted_bytes) for known in log.configurations.values()),
        (log.plan.get("speed") or {}).get("train"),
        tuple(speeds),
    )


def forecast_drawing(found: Forecast) -> Drawing:
    """Measured against predicted memory; on the line, the prediction was exact."""
    if not found.memory:
        return Drawing("", (), empty=found.sentences())
    unit = 2**20
    values = [value / unit for _, _, predicted, measured, _ in found.memory for value in (predicted, measured)]
    horizontal = cost_axis(values)
    vertical = Axis(horizontal.low, horizontal.high, HEIGHT - BOTTOM, TOP, log=horizontal.log)
    ends = [(horizontal.place(value), vertical.place(value)) for value in (horizontal.low, horizontal.high)]
    drawn = [
        frame(horizontal, vertical, "predicted memory in MiB", "measured", "{:,.4g}".format, "{:,.4g}".format),
        path(ends, "other dashed", "as predicted"),
    ]
    for arm, methods, predicted, measured, exact in found.memory:
        said = "predicted" if exact else "at most"
        words = f"{methods}: {said} {format_bytes(predicted)}, measured {format_bytes(measured)}"
        drawn.append(
            dot(
                horizontal.place(predicted / unit),
                vertical.place(measured / unit),
                colour(arm) + " early" * (not exact),
                words,
            )
        )
    keys = (*arm_keys(arm for arm, *_ in found.memory), ("other rule", "as predicted"))
    bounded = any(not exact for *_, exact in found.memory)
    note = "Hollow: not predicted, but bounded from above." if bounded else ""
    return Drawing("Measured against predicted memory", drawn, keys, note)
