"""One scale for winner, LoRA and probe, and what stands above it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch
from wide_search import WideSearch

from autopeft.journal import SearchLog, read_journal
from autopeft.report.answer import badges
from autopeft.report.doubts import Doubt
from autopeft.report.facts import Facts, gather
from autopeft.report.page import page
from autopeft.report.strip import strip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("strip") / "run"
    WideSearch(folder).whole()
    return gather(SearchLog.fold(read_journal(folder)))


def test_dots_and_bars_lie_where_their_scores_are(facts: Facts) -> None:
    drawn = strip(facts)
    points = [float(left) for left in re.findall(r'class="point [a-z]+" style="left:([0-9.]+)%', drawn)]
    bars = re.findall(r'class="bar [a-z]+" style="left:([0-9.]+)%;width:([0-9.]+)%', drawn)
    scale = (0.904 - 0.812) / 92
    for at, score in zip(points, (0.885, 0.872, 0.812), strict=True):
        assert 0.812 + (at - 4) * scale == pytest.approx(score, abs=2e-4)
    assert len(bars) == 2
    assert 0.812 + (float(bars[0][0]) - 4) * scale == pytest.approx(0.866, abs=2e-4)
    assert float(bars[0][1]) * scale == pytest.approx(0.904 - 0.866, abs=2e-4)


def test_scores_that_are_all_the_same_and_one_alone(facts: Facts) -> None:
    same = tuple(replace(one, validation=0.5, low=None, high=None) for one in facts.contenders)
    assert strip(replace(facts, contenders=same)).count("left:4.0%") == 3
    assert strip(replace(facts, contenders=same[:1])) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("better", "shown at 95 %"), ("within", "shown at 95 %"), ("tie", "a tie"), ("unconfirmed", "not confirmed")],
)
def test_the_badge_is_the_verdict(facts: Facts, name: str, expected: str) -> None:
    assert [words for _, words in badges(replace(facts, verdict={"name": name}))] == [expected]


def test_a_doubt_takes_the_sureness_away(facts: Facts) -> None:
    made = replace(facts, doubts=(Doubt("untuned", "LoRA hardly tuned", "s", "w"),))
    assert badges(made) == [("unsure", "not sure"), ("unsure", "LoRA hardly tuned")]
    assert badges(replace(facts, verdict=None)) == []


def test_the_first_screen_has_its_order(facts: Facts) -> None:
    shown = page(facts)
    order = [
        "shown at 95 %",
        "<h1>",
        'class="strip"',
        "<b>Next</b>",
        'class="boxes"',
        "such a verdict errs",
        "Comparison",
    ]
    places = [shown.index(one) for one in order]
    assert places == sorted(places)


def test_sections_without_data_are_one_line(tmp_path: Path, facts: Facts) -> None:
    search = ExampleSearch(tmp_path / "run")
    search.head()
    early: Any = page(gather(SearchLog.fold(search.journal.records), running=True))
    titles = re.findall("<h2>(.*?)</h2>", early)
    assert titles == ["Comparison", "Budget", "Task, model, space", "Run it again", "Environment"]
    assert "Not drawn, for lack of data: Progress, LoRA" in early
    assert "Not drawn" not in page(facts)
