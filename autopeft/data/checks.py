"""Every row is checked before anything is trained, and all faults are reported together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from autopeft.data.columns import Columns, numbers
from autopeft.data.frames import Frame, is_text
from autopeft.errors import InputError, Problem

_MAX_CLASSES = 5000
_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key by which ``class 2`` comes before ``class 10``, and ``-1`` before ``0``."""
    try:
        return ((0, int(name), ""),)
    except ValueError:
        parts = [part for part in _DIGITS.split(name) if part]
        return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def standardise(frames: Mapping[str, Frame], columns: Columns) -> tuple[dict[str, pa.Table], list[str]]:
    """The used columns of every split in their final types.

    Texts become large strings; classes their names (strings); targets float64.

    Args:
        frames: Split name -> rows as read.
        columns: What the columns mean.

    Returns:
        The tables, and notes about splits that cannot be used.

    Raises:
        InputError: With the first row of every fault of every column and split, and how many more there are.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    tables: dict[str, pa.Table] = {}
    as_text = _classes_are_text(frames["train"], columns)
    for split, frame in frames.items():
        missing = [name for name in columns.used if name not in frame.table.column_names]
        if missing and split == "test" and missing == [columns.label_column]:
            notes.append(f"The test split has no column {columns.label_column!r} and is not used.")
            continue
        for name in missing:
            have = ", ".join([*frame.table.column_names, *frame.unusable]) or "none"
            problems.append(
                Problem(f"data.{split}.{name}", frame.place, f"the column is missing (there are: {have})", "Add it")
            )
        if missing:
            continue
        if not frame.table.num_rows:
            problems.append(Problem(f"data.{split}", frame.place, "there are no rows", "Give at least some rows"))
            continue
        if split == "test" and _labels_are_hidden(frame, columns):
            notes.append("All labels of the test split are -1, that is, hidden: it is not used.")
            continue
        found = len(problems)
        arrays = {name: _texts(frame, name, f"data.{split}", problems) for name in columns.texts}
        if columns.label_column:
            arrays[columns.label_column] = _labels(frame, columns, f"data.{split}", problems, as_text=as_text)
        if len(problems) == found:
            tables[split] = pa.table(arrays)
    if problems:
        raise InputError(problems)
    if "train" not in tables:
        raise InputError.one("task.data", None, "there is no train split", "Add one")
    return tables, notes


def _classes_are_text(train: Frame, columns: Columns) -> bool:
    """Whether class names are taken as they are written: the training rows decide, so that all splits agree."""
    name = columns.label_column
    if columns.kind != "sequence_classification" or name is None or name not in train.table.column_names:
        return False
    return is_text(numbers(train, name).type)


def _labels_are_hidden(frame: Frame, columns: Columns) -> bool:
    if columns.kind != "sequence_classification" or columns.label_column is None:
        return False
    unique = pc.unique(numbers(frame, columns.label_column)).to_pylist()
    return bool(unique == [-1])


def _texts(frame: Frame, name: str, field: str, problems: list[Problem]) -> pa.ChunkedArray:
    column = frame.table.column(name)
    if not is_text(column.type):
        problems.append(
            Problem(f"{field}.{name}", str(column.type), "a text column must hold text", "Name another, or write text")
        )
        return column
    _report(field, name, pc.is_null(column), column, "the text is missing", "Fill it in or drop the row", problems)
    if column.null_count < len(column) and pc.all(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py():
        problems.append(Problem(f"{field}.{name}", "", "every text is empty", "Name another column"))
    return column.cast(pa.large_string())


def _labels(frame: Frame, columns: Columns, field: str, problems: list[Problem], *, as_text: bool) -> pa.ChunkedArray:
    name = str(columns.label_column)
    values = frame.table.column(name) if as_text else numbers(frame, name)
    names = frame.class_names.get(name)
    if columns.kind == "regression":
        return _targets(values, name, field, problems)
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    elif is_text(values.type):
        blank = pc.equal(pc.utf8_trim_whitespace(values), "")
        values = pc.if_else(blank, pa.scalar(None, values.type), values)
    _report(field, name, pc.is_null(values), values, "the label is missing", "Fill it in or drop the row", problems)
    if names is not None and pa.types.is_integer(values.type):
        outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, len(names)))
        rule = f"is not one of the {len(names)} class numbers that the data declares"
        _report(field, name, outside, values, rule, "Correct the row", problems)
        lookup = pa.array([*names, None], pa.string())
        return pc.take(lookup, pc.if_else(pc.fill_null(outside, True), len(names), values))
    if pa.types.is_floating(values.type):
        whole = pc.equal(pc.round(values), values)
        rule = "is a fraction, which cannot be a class"
        _report(field, name, pc.invert(whole), values, rule, "Name kind: regression, or use class names", problems)
        infinite = pc.invert(pc.is_finite(values))
        _report(field, name, infinite, values, "is not a finite number", "Correct the row", problems)
        usable = pc.and_(whole, pc.is_finite(values))
        values = pc.if_else(pc.fill_null(usable, False), values, pa.scalar(None, values.type)).cast(pa.int64())
    if pa.types.is_boolean(values.type):
        return pc.if_else(values, "True", "False")
    return values.cast(pa.string())


def _targets(values: pa.ChunkedArray, name: str, field: str, problems: list[Problem]) -> pa.ChunkedArray:
    if is_text(values.type):
        texts = values.to_pylist()
        row, bad = next((row, text) for row, text in enumerate(texts) if text is not None and not _is_number(text))
        problems.append(Problem(f"{field}[{row}].{name}", bad, "a regression target must be a number", "Correct it"))
        return values
    if pa.types.is_boolean(values.type):
        problems.append(Problem(f"{field}.{name}", "bool", "a regression target must be a number", "Write numbers"))
        return values
    values = values.cast(pa.float64())
    _report(field, name, pc.is_null(values), values, "the target is missing", "Fill it in or drop the row", problems)
    unusable = pc.invert(pc.is_finite(values))
    _report(field, name, unusable, values, "a target must be finite", "Correct or drop the row", problems)
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _report(
    field: str,
    name: str,
    bad: pa.ChunkedArray,
    values: pa.ChunkedArray,
    rule: str,
    next_step: str,
    problems: list[Problem],
) -> None:
    """Record one problem for the rows where `bad` is true: the first of them and how many more there are."""
    rows = np.flatnonzero(pc.fill_null(bad, False).to_numpy())
    if not len(rows):
        return
    first = int(rows[0])
    more = f" (rows are counted from 0; {len(rows) - 1:,} more such rows)" if len(rows) > 1 else " (counted from 0)"
    problems.append(Problem(f"{field}[{first}].{name}", values[first].as_py(), rule + more, next_step))


def class_names(tables: Mapping[str, pa.Table], column: str, declared: tuple[str, ...] | None) -> tuple[str, ...]:
    """The classes in the order of their numbers, checked.

    Args:
        tables: Standardised splits.
        column: The label column.
        declared: The order that the source declares, or None.

    Raises:
        InputError: When there are fewer than two classes, nearly as many as rows, or a validation or test label that no
            training row has.
    """
    rows = tables["train"].num_rows
    seen = set(pc.unique(tables["train"].column(column)).to_pylist())
    if len(seen) < 2:
        only = next(iter(seen))
        raise InputError.one(
            f"data.train.{column}", only, "all rows have the same label; at least two classes are needed", "Add others"
        )
    if len(seen) > _MAX_CLASSES or (rows > 20 and len(seen) > rows // 2):
        raise InputError.one(
            f"data.train.{column}",
            f"{len(seen)} distinct labels in {rows} rows",
            "these are hardly classes",
            "Name another label column, or kind: regression",
        )
    problems = []
    for split, table in tables.items():
        unseen = _sorted(set(pc.unique(table.column(column)).to_pylist()) - seen)
        if unseen:
            labels = table.column(column).to_pylist()
            more = f" (and {len(unseen) - 1} other such classes)" if len(unseen) > 1 else ""
            problems.append(
                Problem(
                    f"data.{split}[{labels.index(unseen[0])}].{column}",
                    unseen[0],
                    f"no training row has this class{more}",
                    "Add such rows to the training data, or drop the class",
                )
            )
    if problems:
        raise InputError(problems)
    # Declared classes without a training row would be outputs that nothing trains.
    return tuple(name for name in declared if name in seen) if declared else tuple(_sorted(seen))


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural(name), name))
