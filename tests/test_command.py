"""The command that repeats a search: what it sets is what `--set` reads back."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.cli.flags import parse_flags
from autopeft.cli.parser import build_parser
from autopeft.report.command import command
from autopeft.spec import SearchSpec, Task
from autopeft.spec.parse import parse_search, spec_to_dict

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def line_of(value: Any) -> str:
    # As the journal holds it.
    spec = json.loads(json.dumps(spec_to_dict(SearchSpec(Task("m", "d"), overrides=(("space.x", value),)))))
    line = command(spec)
    assert line is not None
    return line


def read_back(line: str) -> Any:
    ((name, value),) = parse_flags(build_parser().parse_args(shlex.split(line)[1:])).overrides
    assert name == "space.x"
    return value


@given(value=VALUES)
def test_any_value_comes_back(value: Any) -> None:
    found = read_back(line_of(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        ([8, 16], "[8, 16]"),
        ({"a": True, "b": None}, '{"a": true, "b": null}'),
        (1e-05, "1e-05"),
        ("sandwich", "sandwich"),
        ("true", '"true"'),
        ("8", '"8"'),
        ("1e-3", '"1e-3"'),
        ("", '""'),
        ("a: b", '"a: b"'),
        (" blank", '" blank"'),
        ("\ud800", '"\\ud800"'),
        ("\u2028", '"\\u2028"'),
    ],
)
def test_values_are_written_as_a_person_would(value: Any, shown: str) -> None:
    line = line_of(value)
    assert shlex.split(line)[-2:] == ["--set", f"space.x={shown}"]
    assert read_back(line) == value


def test_what_was_set_on_a_command_line_is_set_again() -> None:
    given = ["space.dropout=null", "space.batch=[8, 16]", "space.rates={a: true, b: 1e-4}", "strategy.name='8'"]
    args = [word for text in given for word in ("--set", text)]
    spec = parse_flags(build_parser().parse_args(["search", "--model", "m", "--data", "d", *args]))
    line = command(json.loads(json.dumps(spec_to_dict(spec))))
    assert line is not None
    again = parse_flags(build_parser().parse_args(shlex.split(line)[1:]))
    assert again.overrides == spec.overrides
    assert dict(again.overrides)["space.rates"] == {"a": True, "b": 1e-4}


def test_a_tuple_is_a_list() -> None:
    spec = parse_search({"task": {"model": "m", "data": "d"}, "set": {"space.x": (1, 2.5)}})
    line = command(spec_to_dict(spec))
    assert line is not None
    assert read_back(line) == [1, 2.5]
