"""Score against what a configuration costs, and which configurations are worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.journal import SearchLog, describe, furthest
from autopeft.report.axes import RIGHT, WIDTH, cost_axis, score_axis
from autopeft.report.drawing import Drawing, arm_keys, colour, dot, frame, steps
from autopeft.spec.amounts import format_bytes, format_count

ROLES = {"baseline": "tuned LoRA", "challenger": "best of the space"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a front is drawn against.

    Attributes:
        name: In words; braces hold how memory is known.
        empty: What is said where no point has it.
        numbers: Spells the numbers of the axis.
        spell: Spells one value.
        unit: What the axis counts in.
        suffix: That unit, in words.
    """

    name: str
    empty: str
    numbers: Callable[[float], str]
    spell: Callable[[float], str]
    unit: int = 1
    suffix: str = ""


COSTS = {
    "adapter_params": Cost("adapter parameters", "No trial has reached a rung yet.", format_count, format_count),
    "bytes": Cost(
        "memory to train, {}", "No memory is known.", "{:,.4g}".format, format_bytes, unit=2**20, suffix=" in MiB"
    ),
    "latency": Cost(
        "time of a forward pass",
        "No latency is known.",
        "{:,.4g}".format,
        "{:.2f} times the bare base's forward pass".format,
        suffix=" over that of the bare base",
    ),
}
"""Member of `Worth` -> how it is drawn."""


@dataclass(frozen=True, slots=True)
class Worth:
    """A configuration that went furthest.

    Attributes:
        hash: Its hash.
        arm: The arm that proposed it.
        methods: Its method mix.
        adapter_params: Its adapter parameters.
        bytes: Its memory, or None.
        latency: The time of its forward pass over that of the bare base, or None.
        score: Mean score over its runs; a finalist's over its fresh ones.
        runs: How many these are.
        role: Which finalist it is, or None.
        low: Lower end of a finalist's 95 % interval, or None.
        high: Upper end, or None.
    """

    hash: str
    arm: str
    methods: str
    adapter_params: int
    bytes: int | None
    latency: float | None
    score: float
    runs: int
    role: str | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Fronts:
    """All configurations that went furthest.

    Attributes:
        points: Those, the smallest first.
        measured: Whether their memory was measured; else it was predicted.
    """

    points: tuple[Worth, ...]
    measured: bool

    def by(self, cost: str) -> list[Worth]:
        """Those that no other beats in both score and cost, the cheapest first.

        Args:
            cost: A name of `COSTS`; points without it are left out.
        """
        known = [point for point in self.points if getattr(point, cost)]
        front: list[Worth] = []
        for point in sorted(known, key=lambda point: (getattr(point, cost), -point.score)):
            if not front or point.score > front[-1].score:
                front.append(point)
        return front


def fronts(log: SearchLog) -> Fronts:
    """The configurations that reached the highest rung, with size, memory and latency."""
    reached: list[dict[str, Any]] = furthest(log)
    peaks = {
        point["hash"]: max((t.peak_bytes for t in log.of_configuration(point["hash"]) if t.peak_bytes), default=None)
        for point in reached
    }
    measured = any(peaks.values())
    roles = {hash: role for role in ROLES if (hash := (log.finalists or {}).get(role))}
    points = []
    for point in reached:
        known, role = log.configurations[point["hash"]], roles.get(point["hash"])
        block: dict[str, Any] = (((log.finished or {}).get("result") or {}).get(role) or {}).get("validation") or {}
        interval = block if block.get("metric") == log.rung_metric else {}
        points.append(
            Worth(
                hash=known.hash,
                arm=known.arm,
                methods=describe(known.configuration).methods,
                adapter_params=known.adapter_params,
                bytes=peaks[known.hash] if measured else known.predicted_bytes,
                latency=max((log.latency(known.hash) or {}).values(), default=None),
                score=interval.get("mean", point["score"]),
                runs=interval.get("seeds", point["runs"]),
                role=role,
                low=interval.get("low"),
                high=interval.get("high"),
            )
        )
    return Fronts(tuple(points), measured)


def front_drawing(found: Fronts, cost: str, metric: str) -> Drawing:
    """Dots for all, a stepped line for the front, rings for the finalists.

    Args:
        found: The configurations.
        cost: A name of `COSTS`.
        metric: Name of the score.
    """
    points = [point for point in found.points if getattr(point, cost)]
    shown = COSTS[cost]
    if not points:
        return Drawing("", (), empty=shown.empty)
    unit = shown.unit
    horizontal = cost_axis([getattr(point, cost) / unit for point in points])
    ends = [end for point in points for end in (point.low, point.high) if end is not None]
    vertical = score_axis([*(point.score for point in points), *ends])
    name = shown.name.format("measured" if found.measured else "predicted")
    front = found.by(cost)
    drawn = [
        frame(horizontal, vertical, name + shown.suffix, metric, shown.numbers),
        steps(
            [(horizontal.place(getattr(p, cost) / unit), vertical.place(p.score)) for p in front],
            WIDTH - RIGHT,
            "other",
        ),
    ]
    for point in points:
        x, y = horizontal.place(getattr(point, cost) / unit), vertical.place(point.score)
        runs = f"{point.runs} runs" if point.runs > 1 else "1 run"
        role = f", finalist: {ROLES[point.role]}" if point.role else ""
        title = f"{point.methods}: {point.score:.4f} ({runs}) with {shown.spell(getattr(point, cost))}{role}"
        if point.low is not None and point.high is not None:
            low, high = vertical.place(point.low), vertical.place(point.high)
            bar = f"M{x - 5:.1f} {low:.1f}h10m-5 0V{high:.1f}m-5 0h10"
            drawn.append(f'<path class="line {colour(point.arm)}" d="{bar}"/>')
            title += f", 95 % {point.low:.4f} to {point.high:.4f}"
        if point.role:
            drawn.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
        drawn.append(dot(x, y, colour(point.arm), title))
    return Drawing(f"{metric} against {name}", drawn, _keys(points), _note(points))


def _keys(points: Sequence[Worth]) -> tuple[tuple[str, str], ...]:
    return (*arm_keys(point.arm for point in points), ("other rule", "nothing cheaper scores as high"))


def _note(points: Sequence[Worth]) -> str:
    if not any(point.role for point in points):
        return "One run each: the best of them were partly lucky."
    bars = "; bars are their 95 % intervals" if any(point.low is not None for point in points) else ""
    others = " The others ran once, so the best of them were partly lucky."
    return f"Ringed: the finalists, by the mean of their fresh runs{bars}." + others * any(not p.role for p in points)
