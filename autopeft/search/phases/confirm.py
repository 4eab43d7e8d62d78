"""The third phase: the best of each arm is trained again with fresh seeds."""

from __future__ import annotations

from autopeft.executors import Wait
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
            return Evaluate("incumbent", state.rules.incumbent, "validation", "probe/incumbent.safetensors", rows=rows)
        for trial in list(state.held):
            return self._trainer.go_on(log.trials[trial])
        for arm, hash, seed in state.finals.pending(until_decided=state.rules.until_decided):
            if self._fits(hash):
                return self._trainer.begin(state.configuration(hash), arm, "confirm", seed, 0, slot)
        if state.running:
            return Wait()
        state.finals.decide()
        return None

    def _fits(self, hash: str) -> bool:
        """Whether a run ends in time; half of what is reserved for testing and saving may be lent to it."""
        state, end, until = self._state, self._state.division.deadline, self._state.division.confirm_until
        if end is None or until is None:
            return True
        expected = state.seconds(hash, state.final_rows(), final=True)
        return state.ledger.used + expected <= until + 0.5 * (end - until)
