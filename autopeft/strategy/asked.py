"""Values of the space and the strategy that a search asks for: a name, a file or values, with single ones changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft import catalogue
from autopeft.errors import InputError
from autopeft.space import resolve
from autopeft.space.values import SpaceValues
from autopeft.strategy import validate

__all__ = ["space_values", "strategy_values"]

Overrides = tuple[tuple[str, Any], ...]
"""Dotted names and values: `space.batch`, `strategy.halving.eta`; each function takes those that are its own."""


def space_values(given: Any, overrides: Overrides = ()) -> SpaceValues:
    """A space's values.

    Args:
        given: A name, a file, or the values.
        overrides: What is changed in them.

    Raises:
        InputError: Everything that is wrong with them.
    """
    return resolve(_values("spaces", given), [(name, value) for name, value in overrides if name.startswith("space.")])


def strategy_values(given: Any, overrides: Overrides = ()) -> dict[str, Any]:
    """A strategy's values; arguments and errors as for `space_values`."""
    values = _values("strategies", given)
    for name, value in overrides:
        path = name.split(".")
        if path[0] != "strategy":
            continue
        inner = values
        for key in path[1:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {"name": inner[key]} if key in inner else {}
            inner = inner[key]
        inner[path[-1]] = value
    problems = validate(values)
    if problems:
        raise InputError(problems)
    return values


def _values(what: str, given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else catalogue.read(what, str(given))
