"""What a running search looks like: recorded snapshots rendered at two widths."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import Any

import pytest
from rich.console import Console

from autopeft.cli.live import SECONDS_BETWEEN_SAME_LINES, Progress, line, render

SNAPSHOT: dict[str, Any] = {
    "phase": "explore",
    "done": 7,
    "stopped": 4,
    "running": [
        {
            "trial": "t0012",
            "arm": "space",
            "methods": ["lora", "serial", "bias", "layernorm", "prefix"],
            "params": 226_000,
            "rung": 1,
            "rows": 900,
            "rows_to": 2_700,
            "score": 0.8412,
        },
        {
            "trial": "t0013",
            "arm": "baseline",
            "methods": ["lora"],
            "params": 9_984,
            "rung": 0,
            "rows": 900,
            "score": None,
        },
    ],
    "paused": 2,
    "infeasible": 1,
    "failed": 0,
    "best": {"trial": "t0003", "methods": ["ia3", "bias"], "params": 8_448, "rung": 2, "rows": 8_100, "score": 0.87654},
    "baseline_best": {
        "trial": "t0001",
        "methods": ["lora"],
        "params": 98_304,
        "rung": 2,
        "rows": 8_100,
        "score": 0.8701,
    },
    "used_seconds": 75.0,
    "left_seconds": 405.0,
    "trials_started": 14,
    "stop_now": "t0003 (ia3+bias), unconfirmed",
    "notes": ["old note", "text column: review", "validation cut from train", "head: mean"],
}

EMPTY: dict[str, Any] = {
    "phase": "prepare",
    "done": 0,
    "stopped": 0,
    "running": [],
    "paused": 0,
    "infeasible": 0,
    "failed": 0,
    "best": None,
    "baseline_best": None,
    "used_seconds": 0.4,
    "left_seconds": None,
    "trials_started": 0,
    "stop_now": "",
    "notes": [],
}


@dataclass
class Event:
    type: str
    data: dict[str, Any]
    snapshot: Any


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def shown(snapshot: dict[str, Any], width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render(snapshot))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_and_says_what_runs(width: int) -> None:
    text = shown(SNAPSHOT, width)
    assert max(len(row.rstrip()) for row in text.splitlines()) <= width
    rows = {row.split()[0]: row for row in text.splitlines() if row.strip()}
    assert "lora+serial" in rows["t0012"]
    assert rows["t0012"].rstrip().endswith("0.8412")
    assert "900 of 2,700" in rows["t0012"]
    assert "LoRA" in rows["t0013"]
    assert rows["t0013"].rstrip().endswith("-")
    assert "ia3+bias" in rows["best"]
    assert rows["best"].rstrip().endswith("0.8765")
    assert rows["tuned"].rstrip().endswith("0.8701")
    assert "7 done, 4 stopped, 2 running, 2 paused, 1 infeasible" in text
    assert "failed" not in text
    assert "stopping now would give t0003 (ia3+bias), unconfirmed" in text
    assert "6 min 45 s left" in text
    assert "head: mean" in text
    assert "old note" not in text, "only the last three notes"


def test_a_wide_terminal_shows_all_methods() -> None:
    assert "lora+serial+bias+layernorm+prefix" in shown(SNAPSHOT, 140)


def test_before_the_first_trial() -> None:
    text = shown(EMPTY, 80)
    assert "prepare" in text
    assert "0 done, 0 running" in text
    assert "left" not in text
    assert "stopping now" not in text


def test_brackets_in_names_are_text_not_markup() -> None:
    assert "[red]x" in shown({**SNAPSHOT, "notes": ["[red]x"], "stop_now": "[bold]"}, 80)


def test_the_line_says_the_same() -> None:
    text = line(SNAPSHOT)
    assert "\n" not in text
    assert text.startswith("1 min 15 s used, 6 min 45 s left | explore | 7 done")
    assert "best 0.8765 (ia3+bias, 8,448 params)" in text
    assert "tuned LoRA 0.8701 (lora, 98.3 k params)" in text


def test_lines_repeat_only_with_news_or_after_a_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(Console(file=stream, width=200), clock)
    progress.write_line()
    assert stream.getvalue() == ""
    progress.on_event(Event("rung", {}, SNAPSHOT))
    progress.write_line()
    clock.now += 10
    progress.write_line()
    assert stream.getvalue().count("\n") == 1, "nothing but the time had changed"
    progress.on_event(Event("rung", {}, {**SNAPSHOT, "done": 8}))
    progress.write_line()
    assert "8 done" in stream.getvalue()
    clock.now += SECONDS_BETWEEN_SAME_LINES
    progress.write_line()
    assert stream.getvalue().count("\n") == 3


def test_the_clock_goes_on_between_events() -> None:
    clock = Clock()
    progress = Progress(Console(file=io.StringIO(), force_terminal=True, width=80), clock)
    progress.on_event(Event("rung", {}, SNAPSHOT))
    progress.on_event(Event("note", {}, None))
    clock.now += 15
    stream = io.StringIO()
    Console(file=stream, width=80).print(progress)
    assert "1 min 30 s used, 6 min 30 s left" in stream.getvalue()


def test_the_snapshots_of_a_search_are_read_as_they_come() -> None:
    from autopeft.search.events import Event as SearchEvent
    from autopeft.search.events import Snapshot

    assert {field.name for field in fields(Snapshot)} == set(SNAPSHOT), "the recorded snapshots are of another make"
    progress = Progress(Console(file=io.StringIO()), Clock())
    progress.on_event(SearchEvent("tick", {}, Snapshot(**SNAPSHOT)))
    stream = io.StringIO()
    Console(file=stream, width=80).print(progress)
    assert stream.getvalue() == shown(SNAPSHOT, 80)


@pytest.mark.parametrize("terminal", [True, False])
def test_notes_are_written_when_they_come(terminal: bool) -> None:
    from autopeft.search.events import Event as SearchEvent

    stream = io.StringIO()
    note = "MLflow lacks 3 records [not red]: later do autopeft track runs/first"
    with Progress(Console(file=stream, force_terminal=terminal, color_system=None, width=60)) as progress:
        progress.on_event(Event("rung", {}, SNAPSHOT))
        progress.on_event(SearchEvent("note", {"text": note}))  # as it comes after the search: with no snapshot to show
        progress.on_event(Event("note", {}, None))
        progress.on_event(Event("rung", {"text": "not a note"}, None))
    assert stream.getvalue().count(f"note: {note}\n") == 1
    assert stream.getvalue().count("note: ") == 1
    assert "not a note" not in stream.getvalue()
    last = stream.getvalue().rpartition("note: ")[2] if not terminal else stream.getvalue()
    assert "7 done" in last, "the state is shown after it as before"


def test_an_event_without_a_state_does_not_hide_the_last_one() -> None:
    from autopeft.search.events import Event as SearchEvent

    stream, clock = io.StringIO(), Clock()
    progress = Progress(Console(file=stream, width=200), clock)
    progress.on_event(SearchEvent("prepare"))
    progress.write_line()
    assert "| prepare | 0 done" in stream.getvalue()
    progress.on_event(Event("rung", {}, SNAPSHOT))
    progress.on_event(SearchEvent("note", {"text": "MLflow is down"}))
    clock.now += 5
    progress.write_line(force=True)
    assert stream.getvalue().splitlines()[-1].startswith("1 min 20 s used, 6 min 40 s left | explore | 7 done")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_search_is_shown_from_start_to_end(terminal: bool) -> None:
    stream = io.StringIO()
    with Progress(Console(file=stream, force_terminal=terminal, width=100)) as progress:
        progress.on_event(Event("rung", {}, SNAPSHOT))
    assert "0.8765" in stream.getvalue()
