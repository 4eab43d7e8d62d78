"""From plain values (flags, YAML, JSON) to a task, a budget and a search, with every problem at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, get_args

from autopeft.errors import InputError, Problem
from autopeft.spec.amounts import parse_bytes, parse_count, parse_params, parse_seconds
from autopeft.spec.budget import TARGETS, Budget
from autopeft.spec.costs import COSTS
from autopeft.spec.eval_sets import parse_eval_sets
from autopeft.spec.fields import Fields, read_pack, read_text, suggest
from autopeft.spec.search import ATTENTIONS, EVIDENCE, EXECUTORS, OBJECTIVES, PRECISIONS, SearchSpec
from autopeft.spec.stored import as_given, spec_to_dict
from autopeft.spec.task import HEADS, KINDS, METRICS, Metric, Task
from autopeft.spec.yamlfile import read_yaml, read_yaml_file

__all__ = ["checked", "load_task_file", "parse_budget", "parse_search", "parse_task", "spec_to_dict"]

_TASK_FIELDS = tuple(field.name for field in dataclass_fields(Task))
_BUDGET_FIELDS = tuple(field.name for field in dataclass_fields(Budget))
_SEARCH_FIELDS = (*(field.name for field in dataclass_fields(SearchSpec) if field.name != "overrides"), "set")
_SET_PREFIXES = ("task", "budget", "space", "strategy")
_EXAMPLES = {
    "max_adapter_params": "Give a count like 100000 or 100k, or a share like 0.5%.",
    "max_memory": "Give bytes, for example 2GiB.",
    "max_time": "Give a duration, for example 20m.",
    "max_compute": "Give a duration, for example 1h30m.",
    "max_trials": "Give a count, for example 30.",
    "max_adapter_size": "Give bytes, for example 5MiB.",
}


def parse_task(values: Mapping[str, Any], prefix: str = "task") -> Task:
    """A task from plain values.

    Args:
        values: The fields of `Task`.
        prefix: Dotted name of the mapping in messages.

    Raises:
        InputError: With every field that is wrong.
    """
    fields = Fields(values, prefix, _TASK_FIELDS)
    task = _task(fields)
    fields.finish()
    return task


def _task(fields: Fields) -> Task:
    kind = fields.choice("kind", KINDS, None)
    metric = fields.choice("metric", get_args(Metric) if kind is None else METRICS[kind], None)
    head = fields.choice("head", HEADS, "auto")
    texts = fields.take("text_columns", _columns, (), "Name one column, or two for sentence pairs.")
    columns = {name: fields.text(name) for name in ("label_column", "prompt_column", "response_column")}
    if kind == "causal_lm":
        foreign = {"text_columns": texts, "label_column": columns["label_column"]}
        use = "prompt_column and response_column"
        if head != "auto":
            fields.problem("head", head, "does not apply to causal_lm, which keeps its own", "Leave it out.")
    else:
        foreign = {name: columns[name] for name in ("prompt_column", "response_column")} if kind else {}
        use = "text_columns and label_column"
    for name, value in foreign.items():
        if value:
            fields.problem(name, value, f"does not apply to {kind}", f"Use {use}.")
    if (columns["prompt_column"] is None) != (columns["response_column"] is None):
        missing = "prompt_column" if columns["prompt_column"] is None else "response_column"
        fields.problem(missing, None, "is required when the other of the two is given", "Name both columns.")
    if fields.values.get("model") is None:
        fields.problem("model", None, "is required", f"Give {fields.name('model')}.")
    return Task(
        model=_path(fields, "model", "Give a folder, a .gguf file or a hub id.") or "",
        data=_data(fields),
        kind=kind,
        text_columns=texts,
        label_column=columns["label_column"],
        prompt_column=columns["prompt_column"],
        response_column=columns["response_column"],
        metric=metric,
        max_length=fields.number("max_length", None, low=1, high=1_000_000, whole=True),
        revision=fields.text("revision"),
        head=head,
        name=fields.text("name"),
    )


def _data(fields: Fields) -> Any:
    """The data as given: a path or id is checked as text; objects are for the data reader to judge."""
    value = fields.values.get("data")
    step = "Give a folder, a file, a hub id, or from Python a Dataset, a DataFrame or a mapping of splits."
    if value is None:
        fields.problem("data", None, "is required", step)
    elif isinstance(value, str):
        fields.take("data", read_text, "", step)
    elif isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, (int, float, bytes)) or (isinstance(value, (list, tuple, Mapping)) and not value):
        fields.problem("data", value, "is not data", step)
    return value


def _columns(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not 1 <= len(names) <= 2:
        raise ValueError("must be one column name or a list of two")
    checked = tuple(read_text(name) for name in names)
    if len(set(checked)) != len(checked):
        raise ValueError("must not name the same column twice")
    return checked


def parse_budget(values: Mapping[str, Any], prefix: str = "budget") -> Budget:
    """A budget from plain values, units allowed.

    Args:
        values: The fields of `Budget`, as numbers or as text with units (``"1%"``, ``"2GiB"``, ``"5m"``).
        prefix: Dotted name of the mapping in messages.

    Raises:
        InputError: With every field that is wrong.
    """
    fields = Fields(values, prefix, _BUDGET_FIELDS)
    budget = _budget(fields)
    fields.finish()
    return budget


def _budget(fields: Fields) -> Budget:
    def take(name: str, convert: Any) -> Any:
        return fields.take(name, convert, None, _EXAMPLES[name])

    return Budget(
        max_adapter_params=take("max_adapter_params", parse_params),
        max_memory=take("max_memory", parse_bytes),
        max_time=take("max_time", parse_seconds),
        max_compute=take("max_compute", parse_seconds),
        max_trials=take("max_trials", parse_count),
        max_adapter_size=take("max_adapter_size", parse_bytes),
        max_latency_overhead=fields.take(
            "max_latency_overhead", _ratio, None, "Give the allowed ratio to the bare model, for example 1.1."
        ),
        target=fields.choice("target", TARGETS, "any"),
    )


def _ratio(value: Any) -> float:
    rule = "must be a ratio from 1 to 100 (1.1 allows ten per cent)"
    text = value.strip().rstrip("x") if isinstance(value, str) else value
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise ValueError(rule)
    try:
        number = float(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(rule) from error
    if not 1 <= number <= 100:
        raise ValueError(rule)
    return number


def _bytes_or_none(value: Any) -> int:
    return 0 if str(value).strip() == "0" else parse_bytes(value)


def parse_search(values: Mapping[str, Any]) -> SearchSpec:
    """A whole search from plain values.

    Args:
        values: The fields of `SearchSpec` with ``task`` and ``budget`` as mappings (or as `Task` and `Budget`, whose
            fields are read alike), and ``set``: a mapping of dotted names under ``task``, ``budget``, ``space`` or
            ``strategy`` to values. Text in ``set`` is read as YAML.

    Raises:
        InputError: With every field that is wrong.
    """
    fields = Fields(values, "", _SEARCH_FIELDS)
    changes = _changes(fields)
    task = _nested(fields, "task", changes, _TASK_FIELDS, Task, _task)
    budget = _nested(fields, "budget", changes, _BUDGET_FIELDS, Budget, _budget)
    preset = fields.text("preset")
    for name in ("space", "strategy"):
        if preset is not None and fields.values.get(name) is not None:
            fields.problem(name, fields.values[name], "cannot go with a preset, which sets it", "Give one of the two.")
    overwrite, resume = fields.flag("overwrite", False), fields.flag("resume", False)
    if overwrite and resume:
        fields.problem("overwrite", True, "cannot go with resume, which keeps the run folder", "Give one of the two.")
    workers, max_workers = _workers(fields)
    out = _path(fields, "out")
    if resume and out is None and "out" not in {problem.field for problem in fields.problems}:
        fields.problem("out", None, "is required to resume", "Name the run folder.")
    spec = SearchSpec(
        task=task or Task(model="", data=None),
        budget=budget or Budget(),
        space=_named_or_values(fields, "space", "hybrid"),
        strategy=_named_or_values(fields, "strategy", "tpe-asha"),
        preset=preset,
        incumbent=_path(fields, "incumbent"),
        eval_sets=parse_eval_sets(fields),
        evidence=fields.choice("evidence", EVIDENCE, "standard"),
        until=fields.choice("until", ("decided",), None),
        within=fields.number("within", None, low=1e-6, high=1e6),
        cost=_cost(fields, budget),
        objective=fields.choice("objective", OBJECTIVES, "best"),
        overrides=tuple((name, value) for name, value in changes if name.split(".")[0] in ("space", "strategy")),
        workers=workers,
        max_workers=max_workers,
        gpus_per_trial=fields.number("gpus_per_trial", None, low=0, high=64),
        pack=fields.take("pack", read_pack, "auto", "Give auto, off, or how many trials a worker trains together."),
        executor=fields.choice("executor", EXECUTORS, "ray"),
        ray_address=fields.text("ray_address"),
        cache_bytes=fields.take("cache_bytes", _bytes_or_none, None, "Give bytes, for example 4GiB, or 0."),
        seed=fields.number("seed", 0, low=0, high=2**31 - 1, whole=True),
        out=out,
        overwrite=overwrite,
        resume=resume,
        tracking_uri=fields.text("tracking_uri"),
        precision=fields.choice("precision", PRECISIONS, "auto"),
        attention=fields.choice("attention", ATTENTIONS, "auto"),
    )
    fields.finish()
    return spec


def _cost(fields: Fields, budget: Budget | None) -> Any:
    """What is cheap; merged adapters all have the latency of the base."""
    cost = fields.choice("cost", tuple(COSTS), "params")
    if cost == "latency" and budget is not None and budget.target == "merged":
        rule = "tells nothing of adapters that are merged: all of them have the latency of the bare base"
        fields.problem("cost", cost, rule, "Use params or memory, or another target.")
    return cost


def _workers(fields: Fields) -> tuple[int | None, int | None]:
    """How many workers, and the most that follow a cluster."""
    if fields.values.get("workers") == "auto":
        fields.values = {**fields.values, "workers": None}
    workers = fields.number("workers", None, low=1, high=4096, whole=True)
    most = fields.number("max_workers", None, low=1, high=4096, whole=True)
    if most is not None and fields.values.get("ray_address") is None:
        fields.problem("max_workers", most, "needs a cluster that can grow", "Give ray_address, or workers instead.")
    return workers, most


def checked(spec: SearchSpec) -> SearchSpec:
    """A search that was built by hand, after the checks that every other one has gone through.

    Raises:
        InputError: With every field that is wrong.
    """
    values = {field.name: getattr(spec, field.name) for field in dataclass_fields(SearchSpec)}
    values["set"] = as_given(values.pop("overrides"))
    if spec.preset is not None:
        # A preset stands for the two, which have defaults.
        del values["space"], values["strategy"]
    return parse_search(values)


def _changes(fields: Fields) -> list[tuple[str, Any]]:
    """What ``set`` asks for, in order, with its problems noted."""
    given = fields.values.get("set")
    if given is None:
        return []
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        fields.problem("set", given, "must be a mapping of dotted names to values", "Write space.x=value.")
        return []
    changes = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
            fields.problem("set", pair, "must be a name and a value", "Write space.x=value.")
            continue
        name, value = pair
        start, _, rest = name.partition(".")
        if start not in _SET_PREFIXES or not rest or not all(rest.split(".")):
            rule = f"must be a name under {', '.join(_SET_PREFIXES)}, such as space.batch"
            fields.problem(f"set.{name}", value, rule, suggest(start, _SET_PREFIXES))
            continue
        if isinstance(value, str):
            try:
                value = read_yaml(value, value, fields.name(f"set.{name}"))
            except InputError as error:
                fields.problems.extend(error.problems)
                continue
        changes.append((name, value))
    return changes


def _nested(fields: Fields, name: str, changes: Sequence[tuple[str, Any]], known: Any, kind: Any, build: Any) -> Any:
    """A task or a budget inside a search, with what ``set`` changes in it."""
    given = fields.values.get(name)
    own = {key.partition(".")[2]: value for key, value in changes if key.startswith(f"{name}.")}
    if isinstance(given, kind):
        # Nothing checks the values of a built object, so it is read like a mapping.
        plain = {field.name: getattr(given, field.name) for field in dataclass_fields(kind)}
        # An empty tuple stands for "infer it", which plain values say by leaving the field out.
        given = {
            key: value
            for key, value in plain.items()
            if value is not None and not (isinstance(value, tuple) and not value)
        }
    if given is None:
        given = {}
    inner = Fields({**given, **own} if isinstance(given, Mapping) else given, name, known)
    built = build(inner) if isinstance(given, Mapping) else None
    fields.problems.extend(inner.problems)
    return built


def _named_or_values(fields: Fields, name: str, default: str) -> Any:
    value = fields.values.get(name)
    if value is None:
        return default
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return fields.take(
            name, lambda _: read_text(value), default, f"Give a preset's name or a file: autopeft ls {name}s."
        )
    if isinstance(value, Mapping):
        return dict(value)
    fields.problem(name, value, "must be a name, a file, or the values themselves", "Give a preset's name.")
    return default


def _path(fields: Fields, name: str, next_step: str = "Give a path.") -> str | None:
    value = fields.values.get(name)
    if value is None:
        return None
    return fields.take(
        name,
        lambda given: read_text(os.fspath(given) if isinstance(given, os.PathLike) else given),
        None,
        next_step,
    )


def load_task_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a ``TASK.yaml``, for `parse_search`.

    Paths of the model, the data, the incumbent, and of files of space and strategy are taken relative to the file's
    own folder: always when they begin with a dot, otherwise when something of that name lies there (``org/model`` stays
    a hub id).

    Raises:
        InputError: With the line, when the file cannot be used.
    """
    file = Path(path)
    values, _ = read_yaml_file(file, "task_file")
    if not isinstance(values, dict):
        raise InputError(
            [Problem("task_file", str(file), "must hold fields and values", "Begin with `task:` and `budget:`.")]
        )
    folder = file.resolve().parent
    loaded = dict(values)
    if isinstance(loaded.get("task"), dict):
        task = dict(loaded["task"])
        for name in ("model", "data"):
            task[name] = _beside(folder, task.get(name))
        loaded["task"] = {key: value for key, value in task.items() if value is not None}
    for name in ("incumbent", "space", "strategy"):
        if name in loaded:
            loaded[name] = _beside(folder, loaded[name])
    if isinstance(loaded.get("eval_sets"), dict):
        loaded["eval_sets"] = {name: _beside(folder, value) for name, value in loaded["eval_sets"].items()}
    return loaded


def _beside(folder: Path, value: Any) -> Any:
    if not isinstance(value, str) or "\0" in value or not value.strip():
        return value
    if value.startswith("~"):
        return os.path.expanduser(value)
    candidate = folder / value
    relative = value in (".", "..") or value.startswith(("./", "../"))
    try:
        return str(candidate.resolve()) if relative or candidate.exists() else value
    except OSError:
        # A name that is too long for the file system is not a file; the parser judges it.
        return value
