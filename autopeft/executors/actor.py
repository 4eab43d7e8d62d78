"""What runs in a worker's process on a Ray cluster."""

from __future__ import annotations

import gc
import os
from typing import Any

import ray

from autopeft.executors.folder import SharedFolder
from autopeft.executors.room import Share
from autopeft.executors.seats import Hello
from autopeft.strategy.jobs import Job, Outcome
from autopeft.trial.setup import Progress, WorkSetup


class Worker:
    """One actor: a workbench, and a second thread that answers how far it is.

    Args:
        setup: What stays the same for all trials.
        threads: How many it computes with.
    """

    def __init__(self, setup: WorkSetup, threads: int) -> None:
        import torch

        from autopeft.trial.workbench import Workbench

        torch.set_num_threads(threads)
        self._bench = Workbench(setup)
        self._progress: Progress | None = None
        # Modules live for ever: the search for garbage after every job need not look at their half a million objects.
        gc.collect()
        gc.freeze()

    def run(self, job: Job) -> Outcome:
        """Do a job."""
        self._progress = None

        def report(progress: Progress) -> None:
            self._progress = progress

        return self._bench.run(job, report)

    def progress(self) -> Progress | None:
        """How far the job is; answered while it runs."""
        return self._progress

    def hello(self, mark: SharedFolder) -> Hello:
        """Who this worker is, and whether it sees the run folder."""
        node, visible = ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")
        return Hello(node, os.getpid(), self._bench.device.type, visible, mark.seen())


def start_worker(share: Share, setup: Any, mark: SharedFolder) -> tuple[Any, Any]:
    """Ask for a worker with its share of a node.

    Args:
        share: What it asks for.
        setup: Reference to the `WorkSetup` in the object store.
        mark: The run folder.

    Returns:
        The actor, and the reference to its `Hello`.
    """
    environment = {
        "OMP_NUM_THREADS": str(share.threads),
        "MKL_NUM_THREADS": str(share.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    remote = ray.remote(Worker).options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_concurrency=2,
        max_restarts=0,
        runtime_env={"env_vars": environment},
    )
    actor = remote.remote(setup, share.threads)
    return actor, actor.hello.remote(mark)
