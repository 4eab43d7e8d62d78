"""A search as the journal stores it, and back: what a resumed search starts from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from autopeft.spec import eval_sets
from autopeft.spec.search import SearchSpec

__all__ = ["absolute_store", "as_given", "in_memory", "lay_over", "spec_to_dict", "stored_values"]

_FILES = (".yaml", ".yml")
_OF_ONE_SESSION = ("out", "overwrite", "resume")


def spec_to_dict(spec: SearchSpec) -> dict[str, Any]:
    """A search as plain values, for the journal.

    Data in memory becomes a label of its type. Local paths become absolute, so that they are found again from any
    folder: a model, data or incumbent is local when it exists here, a space or strategy when it is the name of a file.
    """
    data = spec.task.data
    label = _absolute(data) if isinstance(data, (str, os.PathLike)) else f"<{type(data).__name__} in memory>"
    task = replace(spec.task, model=_absolute(spec.task.model), data=label)
    values = asdict(replace(spec, task=task, eval_sets=eval_sets.stored(spec.eval_sets, _absolute)))
    values["task"]["text_columns"] = list(spec.task.text_columns)
    values["overrides"] = [[name, value] for name, value in spec.overrides]
    if spec.incumbent is not None:
        values["incumbent"] = _absolute(spec.incumbent)
    if spec.tracking_uri is not None:
        values["tracking_uri"] = absolute_store(spec.tracking_uri)
    for name in ("space", "strategy"):
        # A preset's name never looks at the working directory.
        if isinstance(values[name], str) and values[name].endswith(_FILES):
            values[name] = _absolute(values[name])
    return values


def in_memory(data: Any) -> bool:
    """Whether stored data is only the label of what was in memory."""
    return isinstance(data, str) and data.startswith("<") and data.endswith(" in memory>")


def stored_values(spec: Mapping[str, Any], budget: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The values that `parse_search` reads, from those that `spec_to_dict` made.

    Args:
        spec: What `spec_to_dict` made.
        budget: The budget of the latest session where that was another one.

    Returns:
        The values without what belongs to one session: the run folder, overwrite and resume.
    """
    values = {name: value for name, value in spec.items() if name not in (*_OF_ONE_SESSION, "overrides")}
    values["task"] = {name: value for name, value in spec["task"].items() if value not in (None, [])}
    values["budget"] = dict(spec["budget"] if budget is None else budget)
    values["set"] = as_given(spec.get("overrides") or ())
    # Those in memory are gone; what was scored on them is in the journal.
    sets = spec.get("eval_sets") or {}
    values["eval_sets"] = {name: value for name, value in sets.items() if not in_memory(value)}
    return values


def as_given(overrides: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Changes of a search as ``set`` takes them: text in it is read as YAML, and the quotes keep "8" a text."""
    return [
        (name, yaml.safe_dump(value, default_style='"') if isinstance(value, str) else value)
        for name, value in overrides
    ]


def absolute_store(uri: str) -> str:
    """An MLflow tracking URI that means the same from any folder: paths of databases and of folders made absolute."""
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    if "://" not in uri and uri.endswith(".db"):
        return f"sqlite:///{Path(uri).absolute()}"
    if "://" not in uri and "/" in uri:
        return str(Path(uri).absolute())
    return uri


def lay_over(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given now over what was stored; both as `parse_search` reads them.

    Args:
        stored: From `stored_values`.
        given: What goes over it. Fields that are None are not given; ``set`` is added to what was set.
    """
    base = dict(stored)
    own = {name: value for name, value in given.items() if value is not None}
    # A started search holds its preset beside the space and the strategy that it stands for; only one of the two can
    # be asked for.
    if "preset" in own or (base.get("preset") is not None and not {"space", "strategy"} & set(own)):
        base = {name: value for name, value in base.items() if name not in ("space", "strategy")}
    else:
        base.pop("preset", None)
    merged = {**base, **own}
    for name in ("task", "budget"):
        if isinstance(own.get(name), Mapping):
            merged[name] = {**base[name], **{key: value for key, value in own[name].items() if value is not None}}
    if "eval_sets" in own:
        merged["eval_sets"] = eval_sets.merged(base.get("eval_sets"), own["eval_sets"])
    if "set" in own:
        changes = own["set"]
        pairs = list(changes.items()) if isinstance(changes, Mapping) else changes
        merged["set"] = [*base["set"], *pairs] if isinstance(pairs, list | tuple) else pairs
    return merged


def _absolute(value: str | os.PathLike[str]) -> str:
    """A path that exists here, absolute; anything else, such as a hub id, as it is."""
    text = os.fspath(value)
    try:
        path = Path(text).expanduser()
        # The last part stays: where it links to may have a name that no longer says what it is.
        return str(path.parent.resolve() / path.name) if path.exists() else text
    except (OSError, ValueError, RuntimeError):
        # No path of this system, or the home of a user who is not there.
        return text
