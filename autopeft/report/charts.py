"""The charts of all trials: scores against time, and against learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from autopeft.report.axes import LEFT, RIGHT, WIDTH, Axis, below, score_axis
from autopeft.report.drawing import Drawing, Points, colour, frame

EMPTY = Drawing("", (), empty="No trial has reached a rung yet.")


def progress_chart(
    curves: Mapping[str, Points], until: float, metric: str, labels: Mapping[str, str], ends: Mapping[str, float]
) -> Drawing:
    """The best score so far against the time used, one stepped line for each arm.

    Args:
        curves: Arm -> `(seconds, score)`, the seconds rising.
        until: Seconds at the right end.
        metric: Name of the score.
        labels: Arm -> what the legend says.
        ends: Arm -> mean of its finalist's fresh runs, where there are any.
    """
    scores = [score for curve in curves.values() for _, score in curve]
    if not scores:
        return EMPTY
    unit, name = (60.0, "minutes") if until >= 180 else (1.0, "seconds")
    horizontal = Axis(0.0, max(until, 1.0) / unit, LEFT, WIDTH - RIGHT)
    vertical = score_axis([*scores, *ends.values()], clip=not ends)
    drawn = [frame(horizontal, vertical, f"{name} used", f"best {metric}")]
    for arm, curve in curves.items():
        path, last = "", 0.0
        for seconds, score in curve:
            x, y = horizontal.place(seconds / unit), vertical.clipped(score)
            path += f"M{x:.1f} {y:.1f}" if not path else f"H{x:.1f}V{y:.1f}"
            drawn.append(
                f'<circle class="{colour(arm)}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{escape(labels.get(arm, arm))}: {score:.4f} after {seconds:.0f} s</title></circle>"
            )
            last = seconds
        if last < until:
            path += f"H{horizontal.place(until / unit):.1f}"
        drawn.append(f'<path class="line {colour(arm)}" d="{path}"/>')
    for arm, mean in ends.items():
        x, y = horizontal.place(until / unit), vertical.clipped(mean)
        title = f"<title>{escape(labels.get(arm, arm))}: {mean:.4f}, mean of its finalist's fresh runs</title>"
        drawn.append(f'<circle class="{colour(arm)} early" cx="{x:.1f}" cy="{y:.1f}" r="6">{title}</circle>')
    keys = tuple((colour(arm), labels.get(arm, arm)) for arm in curves)
    note = "The best of the trials that had gone furthest by then; its score may fall where one goes further."
    note += " Hollow at the end: the mean of the finalist's fresh runs." * bool(ends)
    return Drawing(f"Best {metric} so far against {name} used", drawn, keys, note=note + below(vertical))


def rate_chart(
    points: Sequence[tuple[str, str, float, float, bool]], metric: str, labels: Mapping[str, str]
) -> Drawing:
    """Scores against learning rates on a log scale, one dot for each trial.

    Args:
        points: `(arm, methods, learning rate over the default, score, whether trained in full)`.
        metric: Name of the score.
        labels: Arm -> what the legend says.
    """
    if not points:
        return EMPTY
    rates = [rate for _, _, rate, _, _ in points]
    horizontal = Axis(min(rates) / 1.5, max(rates) * 1.5, LEFT, WIDTH - RIGHT, log=True)
    vertical = score_axis([score for _, _, _, score, _ in points], clip=True)
    drawn = [
        frame(horizontal, vertical, "learning rate over the default of its methods", f"last {metric}", "{:.3g}".format)
    ]
    for arm, methods, rate, score, full in points:
        hollow = "" if full else " early"
        drawn.append(
            f'<circle class="{colour(arm)}{hollow}" cx="{horizontal.place(rate):.1f}" '
            f'cy="{vertical.clipped(score):.1f}" r="5"><title>{escape(methods)}: {score:.4f} at {rate:.2g}'
            f" times the default{'' if full else ', stopped early'}</title></circle>"
        )
    arms = dict.fromkeys(arm for arm, *_ in points)
    keys = tuple((colour(arm), labels.get(arm, arm)) for arm in arms)
    return Drawing(
        f"{metric} against learning rate",
        drawn,
        keys,
        note="Of a mix, the geometric mean over its methods. Hollow: stopped early." + below(vertical),
    )
