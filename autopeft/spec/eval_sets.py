"""Further labelled sets of a search by name: as they are given, checked, stored and laid over one another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autopeft.spec.fields import Fields, read_text

__all__ = ["merged", "parse_eval_sets", "stored"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
_SPLITS = ("train", "validation", "test")
FIELD = "eval_sets"


def parse_eval_sets(fields: Fields) -> dict[str, Any]:
    """Name -> path or rows, in the order given; problems are noted.

    They are given as a mapping, or as a list of ``NAME=FILE`` texts or of pairs, as flags give them.
    """
    found: dict[str, Any] = {}
    for name, value in _pairs(fields.values.get(FIELD), fields):
        field = f"{FIELD}.{name}"
        if not isinstance(name, str) or not _NAME.match(name):
            fields.problem(FIELD, name, "a name may hold letters, digits, _ and - only", "Give it another name.")
        elif name.lower() in _SPLITS:
            fields.problem(FIELD, name, "is the name of a split of the data", "Give it another name.")
        elif name.lower() in {other.lower() for other in found}:
            fields.problem(FIELD, name, "is given twice (names differ in more than capitals)", "Give each set once.")
        elif isinstance(value, str | os.PathLike):
            text = os.fspath(value)
            try:
                found[name] = read_text(text)
            except ValueError as error:
                fields.problem(field, value, str(error), "Give a file.")
        elif value is None or isinstance(value, int | float | bytes):
            fields.problem(field, value, "is not data", "Give a file, or from Python a Dataset, a DataFrame or rows.")
        else:
            found[name] = value
    return found


def _pairs(given: Any, fields: Fields | None = None) -> list[tuple[Any, Any]]:
    if given is None:
        return []
    if isinstance(given, Mapping):
        return list(given.items())
    pairs: list[tuple[Any, Any]] = []
    for one in given if isinstance(given, Sequence) and not isinstance(given, bytes | str) else [given]:
        if isinstance(one, str) and "=" in one:
            name, _, value = one.partition("=")
            pairs.append((name.strip(), value))
        elif isinstance(one, list | tuple) and len(one) == 2:
            pairs.append((one[0], one[1]))
        elif fields is not None:
            fields.problem(FIELD, one, "must be NAME=FILE", "Write for example web=web.csv.")
    return pairs


def stored(sets: Mapping[str, Any], path: Callable[[str], str]) -> dict[str, str]:
    """Eval sets as plain values: files by `path`, rows in memory as a label of their type."""
    return {
        name: path(value) if isinstance(value, str) else f"<{type(value).__name__} in memory>"
        for name, value in sets.items()
    }


def merged(before: Any, given: Any) -> list[tuple[Any, Any]] | Any:
    """Those of a search so far, with those that are given now; of one name, the one that is given now.

    What is no list of eval sets is left to the parser, which says so.
    """
    if not isinstance(given, Mapping | list | tuple):
        return given
    pairs = _pairs(given)
    if isinstance(given, list | tuple) and len(pairs) != len(given):
        return given
    names = {name for name, _ in pairs}
    return [*((name, value) for name, value in _pairs(before) if name not in names), *pairs]
