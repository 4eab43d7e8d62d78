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
        memory: `(arm, methods, predicted bytes, highest measured bytes)` for each configuration that has both.
        predicted: How many configurations have a prediction.
        planned: Seconds per training row that the plan was made with, or None.
        trained: Seconds per training row of every trial's parts.
    """

    memory: tuple[tuple[str, str, int, int], ...]
    predicted: int
    planned: float | None
    trained: tuple[float, ...]

    @property
    def worst(self) -> tuple[str, float] | None:
        """The configuration whose measured memory is furthest from the prediction, and by which share; or None."""
        errors = [(methods, measured / predicted - 1) for _, methods, predicted, measured in self.memory]
        return max(errors, key=lambda error: abs(error[1]), default=None)

    def sentences(self) -> str:
        """How good the predictions were."""
        told = []
        worst = self.worst
        if worst is not None:
            number, over = len(self.memory), sum(measured > foreseen for _, _, foreseen, measured in self.memory)
            worst_words = f"the worst error is {worst[1]:+.1%} ({worst[0]})"
            told.append(f"Memory of {number} configurations: {worst_words}, {over} took more than predicted.")
        elif self.predicted:
            told.append("Memory was predicted, and not measured.")
        else:
            told.append("No memory was predicted: no limit asked for it.")
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
    known = log.configurations
    return Forecast(
        tuple(
            (known[hash].arm, describe(known[hash].configuration).methods, predicted, peak)
            for hash, peak in peaks.items()
            if hash in known and (predicted := known[hash].predicted_bytes)
        ),
        sum(bool(item.predicted_bytes) for item in known.values()),
        (log.plan.get("speed") or {}).get("train"),
        tuple(speeds),
    )


def forecast_drawing(found: Forecast) -> Drawing:
    """Measured against predicted memory; on the line, the prediction was exact."""
    if not found.memory:
        return Drawing("", (), empty=found.sentences())
    unit = 2**20
    values = [value / unit for _, _, *both in found.memory for value in both]
    horizontal = cost_axis(values)
    vertical = Axis(horizontal.low, horizontal.high, HEIGHT - BOTTOM, TOP, log=horizontal.log)
    ends = [(horizontal.place(value), vertical.place(value)) for value in (horizontal.low, horizontal.high)]
    drawn = [
        frame(horizontal, vertical, "predicted memory in MiB", "measured", "{:,.4g}".format, "{:,.4g}".format),
        path(ends, "other dashed", "as predicted"),
    ]
    for arm, methods, predicted, measured in found.memory:
        words = f"{methods}: predicted {format_bytes(predicted)}, measured {format_bytes(measured)}"
        drawn.append(dot(horizontal.place(predicted / unit), vertical.place(measured / unit), colour(arm), words))
    keys = (*arm_keys(arm for arm, *_ in found.memory), ("other rule", "as predicted"))
    return Drawing("Measured against predicted memory", drawn, keys)
