"""Who sits on the slots of a pool: actors that work, that start, that wait for room, and those that came to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from autopeft.errors import AutopeftError, InputError
from autopeft.executors.base import Resized
from autopeft.executors.room import Node, Share, room, share

START_SECONDS = 120.0
"""How long a worker may take to start; one that takes longer is not counted on."""
NOBODY_SECONDS = 600.0
"""How long a search goes on without any worker, waiting for one."""
FAILURES = 3
"""How often in a row a worker may fail to start before its slot is given up."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says of itself when it has started.

    Attributes:
        node: Ray's id of its node.
        pid: Its process.
        device: ``cuda`` or ``cpu``: where it computes.
        visible: The GPUs that it may see, as Ray has set them.
        shared: Whether it sees the run folder.
    """

    node: str
    pid: int
    device: str
    visible: str | None
    shared: bool


@dataclass
class Seat:
    """The place of a worker.

    Attributes:
        actor: Its actor; None once the slot is given up.
        answer: Ray's reference to its hello.
        share: What it asked for.
        born: When the actor was asked for, on the monotonic clock.
        first: Whether it was there from the start.
        hello: What it said; None until it has started.
        failures: How often in a row its workers failed to start.
    """

    actor: Any
    answer: Any
    share: Share
    born: float
    first: bool
    hello: Hello | None = None
    failures: int = 0


class Seats:
    """The seats of a pool, by slot. Final.

    Args:
        make: Starts an actor with its share of a node; returns it and the reference to its `Hello`.
        have: The nodes of the cluster.
        gpus: GPUs per worker.
        limit: The most seats.
        follows: Whether nodes that join get seats.
        folder: The run folder, for messages.
    """

    def __init__(
        self,
        make: Callable[[Share], tuple[Any, Any]],
        have: Sequence[Node],
        gpus: float,
        *,
        limit: int,
        follows: bool,
        folder: str,
    ) -> None:
        self._make = make
        self._gpus, self._limit, self._follows, self._folder = gpus, limit, follows, folder
        self._wants = share(have, gpus)
        self._known = self._useful(have)
        self._seats: list[Seat] = []
        self._nobody_since: float | None = None
        self._told: list[str] = []

    def fill(self, count: int, *, first: bool = False) -> None:
        """Ask for actors until there are so many seats."""
        while len(self._seats) < min(count, self._limit):
            self._seats.append(self._seat(first))

    def _seat(self, first: bool) -> Seat:
        return Seat(*self._make(self._wants), self._wants, time.monotonic(), first)

    def measure(self, have: Sequence[Node]) -> None:
        """Take note of what a worker may ask for on the nodes that there are now."""
        self._wants = share(have, self._gpus)

    def __len__(self) -> int:
        return len(self._seats)

    def live(self) -> Collection[int]:
        """Slots whose worker has started."""
        return [slot for slot, seat in enumerate(self._seats) if seat.hello is not None]

    def actor(self, slot: int) -> Any:
        """The actor of a slot."""
        return self._seats[slot].actor

    def hellos(self) -> list[Hello]:
        """What the workers said that have started."""
        return [seat.hello for seat in self._seats if seat.hello is not None]

    def unanswered(self) -> dict[Any, int]:
        """References to the hellos of workers that have not started -> slot."""
        return {s.answer: slot for slot, s in enumerate(self._seats) if s.hello is None and s.actor is not None}

    def replace(self, slot: int) -> None:
        """End a worker, also one that only cannot be reached, and ask for another one."""
        old = self._seats[slot]
        ray.kill(old.actor)
        new = self._seat(first=False)
        new.failures = old.failures if old.hello is None else 0
        self._seats[slot] = new

    def greet(self, slot: int) -> None:
        """Take a worker's hello.

        Raises:
            InputError: It was there from the start and does not see the run folder; or no worker starts at all.
        """
        seat = self._seats[slot]
        try:
            hello: Hello = ray.get(seat.answer)
        except RayError as error:
            self._stillborn(slot, str(error).strip().splitlines()[-1])
            return
        if hello.shared and seat.share.cpus > self._wants.cpus:
            # It waited for a node, and got one with fewer cores a worker than it asked for: others lack them.
            self.replace(slot)
            return
        if hello.shared:
            seat.hello = hello
            return
        place = f"is not seen by the worker on node {hello.node[:8]}, or is another folder there"
        if seat.first:
            step = "Give --out a folder on a file system that all nodes have mounted at the same place."
            raise InputError.one("out", self._folder, place, step)
        self._give_up(slot, f"the run folder {place}: that worker is not used")

    def _stillborn(self, slot: int, why: str) -> None:
        seat = self._seats[slot]
        seat.failures += 1
        if seat.failures < FAILURES:
            self.replace(slot)
        elif self.live():
            self._give_up(slot, f"a worker failed to start {FAILURES} times and is given up ({why})")
        else:
            step = "See that every node has the same autopeft, and memory and disk left; try `autopeft doctor` there."
            raise InputError.one("workers", len(self._seats), f"no worker starts: {why}", step)

    def _give_up(self, slot: int, text: str) -> None:
        seat = self._seats[slot]
        ray.kill(seat.actor)
        seat.actor = seat.hello = None
        self._told.append(text)

    def count(self, have: Sequence[Node], told: int, busy: Collection[int]) -> Resized | None:
        """How many jobs can run at a time now, if that is not what was told before.

        Args:
            have: The nodes of the cluster now.
            told: The number of slots until now.
            busy: Slots with a job: what becomes of their workers is seen by the job.

        Raises:
            AutopeftError: There has been no worker for too long.
        """
        self.measure(have)
        held = sum(room(have, self._wants))
        now, alive = time.monotonic(), {node.id for node in have}
        for slot, seat in enumerate(self._seats):
            gone = seat.hello is not None and seat.hello.node not in alive and slot not in busy
            waits = seat.hello is None and seat.actor is not None and seat.share.cpus > self._wants.cpus
            if gone or waits:
                self.replace(slot)
        if self._follows:
            given_up = sum(seat.actor is None for seat in self._seats)
            self.fill(held + given_up)
        live = len(self.live())
        young = sum(s.hello is None and s.actor is not None and now - s.born < START_SECONDS for s in self._seats)
        self._watch(live, held, now)
        slots = max(1, min(max(live, held), live + young))
        useful = self._useful(have)
        lost, came, self._known = self._known - useful, useful - self._known, useful
        if slots == told and not self._told:
            return None
        cause = self._told
        if slots != told:
            cause = [*cause, _cause(len(lost), len(came)), f"{slots} workers now, {told} before"]
        self._told = []
        return Resized(slots, "; ".join(text for text in cause if text) + ".")

    def _useful(self, have: Sequence[Node]) -> frozenset[str]:
        """Nodes with room for a worker."""
        held = room(have, self._wants)
        return frozenset(node.id for node, workers in zip(have, held, strict=True) if workers)

    def _watch(self, live: int, held: int, now: float) -> None:
        if live:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now
        elif now - self._nobody_since > NOBODY_SECONDS:
            raise AutopeftError(
                f"no worker was to be had for {NOBODY_SECONDS / 60:.0f} minutes (the cluster's nodes have room for "
                f"{held}). All that was computed is kept: --resume --out {self._folder} goes on with it."
            )

    def stop(self) -> None:
        """Kill all actors."""
        for seat in self._seats:
            if seat.actor is not None:
                ray.kill(seat.actor)
        self._seats = []


def _cause(gone: int, came: int) -> str:
    """What happened to the nodes."""
    parts = []
    if gone:
        parts.append(f"{gone} {'node was' if gone == 1 else 'nodes were'} lost")
    if came:
        parts.append(f"{came} {'node' if came == 1 else 'nodes'} joined")
    return " and ".join(parts)
