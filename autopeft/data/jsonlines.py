"""JSON lines, and JSON arrays of objects, with the line of every fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from autopeft.data.frames import Frame
from autopeft.errors import InputError, Problem

_MAX_ARRAY_BYTES = 256 << 20
_SHOWN = 5
_NAMES = {str: "text", int: "a number", float: "a number", bool: "true/false", dict: "an object", list: "a list"}


class _RepeatedKeyError(ValueError):
    """A key that occurs twice in one object."""


def read_json(path: Path, field: str) -> Frame:
    """Read a file of JSON objects, one a line, or one array of them.

    Python's parser is used because Arrow's reports rows relative to its blocks and turns text that looks like a date
    into a timestamp. The file is already known to be UTF-8 with bounded lines.

    Raises:
        InputError: With the line of every value that is not an object, of a column that changes its type, of text that
            is no text.
    """
    problems: list[Problem] = []
    columns: dict[str, list[Any]] = {}
    places: list[int] = []
    unit = "line"
    with path.open("rb") as handle:
        is_array = handle.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if is_array and path.suffix.lower() == ".json":
        unit, rows = "element", _array(path, field)
    else:
        rows = _lines(path, field, problems)
    for place, row in rows:
        if not isinstance(row, dict):
            problems.append(
                Problem(
                    f"{field}[{len(places)}]",
                    row,
                    f"{unit} {place} of {path.name} is not a JSON object",
                    'Write every row as {"column": value, ...}',
                )
            )
            continue
        for name in row:
            if name not in columns:
                columns[name] = [None] * len(places)
        places.append(place)
        for name, values in columns.items():
            values.append(row.get(name))
    if problems:
        raise InputError(problems[:_SHOWN])
    return _frame(path, field, columns, places, unit)


def _lines(path: Path, field: str, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                problems.append(
                    Problem(
                        f"{field}[line {number}]",
                        line.strip()[:80],
                        f"line {number} of {path.name} is not valid JSON: {_reason(error)}",
                        "Correct the line",
                    )
                )
                if len(problems) >= _SHOWN:
                    return


def _array(path: Path, field: str) -> Iterator[tuple[int, Any]]:
    if path.stat().st_size > _MAX_ARRAY_BYTES:
        raise InputError.one(
            field, path.name, f"a JSON array may have at most {_MAX_ARRAY_BYTES:,} bytes", "Write one object a line"
        )
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError.one(field, path.name, f"it is not valid JSON: {_reason(error)}", "Correct the file") from error
    yield from enumerate(rows, start=1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _frame(path: Path, field: str, columns: dict[str, list[Any]], places: list[int], unit: str) -> Frame:
    arrays: dict[str, pa.Array] = {}
    unusable: dict[str, str] = {}
    problems: list[Problem] = []
    for name, values in columns.items():
        kinds = {type(value) for value in values} - {type(None)}
        if kinds & {dict, list}:
            unusable[name] = "nested JSON"
            continue
        try:
            if kinds == {int, float}:
                arrays[name] = pa.array(map(_as_float, values), pa.float64(), size=len(values))
            elif len(kinds) > 1:
                problems.append(_mixed(path, field, name, values, places, unit))
            else:
                arrays[name] = pa.array(values)
        except (UnicodeEncodeError, OverflowError, pa.ArrowInvalid) as error:
            problems.append(Problem(f"{field}.{name}", path.name, f"a value cannot be stored: {error}", "Correct it"))
    if problems:
        raise InputError(problems[:_SHOWN])
    return Frame(pa.table(arrays), unusable=unusable, place=path.name)


def _as_float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _mixed(path: Path, field: str, name: str, values: list[Any], places: list[int], unit: str) -> Problem:
    first = next(value for value in values if value is not None)
    row = next(i for i, value in enumerate(values) if value is not None and type(value) is not type(first))
    return Problem(
        f"{field}[{row}].{name}",
        values[row],
        f"{unit} {places[row]} of {path.name} has {_NAMES[type(values[row])]} where the rows before have "
        f"{_NAMES[type(first)]}",
        "Use one type in a column",
    )
