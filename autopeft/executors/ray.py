"""A pool of long-lived Ray actors, each with the base model resident."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from autopeft.errors import InputError
from autopeft.executors.actor import greet, start_worker
from autopeft.executors.base import Event, Finished, Lost, PoolExecutor, Progressed
from autopeft.executors.cluster import connect, nodes, own_token, packed_bytes
from autopeft.executors.folder import SharedFolder
from autopeft.executors.room import Share, check_fraction, check_room, check_store, room, share
from autopeft.executors.seats import NOBODY_SECONDS, START_SECONDS, Seats
from autopeft.strategy.jobs import Job, Outcome

if TYPE_CHECKING:
    from autopeft.trial.setup import WorkSetup

__all__ = ["POLL_SECONDS", "RayExecutor", "connect", "own_token"]

POLL_SECONDS = 0.5
NODES_SECONDS = 5.0
"""How often the cluster is asked for its nodes."""
GRACE_SECONDS = 15.0
"""How far past its own time limit a job may be before its worker is taken for hung."""
MOST_WORKERS = 4096
"""So far a pool grows that nobody limits."""


@dataclass
class _Running:
    """A job on its worker."""

    job: Job
    answer: Any
    since: float
    asked: Any = None


class RayExecutor(PoolExecutor):
    """Long-lived actors on a Ray cluster. Final.

    Only workers that have said hello are given jobs, so that nothing waits for a node that is not there.

    Args:
        workers: Jobs at a time; None takes one per GPU of the cluster, or one per core where there is none, and on a
            cluster that was there before it follows the nodes that join.
        gpus_per_trial: Fraction of a GPU per worker; None takes 1 where there are GPUs, else 0.
        address: A running cluster; None starts one here.
        max_workers: The most that the pool grows to. So many are asked for at once, whether there is room or not: a
            cluster that scales by what waits starts nodes for them.
    """

    def __init__(
        self,
        workers: int | None = None,
        gpus_per_trial: float | None = None,
        address: str | None = None,
        max_workers: int | None = None,
    ) -> None:
        self._early: list[tuple[Share, Any]] = []
        self._owns = not ray.is_initialized()
        connect(address)
        self._address, self._max_workers = address, None if workers else max_workers
        have = nodes()
        most = 1.0 if any(node.gpus for node in have) else 0.0
        self.gpus_per_trial = most if gpus_per_trial is None else gpus_per_trial
        try:
            check_fraction(self.gpus_per_trial)
            wants = share(have, self.gpus_per_trial)
            fit = check_room(have, wants, workers) if self._max_workers is None else sum(room(have, wants))
        except InputError:
            self.close()
            raise
        self._follows = address is not None and workers is None
        self.slots = workers or max(1, min(fit, self._max_workers or MOST_WORKERS))
        self._seats: Seats | None = None
        self._mark: SharedFolder | None = None
        self._running: dict[int, _Running] = {}
        self._heard = self._counted = 0.0

    @property
    def seats(self) -> Seats:
        """The seats; there are any only while it runs."""
        if self._seats is None:
            raise RuntimeError("the pool has not been started")
        return self._seats

    def begin(self) -> None:
        """Start the actors of a cluster of our own: they load what they need while the data is read."""
        if self._address is None and not self._early:
            wants = share(nodes(), self.gpus_per_trial)
            self._early = [(wants, start_worker(wants, own=self._owns)) for _ in range(self.slots)]

    def start(self, setup: WorkSetup, notify: Callable[[Progressed], None]) -> None:
        """Put base and data into the object store once, and give it to the actors."""
        have = nodes()
        check_store(packed_bytes(setup), have, own=self._address is None)
        self._mark = SharedFolder.mark(setup.folder)
        shared, mark = ray.put(setup), self._mark

        def make(wants: Share) -> tuple[Any, Any]:
            early = next((place for place, (has, _) in enumerate(self._early) if has == wants), None)
            actor = start_worker(wants, own=self._owns) if early is None else self._early.pop(early)[1]
            return actor, greet(actor, wants, shared, mark)

        limit = self._max_workers or (MOST_WORKERS if self._follows else self.slots)
        self._seats = Seats(make, have, self.gpus_per_trial, limit=limit, follows=self._follows, folder=setup.folder)
        self._seats.fill(self._max_workers or self.slots, first=True)
        began, patience = time.monotonic(), NOBODY_SECONDS if self._max_workers else START_SECONDS
        enough = 1 if self._follows else self.slots
        while len(self._seats.live()) < enough:
            self._greet(POLL_SECONDS)
            if time.monotonic() - began > patience:
                raise self._no_room(patience)

    def _no_room(self, seconds: float) -> InputError:
        free = ray.available_resources()
        have = ", ".join(f"{free[name]:g} {name}" for name in ("CPU", "GPU") if name in free)
        return InputError.one(
            "workers",
            len(self.seats),
            f"the cluster gave no room for so many within {seconds:.0f} s (free: {have or 'nothing'})",
            "Use fewer workers, or wait until others are done.",
        )

    def live(self) -> Collection[int]:
        """See `PoolExecutor.live`."""
        return self.seats.live()

    def awaits(self) -> bool:
        """See `PoolExecutor.awaits`."""
        live = len(self.seats.live())
        return live == 0 or live < self.slots

    def submit(self, slot: int, job: Job) -> None:
        """See `PoolExecutor.submit`."""
        self._running[slot] = _Running(job, self.seats.actor(slot).run.remote(job), time.monotonic())

    def poll(self) -> Sequence[Event]:
        """See `PoolExecutor.poll`."""
        busy = {running.answer: slot for slot, running in self._running.items()}
        events: list[Event] = [self._collect(busy[answer]) for answer in self._greet(POLL_SECONDS, list(busy))]
        now = time.monotonic()
        if now - self._heard >= POLL_SECONDS:
            self._heard = now
            events += self._hear(now)
        if now - self._counted >= NODES_SECONDS:
            self._counted = now
            resized = self.seats.count(nodes(), self.slots, self._running)
            if resized is not None:
                self.slots = resized.slots
                events.append(resized)
        return events

    def _greet(self, seconds: float, others: Sequence[Any] = ()) -> list[Any]:
        """Wait for new workers and for other references; those of the others that are ready."""
        new = self.seats.unanswered()
        waited = [*others, *new]
        if not waited:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(waited, num_returns=1, timeout=seconds)
        if ready:
            # Whatever else is ready by now: a node takes all of its workers with it.
            ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        started = [new[answer] for answer in ready if answer in new]
        if started:
            self.seats.measure(nodes())
        for slot in started:
            self.seats.greet(slot)
        return [answer for answer in ready if answer not in new]

    def _collect(self, slot: int) -> Event:
        running = self._running.pop(slot)
        try:
            return Finished(slot, ray.get(running.answer))
        except RayTaskError as error:
            return Finished(slot, Outcome(running.job, "failed", "error", str(error.cause)[:2000]))
        except OutOfMemoryError:
            # Ray chooses whom it kills: it need not be the one that took too much.
            return self._replace(slot, running.job, "the machine ran out of memory, and Ray killed the worker")
        except ActorUnavailableError:
            return self._replace(slot, running.job, "the worker cannot be reached: it died, or its node did")
        except RayError as error:
            return self._replace(slot, running.job, f"the worker died: {str(error).splitlines()[0]}")

    def _hear(self, now: float) -> list[Event]:
        """Progress of the running jobs; a worker past all limits is killed."""
        events: list[Event] = []
        for slot, running in list(self._running.items()):
            limit = running.job.time_limit
            if limit is not None and now - running.since > limit + GRACE_SECONDS:
                del self._running[slot]
                reason = f"the worker did not answer within its limit of {limit:.0f} s"
                events.append(self._replace(slot, running.job, reason))
        asked = {running.asked: slot for slot, running in self._running.items() if running.asked is not None}
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for answer in ready:
            self._running[asked[answer]].asked = None
            try:
                progress = ray.get(answer)
            except RayError:
                continue  # The job's own reference reports the death.
            if progress is not None:
                events.append(Progressed(asked[answer], progress))
        for slot, running in self._running.items():
            if running.asked is None:
                running.asked = self.seats.actor(slot).progress.remote()
        return events

    def _replace(self, slot: int, job: Job, reason: str) -> Lost:
        self.seats.replace(slot)
        return Lost(slot, job, reason)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, for tests and the report."""
        return [hello.pid for hello in self.seats.hellos()]

    def stop(self) -> None:
        """Kill the actors and leave the cluster that we started."""
        if self._seats is not None:
            self._seats.stop()
        self._seats = None
        self._running.clear()
        if self._mark is not None:
            self._mark.remove()
        self._mark = None
        self.close()

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        for _, actor in self._early:
            ray.kill(actor)
        self._early = []
        if self._owns:
            ray.shutdown()
            self._owns = False
