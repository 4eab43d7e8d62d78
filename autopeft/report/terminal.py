"""The report in a terminal: the same facts, the answer first."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from autopeft.report.advice import advice_lines
from autopeft.report.answer import badges, difference
from autopeft.report.contenders import Contender
from autopeft.report.facts import Facts
from autopeft.report.rows import evaluated_lines, flipped
from autopeft.report.steps import steps_lines
from autopeft.report.text import visible
from autopeft.report.worth import dropped
from autopeft.spec.amounts import format_bytes, format_count, format_seconds

STYLES = {"running": "cyan", "ended": "green", "interrupted": "yellow", "died": "red"}


def render(facts: Facts, folder: str) -> RenderableType:
    """Everything as one renderable that fits 80 columns.

    Args:
        facts: What there is to say.
        folder: The run folder, for the last lines.
    """
    # Text, not markup: names of tasks and classes may hold brackets.
    answer = Text(visible(facts.headline), style="bold")
    for text in (facts.reason, *(f"Caution: {doubt.words}" for doubt in facts.doubts)):
        if text:
            answer.append(f"\n{visible(text)}", style="not bold")
    if facts.calibration is not None:
        answer.append(f"\nHow often such a verdict errs: {facts.calibration[1]}", style="not bold dim")
    parts: list[RenderableType] = [Panel(answer, border_style=STYLES[facts.state], padding=(0, 1))]
    if facts.contenders:
        parts.append(_comparison(facts))
    parts += [
        Text(visible(line))
        for line in (*_differences(facts), *steps_lines(facts), *_lines(facts), *advice_lines(facts))
    ]
    if facts.failures:
        parts.append(Text("failures:"))
        for cause, (number, words) in facts.failures.items():
            parts.append(Text("  " + visible(f"{number} x {cause}" + (f" ({words})" if words else ""))))
    if facts.notes:
        parts.append(Text("notes:"))
        parts += [Text(f"  {visible(note)}", style="dim") for note in facts.notes]
    parts += [Text(visible(line)) for line in _places(facts, Path(folder))]
    return Group(*parts)


def _differences(facts: Facts) -> list[str]:
    """How large the difference is, and how sure."""
    marks = ", ".join(words for _, words in badges(facts))
    lines = [f"{name}: {value} {facts.metric} ({more})" for name, value, more in difference(facts)]
    return [*lines, *([f"sure:   {marks}"] if marks else [])]


def _places(facts: Facts, folder: Path) -> list[str]:
    """Where everything lies, and how to open it."""
    lines = [f"folder:  {folder}"]
    if (folder / "winner").is_dir() and any(contender.taken for contender in facts.contenders):
        lines.append(f"adapter: {folder / 'winner'}   (autopeft predict {folder} --input FILE)")
    if (folder / "report.html").is_file():
        lines.append(f"report:  {folder / 'report.html'}")
    if (folder / "tracking.json").is_file():
        lines.append(f"MLflow:  autopeft ui {folder}")
    return lines


def _comparison(facts: Facts) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("method", overflow="fold", min_width=10)
    for name in (facts.metric, "95 %", "test", "params", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for contender in facts.contenders:
        table.add_row(*(Text(cell) for cell in _cells(contender)), style="bold" if contender.taken else "")
    return table


def _cells(contender: Contender) -> tuple[str, ...]:
    spread = ""
    if contender.low is not None and contender.high is not None:
        joined = " to " if contender.low < 0 else "-"
        spread = f"{contender.low:.3f}{joined}{contender.high:.3f}"
    return (
        ("> " if contender.taken else "  ") + contender.label,
        contender.methods,
        _score(contender.validation),
        spread,
        _score(contender.test),
        "" if contender.adapter_params is None else format_count(contender.adapter_params),
        "" if contender.peak_bytes is None else format_bytes(contender.peak_bytes),
    )


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _lines(facts: Facts) -> list[str]:
    counts = ", ".join(f"{number} {status}" for status, number in facts.counts.items() if number) or "none"
    rejected = sum(facts.rejected.values())
    time = format_seconds(facts.used) + (f" of {format_seconds(facts.limit)}" if facts.limit else "")
    total = sum(facts.busy.values())
    lines = [
        f"trials: {counts}" + (f"; not trained for breaking a limit: {rejected}" if rejected else ""),
        f"time:   {time}" + (f" in {facts.sessions} sessions" if facts.sessions > 1 else ""),
    ]
    if total > 0:
        shares = sorted(facts.busy.items(), key=lambda item: -item[1])
        lines.append("busy:   " + ", ".join(f"{seconds / total:.0%} {outcome}" for outcome, seconds in shares))
    if facts.figures.rates.curves:
        lines.append(f"LoRA:   {facts.figures.rates.sentence()}")
    lines += evaluated_lines(facts)
    if sentence := dropped(facts):
        lines.append(f"parts:  {sentence}")
    lines += [
        f"{block['folder']}: {' + '.join(block['methods'])}, {format_count(block['adapter_params'])} parameters, "
        f"{facts.metric} {block['validation']['mean']:.4f} on validation"
        for block in facts.result.get("front") or ()
    ]
    if sentence := flipped(facts):
        lines.append(f"rows:   {sentence}")
    if facts.test_rows is not None:
        lines.append(f"test:   only {facts.test_rows[0]:,} of the {facts.test_rows[1]:,} test rows were read")
    if facts.test_reads > 1:
        lines.append(f"test:   opened {facts.test_reads} times")
    return lines
