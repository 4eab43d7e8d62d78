"""From what the user gave to three checked splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from autopeft.data.checks import class_names, standardise
from autopeft.data.columns import Columns, infer
from autopeft.data.frames import Frame
from autopeft.data.further import as_eval_sets, frames_of, is_about, notes_of
from autopeft.data.sources import gather
from autopeft.data.splits import fill_splits, shared_rows
from autopeft.errors import InputError
from autopeft.spec import Task


@dataclass(frozen=True, slots=True)
class RawData:
    """A task's rows, checked, before tokenisation.

    Attributes:
        kind: The task kind.
        text_columns: One or two; empty for ``causal_lm``.
        label_column: None for ``causal_lm``.
        prompt_column: For ``causal_lm``; else None.
        response_column: For ``causal_lm``; else None.
        metric: What decides.
        label_names: Class names in the order of their numbers; empty for other kinds.
        splits: ``train``, ``validation`` and ``test``: the used columns only, texts as strings, classes as their
            names, targets as float64.
        notes: What was inferred, cut or found suspicious, one sentence each, to be shown.
        source: A short name for the data, without any path.
        further: Eval sets by name, as `splits`.
        further_notes: Name of an eval set -> what is suspicious about it.
    """

    kind: str
    text_columns: tuple[str, ...]
    label_column: str | None
    prompt_column: str | None
    response_column: str | None
    metric: str
    label_names: tuple[str, ...]
    splits: Mapping[str, pa.Table]
    notes: tuple[str, ...]
    source: str
    further: Mapping[str, pa.Table] = field(default_factory=dict)
    further_notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read(task: Task, *, seed: int, eval_sets: Mapping[str, Any] | None = None) -> RawData:
    """Read, understand and check the data of a task.

    Args:
        task: The task; fields that are None or empty are inferred from the columns.
        seed: Seed of the rows that are cut where a split is missing.
        eval_sets: Name -> file or rows of further labelled sets, with the columns and labels of the task.

    Raises:
        InputError: With every fault of the source, or else of the columns, or else of the rows; and of every eval set
            that cannot be read.
    """
    frames, problems = frames_of(eval_sets or {})
    while True:
        try:
            raw = _read(task, frames, seed)
        except InputError as error:
            problems = [*as_eval_sets(error.problems, frames), *problems]
            good = {name: frame for name, frame in frames.items() if not is_about(problems, name)}
            if len(good) == len(frames):
                raise InputError(problems) from error
            # A fault of one eval set's columns must not hide one of another's rows.
            frames = good
        else:
            if problems:
                raise InputError(problems)
            return raw


def _read(task: Task, further: Mapping[str, Frame], seed: int) -> RawData:
    source = gather(task.data)
    columns = infer(task, source.splits["train"])
    tables, notes = standardise({**source.splits, **further}, columns)
    names = _names(tables, columns, source.splits["train"].class_names)
    apart = {name: tables.pop(name) for name in further}
    _check_metric(columns, names)
    _check_targets(tables, columns)
    # One prompt may have several answers: it must not be in two splits, whatever the answers.
    keys = columns.text_columns or columns.texts[:1]
    stratum = columns.label_column if columns.kind == "sequence_classification" else None
    filled, cut = fill_splits(tables, keys, stratum, seed=seed)
    notes = [*source.notes, *columns.notes, *notes, *cut, *_empty_texts(filled, columns), *shared_rows(filled, keys)]
    if names:
        notes.append(f"{len(names)} classes: {_shortened(names)}.")
    return RawData(
        kind=columns.kind,
        text_columns=columns.text_columns,
        label_column=columns.label_column,
        prompt_column=columns.prompt_column,
        response_column=columns.response_column,
        metric=columns.metric,
        label_names=names,
        splits=filled,
        notes=tuple(notes),
        source=source.label,
        further=apart,
        further_notes={
            name: (*_empty_texts({name: table}, columns), *notes_of(name, table, filled, keys))
            for name, table in apart.items()
        },
    )


def _names(
    tables: Mapping[str, pa.Table], columns: Columns, declared: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    if columns.kind != "sequence_classification" or columns.label_column is None:
        return ()
    return class_names(tables, columns.label_column, declared.get(columns.label_column))


def _check_metric(columns: Columns, names: tuple[str, ...]) -> None:
    if columns.metric == "f1" and len(names) != 2:
        raise InputError.one(
            "task.metric", "f1", f"is for two classes and the data has {len(names)}", "Use macro_f1 or accuracy"
        )


def _check_targets(tables: Mapping[str, pa.Table], columns: Columns) -> None:
    if columns.kind != "regression" or columns.label_column is None:
        return
    targets = tables["train"].column(columns.label_column)
    if len(pc.unique(targets)) < 2:
        raise InputError.one(
            f"data.train.{columns.label_column}",
            targets[0].as_py(),
            "all rows have the same target: there is nothing to learn",
            "Name another label column, or add rows with other targets.",
        )


def _empty_texts(tables: Mapping[str, pa.Table], columns: Columns) -> list[str]:
    notes = []
    for split, table in tables.items():
        for name in columns.texts:
            count = sum(not text.strip() for text in table.column(name).to_pylist())
            if count:
                notes.append(f"{count:,} {split} rows have an empty {name!r}.")
    return notes


def _shortened(names: tuple[str, ...], shown: int = 10) -> str:
    return ", ".join(names[:shown]) + (f", … ({len(names) - shown} more)" if len(names) > shown else "")
