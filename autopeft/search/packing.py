"""Which jobs one worker does together.

A phase hands out one job at a time, as it always does; while exploring, a slot goes on asking until its pack is full.
What cannot be packed is put by for the next free slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autopeft.executors import Done, Lost, Wait
from autopeft.search.division import EXPLORE_SHARE
from autopeft.search.phases.train import Trainer
from autopeft.search.state import State
from autopeft.strategy.jobs import Job, Outcome, Pack, Train
from autopeft.trial.pack_speed import LARGEST, best_size, pack_gain
from autopeft.trial.packs import can_pack

__all__ = ["Packer"]


class Packer:
    """Fills packs, and takes them apart again when they end. Final.

    Args:
        state: Where the search stands.
        trainer: Notes what became of each member.
    """

    def __init__(self, state: State, trainer: Trainer) -> None:
        self._state = state
        self._trainer = trainer
        self._most: int | None = None

    @property
    def size(self) -> int:
        """Members of a full pack now; 1 is no pack."""
        wanted = self._state.rules.pack
        if wanted == "off" or not self._state.divided:
            return 1
        size = best_size(self._state.pack_speeds, LARGEST) if wanted == "auto" else int(wanted)
        return size if self._most is None else min(size, self._most)

    def put_by(self) -> Train | None:
        """A job that is waiting for a slot."""
        return self._state.put_by.pop(0) if self._state.put_by else None

    def fill(self, first: Train, slot: int, until: float | None, ask: Callable[[], Job | Wait | Done]) -> Train | Pack:
        """The job of a slot: a pack around a job where there is more that goes with it.

        Args:
            first: What the slot would do.
            slot: The slot.
            until: Seconds used at which exploration ends, or None.
            ask: The next job that the slot would get.
        """
        state, members = self._state, [first]
        if not self._joins(first):
            return first
        while len(members) < self.size and self._affords(members, until):
            # The phases must see what was handed out already.
            state.occupy(slot, Pack(tuple(members)))
            job = ask()
            if not isinstance(job, Train):
                break
            if not self._joins(job) or not state.field.pack_fits([m.configuration for m in (*members, job)]):
                state.put_by.append(job)
                break
            members.append(job)
        state.release(slot)
        if len(members) == 1:
            return first
        return Pack(tuple(members), state.time_limit(self._seconds(members), until=state.explore_limit()))

    def took(self, slot: int, pack: Pack, outcome: Outcome) -> None:
        """Note what became of each member; after a lack of memory packs are smaller."""
        if outcome.values.get("reason") == "oom" or outcome.reason == "oom":
            self._most = max(1, len(pack.members) // 2)
            text = f"{len(pack.members)} trials together did not fit into memory; from now on at most {self._most}"
            self._state.ledger.note(text)
        ends = outcome.members or tuple(
            replace(outcome, job=job, seconds=outcome.seconds / len(pack.members)) for job in pack.members
        )
        for end in ends:
            if isinstance(end.job, Train):
                self._trainer.took(slot, end.job, end, together=len(pack.members))

    def lost(self, lost: Lost, pack: Pack) -> None:
        """The worker died: every member goes on from its last rung, alone (`_joins`)."""
        for job in pack.members:
            self._trainer.lost(job, lost, share=1 / len(pack.members))

    def _joins(self, job: Train) -> bool:
        # A trial whose worker died with it is not to take others along.
        return can_pack(job) and self._state.ledger.log.trials[job.trial].attempts == 1

    def _affords(self, members: list[Train], until: float | None) -> bool:
        """Whether there is time and compute for one more, of a first rung's size."""
        state = self._state
        more = self._seconds(members) + state.division.rungs[0] * state.division.speed.train + state.limited_seconds()
        in_time = until is None or state.ledger.used + more <= until
        return in_time and state.affords(more, EXPLORE_SHARE)

    def _seconds(self, members: list[Train]) -> float:
        """Expected seconds of a pack."""
        state, gain = self._state, pack_gain(self._state.pack_speeds, len(members))
        trained = sum(
            state.seconds(job.configuration.hash, job.rows_to - job.rows_from, final=job.final) for job in members
        )
        # Latency is measured of one after the other, before they are trained.
        return trained / max(1.0, gain) + state.latency_seconds() * sum(job.latency for job in members)
