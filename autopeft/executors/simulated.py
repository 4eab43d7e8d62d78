"""Workers on a virtual clock: whole searches in seconds, for tests and for comparing strategies on recorded curves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Protocol

from autopeft.executors.base import Event, Finished, Lost, PoolExecutor, Progressed
from autopeft.strategy.jobs import Job, Outcome
from autopeft.trial.setup import WorkSetup


class World(Protocol):
    """What would happen."""

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        """The outcome of a job with `seconds` filled in; None when its worker dies after a second.

        Args:
            job: The job.
            folder: The run folder, for per-example outputs.
        """
        ...


class VirtualClock:
    """Seconds that pass only when an executor says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class SimulatedExecutor(PoolExecutor):
    """Jobs end when the virtual clock reaches their end. Final.

    Args:
        slots: Workers.
        world: Decides outcomes and durations.
        clock: Give the same one to the journal.
    """

    def __init__(self, slots: int, world: World, clock: VirtualClock) -> None:
        self.slots = slots
        self._world = world
        self._clock = clock
        self._folder = ""
        self._ends: list[tuple[float, int, int, Job, Outcome | None]] = []
        self._submitted = 0

    def start(self, setup: WorkSetup, notify: Callable[[Progressed], None]) -> None:
        """See `PoolExecutor.start`."""
        self._folder = setup.folder

    def submit(self, slot: int, job: Job) -> None:
        """See `PoolExecutor.submit`."""
        outcome = self._world.outcome(job, self._folder)
        end = self._clock.now + (1.0 if outcome is None else outcome.seconds)
        self._submitted += 1
        heapq.heappush(self._ends, (end, self._submitted, slot, job, outcome))

    def poll(self) -> Sequence[Event]:
        """Move the clock to the next end."""
        end, _, slot, job, outcome = heapq.heappop(self._ends)
        self._clock.now = max(self._clock.now, end)
        return [Lost(slot, job, "the simulated worker died") if outcome is None else Finished(slot, outcome)]

    def close(self) -> None:
        """There is nothing to let go of."""

    def stop(self) -> None:
        """Drop what was still running."""
        self._ends.clear()
