"""What a person sees in MLflow, in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_search import ExampleSearch

from autopeft.report import report
from autopeft.tracking import page_address, replay, start_ui, tracking_uri
from autopeft.tracking.store import connect

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")]


def browse(profile: Path, url: str, *more: str, milliseconds: int = 20_000) -> str:
    """The page's document after its scripts have run."""
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--virtual-time-budget={milliseconds}",
        "--window-size=2200,900",
        *more,
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


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


def test_the_report_opens_without_a_network_and_sorts(tmp_path: Path) -> None:
    ExampleSearch(tmp_path / "run").whole()
    path = Path(report(tmp_path / "run"))
    # The page's own script, driven by a click at its end: the score column, largest first.
    click = "<script>document.querySelectorAll('table.sortable th')[4].click()</script></body>"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", click), encoding="utf-8")
    document = browse(tmp_path / "profile", path.as_uri(), "--dump-dom", milliseconds=2_000)
    table = document[document.index('class="sortable"') :]
    order = [table.index(f"<td>{trial}</td>") for trial in ("t0007", "t0001", "t0000", "t0002", "t0003")]
    assert order == sorted(order)
