"""Tables, lists of pairs, and numbers as the page spells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from autopeft.report.contenders import Contender
from autopeft.report.facts import Facts
from autopeft.report.text import isolated
from autopeft.spec.amounts import format_bytes, format_count, format_seconds

NOTHING = "–"  # noqa: RUF001
Cell = str | tuple[str, float]
"""What a cell shows, and for numbers what it is sorted by."""
SHORT, LONGEST, FEW = 14, 300, 3
"""Letters up to which a cell is one line, and above which it is cut; columns that fit any screen."""


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "plain", marked: Sequence[int] = ()) -> str:
    """A table; on narrow screens one with many columns becomes a card for each row.

    Args:
        heads: Names of the columns.
        rows: Cells as text, or as text and the number that it is sorted by.
        kind: ``plain`` or ``sortable``.
        marked: Rows to set off.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines: list[str] = []
    for index, row in enumerate(rows):
        cells = "".join(_cell(cell, name) for cell, name in zip(row, heads, strict=True))
        lines.append(f'<tr class="taken">{cells}</tr>' if index in marked else f"<tr>{cells}</tr>")
    body = "".join(lines)
    kind += " cards" if len(heads) > FEW else ""
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell, head: str) -> str:
    named = f' data-head="{escape(head)}"'
    if isinstance(cell, tuple):
        return f'<td class="number" data-value="{cell[1]!r}"{named}>{escape(cell[0])}</td>'
    if len(cell) <= SHORT:
        return f"<td{named}>{isolated(cell)}</td>"
    cut = cell if len(cell) <= LONGEST else f"{cell[:LONGEST]} ..."
    # A mix of methods may be broken after each of them.
    return f'<td class="words"{named}>{isolated(cut).replace("+", "+<wbr>")}</td>'


def pairs(values: Mapping[str, str | Sequence[str]]) -> str:
    """Names and values, one below the other."""
    return "<dl>" + "".join(f"<dt>{isolated(k)}</dt><dd>{_listed(v)}</dd>" for k, v in values.items()) + "</dl>"


def _listed(value: str | Sequence[str]) -> str:
    """One text, or several, each of which keeps its direction to itself."""
    return ", ".join(map(isolated, [value] if isinstance(value, str) else value))


def number(value: float | None) -> str:
    """A score."""
    return NOTHING if value is None else f"{value:.4f}"


def sortable(value: float | None) -> float:
    """What a cell without a number is sorted by."""
    # Python spells the infinity in a way that the script reads as text and sorts last.
    return -1e308 if value is None else float(value)


def count(value: float | None) -> str:
    """A number of things."""
    return NOTHING if value is None else format_count(value)


def size(value: float | None) -> str:
    """Bytes."""
    return NOTHING if value is None else format_bytes(value)


def latency(ratios: Mapping[str, float] | None) -> str:
    """Times of a forward pass over the bare base's, by rows in a batch."""
    if not ratios:
        return NOTHING
    return ", ".join(f"{ratio:.2f} at {rows} row{'' if rows == '1' else 's'}" for rows, ratio in ratios.items())


def share(value: float | None, more: str, before: str = "", after: str = "") -> str:
    """A share in per cent."""
    return "" if value is None else f"{before}{100 * value:.2g} %{more}{after}"


def interval(contender: Contender) -> str:
    """The 95 % interval of a score; empty where it has none."""
    return "" if contender.low is None or contender.high is None else f"{contender.low:.4f} to {contender.high:.4f}"


def limit(facts: Facts, name: str, before: str = "limit ") -> str:
    """A limit of the search; empty where it is not set."""
    value = facts.limits.get(name)
    if value is None:
        return ""
    if name in ("max_memory", "max_adapter_size"):
        return before + format_bytes(value)
    if name in ("max_time", "max_compute"):
        return before + format_seconds(value)
    if name == "max_adapter_params":
        return before + (f"{100 * value:.3g} % of the base" if isinstance(value, float) else format_count(value))
    return f"{before}{value}"
