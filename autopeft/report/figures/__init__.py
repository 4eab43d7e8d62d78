"""The figures of a report: for each one, the numbers from the journal, and the drawing of these numbers."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.journal import SearchLog
from autopeft.report.figures.curves import Curve, curves
from autopeft.report.figures.forecast import Forecast, forecast
from autopeft.report.figures.front import Fronts, fronts
from autopeft.report.figures.importance import Importance, importance
from autopeft.report.figures.places import Places, places
from autopeft.report.figures.rates import LoraRates, lora_rates

__all__ = ["Figures", "LoraRates", "figures"]


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers behind the figures.

    Attributes:
        rates: Tuned LoRA over its learning rate.
        fronts: Score against size, memory and latency.
        places: Where good configurations use which method, or None.
        importance: Which dimensions mattered.
        curves: Learning curves.
        forecast: Predictions against measurements.
    """

    rates: LoraRates
    fronts: Fronts
    places: Places | None
    importance: Importance
    curves: tuple[Curve, ...]
    forecast: Forecast


def figures(log: SearchLog) -> Figures:
    """All of them, from the journal, folded."""
    return Figures(lora_rates(log), fronts(log), places(log), importance(log), curves(log), forecast(log))
