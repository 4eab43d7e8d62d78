"""Whole searches on real workers: MiniLM or its first two blocks, small data, a real MLflow store."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

import autopeft
from autopeft.compose.store import describe
from autopeft.journal import SearchLog, read_journal


def options(model: Path, data: Path | str, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": {"model": str(model), "data": str(data)},
        "budget": {"max_adapter_params": "1%", "max_trials": 4, **more.pop("budget", {})},
        "evidence": "quick",
        "executor": "inprocess",
        "set": {"strategy.halving.rungs": 2},
        "out": str(out),
        "tracking_uri": "none",
        **more,
    }


def run(values: dict[str, Any]) -> autopeft.SearchResult:
    return autopeft.search(values.pop("task"), values.pop("budget"), **values)


@pytest.fixture(scope="module")
def found(short_minilm: Path, tiny_reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> autopeft.SearchResult:
    """One search that everything below looks at."""
    out = tmp_path_factory.mktemp("runs") / "found"
    return run(options(short_minilm, tiny_reviews, out, tracking_uri=None))


def test_result_has_everything_that_it_promises(found: autopeft.SearchResult) -> None:
    values = json.loads((found.folder / "result.json").read_text())
    assert values == found.to_dict()
    assert values["status"] == "found"
    assert values["verdict"]["name"] in ("better", "tie", "worse", "unconfirmed")
    assert values["trials"]["completed"] >= 4
    for block in (values["winner"], values["baseline"], values["challenger"]):
        assert block["adapter_params"] <= 0.01 * block["base_params"]
        assert block["validation"]["low"] <= block["validation"]["mean"] <= block["validation"]["high"]
        assert 0 <= block["test"]["accuracy"] <= 1
        assert (found.folder / block["adapter_path"] / "manifest.json").is_file()
        assert set(block["latency"]) == {"1", "16"}
    assert values["baseline"]["methods"] == ["lora"]
    assert values["reference"]["name"] == "linear probe"
    assert values["test_reads"] == 1
    assert (found.folder / "report.html").stat().st_size > 5000


def test_the_documented_schema_is_what_is_written(found: autopeft.SearchResult) -> None:
    text = (Path(__file__).parents[1] / "docs" / "result.md").read_text()
    whole, block = text.split("A finalist block:")

    def documented(part: str) -> set[str]:
        first_cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        return {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}

    assert documented(whole) == set(found.to_dict())
    assert documented(block) == set(found.values["baseline"])


def test_nothing_in_the_adapter_folder_names_this_machine(found: autopeft.SearchResult, short_minilm: Path) -> None:
    for path in (found.folder / "winner").glob("*.json"):
        assert str(short_minilm.parent) not in path.read_text(), path.name
        assert str(found.folder) not in path.read_text(), path.name


def test_the_folder_of_the_winner_is_where_its_trained_adapter_lies(found: autopeft.SearchResult) -> None:
    folder = found.adapter_folder
    assert folder is not None
    assert describe(folder)["configuration"] == found.winner["configuration"]
    # It stays so when the result is read again, and there is none where nothing won.
    assert autopeft.SearchResult.read(found.folder).adapter_folder == folder
    assert autopeft.SearchResult(found.folder, {**found.values, "winner": None}).adapter_folder is None


def test_the_winner_predicts_as_it_was_scored(found: autopeft.SearchResult, tiny_reviews: Path) -> None:
    rows = pd.read_csv(tiny_reviews / "test.csv")
    predictor = autopeft.load(found.folder)
    lengths: list[int] = []
    predictor.model.register_forward_pre_hook(lambda model, given: lengths.append(given[0].shape[1]))
    texts = rows["text"].tolist()
    labels = [prediction["label"] for prediction in predictor.predict(texts)]
    # A model with few positions may have none to spare for padding.
    assert max(lengths) == max(len(predictor.tokenizer(text)["input_ids"]) for text in texts)
    accuracy = sum(a == b for a, b in zip(labels, rows["label"], strict=True)) / len(rows)
    # The search computes in bfloat16 where the processor can, the predictor in float32.
    assert abs(accuracy - found.winner["test"]["accuracy"]) <= 0.02


def test_it_is_in_mlflow(found: autopeft.SearchResult) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{found.folder.parent / 'mlflow.db'}")
    experiments = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([e.experiment_id for e in experiments])
    log = SearchLog.fold(read_journal(found.folder))
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert len(children) == len(log.trials)
    assert all(
        "validation.accuracy" in r.data.metrics for r in children if r.data.tags["autopeft.status"] == "completed"
    )
    assert {"methods", "adapter_params", "total_rank", "layers"} <= set(children[0].data.params)
    (parent,) = [r for r in runs if r not in children]
    sent = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"result.json", "report.html", "charts", "winner", "predictions"} <= sent


def test_a_finished_search_is_not_run_again(
    found: autopeft.SearchResult, short_minilm: Path, tiny_reviews: Path
) -> None:
    before = len(read_journal(found.folder))
    again = run(options(short_minilm, tiny_reviews, found.folder, resume=True))
    records = read_journal(found.folder)[before:]
    assert {record.type for record in records} <= {"resumed", "plan", "finished", "note", "overhead"}
    assert again.winner["sha256"] == found.winner["sha256"]


def test_an_eval_set_is_added_to_a_finished_search(
    found: autopeft.SearchResult, short_minilm: Path, tiny_reviews: Path, tmp_path: Path
) -> None:
    shutil.copytree(found.folder, tmp_path / "run")
    rows = pd.read_csv(tiny_reviews / "test.csv")
    seen = pd.read_csv(tiny_reviews / "train.csv")[:30].to_dict("records")
    sets = {"same": tiny_reviews / "test.csv", "seen": seen}
    result = run(options(short_minilm, tiny_reviews, tmp_path / "run", resume=True, eval_sets=sets))
    same = result.values["eval_sets"]["same"]
    assert same["winner"] == found.winner["test"]
    assert same["baseline"] == found.values["baseline"]["test"]
    assert (same["rows"], same["evaluated"], result.values["test_reads"]) == (len(rows), len(rows), 1)
    assert any("30 of 30 seen rows (100.0%) have the same text as a train row" in n for n in result.values["notes"])
    assert result.values["flips"] == found.values["flips"]
    tables = {n: pd.read_parquet(tmp_path / "run" / path) for n, path in result.values["predictions"].items()}
    assert set(tables) == {"validation", "test", "same", "seen"}
    assert tables["test"].equals(tables["same"])
    assert tables["test"]["label"].tolist() == rows["label"].tolist()
    right = tables["test"]["winner_prediction"] == tables["test"]["label"]
    assert right.mean() == pytest.approx(found.winner["test"]["accuracy"])
    assert "delightful" in rows["text"].to_string()
    assert "delightful" not in tables["test"].to_string()


@pytest.mark.slow
def test_more_trials_reopen_a_finished_search(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(options(minilm, tiny_reviews, out, budget={"max_trials": 2}))
    before = (out / "journal.jsonl").read_bytes()
    with pytest.raises(autopeft.InputError, match=r"max_trials = 2: ended this search \(2 trials have started\)"):
        run(options(minilm, tiny_reviews, out, budget={"max_trials": 2, "max_time": "1h"}, resume=True))
    assert (out / "journal.jsonl").read_bytes() == before
    told: list[str] = []
    same = options(minilm, tiny_reviews, out, budget={"max_trials": 2}, resume=True)
    run({**same, "on_event": lambda event: told.append(str(event.data.get("text")))})
    assert any("nothing was opened. Give budget.max_trials above 2." in text for text in told)
    more = run(options(minilm, tiny_reviews, out, budget={"max_trials": 4}, resume=True))
    assert first.values["budget"]["used"]["trials"] == 2
    assert more.values["budget"]["used"]["trials"] == 4
    # The test rows are read again only for another winner or another opponent.
    weights = [[result.values[role]["sha256"] for role in ("baseline", "challenger")] for result in (first, more)]
    assert more.values["test_reads"] == (1 if weights[0] == weights[1] else 2)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 5}, "seed"),
        ({"space": "lora"}, "space"),
        ({"strategy": "random", "set": {}}, "strategy"),
        ({"budget": {"max_adapter_params": "2%"}}, "budget.max_adapter_params"),
    ],
)
def test_resume_refuses_another_search(
    found: autopeft.SearchResult, short_minilm: Path, tiny_reviews: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(autopeft.InputError) as error:
        run(options(short_minilm, tiny_reviews, found.folder, resume=True, **change))
    assert field in {problem.field for problem in error.value.problems}


@pytest.mark.slow
def test_a_data_frame_and_a_regression(minilm: Path, tmp_path: Path) -> None:
    words = {"awful": -2.0, "poor": -1.0, "fine": 1.0, "superb": 2.0}
    things = ["film", "play", "book", "song", "meal", "trip", "talk", "game"]
    rows = [
        {"text": f"a {word} {thing} number {number}", "score": value + 0.01 * number}
        for word, value in words.items()
        for thing in things
        for number in range(10)
    ]
    frame = pd.DataFrame(rows).sample(frac=1.0, random_state=0)
    result = autopeft.search(
        autopeft.Task(model=str(minilm), data=frame),
        autopeft.Budget(max_adapter_params=0.01, max_trials=3),
        executor="inprocess",
        evidence="quick",
        out=str(tmp_path / "run"),
        tracking_uri="none",
    )
    assert result.values["task"]["kind"] == "regression"
    assert result.winner["test"]["pearson"] > 0.8
    assert result.values["flips"]["both_right"] is None
    assert result.values["slices"] is None
    assert pd.read_parquet(tmp_path / "run" / "predictions" / "test.parquet")["label"].between(-2, 2.1).all()
    predicted = autopeft.load(tmp_path / "run").predict(["a superb film number 1", "an awful film number 1"])
    assert predicted[0]["score"] > predicted[1]["score"]


@pytest.mark.usefixtures("few_predictions")
def test_a_plan_says_what_the_verdict_can_show(short_minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    values = options(short_minilm, tiny_reviews, tmp_path / "run", evidence="standard")
    values.pop("out")
    found = autopeft.plan(values.pop("task"), values.pop("budget"), **values).to_dict()
    shown = found["evidence"]
    assert (shown["validation_rows"], shown["seeds_per_finalist"]) == (100, 3)
    # 2.8 standard deviations of 7 % of 100 rows, and what seeds add.
    assert 0.074 < shown["by_rows_alone"] < 0.075 < shown["smallest_difference_shown"] < 0.08
    assert f"{shown['rows_that_show_half']:,} validation rows would show half" in shown["note"]
    assert found["space"]["methods"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_target_peft_is_plain_peft(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    result = run(options(minilm, tiny_reviews, tmp_path / "run", budget={"target": "peft", "max_trials": 3}))
    assert result.values["head"] == "stock"
    assert result.winner["lowered_to"] is not None
    config = json.loads((tmp_path / "run" / "winner" / "adapter_config.json").read_text())
    assert config["peft_type"] == result.winner["lowered_to"]


@pytest.mark.slow
def test_lora_with_trained_biases_is_plain_peft_and_marked(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    # Plain LoRA belongs to the baseline: what this space returns has biases.
    space = {"name": "biased", "methods": ["lora", "bias"]}
    more = {"budget": {"target": "peft", "max_adapter_params": "0.5%", "max_trials": 2}, "space": space}
    result = run(options(minilm, tiny_reviews, tmp_path / "run", **more))
    blocks = {role: result.values[role] for role in ("baseline", "challenger")}
    assert (blocks["baseline"]["methods"], blocks["baseline"]["writes_base_biases"]) == (["lora"], False)
    assert (blocks["challenger"]["methods"], blocks["challenger"]["writes_base_biases"]) == (["bias", "lora"], True)
    assert {block["lowered_to"] for block in blocks.values()} == {"LORA"}
    told = any("does not restore them" in note for note in result.values["notes"])
    assert told == (result.winner["role"] == "challenger")
    config = json.loads((result.folder / blocks["challenger"]["adapter_path"] / "adapter_config.json").read_text())
    assert (config["peft_type"], config["bias"]) == ("LORA", "all")
    assert autopeft.load(result.folder).predict(["a fine film"])


@pytest.mark.slow
def test_adapters_in_use_today_are_compared(
    found: autopeft.SearchResult, short_minilm: Path, tiny_reviews: Path, tmp_path: Path
) -> None:
    own = run(options(short_minilm, tiny_reviews, tmp_path / "own", incumbent=str(found.folder / "winner")))
    told = own.values["incumbent"]
    assert told["adapter_params"] == found.winner["adapter_params"]
    assert told["test"] == found.winner["test"]
    assert told["validation"]["accuracy"] > 0.5

    plain = run(options(short_minilm, tiny_reviews, tmp_path / "peft", budget={"target": "peft", "max_trials": 2}))
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "peft" / "winner" / name, folder / name)
    stock = run(options(short_minilm, tiny_reviews, tmp_path / "stock", incumbent=str(folder)))
    told = stock.values["incumbent"]
    assert (told["adapter_params"], told["head_params"]) == tuple(
        plain.winner[name] for name in ("adapter_params", "head_params")
    )
    # Each search has measured anew how it computes, which may order sums otherwise.
    assert told["test"] == pytest.approx(plain.winner["test"], rel=1e-4)
    with pytest.raises(autopeft.InputError, match="incumbent"):
        run(options(short_minilm, tiny_reviews, tmp_path / "none", incumbent=str(tiny_reviews)))


@pytest.mark.slow
def test_infeasible_names_what_would_do(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(autopeft.NothingFeasible) as error:
        run(options(minilm, tiny_reviews, tmp_path / "run", budget={"max_adapter_params": 3}))
    needed = error.value.smallest["max_adapter_params"]
    assert needed > 3
    result = run(
        options(minilm, tiny_reviews, tmp_path / "run2", budget={"max_adapter_params": int(needed), "max_trials": 2})
    )
    assert result.winner["adapter_params"] <= needed


@pytest.mark.slow
def test_the_smallest_memory_that_is_told_does(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(autopeft.NothingFeasible) as error:
        run(options(minilm, tiny_reviews, tmp_path / "run", budget={"max_memory": "30MiB", "max_trials": 3}))
    needed = int(error.value.smallest["max_memory"])
    values = options(minilm, tiny_reviews, tmp_path / "run2", budget={"max_memory": needed, "max_trials": 3})
    winner = run(values).winner
    assert winner["peak_bytes"] <= needed
    assert winner["predicted_bytes"] == pytest.approx(winner["peak_bytes"], rel=0.01)
    # Nothing fits so little memory as it is.
    assert winner["execution"] == {"micro_batch": 1, "checkpointing": True}


def test_an_encoder_is_not_taken_for_a_language_model(minilm: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {n}", "response": f"{n}"}) + "\n" for n in range(60)))
    with pytest.raises(autopeft.InputError, match="no language model") as error:
        run(options(minilm, data, tmp_path / "run"))
    assert error.value.problems[0].field == "task.model"


def test_what_is_no_list_of_rows_is_refused(found: autopeft.SearchResult) -> None:
    predictor = autopeft.load(found.folder)
    frame = pd.DataFrame({"id": [1, 2], "text": ["a dull film", "a warm story"]})
    assert predictor.predict(frame) == predictor.predict(list(frame["text"]))
    for rows in ("a dull film", {"text": "a dull film"}, 3, [None], ["good", 4]):
        with pytest.raises(autopeft.InputError, match="rows"):
            predictor.predict(rows)


@pytest.mark.slow
def test_a_search_under_ray_tune_with_tracking_and_a_listener(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    lock = threading.RLock()
    phases = []

    def listen(event: Any) -> None:
        with lock:
            phases.append(event.snapshot.phase if event.snapshot else "prepare")

    values = options(minilm, tiny_reviews, tmp_path / "run", executor="tune", workers=2, tracking_uri=None)
    result = run({**values, "on_event": listen})
    assert result.status == "found"
    assert {"explore", "confirm", "test"} <= set(phases)


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--max-params", "1%", "--max-trials", "6", "--evidence", "quick", "--out", str(out), *more]
    return [sys.executable, "-m", "autopeft", "search", "--model", str(model), "--data", str(data), *fixed]


def wait_for(folder: Path, condition: Any, seconds: float = 300.0) -> SearchLog:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (folder / "journal.jsonl").is_file():
            log = SearchLog.fold(read_journal(folder))
            if condition(log):
                return log
        time.sleep(0.2)
    raise AssertionError("what was waited for did not happen")


@pytest.mark.slow
def test_a_killed_driver_loses_at_most_the_running_rungs(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(minilm, tiny_reviews, out, "--workers", "2"), start_new_session=True)
    before = wait_for(out, lambda log: sum(bool(t.rungs) for t in log.trials.values()) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-9", "-f", str(out)], check=False)
    resumed = subprocess.run(
        command(minilm, tiny_reviews, out, "--workers", "2", "--resume", "--json"), capture_output=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr.decode()[-2000:]
    log = SearchLog.fold(read_journal(out))
    assert log.sessions == 2
    for trial in before.trials.values():
        assert [r.used for r in log.trials[trial.id].rungs[: len(trial.rungs)]] == [r.used for r in trial.rungs]
    assert json.loads(resumed.stdout)["status"] == "found"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_search_on_ray_in_order(
    minilm: Path, tiny_reviews: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(minilm, tiny_reviews, out, "--workers", "2"), start_new_session=True)
    wait_for(out, lambda log: any(t.rungs for t in log.trials.values()))
    process.send_signal(number)
    assert process.wait(timeout=300) == 4
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "cancelled"
    assert result["winner"] is not None
    assert autopeft.load(out).predict(["a delightful film about a village"])


@pytest.mark.slow
def test_a_killed_worker_is_replaced(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(minilm, tiny_reviews, out, "--workers", "2"), start_new_session=True)
    wait_for(out, lambda log: any(t.rungs for t in log.trials.values()))
    # Of this search alone: others may run on the machine.
    started = [(one, " ".join(one.cmdline())) for one in psutil.Process(process.pid).children(recursive=True)]
    next(one for one, named in started if named.startswith("ray::Worker")).kill()
    assert process.wait(timeout=500) == 0
    log = SearchLog.fold(read_journal(out))
    assert log.finished["status"] == "found"


@pytest.mark.slow
def test_a_language_model(smollm2: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {a} plus {b}?", "response": f"{a} plus {b} is {a + b}."}
        for a in range(12)
        for b in range(12)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    values = options(smollm2, data, tmp_path / "run", budget={"max_trials": 2, "max_time": "6m"}, space="lora")
    values |= {"strategy": "random", "set": {}}
    result = run(values)
    assert result.status == "found"
    assert result.values["task"]["metric"] == "log_likelihood"
    assert result.winner["validation"]["mean"] > result.values["reference"]["validation"]
    assert "exact_match" in result.winner["test"]
    answer = autopeft.load(tmp_path / "run").predict([{"prompt": "What is 3 plus 4?"}])[0]["response"]
    assert answer
