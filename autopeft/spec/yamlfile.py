"""Reading YAML that a person wrote, strictly: what is ambiguous is an error with its line, not a guess."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from autopeft.errors import InputError

__all__ = ["read_yaml", "read_yaml_file"]

MAX_BYTES = 1_000_000
_MAX_DEPTH = 32


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` without aliases, repeated keys and deep nesting, and with ``1e-3`` as a number."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not accepted", event.start_mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"is nested more than {_MAX_DEPTH} levels deep",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 takes a float for text unless it has a dot and a signed exponent.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, name: str, field: str = "file") -> Any:
    """The value of a YAML document.

    Args:
        text: The document.
        name: What to call it in messages.
        field: The field that it was given in.

    Raises:
        InputError: With the line, when it is not valid.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise InputError.one(
            field, name, f"is not valid YAML{where}: {error.problem or error.context}", "Correct that line."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError.one(field, name, f"is not valid YAML: {error}", "Correct the file.") from error


def read_yaml_file(path: Path, field: str = "file") -> tuple[Any, str]:
    """The value and the text of a YAML file.

    Raises:
        InputError: When it is absent, too large, not UTF-8 or not valid.
    """
    name = str(path)
    try:
        if not path.is_file():
            raise InputError.one(field, name, "is not a file that exists", "Check the path.")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError.one(field, name, f"cannot be read: {error}", "Check the path and its permissions.") from error
    if len(data) > MAX_BYTES:
        raise InputError.one(field, name, f"is larger than {MAX_BYTES:,} bytes", "Give settings, not data.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError.one(field, name, f"is not UTF-8 text (line {line})", "Save it as UTF-8.") from error
    return read_yaml(text, name, field), text
