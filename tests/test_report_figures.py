"""The numbers behind the figures of a report, and that every drawing can stand alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from wide_search import LORA, LORA_FULL, WideSearch

from autopeft.catalogue import read
from autopeft.journal import SearchLog, pareto, read_journal
from autopeft.methods import METHODS
from autopeft.report import gather, report
from autopeft.report.answer import difference
from autopeft.report.axes import Axis, score_axis
from autopeft.report.drawing import Drawing
from autopeft.report.figures.forecast import Forecast
from autopeft.report.figures.front import Fronts, Worth, front_drawing, fronts
from autopeft.report.figures.importance import Importance, importance
from autopeft.report.figures.places import Places, places, places_drawing
from autopeft.report.figures.rates import LoraRates, RateCurve, lora_rates
from autopeft.report.gallery import gallery
from autopeft.report.page import page
from autopeft.space import resolve
from autopeft.spec.amounts import format_bytes, format_count


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SearchLog:
    folder = tmp_path_factory.mktemp("wide") / "run"
    WideSearch(folder).whole()
    return SearchLog.fold(read_journal(folder))


def curve(scores: dict[float, float], rung: int = 0) -> RateCurve:
    points = tuple((rate, score, f"t{number}") for number, (rate, score) in enumerate(sorted(scores.items())))
    return RateCurve(rung, 1000 * 3**rung, points)


def test_the_curve_of_lora_has_every_rate_and_says_that_its_top_is_inside(log: SearchLog) -> None:
    rates = lora_rates(log)
    assert [{rate: score for rate, score, _ in c.points} for c in (rates.curves[0], rates.curves[2])] == [
        LORA,
        LORA_FULL,
    ]
    assert rates.judged is rates.curves[2]
    assert rates.inside is True
    assert "the best has the learning rate 0.002, inside the range that was tried (0.001 to 0.004)" in rates.sentence()


def test_an_envelope_has_one_top_and_all_points_lie_below() -> None:
    made = curve({1e-4: 0.7, 2e-4: 0.6, 4e-4: 0.9, 8e-4: 0.5, 1e-3: 0.8, 2e-3: 0.1})
    assert made.envelope == [(1e-4, 0.7), (4e-4, 0.9), (1e-3, 0.8), (2e-3, 0.1)]


@pytest.mark.parametrize(
    ("curves", "allowed", "inside", "said"),
    [
        ([], None, None, "No trial of tuned LoRA has reached a rung"),
        ([curve({1e-3: 0.8, 2e-3: 0.9})], None, None, "Too few trials"),
        ([curve({1e-3: 0.7, 2e-3: 0.8, 4e-3: 0.9})], None, False, "which were allowed is not in this journal"),
        ([curve({1e-3: 0.7, 2e-3: 0.8, 8e-3: 0.9})], (6e-4, 8e-3), False, "at the edge of what is allowed"),
        ([curve({1e-3: 0.7, 2e-3: 0.8, 4e-3: 0.9})], (6e-4, 8e-3), False, "higher ones were allowed"),
        ([curve({1e-3: 0.9, 2e-3: 0.8, 4e-3: 0.7})], (6e-4, 8e-3), False, "lower ones were allowed"),
        (
            [curve({5e-4: 0.1, 1e-3: 0.9, 2e-3: 0.8, 4e-3: 0.7}), curve({1e-3: 0.9, 2e-3: 0.8, 4e-3: 0.7}, 1)],
            (4e-4, 8e-3),
            False,
            "the lowest of them; one with a lower rate got less far",
        ),
        ([curve({1e-3: 0.9, 2e-3: 0.9, 4e-3: 0.9})], None, None, "scored the same at every"),
        ([curve({1e-3: 0.9, 2e-3: 0.9, 4e-3: 0.8})], None, False, "the learning rate 0.001, the lowest of them"),
        ([curve({1e-3: 0.8, 2e-3: 0.9, 4e-3: 0.9})], None, False, "the learning rate 0.004, the highest of them"),
    ],
)
def test_what_is_said_of_the_best_rate_is_no_more_than_is_known(
    curves: list[RateCurve], allowed: tuple[float, float] | None, inside: bool | None, said: str
) -> None:
    rates = LoraRates(tuple(curves), allowed)
    assert rates.inside is inside
    assert said in rates.sentence()


def test_the_range_of_rates_is_cut_to_what_the_method_bears() -> None:
    low, high = resolve(read("spaces", "lora")).rate_range("lora")
    assert low == pytest.approx(3e-3 * 0.2019, rel=1e-3)
    assert high == 8e-3


def test_the_range_of_rates_is_read_from_journals_of_now_and_of_before(log: SearchLog) -> None:
    found = copy.deepcopy(log)
    found.header["space"] = {"baseline": {"rates": {"lora": [1e-4, 1e-3, 5e-3]}}}
    assert lora_rates(found).allowed == (1e-4, 5e-3)
    found.header["space"] = {}
    found.header["procedure"] = {"baseline_rates": [2e-4, 6e-3]}
    assert lora_rates(found).allowed == (2e-4, 6e-3)
    found.header["procedure"] = {}
    assert lora_rates(found).allowed is None


def test_the_front_is_that_of_the_result(log: SearchLog) -> None:
    found = fronts(log)
    assert len(found.points) == 7
    assert [point.hash for point in found.by("adapter_params")] == [point["hash"] for point in pareto(log)]
    assert {point.role for point in found.points if point.role} == {"baseline", "challenger"}
    winner = next(point for point in found.points if point.role == "challenger")
    assert (winner.low, winner.high, winner.runs) == (0.866, 0.904, 2)
    assert winner.score == 0.885, "the mean of the fresh runs, as everywhere else"
    block = next(point for point in pareto(log) if point["hash"] == winner.hash)
    assert (block["score"], block["runs"]) == (pytest.approx(0.885, abs=1e-4), 2)
    assert found.measured
    assert len(found.by("bytes")) == 1, "all took the same memory"


def test_an_interval_of_another_metric_is_not_drawn(log: SearchLog) -> None:
    other = copy.deepcopy(log)
    assert other.finished is not None
    for role in ("challenger", "baseline"):
        other.finished["result"][role]["validation"]["metric"] = "f1"
    points = [point for point in fronts(other).points if point.role]
    assert len(points) == 2
    assert all(point.low is None and point.high is None for point in points)
    assert {round(point.score, 3) for point in points} == {0.885, 0.872}


def test_a_cell_is_outlined_from_a_fifth_above_all_on() -> None:
    def marked(good: int) -> bool:
        found = Places(("lora",), ((0, 0),), 10, 10, 100, {("lora", 0): (good, 50)})
        return "marked" in "".join(places_drawing(found).drawn)

    assert [marked(good) for good in (5, 6, 7, 8)] == [False, False, True, True]


def test_the_heat_map_counts_the_good_quarter_against_all(log: SearchLog) -> None:
    found = places(log)
    assert found is not None
    assert (found.good, found.furthest, found.tried) == (4, 4, 16)
    assert found.columns == tuple((block, block) for block in range(6))
    assert found.methods == ("lora", "ia3", "bias")
    assert found.shares("lora", 3) == (1.0, 0.5)
    assert found.shares("lora", 1) == (0.0, 0.25)
    assert found.shares("ia3", 5) == (0.0, 0.5)
    assert found.shares("bias", 0) == (0.0, 0.0)


def test_many_blocks_are_grouped_and_whole_methods_fill_their_row(tmp_path: Path) -> None:
    WideSearch(tmp_path / "run").whole()
    log = SearchLog.fold(read_journal(tmp_path / "run"))
    log.modules = {"blocks": 32, "sites": []}
    for hash, known in log.configurations.items():
        whole = {**known.configuration, "sites": {"": [{"method": "vera", "r": 8}]}}
        log.configurations[hash] = replace(known, configuration=whole)
    found = places(log)
    assert found is not None
    assert len(found.columns) == 12
    assert [block for low, high in found.columns for block in range(low, high + 1)] == list(range(32))
    assert found.methods == ("vera",)
    assert all(found.shares("vera", column) == (1.0, 1.0) for column in range(12))


def test_the_dimension_that_decides_is_the_most_important(log: SearchLog) -> None:
    found = importance(log)
    assert found.rows == 1000
    assert len(found.points) == 16
    ranked = found.ranked
    assert ranked is not None
    order, fit = ranked
    assert order[0][0] == "attention"
    assert order[0][1] > 3 * abs(order[1][1])
    assert fit > 0.5
    assert "batch" not in dict(order), "it did not vary"
    assert importance(log).ranked == ranked, "the same journal gives the same numbers"
    assert "method at attention mattered most" in found.sentence()


def test_a_surrogate_that_explains_nothing_is_not_shown(log: SearchLog) -> None:
    points = importance(log).points
    noise = tuple(0.8 + 0.01 * ((number * number * 7) % 11) for number in range(16))
    useless = Importance(1000, points, noise)
    assert "explains nothing" in useless.sentence()
    assert "Too few trials for this: 3 at one rung, 12 are needed." in Importance(0, (), (), 3).sentence()
    assert "no dimension made a difference" in Importance(1000, points, (0.5,) * 16).sentence()


def test_learning_curves_end_with_the_reason(log: SearchLog) -> None:
    found = gather(log).figures.curves
    stopped = [curve for curve in found if curve.status == "stopped"]
    assert len(stopped) == 14
    assert {curve.reason for curve in stopped} == {"below the best third at 1000 rows"}
    assert [curve.finalist for curve in found] == [False] * 19 + [True] * 6
    assert [rows for rows, _ in found[-6].points] == [1000, 3000, 9000]


def test_memory_is_held_against_its_prediction(log: SearchLog) -> None:
    found = gather(log).figures.forecast
    assert found.worst == ("lora", pytest.approx(300 / 290 - 1))
    assert len(found.memory) == found.predicted == 5
    assert "the worst error is +3.4% (lora), 5 took more." in found.sentences()
    # A second rung of 2000 rows more in 16 s of training; the plan has 4 ms a row.
    assert found.planned == 0.004
    assert max(found.trained) == pytest.approx(16 / 2000)
    bound = Forecast((("space", "ia3", 400, 300, False),), 1, None, ())
    assert bound.worst is None, "a bound is no prediction"
    assert bound.sentences() == "Memory of 1 configurations was bounded from above: 0 took more than that."
    assert "No memory was predicted" in Forecast((), 0, None, ()).sentences()


@pytest.mark.parametrize(
    ("name", "low", "high", "said"),
    [
        ("better", 0.004, 0.022, "excludes 0: a difference is shown"),
        ("tie", -0.004, 0.03, "includes 0: not sure which is better"),
        ("within", -0.004, 0.03, "above minus the margin of 0.01"),
        ("unconfirmed", -0.004, 0.03, "too few runs to be sure"),
    ],
)
def test_the_first_screen_says_how_much_and_how_sure(
    log: SearchLog, name: str, low: float, high: float, said: str
) -> None:
    verdict = {"name": name, "difference": 0.013, "low": low, "high": high, "margin": 0.01}
    [(what, value, sure)] = difference(replace(gather(log), verdict=verdict))
    assert (what, value) == ("lora+bias minus tuned LoRA", "+0.0130")
    assert said in sure
    assert difference(replace(gather(log), verdict=None)) == []


def test_rates_of_all_methods_are_multiples_of_their_defaults(log: SearchLog) -> None:
    found = gather(log).rates
    assert len(found) == 21
    lora = [times for arm, _, times, _, _ in found if arm == "baseline"]
    assert lora == pytest.approx([rate / METHODS["lora"].rate.default for rate in LORA])
    mix = next(times for _, methods, times, _, _ in found if methods == "lora+bias")
    both = (1e-3 / METHODS["lora"].rate.default, 1e-3 / METHODS["bias"].rate.default)
    assert mix == pytest.approx((both[0] * both[1]) ** 0.5)
    assert "the default of its methods" in "".join(gallery(gather(log))["learning-rates"].drawn)


def test_far_outliers_are_cut_only_where_that_shows_more() -> None:
    axis = score_axis([0.80, 0.81, 0.82, 0.83, 0.10], clip=True)
    assert axis.low > 0.7
    assert axis.cut == 1
    assert axis.clipped(0.10) == axis.start
    assert score_axis([0.80, 0.81, 0.82, 0.83, 0.79], clip=True).cut == 0
    assert score_axis([0.5, 0.5, 0.5], clip=True).cut == 0


def test_a_narrow_log_axis_still_has_numbers() -> None:
    assert Axis(2.5, 4.5, 0, 100, log=True).ticks() == [3, 4]


def test_charts_are_files_that_need_no_page(tmp_path: Path) -> None:
    WideSearch(tmp_path / "run").whole()
    report(tmp_path / "run")
    drawn = gallery(gather(SearchLog.fold(read_journal(tmp_path / "run"))))
    files = {file.stem: file for file in (tmp_path / "run" / "charts").iterdir()}
    # Latency was measured of none of them.
    assert set(files) == {name for name, drawing in drawn.items() if not drawing.empty} == {*drawn} - {"pareto-latency"}
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text.encode())
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        assert root.find("{http://www.w3.org/2000/svg}style") is not None, name
        assert "var(" not in text, name
        assert "href" not in text, name


def test_a_front_is_drawn_against_each_cost() -> None:
    def worth(number: int, arm: str, score: float) -> Worth:
        known = {"adapter_params": 1000 * number, "bytes": number << 20, "latency": 1.0 + 0.1 * number}
        return Worth(f"h{number}", arm, "lora", **known, score=score, runs=1, role=None)

    found = Fronts((worth(1, "space", 0.7), worth(2, "baseline", 0.8), worth(3, "space", 0.75)), measured=True)
    told = {
        "adapter_params": ("adapter parameters", f"with {format_count(2000)}"),
        "bytes": ("memory to train, measured in MiB", f"with {format_bytes(2 << 20)}"),
        "latency": ("time of a forward pass over that of the bare base", "with 1.20 times the bare base"),
    }
    for cost, words in told.items():
        text = front_drawing(found, cost, "accuracy").svg()
        assert all(word in unescape(text) for word in words), (cost, text)
        assert [point.hash for point in found.by(cost)] == ["h1", "h2"]
    nothing = Fronts((replace(found.points[0], latency=None),), measured=True)
    assert front_drawing(nothing, "latency", "accuracy").empty == "No latency is known."


def test_words_in_a_drawing_are_text() -> None:
    drawing = Drawing("<b>", (), (("space", "a<b"),), "c & d")
    assert "a&lt;b" in drawing.html()
    ElementTree.fromstring(drawing.svg().encode())


def test_a_page_can_be_made_at_any_moment_of_a_search(tmp_path: Path) -> None:
    WideSearch(tmp_path / "run").whole()
    records = read_journal(tmp_path / "run")
    drawn = []
    for end in range(0, len(records) + 1, 9):
        facts = gather(SearchLog.fold(records[:end]), running=True)
        assert page(facts).endswith("</html>\n")
        drawn.append(sum(not drawing.empty for drawing in gallery(facts).values()))
    assert drawn[0] == 0
    assert drawn == sorted(drawn), "a figure went away while the search went on"
