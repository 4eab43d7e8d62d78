"""A pool of long-lived Ray actors, each with the base model resident."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError

from autopeft.errors import InputError
from autopeft.executors.base import Event, Finished, Lost, PoolExecutor, Progressed, cores
from autopeft.strategy.jobs import Job, Outcome
from autopeft.trial.setup import Progress, WorkSetup

POLL_SECONDS = 0.5
START_SECONDS = 120.0
"""How long the workers may take to start."""
GRACE_SECONDS = 15.0
"""How far past its own time limit a job may be before its worker is taken for hung."""


class _Worker:
    """One actor: a workbench, and a second thread that answers how far it is."""

    def __init__(self, setup: WorkSetup, threads: int) -> None:
        import torch

        from autopeft.trial.workbench import Workbench

        torch.set_num_threads(threads)
        self._bench = Workbench(setup)
        self._progress: Progress | None = None
        # Modules live for ever: the search for garbage after every job need not look at their half a million objects.
        gc.collect()
        gc.freeze()

    def run(self, job: Job) -> Any:
        self._progress = None

        def report(progress: Progress) -> None:
            self._progress = progress

        return self._bench.run(job, report)

    def progress(self) -> Progress | None:
        return self._progress

    def pid(self) -> int:
        return os.getpid()


@dataclass
class _Slot:
    actor: Any
    job: Job | None = None
    running: Any = None
    asked: Any = None
    since: float = 0.0


def own_token() -> None:
    """Make Ray's login token readable by this user alone: Ray itself writes it world-readable into the home folder.

    A token that is there is kept: a process that has used Ray before remembers it.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine without a dashboard.

    Raises:
        InputError: The cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if address is None:
        own_token()
        ray.init(num_cpus=cores(), include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, RayError, OSError, ValueError, RuntimeError) as error:
        raise InputError.one(
            "ray_address",
            address,
            f"no Ray cluster answers there ({error})",
            "Start one with `ray start --head`, or leave the option out to run on this machine.",
        ) from error


def _knock(address: str) -> None:
    """Fail at once where nothing listens: Ray itself tries for minutes and then ends the process."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return  # "auto" and "local" name no port.
    with socket.create_connection((host, int(port)), timeout=5.0):
        pass


class RayExecutor(PoolExecutor):
    """Long-lived actors on a Ray cluster. Final.

    Args:
        workers: Jobs at a time; None takes one per GPU of the cluster, or one per core where there is none.
        gpus_per_trial: Fraction of a GPU per worker; None takes 1 where there are GPUs, else 0.
        address: A running cluster; None starts one here.
    """

    def __init__(
        self, workers: int | None = None, gpus_per_trial: float | None = None, address: str | None = None
    ) -> None:
        self._owns = not ray.is_initialized()
        connect(address)
        self._address = address
        have = ray.cluster_resources()
        gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 1.0)
        self.gpus_per_trial = gpus_per_trial if gpus_per_trial is not None else (1.0 if gpus else 0.0)
        fit = int(gpus / self.gpus_per_trial) if self.gpus_per_trial > 0 else int(cpus)
        self.slots = workers or max(1, fit)
        if fit < self.slots:
            needs = f"{self.gpus_per_trial:g} GPU" if self.gpus_per_trial > 0 else "1 core"
            self.close()
            raise InputError.one(
                "workers",
                workers if workers is not None else self.slots,
                f"{self.slots} workers at {needs} each need more than the cluster's {gpus:g} GPUs and {cpus:g} cores",
                f"Use at most {fit} workers, or give each a smaller share of a GPU.",
            )
        self._pool: list[_Slot] = []
        self._setup: Any = None
        self._notify: Callable[[Progressed], None] = lambda progressed: None

    def start(self, setup: WorkSetup, notify: Callable[[Progressed], None]) -> None:
        """Put base and data into the object store once, and start the actors."""
        self._notify = notify
        self._setup = ray.put(setup)
        self._pool = [_Slot(self._actor()) for _ in range(self.slots)]
        try:
            ray.get([place.actor.pid.remote() for place in self._pool], timeout=START_SECONDS)
        except GetTimeoutError as error:
            free = ray.available_resources()
            have = ", ".join(f"{free[name]:g} {name}" for name in ("CPU", "GPU") if name in free)
            raise InputError.one(
                "workers",
                self.slots,
                f"the cluster gave no room for so many within {START_SECONDS:.0f} s (free: {have or 'nothing'})",
                "Use fewer workers, or wait until others are done.",
            ) from error

    def _actor(self) -> Any:
        threads = 1 if self.gpus_per_trial == 0 else 4
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        remote = ray.remote(_Worker).options(
            num_cpus=1 if self.gpus_per_trial == 0 else 0.01,
            num_gpus=self.gpus_per_trial,
            max_concurrency=2,
            max_restarts=0,
            runtime_env={"env_vars": environment},
        )
        return remote.remote(self._setup, threads)

    def submit(self, slot: int, job: Job) -> None:
        """See `PoolExecutor.submit`."""
        place = self._pool[slot]
        place.job, place.since, place.asked = job, time.monotonic(), None
        place.running = place.actor.run.remote(job)

    def poll(self) -> Sequence[Event]:
        """See `PoolExecutor.poll`."""
        busy = {place.running: slot for slot, place in enumerate(self._pool) if place.running is not None}
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=POLL_SECONDS)
        events: list[Event] = [self._collect(busy[reference]) for reference in ready]
        for slot, place in enumerate(self._pool):
            if place.running is not None:
                events.extend(self._look(slot, place))
        return events

    def _collect(self, slot: int) -> Event:
        place = self._pool[slot]
        job, reference = place.job, place.running
        if job is None:
            raise RuntimeError("a free slot answered")
        place.job = place.running = None
        try:
            return Finished(slot, ray.get(reference))
        except RayTaskError as error:
            return Finished(slot, Outcome(job, "failed", "error", str(error.cause)[:2000]))
        except OutOfMemoryError:
            # Ray chooses whom it kills: it need not be the one that took too much.
            return self._replace(slot, job, "the machine ran out of memory, and Ray killed the worker")
        except RayError as error:
            return self._replace(slot, job, f"the worker died: {str(error).splitlines()[0]}")

    def _look(self, slot: int, place: _Slot) -> list[Event]:
        """Progress of a running job; a worker past all limits is killed."""
        job = place.job
        limit = None if job is None else job.time_limit
        if job is not None and limit is not None and time.monotonic() - place.since > limit + GRACE_SECONDS:
            place.job = place.running = None
            ray.kill(place.actor)
            return [self._replace(slot, job, f"the worker did not answer within its limit of {limit:.0f} s")]
        if place.asked is None:
            place.asked = place.actor.progress.remote()
            return []
        ready, _ = ray.wait([place.asked], timeout=0)
        if not ready:
            return []
        reference, place.asked = place.asked, None
        try:
            progress = ray.get(reference)
        except RayError:
            return []  # The job's own reference reports the death.
        return [] if progress is None else [Progressed(slot, progress)]

    def _replace(self, slot: int, job: Job, reason: str) -> Lost:
        self._pool[slot] = _Slot(self._actor())
        return Lost(slot, job, reason)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, for tests and the report."""
        return [int(ray.get(place.actor.pid.remote())) for place in self._pool]

    def stop(self) -> None:
        """Kill the actors and leave the cluster that we started."""
        for place in self._pool:
            ray.kill(place.actor)
        self._pool = []
        self._setup = None
        self.close()

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._owns:
            ray.shutdown()
