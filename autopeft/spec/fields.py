"""Reading plain values field by field, so that everything that is wrong is said at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from autopeft.errors import InputError, Problem

__all__ = ["Fields", "suggest"]

S = TypeVar("S")
T = TypeVar("T")
_TEXT_LIMIT = 4096


def suggest(word: str, known: Iterable[str]) -> str:
    """What to do about a name that is not known: the closest one, or the list of all."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=2, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Choose one of: {', '.join(options)}." if options else "Leave it out."


class Fields:
    """Takes fields out of a mapping one by one and keeps the problems.

    Every ``take`` method returns the default where the field is absent, None or wrong; after the last one `finish`
    raises a single error if there were any problems.

    Args:
        values: What was given; anything but a mapping is itself a problem.
        prefix: Dotted name of the mapping, "" for the top level.
        known: All field names that exist; others become problems.
    """

    def __init__(self, values: Any, prefix: str, known: Sequence[str]) -> None:
        self.prefix = prefix
        self.problems: list[Problem] = []
        self.values: Mapping[str, Any] = {}
        if not isinstance(values, Mapping):
            self.problems.append(
                Problem(
                    prefix or "input", values, "must be a mapping of fields to values", "Write `field: value` lines."
                )
            )
            return
        self.values = values
        for key in values:
            if not isinstance(key, str) or key not in known:
                self.problem(str(key), values[key], "is not a field that exists", suggest(str(key), known))

    def name(self, field: str) -> str:
        """The dotted name of a field."""
        return f"{self.prefix}.{field}" if self.prefix else field

    def problem(self, field: str, value: Any, rule: str, next_step: str) -> None:
        """Notes that a field is wrong."""
        self.problems.append(Problem(self.name(field), value, rule, next_step))

    def finish(self) -> None:
        """Raises `InputError` with all problems, if there are any."""
        if self.problems:
            raise InputError(self.problems)

    def take(self, field: str, convert: Callable[[Any], T], default: S, next_step: str) -> T | S:
        """A field through a converter that raises ValueError with the rule."""
        value = self.values.get(field)
        if value is None:
            return default
        try:
            return convert(value)
        except ValueError as error:
            self.problem(field, value, str(error), next_step)
            return default

    def text(self, field: str, default: str | None = None, *, required: bool = False) -> str | None:
        """A non-empty line of text."""
        value = self.values.get(field)
        if value is None:
            if required:
                self.problem(field, None, "is required", f"Give {self.name(field)}.")
            return default
        return self.take(field, read_text, default, "Give a short plain text.")

    def choice(self, field: str, options: Sequence[str], default: Any) -> Any:
        """One of some words."""
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, str) or value not in options:
            close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
            step = f"Did you mean {close[0]}?" if close else "Give one of these."
            self.problem(field, value, f"must be one of {', '.join(options)}", step)
            return default
        return value

    def flag(self, field: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(field, value, "must be true or false", "Write true or false.")
            return default
        return value

    def number(self, field: str, default: Any, *, low: float, high: float, whole: bool = False) -> Any:
        """A number in [low, high]."""
        kind = "a whole number" if whole else "a number"
        return self.take(
            field,
            lambda value: read_number(value, low=low, high=high, whole=whole),
            default,
            f"Give {kind} in this range.",
        )


def read_pack(value: Any) -> Any:
    """``auto``, ``off`` or a whole number from 1 to 64, 1 being ``off``; ValueError with the rule otherwise."""
    if value is False:
        return "off"  # YAML's own reading of the word.
    if value in ("auto", "off"):
        return value
    try:
        number = int(value) if isinstance(value, str) else read_number(value, low=1, high=64, whole=True)
        if not 1 <= number <= 64:
            raise ValueError
    except ValueError:
        raise ValueError("must be auto, off or a whole number from 1 to 64") from None
    return "off" if number == 1 else number


def read_text(value: Any) -> str:
    """A line of text; ValueError with the rule otherwise."""
    if not isinstance(value, str):
        raise ValueError("must be text")
    if not value.strip():
        raise ValueError("must not be empty")
    if len(value) > _TEXT_LIMIT:
        raise ValueError(f"must have at most {_TEXT_LIMIT} characters")
    if any(ord(character) < 32 for character in value):
        raise ValueError("must not contain control characters")
    return value


def read_number(value: Any, *, low: float, high: float, whole: bool = False) -> float | int:
    """A finite number in [low, high], from a number or its text; ValueError with the rule otherwise."""
    rule = (
        f"must be a whole number from {low:.0f} to {high:.0f}"
        if whole
        else f"must be a number from {low:g} to {high:g}"
    )
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(rule)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(rule) from error
    if not math.isfinite(number) or not low <= number <= high or (whole and number != int(number)):
        raise ValueError(rule)
    return int(number) if whole else number
