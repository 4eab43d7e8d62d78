"""The third phase: the best of each arm is trained again with fresh seeds."""

from __future__ import annotations

from autopeft.executors import Wait
from autopeft.search.division import CONFIRM_SHARE, EXPLORE_SHARE
from autopeft.search.finals import makespan
from autopeft.search.phases.train import Trainer
from autopeft.search.state import State
from autopeft.strategy.jobs import Evaluate, Job


class Confirm:
    """Ends with the verdict. Final."""

    def __init__(self, state: State, trainer: Trainer) -> None:
        self._state = state
        self._trainer = trainer

    def next(self, slot: int) -> Job | Wait | None:
        """A finalist's run, or the incumbent's evaluation; None when the verdict has just been written."""
        state, log = self._state, self._state.ledger.log
        if state.rules.incumbent is not None and "incumbent" not in log.probes and not state.evaluating("incumbent"):
            rows = state.division.final_evaluated
            outputs = "probe/incumbent.safetensors"
            limit = state.time_limit(state.evaluation_seconds(rows))
            return Evaluate("incumbent", state.rules.incumbent, "validation", outputs, rows=rows, time_limit=limit)
        for trial in list(state.held):
            if self._fits(log.trials[trial].hash):
                return self._trainer.go_on(log.trials[trial])
            del state.held[trial]
            reason = "there was no time left to run it again"
            state.ledger.write("trial_ended", trial=trial, status="stopped", reason=reason, detail=None)
        pending = state.finals.pending(until_decided=state.rules.until_decided)
        if state.division.confirm_until is not None and not state.rules.until_decided:
            # The longest first: so it was planned, and so all of them end soonest. The front comes after the finalists.
            front = set(state.finals.front())
            pending.sort(key=lambda run: (run[1] in front, -self._seconds(run[1])))
        for arm, hash, seed in pending:
            if self._fits(hash):
                return self._trainer.begin(state.configuration(hash), arm, "confirm", seed, 0, slot)
        # As many free workers as a round has runs: it takes no time from anything.
        idle = state.slots - len(state.running) >= len(state.finals.hashes())
        further = None if pending or state.rules.until_decided else state.finals.further_seed(idle=idle)
        if further is not None and self._round_fits():
            # Time is left: one more seed for both, whatever the seeds before have shown.
            state.finals.extend(further)
            return None
        if state.running:
            return Wait(everyone=True)
        state.finals.decide()
        return None

    def _fits(self, hash: str) -> bool:
        """Whether a run ends in time; half of what is reserved for testing and saving may be lent to it."""
        state = self._state
        known = state.rules.latency_of_all or state.ledger.log.latency(hash)
        once = 0.0 if known else state.latency_seconds()
        return self._ends_in_time([self._seconds(hash) + once], slack=0.5)

    def _round_fits(self) -> bool:
        """Whether one more run of every finalist ends in time."""
        return self._ends_in_time([self._seconds(hash) for hash in self._state.finals.hashes()], slack=0.0)

    def _seconds(self, hash: str) -> float:
        return self._state.confirm_seconds(hash, self._state.final_rows())

    def _ends_in_time(self, seconds: list[float], slack: float) -> bool:
        state, end, until = self._state, self._state.division.deadline, self._state.division.confirm_until
        if not state.affords(sum(seconds), EXPLORE_SHARE + CONFIRM_SHARE):
            return False
        if end is None or until is None:
            # Without a clock the planned seeds are all there is; with planned ones pending there is no slack to ask.
            return slack > 0
        return state.ledger.used + makespan(seconds, state.slots) <= until + slack * (end - until)
