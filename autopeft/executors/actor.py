"""What runs in a worker's process on a Ray cluster."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import ray

from autopeft.cost.reserved import allocator_settings
from autopeft.executors.folder import SharedFolder
from autopeft.executors.room import Share
from autopeft.executors.seats import Hello
from autopeft.strategy.jobs import Job, Outcome

if TYPE_CHECKING:
    from autopeft.trial.setup import Progress


class Worker:
    """One actor: a workbench, and a second thread that answers how far it is.

    What it needs is loaded when it starts; what it works on may be known later, when it is greeted.
    """

    def __init__(self) -> None:
        from autopeft.trial.workbench import Workbench

        self._make = Workbench
        self._bench: Any = None
        self._progress: Progress | None = None
        # Modules live for ever: the search for garbage after every job need not look at their half a million objects.
        gc.collect()
        gc.freeze()

    def run(self, job: Job) -> Outcome:
        """Do a job. It has been greeted before."""
        self._progress = None

        def report(progress: Progress) -> None:
            self._progress = progress

        outcome: Outcome = self._bench.run(job, report)
        return outcome

    def progress(self) -> Progress | None:
        """How far the job is; answered while it runs."""
        return self._progress

    def hello(self, shared: list[Any], share: Share, mark: SharedFolder) -> Hello:
        """Take up the work; who this worker is, and whether it sees the run folder.

        Args:
            shared: The reference to the `WorkSetup`, in a list.
            share: What it asked for.
            mark: The run folder.
        """
        import torch

        setup = ray.get(shared[0])
        torch.set_num_threads(share.threads if share.gpus else setup.threads)
        self._bench = self._make(setup)
        node, visible = ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")
        return Hello(node, os.getpid(), self._bench.device.type, visible, mark.seen())


def start_worker(share: Share, *, own: bool) -> Any:
    """Ask for a worker with its share of a node.

    Args:
        share: What it asks for.
        own: Whether the cluster was started here: Ray then has processes ready, which want no environment of their own,
            and gives each the threads of its share.

    Returns:
        The actor.
    """
    environment = {
        "OMP_NUM_THREADS": str(share.threads),
        "MKL_NUM_THREADS": str(share.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if share.gpus:
        environment |= allocator_settings()
    needs = {} if own and not share.gpus else {"runtime_env": {"env_vars": environment}}
    remote = ray.remote(Worker).options(
        num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=2, max_restarts=0, **needs
    )
    return remote.remote()


def greet(actor: Any, share: Share, setup: Any, mark: SharedFolder) -> Any:
    """Give a worker what it works on.

    Args:
        actor: The worker.
        share: What it asked for.
        setup: Reference to the `WorkSetup` in the object store.
        mark: The run folder.

    Returns:
        The reference to its `Hello`.
    """
    return actor.hello.remote([setup], share, mark)
