"""How jobs meet workers.

A controller is passive: it is asked what a free slot should do, and told what happened. An executor owns the workers
and the waiting. The life of a run: `Executor.run` starts the workers, asks `Controller.next` for every free slot,
passes every event to `Controller.on_event`, and returns when every slot has been answered `Done`.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autopeft.strategy.jobs import Job, Outcome

if TYPE_CHECKING:
    # Workers are started before the libraries of training are loaded here.
    from autopeft.trial.setup import Progress, WorkSetup

CGROUP = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for this slot now; ask again after an event.

    Attributes:
        everyone: Whether that holds for every other free slot as well.
    """

    everyone: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing will ever be left for this slot."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A job came to an end, well or not."""

    slot: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker died or hung, and its job with it. A new worker takes the slot, when there is room for one."""

    slot: int
    job: Job
    reason: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A running job has got further."""

    slot: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Resized:
    """Another number of jobs can run at a time: nodes came, or went.

    Attributes:
        slots: How many from now on, at least 1.
        text: One sentence for the user.
    """

    slots: int
    text: str


Event = Finished | Lost | Progressed | Resized


class Controller(Protocol):
    """What an executor needs of a controller. Nothing here blocks."""

    def next(self, slot: int) -> Job | Wait | Done:
        """What the free slot does now."""
        ...

    def on_event(self, event: Event) -> None:
        """Take note of what happened."""
        ...

    def tick(self) -> None:
        """Called at least once a second while jobs run, for clocks and displays."""
        ...


class Executor(ABC):
    """Runs a controller's jobs.

    Attributes:
        slots: Jobs that run at a time; where that changes, a `Resized` tells.
    """

    slots: int

    @abstractmethod
    def close(self) -> None:
        """Let go of what was taken at construction, when `run` is never called. Harmless after it."""

    @abstractmethod
    def run(self, controller: Controller, setup: WorkSetup) -> None:
        """Run until every slot is done.

        Raises:
            KeyboardInterrupt: On a signal; the workers are gone by then.
        """


class PoolExecutor(Executor):
    """The event loop over a pool of workers, whatever they are."""

    def run(self, controller: Controller, setup: WorkSetup) -> None:
        """See `Executor.run`."""

        def notify(progress: Progressed) -> None:
            controller.on_event(progress)
            controller.tick()

        try:
            self.start(setup, notify)
            self._loop(controller)
        finally:
            self.stop()

    def _loop(self, controller: Controller) -> None:
        busy: set[int] = set()
        done: set[int] = set()
        idle_rounds = 0
        while not done or not done.issuperset(self.live()):
            for slot in [slot for slot in self.live() if slot not in busy and slot not in done]:
                match controller.next(slot):
                    case Wait(everyone=everyone):
                        if everyone:
                            break
                    case Done():
                        done.add(slot)
                    case job:
                        self.submit(slot, job)
                        busy.add(slot)
            if not busy and not self.awaits():
                idle_rounds += 1
                if idle_rounds > 2 and not done.issuperset(self.live()):
                    raise RuntimeError("the controller waits for a job although none is running")
                continue
            idle_rounds = 0
            for event in self.poll():
                if isinstance(event, Lost | Resized):
                    # Whoever was told that nothing is left may be needed now.
                    done.clear()
                if isinstance(event, Finished | Lost):
                    busy.discard(event.slot)
                controller.on_event(event)
            controller.tick()

    def live(self) -> Collection[int]:
        """Slots that have a worker, free or busy. A slot keeps its number when its worker is replaced."""
        return range(self.slots)

    def awaits(self) -> bool:
        """Whether workers are on their way, so that it is worth waiting although no job runs."""
        return False

    @abstractmethod
    def start(self, setup: WorkSetup, notify: Callable[[Progressed], None]) -> None:
        """Make the workers; called once, first. `notify` may be called from `poll`, never from another thread."""

    @abstractmethod
    def submit(self, slot: int, job: Job) -> None:
        """Hand a job to a free slot; returns at once."""

    @abstractmethod
    def poll(self) -> Sequence[Event]:
        """Wait up to about half a second for events. At least one job is running, or a worker is on its way."""

    @abstractmethod
    def stop(self) -> None:
        """End all workers; called once, last, also after an error."""


def cores() -> int:
    """Processor cores that this process may use: of its affinity, and of its control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota(CGROUP)))


def _quota(file: Path) -> int:
    """Whole cores of a control group's quota (``cpu.max``: microseconds of work per period, or ``max``)."""
    try:
        work, period = file.read_text().split()
        return max(1, int(work) // int(period))
    except (OSError, ValueError):
        return sys.maxsize
