"""Eval sets: further labelled rows that are scored in the end and decide nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from autopeft.data.frames import Frame
from autopeft.data.sources import one_table
from autopeft.data.splits import shared_rows
from autopeft.errors import InputError, Problem

FIELD = "eval_sets"


def frames_of(given: Mapping[str, Any]) -> tuple[dict[str, Frame], list[Problem]]:
    """The eval sets that can be read, and what is wrong with the others.

    Args:
        given: Name -> path, or rows in memory.
    """
    frames: dict[str, Frame] = {}
    problems: list[Problem] = []
    for name, value in given.items():
        try:
            frames[name] = one_table(value, f"{FIELD}.{name}")
        except InputError as error:
            problems.extend(error.problems)
    return frames, problems


def as_eval_sets(problems: Sequence[Problem], names: Collection[str]) -> list[Problem]:
    """The same problems, those of eval sets under the field by which these were given."""
    renamed = []
    for problem in problems:
        start, _, rest = problem.field.partition(".")
        own = start == "data" and rest.partition(".")[0].partition("[")[0] in names
        renamed.append(replace(problem, field=f"{FIELD}.{rest}") if own else problem)
    return renamed


def is_about(problems: Sequence[Problem], name: str) -> bool:
    """Whether one of the problems is an eval set's."""
    starts = (f"{FIELD}.{name}.", f"{FIELD}.{name}[")
    return any(problem.field == f"{FIELD}.{name}" or problem.field.startswith(starts) for problem in problems)


def notes_of(name: str, table: pa.Table, splits: Mapping[str, pa.Table], texts: Sequence[str]) -> list[str]:
    """A warning where rows of an eval set were trained on or chosen by.

    Args:
        name: The eval set's.
        table: Its rows.
        splits: The three splits.
        texts: The columns that make two rows the same.
    """
    seen = {split: splits[split] for split in ("train", "validation")}
    return shared_rows({**seen, name: table}, texts, [(split, name) for split in seen])
