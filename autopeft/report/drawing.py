"""Drawings as SVG, made here: no script, no font, no file besides the page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from autopeft.report.axes import HEIGHT, LEFT, RIGHT, WIDTH, Axis
from autopeft.report.style import figure_style

LETTER, LINE = 6.6, 18
"""Width of a letter and height of a line of 12 pixel text, for legends inside a file."""
ARM_LABELS = {"baseline": "tuned LoRA", "space": "the space", "incumbent": "in use today"}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart that can stand in a page and in a file of its own.

    Attributes:
        title: What it shows, for those who cannot see it.
        drawn: Its SVG elements.
        keys: `(class, label)` of the legend.
        note: A sentence below it.
        height: Its height in pixels; the width is always `WIDTH`.
        empty: What to say instead where there is nothing to draw.
    """

    title: str
    drawn: Sequence[str]
    keys: tuple[tuple[str, str], ...] = ()
    note: str = ""
    height: int = HEIGHT
    empty: str = ""

    def html(self) -> str:
        """The drawing with its legend, for the page, whose style it uses."""
        if self.empty:
            return f'<p class="quiet">{escape(self.empty)}</p>'
        keys = "".join(f'<span class="key"><i class="{kind}"></i>{escape(label)}</span>' for kind, label in self.keys)
        legend = f'<p class="legend">{keys}{escape(self.note)}</p>' if keys or self.note else ""
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f"{''.join(self.drawn)}</svg>{legend}"
        )

    def svg(self) -> str:
        """A file of its own: colours, title and legend are inside."""
        parts = [f'<text class="title" x="{LEFT}" y="18">{escape(self.title)}</text>']
        parts.append(f'<g transform="translate(0 {LINE + 8})">{"".join(self.drawn)}</g>')
        x, y = float(LEFT), float(self.height + 2 * LINE + 8)
        for kind, label in self.keys:
            width = 22 + LETTER * len(label) + 16
            if x + width > WIDTH and x > LEFT:
                x, y = float(LEFT), y + LINE
            mark = f'cx="{x + 5:.0f}" cy="{y - 4:.0f}" r="5"'
            stroke = f'd="M{x:.0f} {y - 4:.0f}h12"'
            parts.append(
                f'<path class="line {kind}" {stroke}/>' if "rule" in kind else f'<circle class="{kind}" {mark}/>'
            )
            parts.append(f'<text x="{x + 16:.0f}" y="{y:.0f}">{escape(label)}</text>')
            x += width
        if self.keys:
            y += LINE
        for line in textwrap.wrap(self.note, int((WIDTH - LEFT) / LETTER)):
            parts.append(f'<text x="{LEFT}" y="{y:.0f}">{escape(line)}</text>')
            y += LINE
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
            f'role="img"><title>{escape(self.title)}</title><style>{figure_style()}</style>'
            f'<rect width="{WIDTH}" height="{y:.0f}" fill="#fff"/>{"".join(parts)}</svg>\n'
        )


def dot(x: float, y: float, kind: str, title: str, radius: float = 5) -> str:
    """A point whose words appear when one points at it."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"><title>{escape(title)}</title></circle>'


def path(places: Points, kind: str, title: str = "") -> str:
    """A line through places in pixels."""
    steps = "".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="line {kind}" d="{steps}">{inner}</path>'


def steps(places: Points, until: float, kind: str) -> str:
    """A line that rises in steps, on to `until` pixels from the left."""
    drawn = "".join(f"H{x:.1f}V{y:.1f}" if index else f"M{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
    return f'<path class="line {kind}" d="{drawn}H{until:.1f}"/>'


def colour(arm: str) -> str:
    """The class that colours an arm."""
    return arm if arm in ("baseline", "space", "incumbent") else "other"


def arm_keys(arms: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """A legend of arms, each once."""
    return tuple((colour(arm), ARM_LABELS.get(arm, arm)) for arm in dict.fromkeys(arms))


def frame(
    horizontal: Axis,
    vertical: Axis,
    x_label: str,
    y_label: str,
    spell: Callable[[float], str] | None = None,
    spell_upright: Callable[[float], str] = "{:.4g}".format,
) -> str:
    """Grid, numbers and names of both axes.

    Args:
        horizontal: The level axis.
        vertical: The upright axis.
        x_label: Name of the level axis.
        y_label: Name of the upright axis.
        spell: How the level axis spells its numbers; None for plain numbers, or powers of ten on a log axis.
        spell_upright: How the upright axis spells its numbers.
    """
    lines: list[str] = []
    for value in vertical.ticks():
        y = vertical.place(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(spell_upright(value))}</text>')
    if spell is None:
        spell = (lambda v: f"{v:.0e}".replace("e-0", "e-")) if horizontal.log else (lambda v: f"{v:.4g}")
    bottom, last = vertical.start, -math.inf
    for value in horizontal.ticks():
        x = horizontal.place(value)
        if x - last < 66:
            continue
        last = x
        lines.append(f'<text x="{x:.1f}" y="{bottom + 18:.0f}" text-anchor="middle">{escape(spell(value))}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{bottom + 46:.0f}" text-anchor="middle">{escape(x_label)}</text>')
    upright = (vertical.start + vertical.end) / 2
    lines.append(
        f'<text class="upright" text-anchor="middle" transform="translate(17 {upright:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    return "".join(lines)
