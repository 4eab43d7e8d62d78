"""Choosing methods by what the table says of them: ``hosted and mergeable``, ``tier <= 1 and "block" in slots``.

A tiny language: names of fields, constants, comparisons, ``and``, ``or``, ``not``. It is walked, never evaluated as
Python, because spaces may come from a request.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from autopeft.methods import Method
from autopeft.spec.fields import suggest

__all__ = ["FIELDS", "select"]

FIELDS: dict[str, Callable[[Method], Any]] = {
    "name": lambda method: method.name,
    "family": lambda method: method.family,
    "tier": lambda method: method.tier,
    "slots": lambda method: method.slots,
    "targets": lambda method: method.targets,
    "mergeable": lambda method: method.mergeable,
    "identity": lambda method: method.identity,
    "sized": lambda method: method.size is not None,
    "stock": lambda method: method.peft_type is not None,
    "hosted": lambda method: method.hosted,
    "whole": lambda method: method.whole,
    "searchable": lambda method: method.unsearchable is None,
    "quantised": lambda method: method.quantised,
}
"""What a predicate may ask. ``hosted``: it sits on single sites, so it can be part of a mixture."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
_LONGEST = 500


def select(predicate: str, methods: Mapping[str, Method]) -> tuple[str, ...]:
    """The names of the methods for which a predicate holds, in the order of the table.

    Args:
        predicate: Such as ``hosted and tier <= 1``.
        methods: The table.

    Raises:
        ValueError: With the rule that the predicate breaks.
    """
    if len(predicate) > _LONGEST:
        raise ValueError(f"must have at most {_LONGEST} characters")
    try:
        tree = ast.parse(predicate.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("must be a condition such as: hosted and tier <= 1") from error
    return tuple(name for name, method in methods.items() if bool(_value(tree, method)))


def _value(node: ast.expr, method: Method) -> Any:
    match node:
        case ast.BoolOp(op=op, values=values):
            # Both sides are always looked at, so that a wrong name is found whatever the first side says.
            found = [bool(_value(value, method)) for value in values]
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, method)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [_value(value, method) for value in (left, *comparators)]
            return all(_compare(op, *pair) for op, pair in zip(ops, pairwise(values), strict=True))
        case ast.Name(id=name):
            if name not in FIELDS:
                raise ValueError(f"asks for {name}, which methods do not have. {suggest(name, FIELDS)}")
            return FIELDS[name](method)
        case ast.Constant(value=constant) if isinstance(constant, (str, int, float, bool)):
            return constant
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return tuple(_value(element, method) for element in elements)
        case _:
            raise ValueError("may only use field names, constants, comparisons, and, or, not")


def _compare(op: ast.cmpop, left: Any, right: Any) -> bool:
    if type(op) not in _COMPARE:
        raise ValueError("may only use ==, !=, <, <=, >, >=, in, not in")
    try:
        return _COMPARE[type(op)](left, right)
    except TypeError as error:
        raise ValueError(f"compares {left!r} with {right!r}, which have no such order") from error
