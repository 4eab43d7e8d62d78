"""`plan` where nothing fits: it ends as a search would, with the smallest limit that would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

import autopeft.search.preview as preview
from autopeft.cli import main
from autopeft.cost.memory import Fit, MemoryGate
from autopeft.search.arms import lean
from autopeft.search.feasible import check_memory
from autopeft.search.sketch import sketch
from autopeft.space.execution import PLAIN
from autopeft.spec.parse import parse_search

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}


pytestmark = pytest.mark.usefixtures("few_predictions")


@pytest.fixture
def given(tmp_path: Path, tiny_reviews: Path) -> list[str]:
    """What every plan here begins with: a model of which only the config is there, planned for another device."""
    BertConfig(**TINY).save_pretrained(tmp_path / "bert")
    return ["plan", "--model", str(tmp_path / "bert"), "--data", str(tiny_reviews), "--device-tflops", "1"]


def document(given: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main([*given, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("flag", "value"), [("--max-memory", "100KB"), ("--max-params", "3"), ("--max-size", "20B")])
def test_the_smallest_limit_that_would_do_is_said_and_does(
    given: list[str], capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    code, found = document([*given, flag, value], capsys)
    assert (code, found["status"]) == (3, "infeasible")
    assert found["would_do"][flag]
    assert found["smallest"][found["binds"]] > 0
    again, planned = document([*given, flag, found["would_do"][flag]], capsys)
    assert (again, "space" in planned) == (0, True)


def test_people_read_which_limit_binds(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*given, "--max-memory", "100KB"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing feasible: no configuration fits into --max-memory" in captured.err
    assert "What binds is --max-memory." in captured.err
    assert "The smallest that would do: --max-memory " in captured.err


def test_a_target_that_nothing_meets(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, found = document([*given, "--target", "merged", "--set", "space.methods=[serial]"], capsys)
    assert (code, found["binds"]) == (3, "target")


def test_one_arm_that_fits_is_enough_and_the_other_is_told(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first two that a plan looks at nor one arm alone says that nothing fits."""
    task = {"model": given[2], "data": given[4]}
    prepared = sketch(parse_search({"task": task, "budget": {"max_memory": 2**40}}), 1.0)
    head = prepared.heads[0]
    memory, space = prepared.memory(head), prepared.bind(prepared.space, head)
    assert check_memory(prepared, memory, head, space, 2**39) == []
    # It seems too much by what was looked at so far, and all of the space is looked at before that is said.
    assert check_memory(prepared, memory, head, space, 2**41) == []
    lora = prepared.bind(prepared.baseline, head)
    mine = {configuration.hash for configuration in lean(lora)}
    assert not mine & {configuration.hash for configuration in lean(space)}
    asked = MemoryGate.fits
    monkeypatch.setattr(MemoryGate, "fits", lambda gate, one: asked(gate, one) if one.hash in mine else Fit(None))
    (told,) = check_memory(prepared, memory, head, space, 2**41)
    assert "Only tuned LoRA would be searched" in told
    monkeypatch.setattr(MemoryGate, "fits", lambda gate, made: Fit(None if made.plain_lora else PLAIN))
    (told,) = check_memory(prepared, memory, head, space, 2**41)
    assert "No configuration of tuned LoRA fits" in told
    assert check_memory(prepared, memory, head, space, 2**39) == [told]


def test_a_limit_that_leaves_nothing_of_lora_is_told(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, found = document([*given, "--max-params", "200"], capsys)
    assert code == 0
    (told,) = [warning for warning in found["warnings"] if "Nothing of tuned LoRA fits" in warning]
    assert "There would be nothing to compare with." in told


def test_what_this_machine_lacks_is_a_warning_for_a_base_without_weights(
    given: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "live_bytes_per_worker", lambda workers, base: 1000)
    code, found = document(given[:-2], capsys)
    assert code == 0
    assert any("each worker has here" in warning for warning in found["warnings"])
