"""One worker in this very process: for notebooks, debuggers and tests. Jobs run one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from autopeft.executors.base import Event, Finished, PoolExecutor, Progressed
from autopeft.strategy.jobs import Job
from autopeft.trial.setup import Progress, WorkSetup
from autopeft.trial.workbench import Workbench


class InProcessExecutor(PoolExecutor):
    """Runs jobs here. Final."""

    def __init__(self) -> None:
        self.slots = 1
        self._threads = torch.get_num_threads()
        self._bench: Workbench | None = None
        self._job: Job | None = None
        self._notify: Callable[[Progressed], None] = lambda progressed: None

    def start(self, setup: WorkSetup, notify: Callable[[Progressed], None]) -> None:
        """See `PoolExecutor.start`."""
        torch.set_num_threads(setup.threads)
        self._bench, self._notify = Workbench(setup), notify

    def submit(self, slot: int, job: Job) -> None:
        """See `PoolExecutor.submit`."""
        self._job = job

    def poll(self) -> Sequence[Event]:
        """Do the job that was handed in, whole."""
        if self._bench is None or self._job is None:
            raise RuntimeError("nothing was submitted")
        job, self._job = self._job, None

        def report(progress: Progress) -> None:
            self._notify(Progressed(0, progress))

        return [Finished(0, self._bench.run(job, report))]

    def close(self) -> None:
        """There is nothing to let go of."""

    def stop(self) -> None:
        """Let go of the base model, and give the process its threads back."""
        if self._bench is not None:
            self._bench.release()
        self._bench = None
        torch.set_num_threads(self._threads)
