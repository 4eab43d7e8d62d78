"""The same controller under Ray Tune, for people whose platform is Tune.

One Tune trial is one job: the searcher hands jobs out and takes outcomes in, actors are reused, and a trial's next rung
finds its checkpoint on disk. Tune's own schedulers, checkpoints and restore are not used: the journal is the truth, and
Tune restarts trials from nothing after a killed driver.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from autopeft.executors.base import Controller, Done, Executor, Finished, Lost, Progressed, Wait
from autopeft.executors.ray import POLL_SECONDS, RayExecutor
from autopeft.strategy.jobs import Job, Outcome
from autopeft.trial.setup import Progress, WorkSetup


class _Board:
    """An actor on which workers write how far they are: Tune itself hears of a job only at its end."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def put(self, trial_id: str, progress: Progress) -> None:
        self._latest[trial_id] = progress

    def take(self) -> dict[str, Progress]:
        latest, self._latest = self._latest, {}
        return latest


class _JobTrainable(tune.Trainable):
    """Runs one job per Tune trial on a workbench that outlives it."""

    def setup(self, config: dict[str, Any], shared: WorkSetup | None = None, board: Any = None) -> None:
        import torch

        from autopeft.trial.workbench import Workbench

        if shared is None:
            raise ValueError("the trainable needs the shared setup")
        torch.set_num_threads(shared.threads)
        self._bench = Workbench(shared)
        self._board = board
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        def report(progress: Progress) -> None:
            self._board.put.remote(self._config["key"], progress)

        # Both ends of this pickle are processes of one search; nothing of it comes from outside.
        outcome = self._bench.run(pickle.loads(self._config["job"]), report)  # noqa: S301
        return {"outcome": pickle.dumps(outcome), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Checkpoints are the trial's own business."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Checkpoints are the trial's own business."""


class _Jobs(Searcher):
    """Answers Tune's questions from the controller."""

    def __init__(self, controller: Controller, slots: int) -> None:
        super().__init__(metric="training_iteration", mode="max")
        self._controller = controller
        self._free = list(range(slots))
        self._running: dict[str, tuple[int, Job]] = {}
        self._done: set[int] = set()
        self._slots = slots

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its searcher, and this one holds the search itself, with its files and threads."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        self._controller.tick()
        for slot in list(self._free):
            if slot in self._done:
                continue
            match self._controller.next(slot):
                case Wait():
                    continue
                case Done():
                    self._done.add(slot)
                case job:
                    self._free.remove(slot)
                    self._running[trial_id] = (slot, job)
                    return {"job": pickle.dumps(job), "key": trial_id}
        return Searcher.FINISHED if len(self._done) == self._slots else None

    def look(self, latest: dict[str, Progress]) -> None:
        """Pass on how far the running jobs are."""
        for trial_id, progress in latest.items():
            if trial_id in self._running:
                self._controller.on_event(Progressed(self._running[trial_id][0], progress))
        self._controller.tick()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        slot, job = self._running.pop(trial_id)
        self._free.append(slot)
        packed = None if error or result is None else result.get("outcome")
        if packed is None:
            self._controller.on_event(Lost(slot, job, "the worker died"))
            return
        outcome: Outcome = pickle.loads(packed)  # noqa: S301
        self._controller.on_event(Finished(slot, outcome))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""


class _Watch(tune.Callback):
    """Looks at the board while Tune waits for its trials."""

    def __init__(self, jobs: _Jobs, board: Any) -> None:
        self._jobs = jobs
        self._board = board
        self._asked: Any = None
        self._looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for `_Jobs`."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called several times a second."""
        if time.monotonic() - self._looked < POLL_SECONDS:
            return
        if self._asked is None:
            self._asked = self._board.take.remote()
        if ray.wait([self._asked], timeout=0)[0]:
            self._jobs.look(ray.get(self._asked))
            self._asked, self._looked = None, time.monotonic()


class TuneExecutor(Executor):
    """Ray Tune with reused actors. Final.

    Args:
        workers: Jobs at a time; None as for `RayExecutor`.
        gpus_per_trial: Fraction of a GPU per worker.
        address: A running cluster; None starts one here.
    """

    def __init__(
        self, workers: int | None = None, gpus_per_trial: float | None = None, address: str | None = None
    ) -> None:
        self._pool = RayExecutor(workers, gpus_per_trial, address)
        self.slots = self._pool.slots

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self._pool.close()

    def run(self, controller: Controller, setup: WorkSetup) -> None:
        """See `Executor.run`."""
        gpus = self._pool.gpus_per_trial
        board = ray.remote(_Board).options(num_cpus=0).remote()
        jobs = _Jobs(controller, self.slots)
        trainable = tune.with_resources(
            tune.with_parameters(_JobTrainable, shared=setup, board=board),
            {"cpu": 1 if gpus == 0 else 0.01, "gpu": gpus},
        )
        try:
            with tempfile.TemporaryDirectory(prefix="autopeft-tune-") as storage:
                tuner = tune.Tuner(
                    trainable,
                    tune_config=tune.TuneConfig(
                        search_alg=jobs,
                        num_samples=-1,
                        max_concurrent_trials=self.slots,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(
                        name="search",
                        storage_path=storage,
                        verbose=0,
                        log_to_file=False,
                        callbacks=[_Watch(jobs, board)],
                    ),
                )
                tuner.fit()
        finally:
            self._pool.close()
