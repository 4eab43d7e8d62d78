"""Text from outside, so that it can be read as it is and changes nothing around it."""

from __future__ import annotations

import unicodedata
from html import escape

BLANK = "␣"


def visible(text: str) -> str:
    """Text with marks for what one cannot see: controls, marks of direction, and blanks at its ends.

    Args:
        text: Any text; a line feed becomes a backslash and ``n``, U+202E becomes ``[U+202E]``.
    """
    body = text.strip(" ")
    ends = (len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" ")))
    shown = "".join(_mark(letter) for letter in body)
    return BLANK * ends[0] + shown + BLANK * (ends[1] if body else 0)


def _mark(letter: str) -> str:
    code = ord(letter)
    if letter in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[letter]
    # Joiners belong to the spelling of many scripts and of emoji.
    if unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp", "Cs") and code not in (0xAD, 0x200C, 0x200D):
        return f"[U+{code:04X}]"
    return letter


def isolated(text: str) -> str:
    """Visible text as HTML; where it may be written from right to left, what stands around it keeps its order."""
    shown = escape(visible(text))
    return shown if shown.isascii() else f"<bdi>{shown}</bdi>"
