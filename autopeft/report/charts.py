"""Charts as inline SVG, drawn here: no script, no font, no file besides the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places.

    Attributes:
        low: Smallest value shown.
        high: Largest value shown, above `low`.
        start: Place of `low` in pixels.
        end: Place of `high` in pixels.
        log: Whether places go with the logarithm.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value goes, in pixels."""
        low, high, at = (
            (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to mark."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            return [value for value in fine if self.low <= value <= self.high * 1.0001]
        raw = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 5, 10) if raw <= size * factor)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def progress_chart(curves: Mapping[str, Points], until: float, metric: str, labels: Mapping[str, str]) -> str:
    """The best score so far against the time used, one stepped line for each arm.

    Args:
        curves: Arm -> `(seconds, score)`, both rising.
        until: Seconds at the right end.
        metric: Name of the score.
        labels: Arm -> what the legend says.
    """
    scores = [score for curve in curves.values() for _, score in curve]
    if not scores:
        return '<p class="quiet">No trial has reached a rung yet.</p>'
    unit, name = (60.0, "minutes") if until >= 180 else (1.0, "seconds")
    horizontal = Axis(0.0, max(until, 1.0) / unit, LEFT, WIDTH - RIGHT)
    vertical = _score_axis(scores)
    drawn = [_frame(horizontal, vertical, f"{name} used", f"best {metric}")]
    for arm, curve in curves.items():
        path, last = "", 0.0
        for seconds, score in curve:
            x, y = horizontal.place(seconds / unit), vertical.place(score)
            path += f"M{x:.1f} {y:.1f}" if not path else f"H{x:.1f}V{y:.1f}"
            drawn.append(
                f'<circle class="{_class(arm)}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{escape(labels.get(arm, arm))}: {score:.4f} after {seconds:.0f} s</title></circle>"
            )
            last = seconds
        if last < until:
            path += f"H{horizontal.place(until / unit):.1f}"
        drawn.append(f'<path class="line {_class(arm)}" d="{path}"/>')
    return _svg(drawn, f"Best {metric} so far against {name} used") + _legend(curves, labels)


def rate_chart(points: Sequence[tuple[str, str, float, float, bool]], metric: str, labels: Mapping[str, str]) -> str:
    """Scores against learning rates on a log scale, one dot for each trial.

    Args:
        points: `(arm, methods, learning rate, score, whether trained in full)`.
        metric: Name of the score.
        labels: Arm -> what the legend says.
    """
    if not points:
        return '<p class="quiet">No trial has reached a rung yet.</p>'
    rates = [rate for _, _, rate, _, _ in points]
    horizontal = Axis(min(rates) / 1.5, max(rates) * 1.5, LEFT, WIDTH - RIGHT, log=True)
    vertical = _score_axis([score for _, _, _, score, _ in points])
    drawn = [_frame(horizontal, vertical, "learning rate of the first method", f"last {metric}")]
    for arm, methods, rate, score, full in points:
        hollow = "" if full else " early"
        drawn.append(
            f'<circle class="{_class(arm)}{hollow}" cx="{horizontal.place(rate):.1f}" '
            f'cy="{vertical.place(score):.1f}" r="5"><title>{escape(methods)}: {score:.4f} at {rate:.2g}'
            f"{'' if full else ', stopped early'}</title></circle>"
        )
    arms = dict.fromkeys(arm for arm, *_ in points)
    return _svg(drawn, f"{metric} against learning rate") + _legend(arms, labels, " Hollow: stopped early.")


def _score_axis(scores: Sequence[float]) -> Axis:
    low, high = min(scores), max(scores)
    room = (high - low) * 0.08 or max(abs(high) * 0.02, 1e-3)
    return Axis(low - room, high + room, HEIGHT - BOTTOM, TOP)


def _frame(horizontal: Axis, vertical: Axis, x_label: str, y_label: str) -> str:
    lines: list[str] = []
    for value in vertical.ticks():
        y = vertical.place(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    spell: Callable[[float], str] = (
        (lambda v: f"{v:.0e}".replace("e-0", "e-")) if horizontal.log else (lambda v: f"{v:.4g}")
    )
    for value in horizontal.ticks():
        x = horizontal.place(value)
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{spell(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    upright = (TOP + HEIGHT - BOTTOM) / 2
    lines.append(
        f'<text class="upright" text-anchor="middle" transform="translate(14 {upright:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return "".join(lines)


def _svg(drawn: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _legend(arms: Mapping[str, object], labels: Mapping[str, str], more: str = "") -> str:
    keys = "".join(
        f'<span class="key"><i class="{_class(arm)}"></i>{escape(labels.get(arm, arm))}</span>' for arm in arms
    )
    return f'<p class="legend">{keys}{escape(more)}</p>'


def _class(arm: str) -> str:
    return arm if arm in ("baseline", "space", "incumbent") else "other"
