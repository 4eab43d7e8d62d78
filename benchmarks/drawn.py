"""Charts of the benchmarks of speed as SVG files, drawn as the report's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autopeft.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, log_axis
from autopeft.report.drawing import Drawing, dot, frame, path

BAR, NAMES = 34, 210
"""Height of a bar with the room around it, and width of the names before the bars."""
KINDS = ("space", "baseline", "incumbent", "other")


def bars(title: str, values: Sequence[tuple[str, float, str]], ours: Callable[[str], bool], note: str = "") -> Drawing:
    """Level bars with their names before and their values behind them.

    Args:
        title: What they show.
        values: `(name, value, how it is written)`.
        ours: Whether the bar of a name has our colour.
        note: A sentence below.
    """
    most = max(value for _, value, _ in values)
    drawn = []
    for index, (name, value, written) in enumerate(values):
        y = TOP + BAR * index + BAR / 2
        end = NAMES + max(2.0, value / most * (WIDTH - NAMES - 90))
        kind = "space" if ours(name) else "baseline"
        drawn.append(f'<text x="{NAMES - 8}" y="{y + 4:.0f}" text-anchor="end">{name}</text>')
        drawn.append(f'<path class="line {kind}" style="stroke-width:18" d="M{NAMES} {y:.1f}H{end:.1f}"/>')
        drawn.append(f'<text x="{end + 6:.0f}" y="{y + 4:.0f}">{written}</text>')
    return Drawing(title, drawn, note=note, height=int(TOP + BAR * len(values) + 8))


def trials(found: dict[str, Any]) -> Drawing:
    """Trials in an hour by each contestant."""
    by_speed = sorted(found["contestants"].items(), key=lambda item: -item[1]["trials_per_hour"])
    values = [(who, one["trials_per_hour"], f"{one['trials_per_hour']:.0f}") for who, one in by_speed]
    about = found["settings"]
    note = f"The same {values and by_speed[0][1]['trials']} configurations, {about['rows']:,} rows of {about['task']},"
    note += f" {about['epochs']} epoch(s), two processes of one thread each."
    return bars("Trials in an hour", values, lambda name: name == "autopeft", note)


def limit(found: dict[str, Any]) -> Drawing:
    """Shares of the processor's limit."""
    values = [
        (f"{model}, {case['configuration']}, {case['batch']}", case["share"]["value"], f"{case['share']['value']:.0%}")
        for model, one in found["models"].items()
        for case in one["cases"]
    ]
    note = "LoRA of rank 8 on these modules, rows in a batch. What is left is everything but matrix products."
    return bars("Share of the processor's rate of matrix products", values, lambda name: True, note)


def search(found: dict[str, Any]) -> Drawing:
    """How much sooner autopeft was there, one dot for each search, by peer."""
    runs = [run for run in found["runs"] if run["score"] is not None]
    peers = list(dict.fromkeys(run["peer"] for run in runs))
    across = log_axis([1.0, *(run["value"] for run in runs)])
    upright = Axis(-0.5, len(peers) - 0.5, HEIGHT - BOTTOM, TOP)
    drawn = [frame(across, upright, "times sooner", "", "{:g}".format, lambda value: "")]
    drawn.append(path([(across.place(1.0), TOP), (across.place(1.0), HEIGHT - BOTTOM)], "other dashed"))
    for place, who in enumerate(peers):
        kind, y = KINDS[1 + place % 3], upright.place(place)
        drawn.append(f'<text class="inked" x="{LEFT + 4}" y="{y - 14:.0f}">{who}</text>')
        for run in runs:
            if run["peer"] == who:
                told = f"{run['task']}, seed {run['seed']}: {run['value']:.2f}{' at most' if run['bound'] else ''}"
                drawn.append(dot(across.place(run["value"]), y, f"{kind}{' early' if run['bound'] else ''}", told))
    note = "One dot for each search; hollow where autopeft never had the peer's best score: at most so much."
    return Drawing("How much sooner autopeft has what a peer finds", drawn, note=note)


def scaling(found: dict[str, Any]) -> Drawing:
    """Seconds of a trial against what grows, both over their first value."""
    curves = {
        axis: [(x / places[0][0], y / places[0][1]) for x, y in places]
        for axis, places in found["points"].items()
        if axis != "trials" and places
    }
    if not curves:
        return Drawing("", (), empty="No costs were measured.")
    every = [point for curve in curves.values() for point in curve]
    across = Axis(0.8, max(x for x, _ in every) * 1.05, LEFT, WIDTH - RIGHT)
    upright = Axis(0.0, max(y for _, y in every) * 1.08, HEIGHT - BOTTOM, TOP)
    drawn = [frame(across, upright, "times as much", "times as long")]
    keys = []
    for (axis, curve), kind in zip(curves.items(), KINDS, strict=False):
        places = [(across.place(x), upright.place(y)) for x, y in curve]
        drawn.append(path(places, kind))
        drawn += [dot(x, y, kind, f"{axis}: {r:.2f} times") for (x, y), (_, r) in zip(places, curve, strict=True)]
        keys.append((kind, {"rows": "rows", "length": "tokens of a row", "blocks": "adapted blocks"}[axis]))
    return Drawing("What a trial takes as it grows", drawn, tuple(keys))


DRAWERS: dict[str, Callable[[dict[str, Any]], Drawing]] = {
    "trials": trials,
    "search": search,
    "limit": limit,
    "scaling": scaling,
}


def save(name: str, found: dict[str, Any], folder: Path) -> None:
    """Write the chart of a result beside it, where there is something to draw.

    Args:
        name: Of the benchmark.
        found: Its result.
        folder: Where to.
    """
    shown = found.get("contestants") or found.get("models") or found.get("runs") or found.get("points")
    drawing = DRAWERS[name](found) if shown else None
    if drawing is not None and not drawing.empty:
        (folder / f"{name}.svg").write_text(drawing.svg())
