"""A space as data: which methods, where, and how far each thing may vary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from itertools import combinations
from typing import Any, Literal

from autopeft.errors import InputError, Problem
from autopeft.methods import METHODS, Rate
from autopeft.space.configuration import digest
from autopeft.space.predicate import select
from autopeft.spec.fields import Fields, read_number, suggest

__all__ = ["ENCODINGS", "SpaceValues", "resolve", "validate"]

Range = tuple[float, float]
ENCODINGS = ("recipe", "layers", "structure", "whole")
UNITS = ("block", "module", "group")
ATTENTION_SITES = ("qv", "all")
BLOCK_SITES = ("ffn", "both")


@dataclass(frozen=True)
class SpaceValues:
    """A resolved space: methods by name, every range a number.

    A range is ``(low, high)``; equal ends fix the value.

    Attributes:
        name: For reports.
        encoding: ``recipe`` (`autopeft.space.recipe`), ``layers`` (`autopeft.space.layers`),
            ``structure`` (`autopeft.space.structure`) or ``whole`` (`autopeft.space.whole`).
        unit: For ``structure``: what takes a size of its own: ``block``, ``module``, or ``group`` (of blocks).
        groups: For the unit ``group``: the methods of each group, from the lowest on.
        methods: Names of the methods that may be used, in the order of the table.
        attention_sites: Where a method for attention may sit: ``qv`` (queries and values), ``all``.
        block_sites: Where a method that comes after sublayers may sit: ``ffn`` (after the feed-forward block, as
            Pfeiffer et al. place it), ``both`` (after attention as well, as Houlsby et al. do).
        prefix: Lengths of the prefix; 0 is none.
        share: Share of the parameter limit that is spent, searched on a log scale.
        ceiling: What stands in for the limit where there is none, as a share of the base model's parameters.
        max_share: A limit of the space's own, as a share of the base model's parameters; None for none.
        uniform: One size for all blocks; then nothing is split or tilted.
        exclusive: One method at a time: nothing is mixed. ``peft``: what one config of plain peft says: with the target
            peft also trained biases beside LoRA or DoRA; a method that plain peft does not load is never used.
        split: Attention's share of the sized parameters, or None for the same size everywhere.
        start: Depth of the lowest adapted block, as a share of the blocks.
        tilt: How sizes lean to the top: proportional to exp(tilt * z), z from -1 (lowest adapted block) to 1 (top).
        rate_offset: Natural log of the factor on every method's own default learning rate.
        batch: Rows per optimizer step.
        dropout: Dropout on the input of adapter parts.
        scale: Effective scales of LoRA-like methods.
        rates: `(method, (low, default, high))` where the table's learning rates are overridden.
        sizes: `(method, sizes)` where the table's legal sizes are overridden.
        faithful: Whether everything that the publication fixed is fixed here, the learning rate included.
        published_rate: The publication's learning rate; used when `faithful`.
    """

    name: str
    methods: tuple[str, ...]
    encoding: Literal["recipe", "layers", "structure", "whole"] = "recipe"
    attention_sites: tuple[str, ...] = ATTENTION_SITES
    block_sites: tuple[str, ...] = BLOCK_SITES
    prefix: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    share: Range = (0.02, 1.0)
    ceiling: float = 0.02
    max_share: float | None = None
    uniform: bool = False
    exclusive: bool | Literal["peft"] = False
    unit: Literal["block", "module", "group"] = "block"
    groups: tuple[tuple[str, ...], ...] = ()
    split: Range | None = (0.1, 0.9)
    start: Range = (0.0, 0.9)
    tilt: Range = (-2.0, 2.0)
    rate_offset: Range = (-1.6, 1.2)
    batch: tuple[int, ...] = (8, 16, 32)
    dropout: tuple[float, ...] = (0.0, 0.05, 0.1)
    scale: tuple[float, ...] = (1.0, 2.0, 4.0)
    rates: tuple[tuple[str, tuple[float, float, float]], ...] = ()
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    faithful: bool = False
    published_rate: float | None = None

    def rate(self, method: str) -> Rate:
        """The learning rates of a method in this space."""
        if self.faithful and self.published_rate is not None:
            return Rate(self.published_rate, self.published_rate, self.published_rate)
        own = dict(self.rates).get(method)
        return METHODS[method].rate if own is None else Rate(*own)

    def rate_range(self, method: str) -> Range:
        """The lowest and the highest learning rate that a method can get in this space."""
        rate = self.rate(method)
        low, high = (0.0, 0.0) if self.faithful else self.rate_offset
        return max(rate.default * math.exp(low), rate.low), min(rate.default * math.exp(high), rate.high)

    def legal_sizes(self, method: str) -> tuple[int, ...] | None:
        """The sizes that the space allows a method, or None for the table's."""
        return dict(self.sizes).get(method)

    def to_dict(self) -> dict[str, Any]:
        """The resolved form as plain values; `resolve` of it gives the same space."""
        values = asdict(self)
        values["rates"] = {
            method: [rate.low, rate.default, rate.high]
            for method in self.methods
            for rate in (self._table_rate(method),)
        }
        values["sizes"] = {method: list(sizes) for method, sizes in self.sizes}
        if self.split is None:
            values["split"] = "natural"
        values["groups"] = [list(group) for group in self.groups]
        # Left out where they say nothing, so that the fingerprints of older spaces stay.
        for name, silent in (("exclusive", False), ("unit", "block"), ("groups", [])):
            if values[name] == silent:
                del values[name]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def _table_rate(self, method: str) -> Rate:
        own = dict(self.rates).get(method)
        return METHODS[method].rate if own is None else Rate(*own)

    @property
    def fingerprint(self) -> str:
        """sha256 of the resolved form: equal exactly when the same space is meant."""
        return digest(self.to_dict())


# A strategy beside the space is what --preset pairs it with; it is no part of the space.
_KEYS = (*(field.name for field in dataclass_fields(SpaceValues)), "strategy")


def resolve(values: Mapping[str, Any], overrides: Iterable[tuple[str, Any]] = ()) -> SpaceValues:
    """A space from plain values.

    Args:
        values: The fields of `SpaceValues`; ``methods`` is a list of names or a predicate over the table
            (`autopeft.space.predicate`).
        overrides: `(dotted name, value)` pairs such as ``("space.batch", [16])``; others than ``space.`` are ignored.

    Raises:
        InputError: With everything that is wrong.
    """
    fields, space = _read(_overridden(values, overrides), "space")
    if fields.problems or space is None:
        raise InputError(fields.problems)
    return space


def validate(values: Any, field: str = "space") -> list[Problem]:
    """Everything that is wrong with the plain values of a space; empty when they can be resolved."""
    return _read(values, field)[0].problems


def _overridden(values: Any, overrides: Iterable[tuple[str, Any]]) -> Any:
    if not isinstance(values, Mapping):
        return values
    changed: dict[str, Any] = dict(values)
    for name, value in overrides:
        start, _, rest = name.partition(".")
        if start != "space":
            continue
        key, _, inner = rest.partition(".")
        if inner:
            table = changed.get(key)
            changed[key] = {**(table if isinstance(table, Mapping) else {}), inner: value}
        else:
            changed[key] = value
    return changed


def _read(values: Any, prefix: str) -> tuple[Fields, SpaceValues | None]:
    fields = Fields(values, prefix, _KEYS)
    if fields.problems and not fields.values:
        return fields, None
    plain = SpaceValues(name="", methods=())
    methods = fields.take("methods", _methods, (), "Name methods (autopeft ls methods) or give a condition over them.")
    if fields.values.get("methods") is None:
        fields.problem(
            "methods", None, "is required", "Name methods, or give a condition such as: hosted and tier <= 1."
        )

    def span(name: str, default: Range, low: float, high: float) -> Range:
        return fields.take(
            name, lambda value: _range(value, low, high), default, f"Write [{default[0]}, {default[1]}]."
        )

    def choices(name: str, default: tuple[Any, ...], low: float, high: float, whole: bool = False) -> tuple[Any, ...]:
        return fields.take(name, lambda value: _numbers(value, low, high, whole), default, f"Write {list(default)}.")

    encoding = fields.choice("encoding", ENCODINGS, "recipe")
    space = SpaceValues(
        name=fields.text("name", required=True) or "",
        methods=methods,
        encoding=encoding,
        attention_sites=fields.take(
            "attention_sites", lambda v: _words(v, ATTENTION_SITES), ATTENTION_SITES, "Write [qv, all]."
        ),
        block_sites=fields.take("block_sites", lambda v: _words(v, BLOCK_SITES), BLOCK_SITES, "Write [ffn, both]."),
        prefix=choices("prefix", plain.prefix, 0, 4096, whole=True),
        share=span("share", plain.share, 1e-4, 1.0),
        ceiling=fields.number("ceiling", plain.ceiling, low=1e-6, high=1.0),
        max_share=fields.number("max_share", None, low=1e-6, high=1.0),
        uniform=fields.flag("uniform", False),
        exclusive=fields.take("exclusive", _exclusive, False, "Write true, false or peft."),
        unit=fields.choice("unit", UNITS, "block"),
        groups=fields.take("groups", _groups, (), "Write a list of lists of methods."),
        split=fields.take("split", _split, plain.split, "Write [0.1, 0.9], or natural for one size everywhere."),
        start=span("start", plain.start, 0.0, 1.0),
        tilt=span("tilt", plain.tilt, -4.0, 4.0),
        rate_offset=span("rate_offset", plain.rate_offset, -7.0, 7.0),
        batch=choices("batch", plain.batch, 1, 4096, whole=True),
        dropout=choices("dropout", plain.dropout, 0.0, 0.9),
        scale=choices("scale", plain.scale, 1e-3, 1e3),
        rates=tuple((name, rate) for name, rate in _table(fields, "rates", _rate) if Rate(*rate) != METHODS[name].rate),
        sizes=_table(fields, "sizes", lambda value: _numbers(value, 1, 65_536, True)),
        faithful=fields.flag("faithful", False),
        published_rate=fields.number("published_rate", None, low=1e-8, high=10.0),
    )
    _cross_check(fields, space)
    return fields, space


def _cross_check(fields: Fields, space: SpaceValues) -> None:
    """Rules between fields."""
    for name in space.methods:
        method = METHODS[name]
        if method.unsearchable is not None:
            fields.problem("methods", name, f"is not searched: {method.unsearchable}", "Leave it out.")
        elif method.whole != (space.encoding == "whole"):
            kind = "about the whole model" if method.whole else "a method on single modules"
            step = "Give it a space with encoding: whole." if method.whole else "Use encoding: recipe."
            fields.problem("methods", name, f"is {kind}, which the {space.encoding} encoding cannot hold", step)
    if space.encoding == "layers":
        strange = [name for name in space.methods if METHODS[name].size is None or "attention" in METHODS[name].slots]
        if strange:
            rule = f"has methods that the layers encoding cannot size by layer: {', '.join(strange)}"
            fields.problem("methods", list(space.methods), rule, "Keep serial, parallel and prefix, or use recipe.")
    if (space.unit == "group") != bool(space.groups) or (space.groups and space.encoding != "structure"):
        rule = "goes with encoding: structure and unit: group"
        fields.problem("groups", [list(group) for group in space.groups], rule, "Give all three, or none.")
    if space.groups and {name for group in space.groups for name in group} != set(space.methods):
        fields.problem("groups", [list(g) for g in space.groups], "must use exactly the methods", "Name the same ones.")
    if space.encoding == "structure":
        for one, other in combinations(space.methods, 2):
            if METHODS[one].clashes(METHODS[other]):
                rule = f"has {one} and {other}, which cannot share a module"
                fields.problem("methods", list(space.methods), rule, "Keep one of the two.")
    if space.faithful and space.published_rate is None:
        fields.problem("faithful", True, "needs a published_rate", "Give the rate that the publication used.")


def _methods(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        found = select(value, METHODS)
        if not found:
            raise ValueError("holds for no method")
        return found
    if not isinstance(value, Sequence) or not value:
        raise ValueError("must be a list of methods or a condition over them")
    for name in value:
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"has {name!r}, which is not a method. {suggest(str(name), METHODS)}")
    if len(set(value)) != len(value):
        raise ValueError("names a method twice")
    return tuple(name for name in METHODS if name in value)


def _range(value: Any, low: float, high: float) -> Range:
    rule = f"must be a number or [low, high] within {low:g} to {high:g}, low not above high"
    ends = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(ends) != 2:
        raise ValueError(rule)
    try:
        first, last = (float(read_number(end, low=low, high=high)) for end in ends)
    except ValueError as error:
        raise ValueError(rule) from error
    if first > last:
        raise ValueError(rule)
    return first, last


def _groups(value: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= 64:
        raise ValueError("must be a list of groups, each a list of methods")
    return tuple(_methods(group) for group in value)


def _exclusive(value: Any) -> bool | Literal["peft"]:
    if value == "peft":
        return "peft"
    if not isinstance(value, bool):
        raise ValueError("must be true, false or peft")
    return value


def _split(value: Any) -> Range | None:
    return None if value == "natural" else _range(value, 0.01, 0.99)


def _numbers(value: Any, low: float, high: float, whole: bool) -> tuple[Any, ...]:
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not items or len(items) > 64:
        raise ValueError("must be a list of 1 to 64 numbers")
    numbers = [read_number(item, low=low, high=high, whole=whole) for item in items]
    if not whole:
        numbers = [float(number) for number in numbers]
    if len(set(numbers)) != len(numbers):
        raise ValueError("has a number twice")
    return tuple(sorted(numbers))


def _words(value: Any, options: Sequence[str]) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not items or any(item not in options for item in items):
        raise ValueError(f"must be one or more of {', '.join(options)}")
    return tuple(option for option in options if option in items)


def _rate(value: Any) -> tuple[float, float, float]:
    rule = "must be [low, default, high], rising, within 1e-08 to 10"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise ValueError(rule)
    try:
        low, default, high = (float(read_number(item, low=1e-8, high=10.0)) for item in value)
    except ValueError as error:
        raise ValueError(rule) from error
    if not low <= default <= high:
        raise ValueError(rule)
    return low, default, high


def _table(fields: Fields, name: str, convert: Any) -> tuple[Any, ...]:
    """A mapping from methods to something, in the order of the table."""
    value = fields.values.get(name)
    if value is None:
        return ()
    inner = Fields(value, fields.name(name), tuple(METHODS))
    found = {
        method: inner.take(method, convert, None, "See autopeft ls methods.")
        for method in inner.values
        if method in METHODS
    }
    fields.problems.extend(inner.problems)
    return tuple((method, found[method]) for method in METHODS if found.get(method) is not None)
