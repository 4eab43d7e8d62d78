"""Nested values for a terminal of 80 columns: a heading for each section, and a line for each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autopeft.spec.amounts import format_bytes, format_seconds

SHORT = 24
"""Characters of a text that may stand beside others on a line."""


def outline(document: Mapping[str, Any]) -> RenderableType:
    """All values that there are: what is None or empty is left out.

    Args:
        document: Sections, each a mapping or a value.
    """
    parts: list[RenderableType] = []
    plain = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    if any(not _empty(value) for value in plain.values()):
        parts.append(_lines(plain))
    for name, section in document.items():
        if isinstance(section, Mapping) and section:
            parts += [Text(_words(name), style="bold cyan"), Padding(_lines(section, _unit(name)), (0, 0, 0, 2))]
    return Group(*parts)


def _lines(values: Mapping[str, Any], unit: str = "") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _rows(values, "", unit):
        table.add_row(Text(label), Text(text))
    return table


def _rows(values: Mapping[str, Any], before: str, unit: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if _empty(value):
            continue
        label, here = f"{before}{_words(key)}", _unit(key) or unit
        if not isinstance(value, Mapping):
            yield label, _text(value, here)
        elif all(_is_short(item) for item in value.values()):
            yield label, ", ".join(f"{_words(name)} {_text(item, _unit(name) or here)}" for name, item in value.items())
        else:
            yield from _rows(value, f"{label}: ", here)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _empty(value: Any) -> bool:
    return value is None or value in ((), [], {}, "")


def _is_short(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping | list | tuple) and len(str(value)) <= SHORT


def _unit(key: str) -> str:
    if "bytes" in key or key in ("max_memory", "max_adapter_size"):
        return "bytes"
    return "seconds" if "seconds" in key or key in ("max_time", "max_compute") else ""


def _text(value: Any, unit: str) -> str:
    if isinstance(value, list | tuple):
        separator = "\n" if any(isinstance(item, str) and " " in item for item in value) else ", "
        return separator.join(_text(item, unit) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and unit:
        return format_bytes(value) if unit == "bytes" else format_seconds(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
