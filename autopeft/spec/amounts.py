"""Amounts as people write them (``0.5%``, ``2GiB``, ``1h30m``), and back."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = [
    "format_at_least",
    "format_bytes",
    "format_count",
    "format_seconds",
    "parse_bytes",
    "parse_count",
    "parse_params",
    "parse_seconds",
]

MAX_PARAMS = 10**12
MAX_BYTES = 2**50
MAX_SECONDS = 10 * 365 * 86_400
MAX_COUNT = 10**9

_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_BYTES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTES[_letter] = _BYTES[f"{_letter}ib"] = 1024**_power
    _BYTES[f"{_letter}b"] = 1000**_power
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?"
_ONE = re.compile(rf"({_NUMBER})\s*([a-zA-Z%]*)")
_CLOCK = re.compile(rf"(?:(?:{_NUMBER})\s*[smhd]\s*)+", re.IGNORECASE)


def _split(value: Any, rule: str) -> tuple[float, str]:
    """A number and its unit in lower case."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(rule)
    if not isinstance(value, str):
        try:
            return float(value), ""
        except OverflowError as error:
            raise ValueError(rule) from error
    # Underscores and commas group digits in what people copy from elsewhere.
    match = _ONE.fullmatch(value.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise ValueError(rule)
    return float(match[1]), match[2].lower()


def _whole(number: float, largest: int, rule: str) -> int:
    if not math.isfinite(number) or number < 1 or number > largest:
        raise ValueError(rule)
    if abs(number - round(number)) > 1e-6 * number:
        raise ValueError(rule)
    return round(number)


def parse_params(value: Any) -> int | float:
    """A limit on parameters.

    Args:
        value: A count (``100000``, ``"1e5"``, ``"100k"``), or a share of the base model (``"0.5%"``, ``0.005``).

    Returns:
        An int for a count, a float in (0, 1] for a share.

    Raises:
        ValueError: With the rule that `value` breaks.
    """
    rule = (
        f"must be a count from 1 to {MAX_PARAMS:.0e} (100000, 100k, 2M) or a share above 0 and up to 100% (0.5%, 0.005)"
    )
    number, unit = _split(value, rule)
    if unit == "%":
        number /= 100
        if not 0 < number <= 1:
            raise ValueError(rule)
        return number
    if unit not in _THOUSANDS:
        raise ValueError(rule)
    whole = isinstance(value, int) or (isinstance(value, str) and number >= 1)
    if not unit and not whole and 0 < number <= 1:
        return number
    return _whole(number * _THOUSANDS[unit], MAX_PARAMS, rule)


def parse_count(value: Any) -> int:
    """A count of things, such as trials; at least 1.

    Raises:
        ValueError: With the rule that `value` breaks.
    """
    rule = f"must be a whole number from 1 to {MAX_COUNT:.0e}"
    number, unit = _split(value, rule)
    if unit not in _THOUSANDS:
        raise ValueError(rule)
    return _whole(number * _THOUSANDS[unit], MAX_COUNT, rule)


def parse_bytes(value: Any) -> int:
    """Bytes: ``1073741824``, ``"2GiB"``, ``"500MB"`` (MB is 10^6, MiB and M are 2^20).

    Raises:
        ValueError: With the rule that `value` breaks.
    """
    rule = "must be a number of bytes above 0 and up to 1024TiB (1073741824, 2GiB, 500MB)"
    number, unit = _split(value, rule)
    number *= _BYTES.get(unit, math.nan)
    if not math.isfinite(number) or number < 1 or number > MAX_BYTES:
        raise ValueError(rule)
    # Half of a byte is nobody's intention: 1.5GiB is whole, 0.3MB is rounded.
    return round(number)


def parse_seconds(value: Any) -> float:
    """Seconds: ``300``, ``"90s"``, ``"20m"``, ``"1h30m"``, ``"2d"``.

    Raises:
        ValueError: With the rule that `value` breaks.
    """
    rule = "must be a duration above 0 and up to 10 years (300, 90s, 20m, 1h30m)"
    if isinstance(value, str) and re.search(r"[smhd]\s*$", value.strip(), re.IGNORECASE):
        text = value.strip()
        if _CLOCK.fullmatch(text) is None:
            raise ValueError(rule)
        pieces = re.findall(rf"({_NUMBER})\s*([smhd])", text, re.IGNORECASE)
        units = [unit.lower() for _, unit in pieces]
        # 5m5m and 5m1h are slips of the hand, so the units must descend.
        if sorted(units, key="dhms".index) != units or len(set(units)) != len(units):
            raise ValueError(rule)
        number = sum(float(amount) * _SECONDS[unit.lower()] for amount, unit in pieces)
    else:
        number, unit = _split(value, rule)
        if unit:
            raise ValueError(rule)
    if not math.isfinite(number) or not 0 < number <= MAX_SECONDS:
        raise ValueError(rule)
    return float(number)


def format_bytes(value: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_at_least(field: str, value: float) -> str:
    """A limit for people that, given back, admits this value: rounded up, never down.

    Args:
        field: Name of the limit; those of memory and size are in bytes, those of time in seconds.
        value: What must fit.

    Returns:
        Text that the field's parser reads as `value` or a little more: ``60.6MiB``, ``384``, ``0.0102``.
    """
    if field in ("max_memory", "max_adapter_size"):
        power = 0
        while value >= 1024 ** (power + 1) and power < 4:
            power += 1
        unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
        return f"{math.ceil(value)}{unit}" if power == 0 else f"{math.ceil(value / 1024**power * 10) / 10:g}{unit}"
    if field in ("max_time", "max_compute"):
        return f"{math.ceil(value)}s"
    if field in ("max_adapter_params", "max_trials"):
        return f"{math.ceil(value)}"
    if value <= 0:
        return f"{value:g}"
    # Four digits, rounded up at the fourth; the factor is for values that end there but for a rounding error.
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value * (1 + 1e-9) / step) * step:.4g}"


def format_seconds(value: float) -> str:
    """A duration for people: ``45 s``, ``4 min 30 s``, ``2 h 5 min``."""
    if value < 10:
        return f"{value:.1f} s"
    seconds = round(value)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def format_count(value: float) -> str:
    """A count for people: ``9,984``, ``165.9 k``, ``22.7 M``."""
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("B", 1e9)):
        # The next unit starts where this one would print 1000.0.
        if abs(value) < size * 999.95 or unit == "B":
            return f"{value / size:,.1f} {unit}"
    raise AssertionError("unreachable")
