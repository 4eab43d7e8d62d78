"""A search while it runs: a table that redraws itself on a terminal, a line now and then elsewhere.

It reads snapshots as plain mappings and nothing else, so a recorded search can be shown again.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autopeft.spec.amounts import format_count, format_seconds

Snapshot = Mapping[str, Any]

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_SAME_LINES = 60.0

_WIDTHS = {"trial": 11, "params": 7, "rung": 4, "rows": 16, "score": 7}
"""Columns of the table beside the methods, in characters."""


class Progress:
    """Shows a running search; pass `on_event` to it.

    Args:
        console: Where it is shown; a terminal gets the table, anything else gets lines.
        clock: Seconds; only differences count.

    Use as a context manager around the search. `on_event` may be called from any thread.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._received = clock()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._line, self._line_at = "", float("-inf")
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def on_event(self, event: Any) -> None:
        """Take note of an event of the search: its `snapshot`, where it has one; a note is written at once."""
        snapshot = getattr(event, "snapshot", None)
        if snapshot is not None:
            self._take(snapshot if isinstance(snapshot, Mapping) else _fields(snapshot))
        text = event.data.get("text") if event.type == "note" else None
        if text:
            # On its own line: it may come after the last snapshot, and the table is gone at the end.
            self._console.print(f"note: {text}", soft_wrap=True, highlight=False, markup=False)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._write_lines, name="autopeft-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()
            self.write_line(force=True)

    def __rich__(self) -> RenderableType:
        snapshot = self._now()
        return Text("starting ...", style="dim") if snapshot is None else render(snapshot)

    def write_line(self, *, force: bool = False) -> None:
        """Write the line of now, unless it tells nothing new."""
        snapshot = self._now()
        if snapshot is None:
            return
        text, now = line(snapshot), self._clock()
        news = _without_time(text) != _without_time(self._line) or now - self._line_at >= SECONDS_BETWEEN_SAME_LINES
        if news or (force and text != self._line):
            self._line, self._line_at = text, now
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _take(self, snapshot: Snapshot) -> None:
        # What an event without a controller carries; it says nothing about a search that has begun.
        blank = snapshot.get("phase") == "prepare" and not snapshot.get("used_seconds")
        with self._lock:
            if blank and self._snapshot is not None:
                return
            self._snapshot, self._received = snapshot, self._clock()

    def _write_lines(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_LINES):
            self.write_line()

    def _now(self) -> Snapshot | None:
        # Events come at rungs; between them the clocks go on.
        with self._lock:
            if self._snapshot is None:
                return None
            passed = self._clock() - self._received
            left = self._snapshot.get("left_seconds")
            used = float(self._snapshot.get("used_seconds") or 0.0) + passed
            return {
                **self._snapshot,
                "used_seconds": used,
                "left_seconds": None if left is None else max(0.0, float(left) - passed),
            }


def render(snapshot: Snapshot) -> RenderableType:
    """The whole state as a table for a terminal of 80 columns or more.

    Args:
        snapshot: The fields of `autopeft.search.Snapshot`.
    """
    parts: list[RenderableType] = [_headline(snapshot), _counts(snapshot), _Trials(snapshot)]
    if snapshot.get("stop_now"):
        parts.append(Text.assemble(("stopping now would give ", "dim"), str(snapshot["stop_now"])))
    parts.extend(Text(str(note), style="yellow") for note in (snapshot.get("notes") or [])[-3:])
    return Group(*parts)


def line(snapshot: Snapshot) -> str:
    """The state in one line, for logs."""
    pieces = [f"{format_seconds(snapshot.get('used_seconds') or 0.0)} used", str(snapshot.get("phase", ""))]
    if snapshot.get("left_seconds") is not None:
        pieces[0] += f", {format_seconds(snapshot['left_seconds'])} left"
    pieces.append(_count_text(snapshot))
    for name, key in (("best", "best"), ("tuned LoRA", "baseline_best")):
        trial = snapshot.get(key)
        if trial:
            size = f", {_params(trial)} params" if trial.get("params") is not None else ""
            pieces.append(f"{name} {_score(trial.get('score'))} ({_methods(trial)}{size})")
    if snapshot.get("stop_now"):
        pieces.append(f"stopping now would give {snapshot['stop_now']}")
    return " | ".join(piece for piece in pieces if piece)


def _headline(snapshot: Snapshot) -> Text:
    text = Text.assemble((str(snapshot.get("phase", "")), "bold"), "   ")
    text.append(f"{format_seconds(snapshot.get('used_seconds') or 0.0)} used")
    if snapshot.get("left_seconds") is not None:
        text.append(f", {format_seconds(snapshot['left_seconds'])} left")
    return text


def _counts(snapshot: Snapshot) -> Text:
    return Text(_count_text(snapshot), style="dim")


def _count_text(snapshot: Snapshot) -> str:
    names = ("done", "stopped", "running", "paused", "infeasible", "failed")
    counts = {name: _length(snapshot.get(name)) for name in names}
    always = ("done", "running")
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in always)


@dataclasses.dataclass(frozen=True, slots=True)
class _Trials:
    """The table of trials. In a narrow terminal the methods are cut and nothing else."""

    snapshot: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        others = sum(_WIDTHS.values()) + 2 * len(_WIDTHS)
        yield _trials(self.snapshot, max(12, options.max_width - others))


def _trials(snapshot: Snapshot, methods_width: int) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("trial", no_wrap=True)
    table.add_column("methods", no_wrap=True, max_width=methods_width)
    for heading in ("params", "rung", "rows", "score"):
        table.add_column(heading, no_wrap=True, max_width=_WIDTHS[heading], justify="right")
    for trial in snapshot.get("running") or ():
        table.add_row(*_row(trial))
    for name, key, style in (("best", "best", "bold green"), ("tuned LoRA", "baseline_best", "cyan")):
        trial = snapshot.get(key)
        if trial:
            table.add_row(name, *_row(trial)[1:], style=style)
    return table


def _row(trial: Mapping[str, Any]) -> tuple[str, ...]:
    name = str(trial.get("trial", ""))
    if trial.get("arm") == "baseline":
        name += " LoRA"
    elif trial.get("arm") == "incumbent":
        name += " yours"
    rung, rows, rows_to = trial.get("rung"), trial.get("rows"), trial.get("rows_to")
    seen = "" if rows is None else format_count(int(rows))
    if rows_to is not None:
        seen += f" of {format_count(int(rows_to))}"
    return (
        name,
        _methods(trial),
        _params(trial),
        "" if rung is None else str(rung),
        seen,
        _score(trial.get("score")),
    )


def _methods(trial: Mapping[str, Any]) -> str:
    methods = trial.get("methods") or ()
    return methods if isinstance(methods, str) else "+".join(str(method) for method in methods)


def _params(trial: Mapping[str, Any]) -> str:
    params = trial.get("params")
    return "" if params is None else format_count(int(params))


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"


def _fields(snapshot: Any) -> dict[str, Any]:
    return {field.name: getattr(snapshot, field.name) for field in dataclasses.fields(snapshot)}


def _length(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else len(value or ())


def _without_time(text: str) -> str:
    return text.partition(" | ")[2]
