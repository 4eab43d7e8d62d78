"""Learning curves of all trials, with what stopped them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from autopeft.journal import SearchLog, TrialLog, describe
from autopeft.report.axes import below, log_axis, score_axis
from autopeft.report.drawing import Drawing, arm_keys, colour, dot, frame, path

UNFINISHED = ("stopped", "failed", "infeasible", "cancelled")


@dataclass(frozen=True, slots=True)
class Curve:
    """A trial's scores over the rows that it had seen.

    Attributes:
        trial: Its id.
        arm: Its arm.
        methods: Its method mix.
        finalist: Whether its configuration is a finalist.
        status: Where it stands.
        reason: Why it ended early, or empty.
        points: `(rows, score)`, at least one.
    """

    trial: str
    arm: str
    methods: str
    finalist: bool
    status: str
    reason: str
    points: tuple[tuple[int, float], ...]


def curves(log: SearchLog) -> tuple[Curve, ...]:
    """All trials that reached a rung, finalists last so that they are drawn on top."""
    finalists = {(log.finalists or {}).get(role) for role in ("baseline", "challenger")}
    found = []
    for trial in log.trials.values():
        scored = [(rung.rows, rung.metrics.get(log.rung_metric)) for rung in trial.rungs]
        points = tuple((rows, score) for rows, score in scored if score is not None)
        if not points:
            continue
        known = log.configurations.get(trial.hash)
        found.append(
            Curve(
                trial=trial.id,
                arm=trial.arm,
                methods=describe(known.configuration).methods if known else "",
                finalist=trial.hash in finalists,
                status=trial.status,
                reason=_reason(trial) if trial.status in UNFINISHED else "",
                points=points,
            )
        )
    return tuple(sorted(found, key=lambda curve: curve.finalist))


def _reason(trial: TrialLog) -> str:
    """Why it ended; where exploration ended over it, also why it had not gone on before."""
    ended = ": ".join(text for text in (trial.reason, trial.detail) if text)
    if trial.status == "stopped" and trial.decisions and trial.decisions[-1].action == "pause":
        return f"{ended}; it had paused: {trial.decisions[-1].reason}"
    return ended


def curves_drawing(found: tuple[Curve, ...], metric: str) -> Drawing:
    """Thin lines, thick ones for finalists, a cross where a trial was stopped."""
    if not found:
        return Drawing("", (), empty="No trial has reached a rung yet.")
    horizontal = log_axis([rows for curve in found for rows, _ in curve.points], 1.2)
    vertical = score_axis([score for curve in found for _, score in curve.points], clip=True)
    drawn = [frame(horizontal, vertical, "training rows seen", metric, lambda v: f"{v:,.0f}")]
    for curve in found:
        kind, places = colour(curve.arm), [(horizontal.place(x), vertical.clipped(y)) for x, y in curve.points]
        x, y = places[-1]
        last = f"{curve.trial} {curve.methods}: {curve.points[-1][1]:.4f} after {curve.points[-1][0]:,} rows"
        if len(places) > 1:
            drawn.append(path(places, f"{kind} {'thick' if curve.finalist else 'thin'}", last))
        if curve.status in UNFINISHED:
            title = f"<title>{escape(f'{last}; {curve.status}: {curve.reason}')}</title>"
            cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
            drawn.append(f'<path class="line {kind}" d="{cross}" pointer-events="all">{title}</path>')
        else:
            drawn.append(dot(x, y, kind, f"{last}; {curve.status}", 5 if curve.finalist else 3))
    stops = sum(curve.status in UNFINISHED for curve in found)
    note = f"Crosses: {stops} trials that ended early; point at one for the reason." if stops else ""
    thick = " Thick lines and large dots: the finalists." if any(curve.finalist for curve in found) else ""
    keys = arm_keys(sorted(curve.arm for curve in found))
    return Drawing(f"{metric} against training rows", drawn, keys, (note + thick + below(vertical)).strip())
