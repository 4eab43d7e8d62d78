"""The command that repeats a search."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from autopeft.errors import InputError
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.yamlfile import read_yaml

TASK_FLAGS = {
    "model": "--model",
    "data": "--data",
    "kind": "--kind",
    "text_columns": "--text-column",
    "label_column": "--label-column",
    "prompt_column": "--prompt-column",
    "response_column": "--response-column",
    "metric": "--metric",
    "max_length": "--max-length",
    "revision": "--revision",
    "head": "--head",
    "name": "--name",
}
BUDGET_FLAGS = {
    "max_adapter_params": "--max-params",
    "max_memory": "--max-memory",
    "max_time": "--max-time",
    "max_compute": "--max-compute",
    "max_trials": "--max-trials",
    "max_adapter_size": "--max-size",
    "max_latency_overhead": "--max-latency",
    "target": "--target",
}
SEARCH_FLAGS = {
    "space": "--space",
    "strategy": "--strategy",
    "preset": "--preset",
    "incumbent": "--incumbent",
    "evidence": "--evidence",
    "until": "--until",
    "within": "--within",
    "cost": "--cost",
    "objective": "--objective",
    "workers": "--workers",
    "max_workers": "--max-workers",
    "gpus_per_trial": "--gpus-per-trial",
    "pack": "--pack",
    "executor": "--executor",
    "cache_bytes": "--cache-bytes",
    "seed": "--seed",
}


def command(spec: Mapping[str, Any]) -> str | None:
    """The command line of a search, quoted for a shell; defaults are left out.

    Args:
        spec: The search as plain values, as ``search_started`` holds it.

    Returns:
        None where no command says the same: data or spaces that were given as Python values.
    """
    task: Mapping[str, Any] = spec.get("task") or {}
    budget: Mapping[str, Any] = spec.get("budget") or {}
    if not isinstance(task.get("model"), str) or not isinstance(task.get("data"), str):
        return None
    if str(task["data"]).startswith("<") or not all(isinstance(spec.get(n, ""), str) for n in ("space", "strategy")):
        return None
    if any(str(value).startswith("<") for value in (spec.get("eval_sets") or {}).values()):
        return None
    words = ["autopeft", "search"]
    for values, flags, kind in (
        (task, TASK_FLAGS, Task),
        (budget, BUDGET_FLAGS, Budget),
        (spec, SEARCH_FLAGS, SearchSpec),
    ):
        fields: Mapping[str, Any] = kind.__dataclass_fields__
        for name, flag in flags.items():
            value = values.get(name)
            if value in (None, [], ()) or value == fields[name].default:
                continue
            for one in value if isinstance(value, list | tuple) else [value]:
                # A share is a float: as plain text, 1.0 would read as a count.
                share = name == "max_adapter_params" and isinstance(one, float)
                words += [
                    flag,
                    f"{one * 100:.10g}%" if share else f"{one:.10g}" if isinstance(one, float) else str(one),
                ]
    for name, value in (spec.get("eval_sets") or {}).items():
        words += ["--eval-set", f"{name}={value}"]
    for name, value in spec.get("overrides") or ():
        words += ["--set", f"{name}={_as_yaml(value)}"]
    return shlex.join(words)


def _as_yaml(value: Any) -> str:
    """A value as ``--set`` reads it back: text as it is where YAML takes it for that text, anything else as JSON."""
    if isinstance(value, str):
        with contextlib.suppress(InputError):
            if read_yaml(value, value) == value:
                return value
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    # JSON leaves characters as they are that YAML folds or refuses.
    return re.sub("[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]", lambda one: f"\\u{ord(one[0]):04x}", text)
