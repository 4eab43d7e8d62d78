"""What a person sees in MLflow, in a real browser."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import BROWSER, NONE, browse
from example_search import ExampleSearch

from autopeft.tracking import page_address, replay, start_ui, tracking_uri
from autopeft.tracking.store import connect

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason=NONE)]


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[str]:
    """The address of MLflow's pages for an example search."""
    ExampleSearch(tmp_path / "run").whole()
    assert replay(tmp_path / "run") is None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start_ui(str(tracking_uri(None, tmp_path / "run")), port)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def test_the_experiment_lists_the_search_and_its_trials(tmp_path: Path, pages: str) -> None:
    client = connect(str(tracking_uri(None, tmp_path / "run")))
    experiment = client.get_experiment_by_name("sst2").experiment_id
    parent = next(run for run in client.search_runs([experiment]) if "mlflow.parentRunId" not in run.data.tags)
    listing = browse(tmp_path / "profile", page_address(tmp_path / "run", pages), "--dump-dom")
    for name in ("t0001 lora+bias", "t0000 lora", "t0005 lora+bias seed 101"):
        assert name in listing, name
    best_first = [listing.index(f">{trial} ") for trial in ("t0007", "t0001", "t0004", "t0002")]
    assert best_first == sorted(best_first)
    # Columns to the right of the window are drawn when a person scrolls there.
    for column in ("validation.accuracy", "adapter_params", "20736"):
        assert column in listing, column
    run = browse(tmp_path / "profile", f"{pages}/#/experiments/{experiment}/runs/{parent.info.run_id}", "--dump-dom")
    assert "is better than tuned LoRA by 0.013" in run
    assert "best.validation.accuracy" in run
