"""Strategies as plain values: what a file under ``strategies/`` may say, and what is wrong with one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.errors import Problem


@dataclass(frozen=True, slots=True)
class Option:
    """One number that a sampler or a halving rule takes.

    Attributes:
        default: Its value where the file says nothing; None leaves it to the rule.
        rule: What it must be, as a sentence fragment.
        holds: Whether a number keeps the rule.
        whole: Whether it must be a whole number.
    """

    default: float | int | None
    rule: str
    holds: Callable[[float], bool]
    whole: bool = False


def _whole(default: int | None, low: int, high: int) -> Option:
    return Option(default, f"must be a whole number from {low} to {high}", lambda v: low <= v <= high, whole=True)


def _share(default: float) -> Option:
    return Option(default, "must be a number from 0 to 1", lambda v: 0 <= v <= 1)


_ETA = Option(3.0, "must be a number above 1 and at most 10", lambda v: 1 < v <= 10)
_RUNGS = _whole(3, 2, 8)

SAMPLERS: dict[str, dict[str, Option]] = {
    "random": {},
    "tpe": {
        "startup": _whole(10, 1, 1000),
        "window": _whole(200, 10, 5000),
        "prior_share": _share(0.1),
        "mutate": _share(0.0),
        "mutate_from": _whole(None, 0, 100_000),
    },
}
"""Sampler name -> its options."""

HALVINGS: dict[str, dict[str, Option]] = {
    "none": {},
    "asha": {"eta": _ETA, "rungs": _RUNGS},
    "hyperband": {"eta": _ETA, "rungs": _RUNGS},
    "curve": {"eta": _ETA, "rungs": _whole(4, 3, 8), "chance": _share(0.05), "minimum": _whole(4, 3, 1000)},
    "median": {"eta": _ETA, "rungs": _RUNGS, "minimum": _whole(4, 2, 1000)},
}
"""Halving rule -> its options; ``eta`` is also the ratio of rows between neighbouring rungs."""

_KEYS = ("name", "sampler", "halving")


def validate(values: Any, field: str = "strategy") -> list[Problem]:
    """Everything that is wrong with a strategy's values; empty when nothing is.

    Args:
        values: ``{"name": ..., "sampler": {"name": ..., option: number}, "halving": {...}}``; ``halving`` may be left
            out (none), and either may be just a name.
        field: The name under which the problems are reported.
    """
    if not isinstance(values, Mapping):
        return [Problem(field, values, "must be a mapping", f"Give the keys {', '.join(_KEYS)}.")]
    problems = [_unknown(f"{field}.{key}", values[key], key, _KEYS) for key in values if key not in _KEYS]
    name = values.get("name")
    if not isinstance(name, str) or not name.strip():
        problems.append(Problem(f"{field}.name", name, "must be a text", "Name the strategy for reports."))
    if "sampler" not in values:
        rule = "is missing"
        problems.append(Problem(f"{field}.sampler", None, rule, f"Choose one of {', '.join(SAMPLERS)}."))
    else:
        problems += _part(f"{field}.sampler", values["sampler"], SAMPLERS)
    problems += _part(f"{field}.halving", values.get("halving", "none"), HALVINGS)
    if not problems:
        sampler = resolved(values["sampler"], SAMPLERS)
        if sampler.get("prior_share", 0) + sampler.get("mutate", 0) > 1:
            shown = {key: sampler[key] for key in ("prior_share", "mutate")}
            rule, step = "prior_share and mutate must be 1 at most together", "Lower one of them."
            problems.append(Problem(f"{field}.sampler", shown, rule, step))
    return problems


def resolved(part: Any, known: Mapping[str, Mapping[str, Option]]) -> dict[str, Any]:
    """A valid sampler or halving rule with its name and all its options, defaults filled in.

    Args:
        part: A name, or a mapping with ``name``.
        known: `SAMPLERS` or `HALVINGS`.
    """
    given = {"name": part} if isinstance(part, str) else dict(part)
    defaults = {key: option.default for key, option in known[given["name"]].items()}
    return {**defaults, **given}


def _part(field: str, part: Any, known: Mapping[str, Mapping[str, Option]]) -> list[Problem]:
    if isinstance(part, str):
        part = {"name": part}
    choices = f"Choose one of {', '.join(known)}."
    if not isinstance(part, Mapping):
        return [Problem(field, part, "must be a name or a mapping with a name", choices)]
    name = part.get("name")
    if not isinstance(name, str) or name not in known:
        return [Problem(f"{field}.name", name, "is not known", _meant(name, known) + choices)]
    options = known[name]
    problems: list[Problem] = []
    for key, value in part.items():
        if key == "name":
            continue
        if key not in options:
            problems.append(_unknown(f"{field}.{key}", value, key, ("name", *options)))
        elif not _keeps(options[key], value):
            default = options[key].default
            step = "Leave it out for the default." if default is None else f"The default is {default:g}."
            problems.append(Problem(f"{field}.{key}", value, options[key].rule, step))
    return problems


def _keeps(option: Option, value: Any) -> bool:
    if value is None:
        return option.default is None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return option.holds(value) and (not option.whole or isinstance(value, int))


def _unknown(field: str, value: Any, key: Any, known: tuple[str, ...]) -> Problem:
    return Problem(field, value, "is not a key here", f"{_meant(key, known)}The keys are {', '.join(known)}.")


def _meant(given: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(given), list(known), 1)
    return f"Did you mean {close[0]}? " if close else ""
