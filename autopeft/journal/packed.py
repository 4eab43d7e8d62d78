"""Large values of a journal, kept small in memory."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any


class Packed(Mapping[str, Any]):
    """A JSON object that is spelled and compressed until someone looks into it. Final.

    A configuration names every module that it adapts, which as Python objects is some 20 KiB, and a search of a hundred
    thousand trials has as many.

    Args:
        text: The object as compact JSON.
    """

    __slots__ = ("_bytes",)

    def __init__(self, text: str | bytes) -> None:
        self._bytes = zlib.compress(text.encode() if isinstance(text, str) else text, 1)

    def plain(self) -> dict[str, Any]:
        """The object; a new one for each question."""
        found: dict[str, Any] = json.loads(zlib.decompress(self._bytes))
        return found

    def __getitem__(self, key: str) -> Any:
        return self.plain()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.plain())

    def __len__(self) -> int:
        return len(self.plain())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Packed) and self._bytes == other._bytes:
            return True
        return self.plain() == (other.plain() if isinstance(other, Packed) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self.plain())

    def items(self) -> Any:
        """As of a dictionary."""
        return self.plain().items()
