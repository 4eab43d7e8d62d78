"""The figures behind docs/scaling.md: what controller, journal, tracking and the object store take, without training.

    python benchmarks/scaling_figures.py [--run runs/demo]

Searches are simulated, so that no time passes but the controller's own; of its time, processor seconds are counted.
What is measured is stored in benchmarks/results/scaling_figures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.compose.base import attach, load_base
from autopeft.inspect import module_map
from autopeft.journal import read_journal
from autopeft.search.controller import Controller
from autopeft.spec import Budget
from autopeft.testing.real import minilm_folder
from autopeft.testing.searches import simulated_search
from autopeft.testing.worlds import SyntheticWorld, by_method
from autopeft.tracking import replay

RESULTS = Path(__file__).parent / "results" / "scaling_figures.json"
SLOTS = {8: 60, 64: 200, 512: 600}
"""Workers -> trials that may start."""


class Timed:
    """Counts calls of the controller and the processor seconds that they take."""

    def __init__(self) -> None:
        self.seconds = {"next": 0.0, "on_event": 0.0}
        self.calls = {"next": 0, "on_event": 0}
        self._own = {name: getattr(Controller, name) for name in self.seconds}

    def __enter__(self) -> Timed:
        for name, method in self._own.items():
            setattr(Controller, name, self._timed(name, method))
        return self

    def __exit__(self, *error: object) -> None:
        for name, method in self._own.items():
            setattr(Controller, name, method)

    def _timed(self, name: str, method: Any) -> Any:
        def call(controller: Controller, *values: Any) -> Any:
            began = time.process_time()
            try:
                return method(controller, *values)
            finally:
                self.seconds[name] += time.process_time() - began
                self.calls[name] += 1

        return call


def controller(slots: int, trials: int, folder: Path) -> dict[str, Any]:
    """A simulated search: processor seconds of the controller, and what its journal takes."""
    carrier = attach(load_base(str(minilm_folder()), kind="sequence_classification"), head="mean", labels=2)
    world = SyntheticWorld(by_method({"lora": 0.82, "parallel": 0.86}), rows=500)
    with Timed() as timed:
        log = simulated_search(
            folder, world, Budget(max_trials=trials), modules=module_map(carrier.model), slots=slots, evidence="quick"
        )
    records, size = len(read_journal(folder)), (folder / "journal.jsonl").stat().st_size
    seconds = sum(timed.seconds.values())
    return {
        "slots": slots,
        "trials": len(log.trials),
        "jobs": timed.calls["on_event"],
        "cpu_seconds_per_job": seconds / timed.calls["on_event"],
        "cpu_seconds_per_trial": seconds / len(log.trials),
        "records_per_trial": records / len(log.trials),
        "journal_bytes_per_trial": size / len(log.trials),
    }


def tracking(folder: Path) -> dict[str, float]:
    """How fast a journal goes into MLflow on SQLite, from nothing."""
    records = len(read_journal(folder))
    with tempfile.TemporaryDirectory() as store:
        uri = f"sqlite:///{store}/mlflow.db"
        began = time.monotonic()
        replay(folder, uri)
        seconds = time.monotonic() - began
        return {"records": records, "seconds": seconds, "bytes": (Path(store) / "mlflow.db").stat().st_size}


def _private() -> int:
    """Bytes that this process shares with nobody."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def store(size: int = 200 * 2**20) -> dict[str, Any]:
    """Workers on two nodes over one object: copies among nodes, private bytes within."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.experimental import get_object_locations

    room = int(1.5 * size)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": room})
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=room)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    private = _private

    class Reader:
        def read(self, shared: np.ndarray) -> tuple[int, int]:
            before = private()
            total = int(shared.sum())
            return private() - before, total

    try:
        began = time.monotonic()
        shared = ray.put(np.ones(size, dtype=np.uint8))
        put = time.monotonic() - began
        readers = [ray.remote(Reader).options(num_cpus=1).remote() for _ in range(4)]
        read = ray.get([reader.read.remote(shared) for reader in readers])
        nodes = get_object_locations([shared])[shared]["node_ids"]
        return {
            "bytes": size,
            "put_seconds": put,
            "workers": len(readers),
            "copies": len(nodes),
            "private_bytes_of_a_worker": max(own for own, _ in read),
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def run_folder(folder: Path) -> dict[str, float]:
    """What a real search has left on disk, per trial."""
    trials = [trial for trial in (folder / "trials").iterdir() if trial.is_dir()]
    size = sum(file.stat().st_size for trial in trials for file in trial.rglob("*") if file.is_file())
    journal = (folder / "journal.jsonl").stat().st_size
    return {"trials": len(trials), "bytes_per_trial": size / len(trials), "journal_bytes": journal}


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run folder, for the bytes of its trials")
    given = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    with tempfile.TemporaryDirectory() as place:
        found["controller"] = []
        for slots, trials in SLOTS.items():
            found["controller"].append(controller(slots, trials, Path(place) / str(slots)))
            print(json.dumps(found["controller"][-1]), flush=True)
        found["tracking"] = tracking(Path(place) / "8")
        print(json.dumps(found["tracking"]), flush=True)
    found["store"] = store()
    print(json.dumps(found["store"]), flush=True)
    if given.run is not None:
        found["run"] = run_folder(given.run)
        print(json.dumps(found["run"]), flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
