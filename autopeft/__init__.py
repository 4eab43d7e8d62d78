"""Automated search for the best parameter-efficient fine-tuning configuration under a budget.

    import autopeft

    result = autopeft.search(autopeft.Task(model="...", data="..."), autopeft.Budget(max_time=600))
    autopeft.load(result.folder).predict([{"text": "..."}])

Importing this package loads none of torch, transformers, peft, ray, optuna and mlflow: each public name is imported
on its first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.errors import (
        AutopeftError,
        DamagedFile,
        InputError,
        Interrupted,
        NothingFeasible,
        Problem,
        RunFolderError,
    )
    from autopeft.search.predict import load
    from autopeft.search.preview import plan
    from autopeft.search.result import SearchResult
    from autopeft.search.run import run, search
    from autopeft.spec import Budget, SearchSpec, Task

__version__ = "0.1.0"

__all__ = [
    "AutopeftError",
    "Budget",
    "DamagedFile",
    "InputError",
    "Interrupted",
    "NothingFeasible",
    "Problem",
    "RunFolderError",
    "SearchResult",
    "SearchSpec",
    "Task",
    "__version__",
    "load",
    "plan",
    "run",
    "search",
]

_HOME = {
    "AutopeftError": "autopeft.errors",
    "Budget": "autopeft.spec",
    "DamagedFile": "autopeft.errors",
    "InputError": "autopeft.errors",
    "Interrupted": "autopeft.errors",
    "NothingFeasible": "autopeft.errors",
    "Problem": "autopeft.errors",
    "RunFolderError": "autopeft.errors",
    "SearchResult": "autopeft.search",
    "SearchSpec": "autopeft.spec",
    "Task": "autopeft.spec",
    "load": "autopeft.search",
    "plan": "autopeft.search",
    "run": "autopeft.search",
}
"""Public name -> the module that defines it."""


class _Verb(ModuleType):
    """The subpackage `autopeft.search`, callable: the verb, and the home of the rest of the search, at once."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.search(*args, **options)


class _Package(ModuleType):
    """This package. Importing any part of `autopeft.search` binds that name here; the verb must outlive it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "search" and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name == "search":
        return import_module("autopeft.search")
    if name not in _HOME:
        raise AttributeError(f"module 'autopeft' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
