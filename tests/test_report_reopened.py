"""A search that is given more keeps its answer until there is another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from wide_search import WideSearch

from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.report.facts import Facts, gather
from autopeft.report.page import page
from autopeft.report.steps import next_steps

ANSWER = "its answer before: Take lora+bias: it is better than a tuned LoRA"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    WideSearch(tmp_path / "run").whole()
    with Journal.resume(tmp_path / "run") as journal:
        journal.append("resumed", records=1, reopened=True)
    return tmp_path / "run"


def facts(folder: Path, running: bool = False) -> Facts:
    return gather(SearchLog.fold(read_journal(folder)), running)


@pytest.mark.parametrize(("running", "said"), [(True, "is being extended"), (False, "broke off while it was extended")])
def test_the_answer_stands_while_it_is_extended_and_after_a_crash(folder: Path, running: bool, said: str) -> None:
    found = facts(folder, running)
    assert said in found.headline
    assert ANSWER in found.headline
    assert found.adapter == "winner"
    assert "kept until there is another one" in found.detail
    assert [one.label for one in found.contenders if one.taken] == ["best of the space"]
    assert any("there is an adapter in winner" in step.words for step in next_steps(found))
    shown = page(found)
    assert "not confirmed" not in shown[: shown.index("Comparison")]
    assert "+0.0130" in shown


def test_an_extension_that_was_stopped_has_another_adapter(folder: Path) -> None:
    with Journal.resume(folder) as journal:
        journal.append("interrupted", signal="SIGINT")
        journal.append("finished", status="cancelled", result={"winner": {"adapter_path": "winner"}})
    found = facts(folder)
    assert "was stopped while it was extended" in found.headline
    assert ANSWER in found.headline
    assert "gave way to the best of what was tried since, which is not confirmed" in found.detail


def test_a_second_crash_does_not_lose_it_and_a_new_verdict_replaces_it(folder: Path) -> None:
    with Journal.resume(folder) as journal:
        journal.append("resumed", records=1, reopened=False)
        assert ANSWER in facts(folder).headline
        log = SearchLog.fold(read_journal(folder))
        assert log.before is not None
        hashes = {role: log.before["result"][role]["hash"] for role in ("baseline", "challenger")}
        journal.append("finalists", **hashes, seeds=[101, 102], rows=9000, rung=2)
        journal.append("verdict", name="worse", difference=-0.1, low=-0.2, high=-0.05, takes="baseline", reason="so")
    found = facts(folder)
    assert "answer before" not in found.headline
    assert not found.extended
    with Journal.resume(folder) as journal:
        journal.append("finished", status="found", result={})
    assert SearchLog.fold(read_journal(folder)).before is None


def test_a_search_that_never_had_an_answer_claims_none(tmp_path: Path) -> None:
    search = WideSearch(tmp_path / "run")
    search.head()
    search.explore()
    search.add("finished", status="cancelled", result={})
    search.add("resumed", records=1, reopened=True)
    found = gather(SearchLog.fold(search.journal.records), running=True)
    assert "answer before" not in found.headline
    assert found.adapter is None
