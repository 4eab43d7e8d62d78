"""Jobs that train, and what becomes of them: common to exploring and confirming."""

from __future__ import annotations

from autopeft.executors import Lost
from autopeft.journal import TrialLog
from autopeft.search.division import COOLDOWN_SHARE
from autopeft.search.state import State
from autopeft.space.configuration import Configuration
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.strategy.jobs import Outcome, Purpose, Train
from autopeft.trial.pack_speed import pack_gain

ATTEMPTS = 3
"""How often a trial is started before it counts as failed."""


class Trainer:
    """Starts trials, takes them to their next rung, writes down what came of it. Final."""

    def __init__(self, state: State) -> None:
        self._state = state

    def begin(
        self, configuration: Configuration, arm: ArmName, purpose: Purpose, seed: int, index: int, slot: int
    ) -> Train:
        """The first job of a new trial."""
        log = self._state.ledger.log
        trial = f"t{len(log.trials):04d}"
        self._state.ledger.write(
            "trial_started",
            trial=trial,
            hash=configuration.hash,
            arm=arm,
            purpose=purpose,
            seed=seed,
            index=index,
            slot=slot,
        )
        return self.go_on(log.trials[trial])

    def go_on(self, trial: TrialLog) -> Train:
        """The job that takes a trial to its next rung; what is no exploration runs in one piece."""
        state, whole = self._state, trial.purpose != "explore"
        rungs = state.division.rungs
        rung = len(rungs) - 1 if whole else len(trial.rungs)
        final = rung == len(rungs) - 1
        rows_to = state.final_rows() if trial.purpose == "confirm" else rungs[rung]
        state.held.pop(trial.id, None)
        latency = trial.rows == 0 and self._measures_latency(trial)
        expected = state.seconds(trial.hash, rows_to - trial.rows, final=final)
        if latency:
            expected += state.latency_seconds()
        # The first of an arm is trained whatever the time, for there is nothing without it.
        bounded = trial.purpose != "confirm" and bool(state.ledger.log.index.standings(trial.arm, "explore"))
        until = state.explore_limit() if bounded else None
        limit = state.time_limit(expected, until=until)
        return Train(
            trial=trial.id,
            configuration=state.configuration(trial.hash),
            seed=trial.seed,
            rows_from=trial.rows,
            rows_to=rows_to,
            warmup_rows=state.division.warmup_rows,
            cooldown_rows=round(COOLDOWN_SHARE * rows_to) if final else 0,
            rung=rung,
            folder=f"trials/{trial.id}",
            head=state.head,
            evaluate_rows=state.division.final_evaluated if final else state.division.rung_evaluated,
            final=final,
            time_limit=limit,
            execution=state.execution(trial.hash),
            latency=latency,
            # It is that of the configuration, whatever the seed: what kept the limit is not refused by chance later.
            latency_limited=state.ledger.log.latency(trial.hash) is None,
            cut=limit < state.time_limit(expected),
        )

    def _measures_latency(self, trial: TrialLog) -> bool:
        """Whether its latency is measured: of what it concerns once, and of finalists every time where it is the cost.

        What finalists were chosen by may have been luck.
        """
        rules = self._state.rules
        if trial.purpose == "confirm" and rules.cost == "latency":
            return True
        if not (rules.latency_of_all or trial.purpose == "confirm"):
            return False
        runs = self._state.ledger.log.of_configuration(trial.hash)
        # Another run may be about to. Only earlier ones: after a resume several run anew, and one of them must do it.
        earlier = runs[: [run.id for run in runs].index(trial.id)]
        return not any(run.status == "running" and run.purpose == trial.purpose for run in earlier) and not any(
            rung.latency for run in runs for rung in run.rungs
        )

    def took(self, slot: int, job: Train, outcome: Outcome, *, together: int = 1) -> None:
        """Note the outcome of a job, and judge the trial.

        Args:
            slot: Where it ran.
            job: The job.
            outcome: What became of it.
            together: Trials that were trained at once there.
        """
        state, write = self._state, self._state.ledger.write
        limit = state.rules.budget.max_memory
        if outcome.status != "ok":
            cut = outcome.reason == "timeout" and job.cut and bool(state.ledger.log.trials[job.trial].rungs)
            write(
                "trial_ended",
                trial=job.trial,
                # What it reached before is as good as ever where only the exploration was over.
                status="stopped" if cut else outcome.status,
                reason=outcome.reason,
                detail=outcome.detail,
                seconds=outcome.seconds,
                # Of a lack of memory: how far it got.
                measured=outcome.values.get("measured", outcome.peak_bytes),
            )
            if outcome.reason == "oom" and outcome.peak_bytes is not None:
                state.field.measured(job.configuration, outcome.peak_bytes, job.execution)
            return
        write(
            "rung",
            trial=job.trial,
            rung=job.rung,
            rows=job.rows_from + outcome.rows,
            metrics=outcome.metrics,
            loss=outcome.loss,
            losses=outcome.losses,
            seconds=outcome.seconds,
            train_seconds=outcome.train_seconds,
            evaluate_seconds=outcome.evaluate_seconds,
            peak_bytes=outcome.peak_bytes,
            outputs=outcome.outputs,
            adapter=outcome.adapter,
            sha256=outcome.sha256,
            head_params=outcome.values["head_params"],
            latency=outcome.values.get("latency"),
            together=together,
            states=outcome.values.get("states"),
        )
        state.field.costs.observe(
            job.configuration,
            outcome.rows,
            outcome.train_seconds * pack_gain(state.pack_speeds, together),
            execution=job.execution,
            looked_up=state.ledger.log.trials[job.trial].rungs[-1].looked_up,
        )
        self._note_latency(job, outcome)
        if limit is not None and outcome.peak_bytes is not None and outcome.peak_bytes > limit:
            detail = f"{outcome.peak_bytes:,} bytes were measured, above the limit of {limit:,}"
            write("trial_ended", trial=job.trial, status="infeasible", reason="max_memory", detail=detail)
        elif job.final:
            write("trial_ended", trial=job.trial, status="completed", reason="trained in full", detail=None)
        else:
            self._judge(slot, state.ledger.log.trials[job.trial])

    def _note_latency(self, job: Train, outcome: Outcome) -> None:
        """Say so where a finalist that kept the limit on latency did not when it was measured anew."""
        limit, ratios = self._state.rules.budget.max_latency_overhead, outcome.values.get("latency")
        if limit is None or job.latency_limited or not ratios or max(ratios.values()) <= limit:
            return
        told = f"{max(ratios.values()):.3f} times the bare base's when it was measured anew"
        self._state.ledger.note(
            f"A finalist's forward pass took {told}, above the limit of {limit:g} that it had kept."
        )

    def lost(self, job: Train, lost: Lost, share: float = 1.0) -> None:
        """The worker died: the trial goes on from its last rung, unless it has died too often.

        Args:
            job: The job.
            lost: What happened to its worker.
            share: The trial's share of what the worker did.
        """
        ledger = self._state.ledger
        trial = ledger.log.trials[job.trial]
        seconds = share * (ledger.used - self._state.began[lost.slot])
        if trial.attempts >= ATTEMPTS:
            detail = f"{lost.reason}; given up after {trial.attempts} attempts"
            ledger.write("trial_ended", trial=job.trial, status="failed", reason="lost", detail=detail, seconds=seconds)
            return
        ledger.write("retried", trial=job.trial, reason=lost.reason, attempt=trial.attempts + 1, seconds=seconds)
        self._state.held[job.trial] = lost.slot

    def take_up(self, trial: TrialLog) -> None:
        """A trial that was running when the last session ended.

        What its last rung still lacked in the journal is added; else it goes on from there.
        """
        write, last = self._state.ledger.write, len(self._state.division.rungs) - 1
        if trial.rungs and trial.rungs[-1].rung == last:
            write("trial_ended", trial=trial.id, status="completed", reason="trained in full", detail=None)
        elif trial.rungs and len(trial.decisions) < len(trial.rungs):
            self._judge(0, trial)
        else:
            self._state.held[trial.id] = 0

    def _judge(self, slot: int, trial: TrialLog) -> None:
        state = self._state
        arm = next(arm for name, arm in state.field.arms.items() if name == trial.arm)
        with state.ledger.meter.of("judge"):
            decision = arm.judge(trial, state.ledger.log, len(state.division.rungs))
        rung = trial.rungs[-1].rung
        state.ledger.write("decision", trial=trial.id, rung=rung, action=decision.action, reason=decision.reason)
        if decision.action == "stop":
            state.ledger.write("trial_ended", trial=trial.id, status="stopped", reason=decision.reason, detail=None)
        elif decision.action == "continue":
            state.held[trial.id] = slot
