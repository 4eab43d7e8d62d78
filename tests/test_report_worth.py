"""The report on the winner's parts, on further adapters, and on what choosing adds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from example_search import ExampleSearch
from rich.console import Console

from autopeft.journal import SearchLog, read_journal
from autopeft.report.facts import Facts, gather
from autopeft.report.page import page
from autopeft.report.terminal import render


def told(folder: Path, result: dict[str, Any], simplified: dict[str, Any] | None = None) -> SearchLog:
    search = ExampleSearch(folder)
    search.head()
    lora, mix = search.explore()
    if simplified is not None:
        search.add("simplify", challenger=mix, drops={})
        search.add("simplified", challenger=mix, **simplified)
    search.confirm(lora, mix)
    search.add("finished", status="found", result=result)
    search.journal.close()
    return SearchLog.fold(read_journal(folder))


def terminal(facts: Facts) -> list[str]:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(facts, "run"))
    return console.export_text().splitlines()


def member(folder: str, mean: float, params: int, role: str | None) -> dict[str, Any]:
    validation = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
    more = {"methods": ["lora", "<b>"], "peak_bytes": 2**20, "latency": {"1": 1.25, "16": 1.1}}
    return {"folder": folder, "role": role, "adapter_params": params, "validation": validation, **more}


def test_parts_that_went_and_parts_that_stay_are_told(tmp_path: Path) -> None:
    differences = {"ssf in the upper third": [0.001, 0.002], "lora in the lower third": [-0.03, 0.002]}
    went = {"takes": "x", "dropped": ["ssf in the upper third"], "differences": differences}
    facts = gather(told(tmp_path / "run", {}, went))
    shown = page(facts)
    assert "Left out of the challenger, because it did as well without" in shown
    assert shown.index("Parts of the challenger") < shown.index("Trials</h2>")
    (left,), (stays,) = ([row for row in shown.split("<tr") if f">{label}<" in row] for label in differences)
    assert "left out" in left
    assert "stays" in stays
    assert any("Left out of the challenger" in line for line in terminal(facts))


def test_that_every_part_earns_its_place_is_told(tmp_path: Path) -> None:
    stays = {"takes": "x", "dropped": [], "differences": {"a": [-0.1, 0.01]}}
    assert "earns its place (1 tried)" in page(gather(told(tmp_path / "run", {}, stays)))


def test_without_any_of_it_nothing_is_said(tmp_path: Path) -> None:
    shown = page(gather(told(tmp_path / "run", {})))
    for words in ("Parts of the challenger", "worth their size", "BBC-CV", "recomputed"):
        assert words not in shown


def test_the_front_is_a_table_of_adapters(tmp_path: Path) -> None:
    front = [member("front/1", 0.80, 4_000, None), member("front/2", 0.85, 80_000, "baseline")]
    facts = gather(told(tmp_path / "run", {"front": front}))
    shown = page(facts)
    assert shown.index("front/1") < shown.index("front/2")
    assert "tuned LoRA" in shown[shown.index("front/2") :][:200]
    assert "1.25" in shown[shown.index("front/1") :][:400]
    assert "<b>" not in shown[shown.index("front/1") :][:400]
    assert sum("front/" in line for line in terminal(facts)) == 2


def test_what_choosing_adds_and_how_it_fits_memory(tmp_path: Path) -> None:
    winner = {
        "validation": {"mean": 0.9, "optimism": 0.0123, "corrected": 0.8877},
        "execution": {"micro_batch": 2, "checkpointing": True},
    }
    shown = page(gather(told(tmp_path / "run", {"winner": winner})))
    assert "adds about 0.0123 to its score (BBC-CV): 0.8877" in shown
    assert "in pieces of 2 rows, activations recomputed" in shown
