"""Several adapters: those that are worth their size, memory or time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from space_models import bert
from test_search_real import options, run
from test_search_simulated import Bench, explored

import autopeft
from autopeft.journal import Journal, SearchLog, TrialLog
from autopeft.journal.log import ConfigurationLog, RungLog
from autopeft.search.front import FRONT_SIZE, confirmed, nondominated, spread
from autopeft.search.ledger import Ledger
from autopeft.search.result import build_result
from autopeft.spec import Budget
from autopeft.testing.worlds import SyntheticWorld


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([(0.9, (10.0, 5.0)), (0.8, (10.0, 5.0)), (0.9, (11.0, 5.0))], [0]),
        ([(0.9, (10.0, 5.0)), (0.8, (9.0, 6.0)), (0.7, (9.0, 5.0))], [0, 1, 2]),
        # Equal ones do not beat each other; an unknown cost beats nothing and is beaten by nothing.
        ([(0.9, (10.0, 5.0)), (0.9, (10.0, 5.0))], [0, 1]),
        ([(0.9, (10.0, None)), (0.8, (11.0, 5.0)), (0.7, (12.0, None))], [0, 1, 2]),
        ([], []),
    ],
)
def test_only_what_another_beats_in_everything_is_left_out(points: list[Any], kept: list[int]) -> None:
    assert nondominated(points) == kept


def test_a_confirmed_front_is_about_latency_too() -> None:
    def block(mean: float, params: int, latency: float | None) -> dict[str, Any]:
        told = None if latency is None else {"1": latency, "16": 1.0}
        return {"validation": {"mean": mean}, "adapter_params": params, "peak_bytes": 100, "latency": told}

    fast, slow, small = block(0.9, 200, 1.0), block(0.9, 200, 1.3), block(0.8, 100, 1.4)
    assert confirmed([fast, slow, small]) == [small, fast]
    # Less than a hundredth of a forward pass is noise.
    assert confirmed([fast, block(0.9, 200, 1.004)])[0] is fast
    assert len(confirmed([fast, block(0.9, 200, 1.004)])) == 2


def larger_is_better(configuration: Any) -> float:
    return 0.55 + 0.07 * len(str(configuration.adapter_params(bert())))


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, SearchLog]:
    world = SyntheticWorld(larger_is_better, rows=1000)
    folder = tmp_path_factory.mktemp("front") / "run"
    bench = Bench(folder, world, Budget(max_adapter_params=0.02, max_trials=40), objective="pareto", strategy="random")
    return bench, bench.run()


def test_others_get_the_same_fresh_seeds(search: tuple[Bench, SearchLog]) -> None:
    _, log = search
    assert log.finalists is not None
    others = log.finalists["front"]
    assert 1 <= len(others) <= FRONT_SIZE
    assert not set(others) & {log.finalists["baseline"], log.finalists["challenger"]}
    for hash in others:
        assert [run.seed for run in log.of_configuration(hash, "confirm")] == log.finalists["seeds"]
        assert hash in {trial.hash for trial in explored(log)}
    # The verdict is between the two finalists, and only they are read on the test rows.
    assert set(log.tests) == {"baseline", "challenger"}


def test_the_result_holds_what_nothing_else_beats(
    search: tuple[Bench, SearchLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, log = search
    # Simulated workers store no adapters.
    monkeypatch.setattr("autopeft.search.result.describe", lambda folder: {})
    with Journal.resume(bench.folder, clock=bench.clock) as journal:
        front = build_result(Ledger(journal), status="found", budget=bench.budget, environment={})["front"]
    assert len(front) >= 2
    sizes, means = ([read(block) for block in front] for read in (_size, _mean))
    assert sizes == sorted(sizes)
    assert means == sorted(means)
    assert len(set(sizes)) == len(sizes)
    assert [block["folder"] for block in front] == [f"front/{n + 1}" for n in range(len(front))]
    for block in front:
        assert block["validation"]["low"] < block["validation"]["mean"] < block["validation"]["high"]
        assert block["validation"]["seeds"] == len((log.finalists or {})["seeds"])


def _size(block: dict[str, Any]) -> int:
    return int(block["adapter_params"])


def _mean(block: dict[str, Any]) -> float:
    return float(block["validation"]["mean"])


def test_without_being_asked_for_there_is_one_adapter(tmp_path: Path) -> None:
    log = Bench(tmp_path / "run", SyntheticWorld(larger_is_better), Budget(max_trials=10)).run()
    assert log.finalists is not None
    assert log.finalists["front"] == []


@pytest.mark.slow
def test_each_of_a_real_front_can_be_loaded(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    values = options(minilm, tiny_reviews, tmp_path / "run", budget={"max_adapter_params": "2%", "max_trials": 12})
    result = run({**values, "objective": "pareto", "evidence": "quick"})
    front = result.values["front"]
    assert front
    for block in front:
        folder = result.folder / block["folder"]
        assert folder.is_dir()
        predictor = autopeft.load(result.folder, adapter=block["folder"])
        assert predictor.model.adapter_params == block["adapter_params"]
        (said,) = predictor.predict(["a warm and funny film"])
        assert 0 < said["probability"] <= 1


def _log(points: list[tuple[str, int, float]]) -> SearchLog:
    """Explored configurations that went furthest: name, parameters, score."""
    log = SearchLog(header={"task": {"metric": "accuracy"}})
    for number, (name, params, score) in enumerate(points):
        log.configurations[name] = ConfigurationLog(name, {}, {}, params, "space")
        trial = TrialLog(f"t{number}", name, "space", "explore", 0, number, 0)
        trial.rungs.append(RungLog(2, 100, {"accuracy": score}))
        trial.status = "completed"
        log.trials[trial.id] = trial
    return log


def test_those_are_chosen_whose_sizes_differ_most_and_that_beat_the_probe() -> None:
    sizes = [
        ("a", 10, 0.60),
        ("b", 100, 0.71),
        ("c", 110, 0.72),
        ("d", 1000, 0.80),
        ("e", 9000, 0.85),
        ("f", 10**5, 0.9),
    ]
    log = _log([*sizes, ("dominated", 2000, 0.70)])
    assert spread(log, ["f"]) == ["a", "b", "d"] or spread(log, ["f"]) == ["a", "c", "d"]
    # Smaller than all others, but a linear probe does better.
    assert "a" not in spread(log, ["f"], 0.65)
    assert "dominated" not in spread(log, [])
    assert len(spread(log, [])) == FRONT_SIZE
    assert not set(spread(log, ["a", "f"])) & {"a", "f"}


def test_time_is_kept_for_the_others(tmp_path: Path) -> None:
    plans, logs = [], []
    for objective in ("best", "pareto"):
        world = SyntheticWorld(larger_is_better, rows=600)
        bench = Bench(tmp_path / objective, world, Budget(max_time=900.0), objective=objective, strategy="random")
        logs.append(bench.run())
        plans.append(logs[-1].plan)
    assert [plan["finalists"] for plan in plans] == [2, 2 + FRONT_SIZE]
    assert plans[1]["rungs"][-1] < plans[0]["rungs"][-1]
    front = logs[1].finalists["front"]
    assert front
    for hash in front:
        runs = log_runs(logs[1], hash)
        assert len(runs) >= 2
    assert logs[1].used <= 900


def log_runs(log: SearchLog, hash: str) -> list[TrialLog]:
    return [run for run in log.of_configuration(hash, "confirm") if run.status == "completed"]
