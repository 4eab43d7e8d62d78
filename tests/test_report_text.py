"""Names and labels from outside are shown as they are, and change nothing around them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch
from rich.console import Console

from autopeft.journal import SearchLog, read_journal
from autopeft.report.facts import Facts, gather
from autopeft.report.page import page
from autopeft.report.terminal import render
from autopeft.report.text import isolated, visible

OVERRIDE = chr(0x202E)
HEBREW = "".join(map(chr, (0x5D0, 0x5D1)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a\\nb\\tc"),
        (f"a{OVERRIDE}b", "a[U+202E]b"),
        ("a\x1b[31mb", "a[U+001B][31mb"),
        ("  a ", chr(0x2423) * 2 + "a" + chr(0x2423)),
        ("   ", chr(0x2423) * 3),
        ("", ""),
        ("a b", "a b"),
        (f"man{chr(0x200D)}woman", f"man{chr(0x200D)}woman"),
        (HEBREW, HEBREW),
    ],
)
def test_what_cannot_be_seen_is_marked(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_may_run_from_right_to_left_is_isolated() -> None:
    assert isolated(f"{HEBREW}<") == f"<bdi>{HEBREW}&lt;</bdi>"
    assert isolated("a<b") == "a&lt;b"


class Labelled(ExampleSearch):
    def add(self, type: str, /, later: float = 0.0, **data: Any) -> None:
        if type == "search_started":
            data["task"] = {**data["task"], "label_names": [HEBREW, f"{OVERRIDE}x", " y\n"], "notes": [f"n{OVERRIDE}"]}
        super().add(type, later, **data)


def terminal(facts: Facts) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(facts, "run"))
    return console.export_text()


def test_labels_notes_and_names_change_no_order_around_them(tmp_path: Path) -> None:
    search = Labelled(tmp_path / "run", name=f"t{OVERRIDE}").whole()
    facts = gather(SearchLog.fold(read_journal(search.journal.folder)))
    shown = page(facts)
    assert OVERRIDE not in shown + terminal(facts)
    assert f"<bdi>{HEBREW}</bdi>, [U+202E]x, <bdi>{chr(0x2423)}y\\n</bdi>" in shown
    assert "n[U+202E]" in shown
    assert "n[U+202E]" in terminal(facts)
    assert "t[U+202E]" in shown
