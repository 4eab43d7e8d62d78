"""The second phase: both arms climb the rungs."""

from __future__ import annotations

from autopeft.errors import AutopeftError
from autopeft.executors import Wait
from autopeft.journal import TrialLog
from autopeft.search.arms import Arm
from autopeft.search.binding import nothing_feasible
from autopeft.search.division import EXPLORE_SHARE
from autopeft.search.phases.simplify import Simplify
from autopeft.search.phases.train import Trainer
from autopeft.search.state import State
from autopeft.space.execution import PLAIN
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.strategy.jobs import Train

HOPELESS_TRIALS = 3


class Explore:
    """Ends when the finalists are named, or the challenger's parts are put to the test. Final."""

    def __init__(self, state: State, trainer: Trainer, simplify: Simplify) -> None:
        self._state = state
        self._trainer = trainer
        self._simplify = simplify
        self._until_at: tuple[int, float | None] = (-1, None)

    def next(self, slot: int) -> Train | Wait | None:
        """A trial that goes on, a promoted one, or a new one; None when that has just been written."""
        state = self._state
        if not self._over():
            trial = self._held(slot) or self._promoted()
            if trial is not None:
                return self._trainer.go_on(trial)
            for arm in self._arms_by_need():
                job = self._start(arm, slot)
                if job is not None:
                    return job
            trial = self._best_paused()
            if trial is not None:
                return self._trainer.go_on(trial)
        if state.running:
            return Wait(everyone=True)
        self._close()
        return None

    def _held(self, slot: int) -> TrialLog | None:
        """A trial that goes on anyway; the one whose model is resident on this slot first."""
        state = self._state
        for trial, _ in sorted(state.held.items(), key=lambda item: item[1] != slot):
            if self._fits(state.ledger.log.trials[trial]):
                return state.ledger.log.trials[trial]
        return None

    def _promoted(self) -> TrialLog | None:
        """A paused trial that deserves its next rung now."""
        state = self._state
        for arm in self._arms_by_need():
            with state.ledger.meter.of("judge"):
                trial = arm.promote(state.ledger.log, len(state.division.rungs))
            if trial is not None and trial not in state.training() and self._fits(state.ledger.log.trials[trial]):
                return state.ledger.log.trials[trial]
        return None

    def _start(self, arm: Arm, slot: int) -> Train | None:
        """The first job of a new trial, while there is time for one and it may be started."""
        state, log, division = self._state, self._state.ledger.log, self._state.division
        started = log.index.started["explore"]
        first_rung = division.rungs[0] * division.speed.train + state.limited_seconds()
        if not state.affords(first_rung, EXPLORE_SHARE) and self._every_arm_tried():
            return None
        if arm.exhausted or (division.max_trials is not None and started >= division.max_trials):
            return None
        until = self.until()
        if until is not None and arm.trials(log) and state.ledger.used + first_rung > until:
            return None
        with state.ledger.meter.of("ask"):
            proposal = arm.propose(state.ledger, division.confirm_until)
        if proposal is None:
            return None
        configuration = proposal.configuration
        state.ledger.write(
            "configuration",
            hash=configuration.hash,
            configuration=configuration.to_dict(),
            values=dict(proposal.values),
            adapter_params=proposal.adapter_params,
            arm=arm.name,
            predicted_bytes=proposal.fit.bytes,
            predicted_exactly=proposal.fit.exact,
            execution=None if proposal.fit.execution in (None, PLAIN) else proposal.fit.execution.to_dict(),
        )
        seed = state.rules.seed + proposal.index
        return self._trainer.begin(configuration, arm.name, "explore", seed, proposal.index, slot)

    def _best_paused(self) -> TrialLog | None:
        """Nothing new can start: the best paused trial of an arm in which none was trained in full yet."""
        log, full, training = self._state.ledger.log, len(self._state.division.rungs), self._state.training()
        for arm in self._state.field.arms.values():
            trials = arm.trials(log)
            if any(len(t.rungs) == full or t.id in training for t in trials):
                continue
            paused = [trial for trial in trials if trial.status == "paused" and self._fits(trial)]
            if paused:
                return max(paused, key=lambda t: (len(t.rungs), t.rungs[-1].metrics[log.rung_metric]))
        return None

    def until(self) -> float | None:
        """Seconds used at which exploration ends: earlier where the challenger's parts can be put to the test."""
        seq = self._state.ledger.log.seq
        if self._until_at[0] != seq:
            # It follows from the journal, and is asked for many times between two records.
            until = self._state.explore_until()
            self._until_at = (seq, None if until is None else until - self._simplify.reserve())
        return self._until_at[1]

    def _over(self) -> bool:
        """Whether the time for exploring is used, and every arm has had at least one trial."""
        until = self.until()
        if until is None or self._state.ledger.used < until:
            return False
        return self._every_arm_tried()

    def _every_arm_tried(self) -> bool:
        log = self._state.ledger.log
        arms = self._state.field.arms.values()
        return all(arm.exhausted or any(t.rungs or t.ended is not None for t in arm.trials(log)) for arm in arms)

    def _arms_by_need(self) -> list[Arm]:
        """Tuned LoRA first while it has had less than its share of the exploration."""
        state, arms, log = self._state, self._state.field.arms, self._state.ledger.log
        if "baseline" not in arms or "space" not in arms:
            return list(arms.values())
        seconds: dict[str, float] = {name: arm.seconds(log) + state.expected(name) for name, arm in arms.items()}
        tried = arms["baseline"].trials(log)
        # LoRA that never gets anywhere is cheap, and must not use up the trials of the space.
        hopeless = len(tried) >= HOPELESS_TRIALS and not any(trial.rungs for trial in tried)
        behind = seconds["baseline"] < state.division.baseline_share * sum(seconds.values()) and not hopeless
        order: tuple[ArmName, ArmName] = ("baseline", "space") if behind else ("space", "baseline")
        return [arms[name] for name in order]

    def _fits(self, trial: TrialLog) -> bool:
        """Whether a trial's next rung ends before exploration does."""
        state, until = self._state, self.until()
        if not trial.rungs:
            return True
        rungs = state.division.rungs
        final = len(trial.rungs) == len(rungs) - 1
        seconds = state.seconds(trial.hash, rungs[len(trial.rungs)] - trial.rows, final=final)
        in_time = until is None or state.ledger.used + seconds <= until
        return in_time and state.affords(seconds, EXPLORE_SHARE)

    def _close(self) -> None:
        """Nothing more fits: end what is open, and name the finalists or put the challenger's parts to the test.

        Raises:
            NothingFeasible: Everything tried broke a limit.
            AutopeftError: No trial reached a rung.
        """
        state, log = self._state, self._state.ledger.log
        state.held.clear()
        for trial in list(log.trials.values()):
            if trial.ended is None:
                reason = f"exploration ended at rung {len(trial.rungs) - 1}" if trial.rungs else "exploration ended"
                state.ledger.write("trial_ended", trial=trial.id, status="stopped", reason=reason, detail=None)
        if not state.finals.candidates():
            self._fail()
        if not self._simplify.begin():
            state.name_finalists()

    def _fail(self) -> None:
        """Say why nothing was trained: limits that nothing meets, or faults."""
        state, log = self._state, self._state.ledger.log
        arms = state.field.arms.values()
        infeasible = nothing_feasible(log, lambda: [a.least_bytes() for a in arms], state.rules.budget.max_memory)
        if infeasible is not None:
            raise infeasible
        first = next((trial for trial in log.trials.values() if trial.detail), None)
        why = f" The first: {first.reason}: {first.detail}" if first else ""
        causes = ", ".join(f"{number} {status}" for status, number in log.counts.items() if number)
        raise AutopeftError(f"no trial reached a rung ({causes}).{why}")
