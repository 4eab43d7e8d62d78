"""How often test rows are read, counted in a real MLflow store over searches, experiments and resumed sessions."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch

from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.tracking import Tracker, replay
from autopeft.tracking.runs import Looks, Runs
from autopeft.tracking.store import connect

HASH = "c" * 64
NOWHERE = "http://127.0.0.1:9"
PATIENCE = 300
"""Seconds that a store may take on a slow machine."""


@pytest.fixture(autouse=True)
def fast_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def searched(folder: Path, uri: str, experiment: str, *, reads: int = 1, test_hash: str = HASH) -> Looks | None:
    """A search in the store that has read its test rows so often; what it hears of the others."""
    search = ExampleSearch(folder, name=folder.name)
    tracker = Tracker(uri, experiment, folder.name, folder)
    search.tell = tracker.offer
    search.head()
    finalists = search.explore()
    search.confirm(*finalists)
    for _ in range(reads - 1):
        search.add("resumed", records=len(search.journal.records), reopened=True)
        search.add("test_opened", winner_sha256="a" * 64, test_hash=HASH)
        search.add("finished", status="found", result={})
    found = tracker.looks(test_hash, wait=PATIENCE)
    search.journal.close()
    assert tracker.close(wait=PATIENCE) is None
    return found


def test_reads_are_summed_over_searches_and_experiments(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert searched(tmp_path / "a", uri, "first") == Looks(0, 0)
    assert searched(tmp_path / "b", uri, "second", reads=3) == Looks(1, 1)
    assert searched(tmp_path / "c", uri, "first") == Looks(4, 2)
    # A search that comes back is not one of the others, and counts once.
    resumed = Tracker(uri, "first", "a", tmp_path / "a")
    resumed.catch_up(read_journal(tmp_path / "a"))
    assert resumed.looks(HASH, wait=PATIENCE) == Looks(4, 2)
    assert resumed.looks("e" * 64, wait=PATIENCE) == Looks(0, 0)
    resumed.close(wait=PATIENCE)


def test_a_search_sent_twice_counts_once_and_a_deleted_run_was_read_all_the_same(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    searched(tmp_path / "a", uri, "first", reads=2)
    (tmp_path / "a" / "tracking.json").unlink()
    assert replay(tmp_path / "a", uri, "again") is None
    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = client.search_runs(experiments, f"tags.`autopeft.test_hash` = '{HASH}'")
    assert [run.data.tags["autopeft.test_reads"] for run in parents] == ["2", "2"]
    assert len({run.info.experiment_id for run in parents}) == 2
    for run in parents:
        client.delete_run(run.info.run_id)
    assert searched(tmp_path / "b", uri, "first") == Looks(2, 1)


def test_a_store_that_is_away_is_not_waited_for(tmp_path: Path) -> None:
    search = ExampleSearch(tmp_path / "a")
    tracker = Tracker(NOWHERE, "first", "a", tmp_path / "a")
    search.tell = tracker.offer
    search.head()
    end = time.monotonic() + PATIENCE
    while tracker.error is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    asked = threading.Event()

    def ask() -> None:
        assert tracker.looks(HASH, wait=3600) is None
        asked.set()

    threading.Thread(target=ask, daemon=True).start()
    assert asked.wait(PATIENCE)
    search.journal.close()
    tracker.close(wait=0.1)


def test_an_answer_that_comes_too_late_or_fails_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search = ExampleSearch(tmp_path / "a")
    tracker = Tracker(uri, "first", "a", tmp_path / "a")
    search.tell = tracker.offer
    search.head()
    assert tracker.looks(HASH, wait=PATIENCE) == Looks(0, 0)
    go_on = threading.Event()

    def slow(self: Runs, test_hash: str) -> Looks:
        go_on.wait(PATIENCE)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Runs, "looks", slow)
    assert tracker.looks(HASH, wait=0.01) is None
    go_on.set()
    assert tracker.looks(HASH, wait=PATIENCE) is None
    monkeypatch.undo()
    # The thread has survived: whatever comes next is sent.
    search.confirm(*search.explore())
    search.journal.close()
    assert tracker.close(wait=PATIENCE) is None


@pytest.mark.parametrize("answer", [Looks(5, 3), None])
def test_the_count_is_journalled_before_the_result(tmp_path: Path, answer: Looks | None) -> None:
    from autopeft.search.ledger import Ledger
    from autopeft.search.run import count_looks

    search = ExampleSearch(tmp_path / "a")
    search.head()
    asked: list[str] = []

    class Store:
        def looks(self, test_hash: str) -> Looks | None:
            asked.append(test_hash)
            return answer

    finalists = search.explore()
    ledger = Ledger(search.journal)
    store: Any = Store()
    count_looks(ledger, store)
    assert asked == []
    search.confirm(*finalists)
    ledger = Ledger(search.journal)
    count_looks(ledger, store)
    assert asked == [HASH]
    expected = {"test_hash": HASH, "this_search": 1, "all_searches": 6, "searches": 4}
    assert ledger.log.looks == (None if answer is None else expected)
    search.journal.close()
    with Journal.resume(tmp_path / "a") as journal:
        assert SearchLog.fold(journal.records).looks == ledger.log.looks


@pytest.mark.slow
def test_a_real_search_is_known_to_those_that_read_the_same_rows(
    tmp_path: Path, minilm: Path, tiny_reviews: Path
) -> None:
    import autopeft

    result = autopeft.search(
        {"model": str(minilm), "data": str(tiny_reviews), "name": "first"},
        {"max_adapter_params": "1%", "max_trials": 4},
        evidence="quick",
        executor="inprocess",
        set={"strategy.halving.rungs": 2},
        out=str(tmp_path / "first"),
    ).to_dict()
    assert result["test_looks"] == {"this_search": 1, "all_searches": 1, "searches": 1}
    page = (tmp_path / "first" / "report.html").read_text(encoding="utf-8")
    assert "These test rows were read once, by this search alone" in page
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert searched(tmp_path / "second", uri, "other", test_hash=result["task"]["hashes"]["test"]) == Looks(1, 1)
    named = {(made["name"], made["of"]) for made in result["signatures"]}
    assert {("capacity", "winner"), ("unstable_start", "winner"), ("labels_or_search", "search")} <= named
    assert all(made["words"] for made in result["signatures"])
    about = SearchLog.fold(read_journal(tmp_path / "first")).header["space"]
    assert about["params"]["most"] <= 0.01 * result["model"]["base_params"]
    assert about["baseline"]["params"]["limit"] == "max_adapter_params"
