"""The command line from end to end, with the real model and nothing in the place of anything."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "autopeft", *map(str, arguments)]


def start(*arguments: object, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_search_report_and_predict(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "runs" / "a", ["--executor", "inprocess", "--workers", 1, "--evidence", "quick"]
    task = ["--model", minilm, "--data", tiny_reviews, "--max-params", "1%"]
    searching = start(
        "search", *task, *flags, "--max-trials", 4, "--max-time", "90s", "--out", run, "--json", folder=tmp_path
    )
    out, err = searching.communicate(timeout=500)
    assert searching.returncode == 0, err
    result = json.loads(out)
    assert result["status"] == "found"
    assert json.loads((run / "result.json").read_text()) == result
    assert "best" in err
    assert "Traceback" not in err

    shown = subprocess.run(command("report", run), capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "tuned LoRA" in shown
    assert f"{result['winner']['validation']['mean']:.4f}" in shown
    assert (run / "report.html").is_file()

    rows = tmp_path / "new.csv"
    rows.write_text("text\na wonderful film\na terrible film\n")
    output = tmp_path / "out.jsonl"
    subprocess.run(command("predict", run, "--input", rows, "--output", output), check=True, cwd=tmp_path)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(answers) == 2
    assert {answer["label"] for answer in answers} <= {"positive", "negative"}

    again = start("search", *task, *flags, "--max-trials", 4, "--out", run, "--json", folder=tmp_path)
    out, _ = again.communicate(timeout=500)
    assert again.returncode == 2, "a run folder is never replaced unasked"
    assert json.loads(out)["status"] == "invalid"


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_the_smallest_that_does(
    minilm: Path, tiny_reviews: Path, tmp_path: Path
) -> None:
    task = ["--model", minilm, "--data", tiny_reviews, "--executor", "inprocess", "--json"]
    for verb in ("plan", "search"):
        asked = start(verb, *task, "--max-params", 10, folder=tmp_path)
        out, err = asked.communicate(timeout=500)
        assert asked.returncode == 3, err
        document = json.loads(out)
        assert document["status"] == "infeasible"
    smallest = int(re.findall(r'"max_adapter_params": (\d+)', out)[0])
    planned = start("plan", *task, "--max-params", smallest, folder=tmp_path)
    _, err = planned.communicate(timeout=500)
    assert planned.returncode == 0, err


@pytest.mark.slow
def test_interrupted_and_resumed(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    flags = [
        "--model",
        os.path.relpath(minilm, tmp_path),
        "--data",
        os.path.relpath(tiny_reviews, tmp_path),
        "--executor",
        "inprocess",
        "--evidence",
        "quick",
        "--max-trials",
        3,
    ]
    flags += ["--out", run, "--json"]
    searching = start("search", *flags, folder=tmp_path)
    journal = run / "journal.jsonl"
    for _ in range(1200):
        if journal.is_file() and '"type":"rung"' in journal.read_text().replace('": "', '":"'):
            break
        assert searching.poll() is None, searching.communicate()[1]
        time.sleep(0.1)
    searching.send_signal(signal.SIGINT)
    out, err = searching.communicate(timeout=200)
    assert searching.returncode == 4, err
    assert json.loads(out)["status"] == "cancelled"
    # From another folder, and without a word of what the search was.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    resumed = start("search", "--out", run, "--resume", "--json", folder=elsewhere)
    out, err = resumed.communicate(timeout=500)
    assert resumed.returncode == 0, err
    assert json.loads(out)["status"] == "found"


@pytest.mark.slow
def test_the_pages_end_with_the_command_that_serves_them(tmp_path: Path) -> None:
    import sqlite3

    sqlite3.connect(tmp_path / "mlflow.db").close()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = start("ui", "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--port", port, folder=tmp_path)
    try:
        for _ in range(600):
            if listens(port):
                break
            assert serving.poll() is None, serving.communicate()[1]
            time.sleep(0.1)
        assert listens(port)
    finally:
        serving.terminate()
    serving.communicate(timeout=60)
    for _ in range(100):
        if not listens(port):
            break
        time.sleep(0.1)
    assert not listens(port)


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
