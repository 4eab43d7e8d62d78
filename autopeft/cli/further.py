"""What else is wrong where flags are: data, space and strategy are looked at all the same, so all is told at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import InputError, Problem

__all__ = ["further_problems"]

_STAND_IN = "model"
_BESIDE_DATA = ("task.model", "task.revision", "task.max_length", "task.metric", "task.head", "task.name")
"""Fields of a task without which its data can be read as well."""


def further_problems(values: Mapping[str, Any], known: Sequence[Problem]) -> list[Problem]:
    """What is wrong with data, space and strategy of a search of which some fields cannot be used.

    Those fields are left out. What would be judged by one of them is not looked at, so that nothing is told that is not
    so; nor is data that would have to be downloaded.

    Args:
        values: What was given, as `autopeft.spec.parse.parse_search` reads it.
        known: What is known to be wrong with it.
    """
    from autopeft.spec.parse import parse_search

    fields = {problem.field for problem in known}
    if values.get("resume") is True:
        # What no flag says would be taken from the run folder.
        return []
    try:
        spec = parse_search(_without(values, fields))
    except InputError:
        return []
    # Costs a second, which those whose flags are right do not pay twice.
    from autopeft import catalogue
    from autopeft.data.read import read
    from autopeft.strategy.asked import space_values, strategy_values

    space, strategy = spec.space, spec.strategy
    found: list[Problem] = []
    if spec.preset is not None:
        try:
            preset = catalogue.preset(spec.preset)
            space, strategy = preset.space, preset.strategy
        except InputError as error:
            found += error.problems
    if not _concern(fields, "space", "preset"):
        found += _problems_of(lambda: space_values(space, spec.overrides))
    if not _concern(fields, "strategy", "preset"):
        found += _problems_of(lambda: strategy_values(strategy, spec.overrides))
    bad_task = {field for field in fields if field.removeprefix("set.").startswith("task")}
    if bad_task <= set(_BESIDE_DATA) and not _concern(fields, "eval_sets") and _is_here(spec.task.data):
        found += _problems_of(lambda: read(spec.task, seed=spec.seed, eval_sets=spec.eval_sets))
    return [problem for problem in found if problem.field not in fields]


def _problems_of(look: Callable[[], object]) -> Sequence[Problem]:
    try:
        look()
    except InputError as error:
        return error.problems
    return ()


def _concern(fields: set[str], *names: str) -> bool:
    own = {field.removeprefix("set.").partition(".")[0] for field in fields}
    return not own.isdisjoint(names)


def _is_here(data: Any) -> bool:
    """Whether data can be looked at without the network: it is there, or its name is that of a file."""
    if not isinstance(data, str):
        return True
    path = Path(data).expanduser()
    try:
        return path.exists() or path.is_absolute() or data.startswith(".") or bool(path.suffix)
    except OSError:
        return False


def _without(values: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    """The values without those fields, and with a model that stands in for one that is missing."""
    left = copy.deepcopy(dict(values))
    for field in fields:
        *path, last = field.split(".")
        inner: Any = left
        for step in path:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None)
    named = {field.removeprefix("set.") for field in fields}
    pairs = left.get("set")
    if isinstance(pairs, list):
        left["set"] = [pair for pair in pairs if not (isinstance(pair, tuple) and pair[0] in named)]
    task = left.setdefault("task", {})
    if isinstance(task, dict):
        task.setdefault("model", _STAND_IN)
    return left
