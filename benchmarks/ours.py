"""Exactly these configurations, trained by autopeft's own workers: no search decides about them.

    python benchmarks/ours.py BLOCK.json RESULT.json

The task is read, checked and loaded as for a search (`autopeft.search.prepare`), and the executor asks a controller
that hands out a list: whatever the product does to make a job fast is in it, and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WARMUP = 1 / 15


class FixedList:
    """A controller that hands out a list of jobs (`autopeft.executors.base.Controller`).

    Args:
        jobs: In the order in which they start.
    """

    def __init__(self, jobs: Sequence[Any]) -> None:
        self._left = list(jobs)
        self.first: float | None = None
        self.last: float | None = None
        self.outcomes: dict[str, Any] = {}

    def next(self, slot: int) -> Any:
        """The next job; the first one says when the workers were ready."""
        from autopeft.executors import Done

        self.first = self.first or time.time()
        return self._left.pop(0) if self._left else Done()

    def on_event(self, event: Any) -> None:
        """Keep the outcome; a list that loses a worker is no measurement."""
        from autopeft.executors import Finished, Lost

        if isinstance(event, Lost):
            raise SystemExit(f"a worker was lost: {event.reason}")
        if isinstance(event, Finished):
            outcome = event.outcome
            trial = getattr(outcome.job, "trial", "a job")
            if outcome.status != "ok":
                raise SystemExit(f"{trial} failed: {outcome.reason}, {outcome.detail}")
            self.outcomes[trial], self.last = outcome, time.time()

    def tick(self) -> None:
        """Nothing is shown."""


def train_job(entry: dict[str, Any], rows: int, *, seed: int, trial: str, head: str = "stock") -> Any:
    """A whole training as one job: a linear rise of the rate, then a linear fall to 0, as the Trainer's default.

    Args:
        entry: Of `configurations.entries`.
        rows: Rows seen in all.
        seed: Of the trial.
        trial: Its id.
        head: The head on top.
    """
    from autopeft.space.configuration import Configuration
    from autopeft.strategy.jobs import Train

    rise = int(WARMUP * rows)
    configuration = Configuration.from_dict(entry["configuration"])
    return Train(trial, configuration, seed, 0, rows, rise, rows - rise, 0, f"trials/{trial}", head)


def run_list(task: dict[str, Any], jobs: Sequence[Any], *, workers: int, out: str, seed: int = 0) -> FixedList:
    """Run jobs on the Ray executor of a search.

    Args:
        task: Of `autopeft.Task`, as plain values.
        jobs: In order.
        workers: At a time.
        out: The run folder.
        seed: Of the data split, where one is made.
    """
    from autopeft.executors import make
    from autopeft.search.prepare import prepare
    from autopeft.spec.parse import parse_search

    spec = parse_search({"task": task, "workers": workers, "out": out, "tracking_uri": "none", "seed": seed})
    prepared = prepare(spec)
    executor = make(spec)
    controller = FixedList(jobs)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        executor.run(controller, prepared.setup(folder))
    finally:
        executor.close()
    return controller


def main() -> None:
    """Train the block of the first file, write what came of it to the second."""
    block = json.loads(Path(sys.argv[1]).read_text())
    metric, trials = block["metric"], block["jobs"]
    jobs = [train_job(t, t["rows_to"], seed=t["seed"], trial=f"b{t['index']:03d}s{t['seed']}") for t in trials]
    task = {"model": block["model"], "data": block["data"], "head": "stock"}
    controller = run_list(task, jobs, workers=block["workers"], out=block["out"])
    found = []
    for job in jobs:
        outcome = controller.outcomes[job.trial]
        found.append(
            {
                "score": outcome.metrics[metric],
                "seconds": outcome.seconds,
                "train_seconds": outcome.train_seconds,
                "evaluate_seconds": outcome.evaluate_seconds,
                "rows": outcome.rows,
            }
        )
    Path(sys.argv[2]).write_text(json.dumps({"first": controller.first, "last": controller.last, "trials": found}))


if __name__ == "__main__":
    main()
