"""What the reports say to do next: one list, from the journal alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch, configuration
from rich.console import Console
from wide_search import WideSearch

from autopeft.evidence.advice import advise
from autopeft.evidence.limits import ending
from autopeft.evidence.signatures import Signature
from autopeft.journal import SearchLog, read_journal
from autopeft.report.doubts import Doubt
from autopeft.report.facts import Facts, gather
from autopeft.report.page import page
from autopeft.report.steps import next_steps
from autopeft.report.terminal import render

USE = "autopeft predict runs/first --input FILE"
MORE = "autopeft search --resume --out runs/first --max-time LONGER"


def facts_of(search: ExampleSearch) -> Facts:
    search.journal.close()
    return gather(SearchLog.fold(read_journal(search.journal.folder)))


def commands(facts: Facts) -> list[str]:
    return [step.command for step in next_steps(facts)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    facts = facts_of(WideSearch(tmp_path_factory.mktemp("steps") / "run").whole())
    return replace(facts, advice=())


def test_a_sure_winner_is_to_be_used(found: Facts) -> None:
    assert commands(found) == [USE]


def test_what_is_not_confirmed_is_used_and_given_more(found: Facts) -> None:
    assert commands(replace(found, verdict={"name": "unconfirmed"})) == [USE, MORE]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("below_probe", [MORE]), ("near_probe", [MORE, USE]), ("untrained", [MORE, USE]), ("untuned", [MORE, USE])],
)
def test_a_doubt_comes_before_the_use(found: Facts, name: Any, expected: list[str]) -> None:
    assert commands(replace(found, doubts=(Doubt(name, "b", "s", "w"),))) == expected


def test_what_runs_is_waited_for_and_what_stopped_goes_on(found: Facts) -> None:
    assert commands(replace(found, state="running")) == ["autopeft report runs/first"]
    for state in ("interrupted", "died"):
        assert commands(replace(found, state=state)) == ["autopeft search --resume --out runs/first"]  # type: ignore[arg-type]


def test_signatures_of_the_winner_join_the_list_and_those_of_a_good_lora_do_not(found: Facts) -> None:
    advice = (
        Signature("latency", "winner", True, "slow", "Set a limit."),
        Signature("unstable_start", "baseline", True, "spikes", "Search lower rates."),
        Signature("labels_or_search", "search", None, "unknown", "A longer search can say it."),
        Signature("overfitting", "search", True, "falls", "Train less."),
    )
    made = replace(found, advice=advice)
    assert [step.words for step in next_steps(made)][1:] == ["set a limit", "train less"]
    doubted = replace(made, doubts=(Doubt("untrained", "b", "s", "w"),))
    assert "for tuned LoRA: search lower rates" in [step.words for step in next_steps(doubted)]


def test_the_limit_that_ended_the_search_is_named(found: Facts) -> None:
    assert "--max-trials MORE" in commands(replace(found, ending="max_trials", verdict={"name": "unconfirmed"}))[1]


@pytest.mark.parametrize(
    ("budget", "planned", "limit"),
    [
        ({"max_time": 1800.0}, None, "max_time"),
        ({"max_time": 1800.0, "max_trials": 21}, 21, "max_trials"),
        ({"max_time": 1800.0, "max_trials": 99}, 99, "max_time"),
        ({"max_trials": 99}, 99, "max_trials"),
        ({}, 20, "max_trials"),
        ({"max_time": 1e6, "max_compute": 100.0}, None, "max_compute"),
        ({"max_time": 100.0, "max_compute": 1e6}, None, "max_time"),
    ],
)
def test_which_limit_ended_it_follows_from_the_journal(
    tmp_path: Path, budget: dict[str, Any], planned: int | None, limit: str
) -> None:
    log = SearchLog.fold(WideSearch(tmp_path / "run").whole().journal.records)
    log.plan = {**log.plan, "budget": budget, "max_trials": planned}
    assert ending(log) == limit


def test_more_search_is_asked_for_by_the_limit_that_ended_it(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run").whole()
    log = SearchLog.fold(search.journal.records)
    for limit, flag in (({"max_time": 1800.0}, "(--max-time)"), ({"max_trials": 2}, "(--max-trials)")):
        log.plan = {**log.plan, "budget": limit}
        assert flag in next(one.next_step for one in advise(log) if one.name == "labels_or_search")


def test_an_infeasible_search_says_what_would_do(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    result = {"message": "nothing fits", "winner": None, "smallest_budget": {"max_memory": 46_111_341}}
    search.add("finished", status="infeasible", result=result)
    facts = facts_of(search)
    assert facts.advice == ()
    [step] = next_steps(facts)
    assert "--max-memory 44MiB" in step.words
    shown = page(facts)
    assert "--max-memory 44MiB" in shown
    assert "longer search" not in shown


@pytest.mark.parametrize(
    ("reason", "said"), [("nan", "the loss was not a number"), ("error", "mend what made 2 trials fail (it broke)")]
)
def test_a_failed_search_says_what_to_mend(tmp_path: Path, reason: str, said: str) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    hash = search.configure(configuration("lora", 8), "baseline", 73_728)
    for _ in range(2):
        search.end(search.begin(hash, "baseline"), "failed", reason, "it broke")
    search.end(search.begin(hash, "baseline"), "failed", "lost", "gone")
    search.add("finished", status="failed", result={"message": "No trial ended well.", "winner": None})
    facts = facts_of(search)
    [step] = next_steps(facts)
    assert said in step.words
    assert facts.advice == ()


def terminal(facts: Facts) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(facts, "run"))
    return console.export_text()


@pytest.mark.parametrize("shown", [page, terminal])
def test_there_is_one_list_and_it_has_an_order(found: Facts, shown: Callable[[Facts], str]) -> None:
    text = shown(replace(found, doubts=(Doubt("near_probe", "b", "s", "w"),)))
    assert text.count(MORE) == text.count(USE) == 1
    assert text.index(MORE) < text.index(USE)
    assert "What to do next" not in text
