from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_search import ExampleSearch, configuration

from autopeft.errors import InputError, RunFolderError
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.report import report
from autopeft.tracking import Tracker, mlflow_ui_command, replay, serve_ui, tracking_uri
from autopeft.tracking.content import LONGEST_PARAM, finite, short, trial_table
from autopeft.tracking.store import connect, experiment_id

NOWHERE = "http://127.0.0.1:9"
PATIENCE = 300
"""Seconds that a store may take on a slow machine."""


@pytest.fixture(autouse=True)
def fast_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def runs_of(uri: str) -> tuple[list[Any], list[Any]]:
    """Parents and children in the store."""
    client = connect(uri)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(everywhere))
    return (
        [run for run in runs if "mlflow.parentRunId" not in run.data.tags],
        [run for run in runs if "mlflow.parentRunId" in run.data.tags],
    )


def followed(folder: Path, uri: str, search: ExampleSearch, **options: Any) -> str | None:
    """A tracker offered every record of a written search, closed."""
    tracker = Tracker(uri, "sst2", "first", folder, **options)
    for record in search.journal.records:
        tracker.offer(record)
    return tracker.close(["result.json", "winner"], wait=PATIENCE)


@pytest.fixture
def searched(tmp_path: Path) -> ExampleSearch:
    search = ExampleSearch(tmp_path / "run").whole()
    (tmp_path / "run" / "result.json").write_text("{}")
    (tmp_path / "run" / "winner").mkdir()
    (tmp_path / "run" / "winner" / "adapter.json").write_text('{"parts": 1}')
    return search


def test_a_search_is_one_parent_with_a_child_for_each_trial(tmp_path: Path, searched: ExampleSearch) -> None:
    uri = str(tracking_uri(None, tmp_path / "run"))
    assert followed(tmp_path / "run", uri, searched) is None
    parents, children = runs_of(uri)
    assert len(parents) == 1
    assert len(children) == 8
    parent = parents[0]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space"] == "hybrid"
    assert parent.data.params["budget.max_adapter_params"] == "0.01"
    assert parent.data.metrics["challenger.test.accuracy"] == 0.8794
    assert parent.data.metrics["verdict.low"] == 0.004
    assert parent.data.metrics["reference.validation.accuracy"] == 0.812
    assert parent.data.tags["autopeft.verdict"] == "better"
    assert parent.data.tags["autopeft.winner"] == "lora+bias"
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    by_trial = {child.data.tags["autopeft.trial"]: child for child in children}
    mix = by_trial["t0001"]
    expected = {
        "methods": "lora+bias",
        "total_rank": "24",
        "adapter_params": "20736",
        "layers": "3-5 of 6",
        "n_layers": "3",
        "rate": "0.003",
        "rate.bias": "0.001",
        "arm": "space",
    }
    assert expected.items() <= mix.data.params.items()
    assert mix.data.metrics["adapter_params"] == 20736
    assert mix.data.tags["autopeft.winner"] == "true"
    assert (by_trial["t0002"].info.status, by_trial["t0002"].data.tags["autopeft.status"]) == ("FINISHED", "stopped")
    assert "below the best third" in by_trial["t0002"].data.tags["autopeft.reason"]
    assert by_trial["t0003"].info.status == "FAILED"
    assert "NaN" in by_trial["t0003"].data.tags["autopeft.reason"]
    client = connect(uri)
    curve = client.get_metric_history(mix.info.run_id, "validation.accuracy")
    assert [(point.step, round(point.value, 3)) for point in curve] == [(1000, 0.81), (3000, 0.85), (9000, 0.88)]
    path = client.download_artifacts(mix.info.run_id, "configuration.json", str(tmp_path))
    stored = json.loads(Path(path).read_text())
    assert stored == configuration("lora", 4, first=3, bias=True).to_dict()
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"result.json", "winner", "trials.csv", "plan.json"} <= artifacts
    assert (tmp_path / "mlartifacts" / parent.info.run_id / "artifacts" / "winner" / "adapter.json").is_file()


def test_replaying_sends_nothing_twice(tmp_path: Path, searched: ExampleSearch) -> None:
    run = tmp_path / "run"
    uri = str(tracking_uri(None, run))
    assert replay(run) is None
    before = [run.to_dictionary() for part in runs_of(uri) for run in part]
    assert replay(run) is None
    (run / "tracking.json").unlink()
    assert replay(run) is None
    after = [run.to_dictionary() for part in runs_of(uri) for run in part]
    assert len(after) == 9
    assert [run["info"]["run_id"] for run in after] == [run["info"]["run_id"] for run in before]
    client = connect(uri)
    child = json.loads((run / "tracking.json").read_text())["children"]["t0001"]
    assert len(client.get_metric_history(child, "validation.accuracy")) == 3


def test_a_store_that_has_lost_the_search_gets_all_of_it_again(tmp_path: Path, searched: ExampleSearch) -> None:
    run = tmp_path / "run"
    assert replay(run) is None
    parents, _ = runs_of(str(tracking_uri(None, run)))
    client = connect(str(tracking_uri(None, run)))
    client.delete_run(parents[0].info.run_id)
    assert replay(run) is None
    parents, children = runs_of(str(tracking_uri(None, run)))
    assert len(parents) == 1
    assert parents[0].data.tags["autopeft.verdict"] == "better"
    assert len([child for child in children if child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id]) >= 1


def test_mlflow_being_away_costs_the_search_nothing_and_is_made_up_later(
    tmp_path: Path, searched: ExampleSearch
) -> None:
    run = tmp_path / "run"
    tracker = Tracker(NOWHERE, "sst2", "first", run)
    for record in searched.journal.records:
        tracker.offer(record)
    message = tracker.close(["result.json"], wait=4.0)
    assert message is not None
    assert f"{len(searched.journal.records)} records" in message
    assert "result.json" in message
    assert f"autopeft track {run}" in message
    assert replay(run, uri=str(tmp_path / "other.db")) is None
    parents, children = runs_of(str(tracking_uri(str(tmp_path / "other.db"), run)))
    assert (len(parents), len(children)) == (1, 8)


def test_only_so_many_trials_are_listed_and_finalists_always(tmp_path: Path, searched: ExampleSearch) -> None:
    uri = str(tracking_uri(None, tmp_path / "run"))
    assert followed(tmp_path / "run", uri, searched, max_children=2) is None
    parents, children = runs_of(uri)
    trials = {child.data.tags["autopeft.trial"] for child in children}
    assert trials == {"t0000", "t0001", "t0004", "t0005", "t0006", "t0007"}
    assert parents[0].data.tags["autopeft.not_listed"] == "2 more trials are in trials.csv"
    path = connect(uri).download_artifacts(parents[0].info.run_id, "trials.csv", str(tmp_path))
    assert Path(path).read_text().count("\n") == 9


def test_runs_of_a_dead_driver_are_closed_and_opened_again_on_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    uri = str(tracking_uri(None, run))
    search = ExampleSearch(run)
    search.head()
    hash = search.configure(configuration("lora", 8), "baseline", 73_728)
    lost, kept = search.begin(hash, "baseline"), search.begin(hash, "baseline")
    search.rung(kept, 0, 1000, 0.8)
    first = Tracker(uri, "sst2", "first", run)
    for record in search.journal.records:
        first.offer(record)
    wait_for(lambda: cursor(run) == search.journal.records[-1].seq)
    search.journal.close()  # the driver dies here: no close() of its tracker
    first._stop.set()
    assert {child.info.status for child in runs_of(uri)[1]} == {"RUNNING"}
    with Journal.resume(run) as journal:
        second = Tracker(uri, "sst2", "first", run)
        second.offer(journal.append("resumed", records=len(journal.records)))
        search.journal = journal
        search.rung(kept, 1, 3000, 0.85)
        search.end(kept, "completed")
        search.add("finished", status="found", result={})
        for record in journal.records[-3:]:
            second.offer(record)
        assert second.close(wait=PATIENCE) is None
    parents, children = runs_of(uri)
    states = {child.data.tags["autopeft.trial"]: child.info.status for child in children}
    assert states == {lost: "KILLED", kept: "FINISHED"}
    assert [parent.info.status for parent in parents] == ["FINISHED"]
    assert parents[0].data.tags["autopeft.sessions"] == "2"


def test_a_search_that_died_is_closed_by_replay_but_never_while_it_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    search = ExampleSearch(run)
    search.head()
    search.begin(search.configure(configuration("lora", 8), "baseline", 73_728), "baseline")
    with pytest.raises(RunFolderError, match="is running"):
        replay(run)
    search.journal.close()
    assert replay(run) is None
    parents, children = runs_of(str(tracking_uri(None, run)))
    assert [parent.info.status for parent in parents] == ["FAILED"]
    assert [child.info.status for child in children] == ["KILLED"]
    with pytest.raises(InputError, match="names no store"):
        replay(run, uri="none")


def test_records_that_mlflow_refuses_for_good_do_not_block_the_rest(tmp_path: Path) -> None:
    run = tmp_path / "run"
    uri = str(tracking_uri(None, run))
    search = ExampleSearch(run)
    tracker = Tracker(uri, "sst2", "first", run)
    search.tell = tracker.offer
    search.head()
    finalists = search.explore()
    wait_for(lambda: cursor(run) == search.journal.records[-1].seq)
    client = connect(uri)
    child = json.loads((run / "tracking.json").read_text())["children"]["t0001"]
    client.delete_run(child)  # by a person, in the pages
    search.confirm(*finalists)
    message = tracker.close(wait=PATIENCE)
    assert message is not None
    assert "refused 1 records" in message
    assert "lacks" not in message
    parents, children = runs_of(uri)
    assert parents[0].info.status == "FINISHED"
    assert len(children) == 7


def test_texts_are_cut_and_only_finite_numbers_are_sent() -> None:
    assert len(short("x" * 10_000)) == LONGEST_PARAM
    assert short(0.00012345678) == "0.000123457"
    assert finite({"a": 1, "b": float("inf"), "c": float("nan"), "d": "text", "e": None}) == {"a": 1.0}


def test_the_table_of_trials_has_every_trial(searched: ExampleSearch) -> None:
    log = SearchLog.fold(searched.journal.records)
    lines = trial_table(log, log.trials.values()).splitlines()
    assert len(lines) == 9
    assert lines[2].startswith("t0001,space,explore,0,completed,lora+bias,20736,24,3-5 of 6,0.003,32,0.1,2,9000,0.88")


def test_addresses_are_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, tmp_path / "runs" / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("none", tmp_path) is None
    assert tracking_uri("my.db", tmp_path) == f"sqlite:///{tmp_path}/my.db"
    assert tracking_uri("sqlite:///my.db", tmp_path) == f"sqlite:///{tmp_path}/my.db"
    assert tracking_uri("http://host:5000", tmp_path) == "http://host:5000"


def test_pages_are_served_for_existing_databases_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such database"):
        serve_ui(str(tmp_path / "none.db"))
    with pytest.raises(InputError, match="must be a database"):
        serve_ui("http://127.0.0.1:5000")
    command = mlflow_ui_command(f"sqlite:///{tmp_path}/mlflow.db", 5123)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5123"


def test_a_deleted_experiment_is_revived(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'my.db'}"
    client = connect(uri)
    made = experiment_id(client, uri, "task")
    assert experiment_id(client, uri, "task") == made
    client.delete_experiment(made)
    assert experiment_id(client, uri, "task") == made
    assert client.get_experiment(made).lifecycle_stage == "active"


def first_use(uri: str, barrier: Any, answers: Any) -> None:
    barrier.wait()
    client = connect(uri)
    answers.put(experiment_id(client, uri, "task"))


def test_a_database_that_was_left_half_made_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    half = tmp_path / ".mlflow.db.new"
    with sqlite3.connect(half) as connection:
        connection.execute("CREATE TABLE experiments (name TEXT)")
    assert connect(f"sqlite:///{path}").search_experiments() is not None
    assert not half.exists()


def test_a_damaged_database_is_told_at_once(tmp_path: Path, searched: ExampleSearch) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    missing = followed(tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}", searched)
    assert missing is not None
    assert "damaged" in missing


@pytest.mark.slow
def test_many_processes_may_open_a_fresh_database_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    uri = f"sqlite:///{tmp_path / 'fresh.db'}"
    workers = [context.Process(target=first_use, args=(uri, barrier, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len({answers.get(timeout=PATIENCE) for _ in workers}) == 1


class Server:
    """A real MLflow server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = f"sqlite:///{folder / 'server.db'}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = mlflow_ui_command(self.database, self.port)
        self.process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.kill()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_gets_everything_once_it_is_back(tmp_path: Path, server: Server) -> None:
    connect(server.database)
    server.start()
    run = tmp_path / "run"
    search = ExampleSearch(run)
    (run / "result.json").write_text("{}")
    tracker = Tracker(server.uri, "sst2", "first", run)
    search.tell = tracker.offer
    search.head()
    wait_for(lambda: cursor(run) >= 0)
    finalists = search.explore()
    server.kill()
    search.confirm(*finalists)
    search.journal.close()
    wait_for(lambda: tracker.error is not None)
    back = threading.Thread(target=server.start)
    back.start()
    assert tracker.close(["result.json"], wait=PATIENCE) is None
    back.join()
    parents, children = runs_of(server.uri)
    assert (len(parents), len(children)) == (1, 8)
    assert parents[0].info.status == "FINISHED"
    assert "RUNNING" not in {child.info.status for child in children}
    client = connect(server.uri)
    mix = next(child for child in children if child.data.tags["autopeft.trial"] == "t0001")
    assert len(client.get_metric_history(mix.info.run_id, "validation.accuracy")) == 3
    assert "result.json" in {item.path for item in client.list_artifacts(parents[0].info.run_id)}
    assert cursor(run) == read_journal(run)[-1].seq


def cursor(folder: Path) -> int:
    try:
        return int(json.loads((folder / "tracking.json").read_text())["cursor"])
    except (OSError, ValueError):
        return -1


def wait_for(condition: Any, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_the_predictions_are_artifacts(tmp_path: Path, searched: ExampleSearch) -> None:
    run = tmp_path / "run"
    (run / "predictions").mkdir()
    (run / "predictions" / "test.parquet").write_bytes(b"rows")
    assert replay(run) is None
    uri = str(tracking_uri(None, run))
    [parent], _ = runs_of(uri)
    sent = connect(uri).list_artifacts(parent.info.run_id, "predictions")
    assert [item.path for item in sent] == ["predictions/test.parquet"]


def test_the_charts_of_the_report_are_artifacts(tmp_path: Path, searched: ExampleSearch) -> None:
    run = tmp_path / "run"
    report(run)
    assert replay(run) is None
    uri = str(tracking_uri(None, run))
    [parent], _ = runs_of(uri)
    sent = {Path(item.path).name for item in connect(uri).list_artifacts(parent.info.run_id, "charts")}
    assert sent == {file.name for file in (run / "charts").iterdir()}
    assert "lora-learning-rate.svg" in sent
