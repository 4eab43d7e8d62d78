"""A table as it came from a source, before anybody knows what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

MAX_TABLE_BYTES = 4 << 30
"""Largest table that is taken into memory, in bytes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One split as it was read.

    Attributes:
        table: The columns that hold text, numbers or booleans.
        typed: False when the source has no types (CSV), so that every column is text and numbers must be recognised.
        unusable: Other columns -> their type, for messages.
        class_names: Columns of class numbers whose names the source stores (``ClassLabel``).
        place: What to call it in messages, e.g. ``train.csv``.
    """

    table: pa.Table
    typed: bool = True
    unusable: Mapping[str, str] = field(default_factory=dict)
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    place: str = "data"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a text, a class or a target."""
    return bool(
        is_text(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )


def usable(table: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """The scalar columns of a table, dictionaries decoded, and the types of the others."""
    kept: dict[str, pa.ChunkedArray] = {}
    unusable: dict[str, str] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if is_scalar(column.type):
            kept[name] = column
        else:
            unusable[name] = str(column.type)
    return pa.table(kept), unusable
