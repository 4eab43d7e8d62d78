"""The one loop of a search, as a passive state machine over the journal.

What happens next follows from the journal alone, so that a search which is taken up again goes on where it was:

    probe     which head, how good the untouched base is, how fast the workers are
    explore   both arms climb the rungs
    confirm   the best of each arm is trained again with fresh seeds
    test      the test rows are read once
    done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autopeft.cost.time import StepCosts
from autopeft.errors import AutopeftError, NothingFeasible
from autopeft.executors import Done, Event, Lost, Progressed, Wait
from autopeft.journal import TrialLog
from autopeft.search.arms import Arm
from autopeft.search.confirm import Finals
from autopeft.search.division import COOLDOWN_SHARE, Division, Speed, divide
from autopeft.search.ledger import Ledger
from autopeft.space.configuration import Configuration
from autopeft.space.modules import ModuleMap
from autopeft.spec import Budget
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Probe, Purpose, Train
from autopeft.trial.setup import Progress

Phase = Literal["probe", "explore", "confirm", "test", "done"]
ATTEMPTS = 3
"""How often a trial is started before it counts as failed."""
TEST_SHARE, MIN_TEST_ROWS = 0.7, 100
"""Share of the time left that reading the test rows may take."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What stays fixed over a search, apart from the spaces.

    Attributes:
        budget: The limits.
        evidence: How much of the budget goes to certainty.
        until_decided: Whether the search ends as soon as the verdict is settled.
        heads: Heads to choose from.
        train_rows: Rows of the training split.
        validation_rows: Rows of the validation split.
        test_rows: Rows of the test split.
        test_hash: Checksum of the test rows.
        incumbent: Folder of the adapter in use today, or None.
        seed: Seed of exploration.
    """

    budget: Budget
    evidence: str
    until_decided: bool
    heads: tuple[str, ...]
    train_rows: int
    validation_rows: int
    test_rows: int
    test_hash: str
    incumbent: str | None
    seed: int


@dataclass(frozen=True, slots=True)
class Field:
    """The arms of a search on the model under its head.

    Attributes:
        modules: The module map.
        arms: By name, in the order of precedence.
        costs: Learned step costs.
    """

    modules: ModuleMap
    arms: Mapping[ArmName, Arm]
    costs: StepCosts


class Controller:
    """Decides what every worker does next. Nothing here blocks. Final.

    Args:
        ledger: Journal and fold.
        rules: What is fixed.
        field: `(head, costs of a LoRA step) -> Field`: binds the arms once the head is known.
        slots: Workers.
        on_tick: Called by `tick`.
    """

    def __init__(
        self,
        ledger: Ledger,
        rules: Rules,
        field: Callable[[str, Speed], Field],
        *,
        slots: int,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.ledger = ledger
        self.rules = rules
        self.slots = slots
        self.running: dict[int, Job] = {}
        self.progress: dict[int, Progress] = {}
        self._make_field = field
        self._field: Field | None = None
        self._on_tick = on_tick
        self._speeds: list[Speed] = []
        self._asked_speed: set[int] = set()
        self._stopping = False
        self._held: dict[str, int] = {}
        self._tested_rows: int | None = None
        self._division: Division | None = None
        if ledger.log.plan:
            self._division = Division.from_dict(ledger.log.plan)
            self._take_up()

    # What executors ask.

    def next(self, slot: int) -> Job | Wait | Done:
        """What the free slot does now."""
        answer = self._next(slot)
        if not isinstance(answer, Wait | Done):
            self.running[slot] = answer
            self.progress.pop(slot, None)
        return answer

    def on_event(self, event: Event) -> None:
        """Take note of what happened."""
        if isinstance(event, Progressed):
            self.progress[event.slot] = event.progress
            return
        self.running.pop(event.slot, None)
        self.progress.pop(event.slot, None)
        if isinstance(event, Lost):
            self._lost(event)
            return
        outcome = event.outcome
        match outcome.job:
            case Train():
                self._trained(event.slot, outcome.job, outcome)
            case Probe():
                self._probed(outcome.job, outcome)
            case Evaluate():
                self._evaluated(outcome.job, outcome)

    def tick(self) -> None:
        """Called at least once a second while jobs run."""
        self._on_tick()

    def stop(self) -> None:
        """Start nothing more."""
        self._stopping = True

    # Where the search stands.

    @property
    def phase(self) -> Phase:
        """Follows from the journal."""
        log = self.ledger.log
        if self._division is None:
            return "probe"
        if log.finalists is None:
            return "explore"
        if log.verdict is None:
            return "confirm"
        return "test" if self._tests_left() else "done"

    @property
    def division(self) -> Division:
        """How the budget is divided; known after the probes."""
        if self._division is None:
            raise AutopeftError("the budget is divided only after the workers' speed is known")
        return self._division

    @property
    def field(self) -> Field:
        """The arms; known after the head."""
        if self._field is None:
            probes, speed = self.ledger.log.probes, self._division.speed if self._division else Speed(1.0, 1.0)
            self._field = self._make_field(str(probes["heads"]["head"]), speed)
            self._learn()
        return self._field

    @property
    def head(self) -> str:
        """The head on top, chosen by the probe."""
        return str(self.ledger.log.probes["heads"]["head"])

    def configuration(self, hash: str) -> Configuration:
        """A configuration by its hash."""
        return Configuration.from_dict(self.ledger.log.configurations[hash].configuration)

    # Phases.

    def _next(self, slot: int) -> Job | Wait | Done:
        if self._stopping:
            return Done()
        match self.phase:
            case "probe":
                return self._probe(slot)
            case "explore":
                return self._explore(slot)
            case "confirm":
                return self._confirm(slot)
            case "test":
                return self._test(slot)
            case "done":
                return Done()

    def _probe(self, slot: int) -> Job | Wait:
        if "heads" not in self.ledger.log.probes:
            return Wait() if self.running else Probe("heads", self.rules.heads)
        if slot not in self._asked_speed:
            # All workers at once: they share the machine later, too.
            if len(self._asked_speed) == 0 and self.running:
                return Wait()
            self._asked_speed.add(slot)
            return Probe("speed", (self.head,))
        return Wait()

    def _probed(self, job: Probe, outcome: Outcome) -> None:
        if outcome.status != "ok":
            raise AutopeftError(f"the {job.kind} probe ended {outcome.status} ({outcome.reason}): {outcome.detail}")
        if job.kind == "heads":
            values = {**outcome.values, "metrics": outcome.metrics, "outputs": outcome.outputs}
            self.ledger.write("probe", kind="heads", values=values, seconds=outcome.seconds)
            return
        values = outcome.values
        self._speeds.append(Speed(values["train_seconds_per_row"], values["evaluate_seconds_per_row"]))
        if len(self._speeds) < self.slots:
            return
        speed = Speed(max(s.train for s in self._speeds), max(s.evaluate for s in self._speeds))
        self.ledger.write(
            "probe", kind="speed", values={"train": speed.train, "evaluate": speed.evaluate}, seconds=outcome.seconds
        )
        self._field = self._make_field(self.head, speed)
        strategy = next(iter(self._field.arms.values())).strategy
        self._division = divide(
            self.rules.budget,
            used=self.ledger.used,
            workers=self.slots,
            speed=speed,
            train_rows=self.rules.train_rows,
            validation_rows=self.rules.validation_rows,
            evidence=self.rules.evidence,
            rungs=strategy.rungs,
            eta=strategy.eta,
            finalists=len(self._field.arms),
        )
        self.ledger.write("plan", **self._division.to_dict(), started=self.ledger.used)

    def _explore(self, slot: int) -> Job | Wait | Done:
        log = self.ledger.log
        if not self._explore_over():
            held = [trial for trial, at in self._held.items() if at == slot] or list(self._held)
            for trial in held:
                if self._fits(log.trials[trial]):
                    del self._held[trial]
                    return self._continue(log.trials[trial])
            for arm in self._arms_by_need():
                promoted = arm.promote(log, len(self.division.rungs))
                if promoted is not None and promoted not in self._busy() and self._fits(log.trials[promoted]):
                    return self._continue(log.trials[promoted])
                job = self._start(arm, slot)
                if job is not None:
                    return job
            paused = self._best_paused()
            if paused is not None:
                return self._continue(paused)
        if self.running:
            return Wait()
        self._close_exploration()
        return self._next(slot)

    def _best_paused(self) -> TrialLog | None:
        """Nothing new can start: the best paused trial of an arm in which none was trained in full yet."""
        log, full = self.ledger.log, len(self.division.rungs)
        for arm in self.field.arms.values():
            trials = arm.trials(log)
            if any(len(t.rungs) == full or t.id in self._busy() for t in trials):
                continue
            paused = [t for t in trials if t.status == "paused" and self._fits(t)]
            if paused:
                return max(paused, key=lambda t: (len(t.rungs), t.rungs[-1].metrics[log.rung_metric]))
        return None

    def _explore_over(self) -> bool:
        until = self.division.explore_until
        return until is not None and self.ledger.used >= until and self._every_arm_tried()

    def _every_arm_tried(self) -> bool:
        log = self.ledger.log
        return all(
            arm.exhausted or any(t.rungs or t.ended is not None for t in arm.trials(log))
            for arm in self.field.arms.values()
        )

    def _arms_by_need(self) -> list[Arm]:
        """Tuned LoRA first while it has had less than its share of the exploration."""
        arms, log = self.field.arms, self.ledger.log
        if "baseline" not in arms or "space" not in arms:
            return list(arms.values())
        seconds = {name: arm.seconds(log) for name, arm in arms.items()}
        for job in self.running.values():
            if isinstance(job, Train):
                seconds[log.trials[job.trial].arm] += self._seconds(job.configuration, job.rows_to - job.rows_from)  # type: ignore[index]
        behind = seconds["baseline"] < self.division.baseline_share * sum(seconds.values())
        order: tuple[ArmName, ArmName] = ("baseline", "space") if behind else ("space", "baseline")
        return [arms[name] for name in order]

    def _start(self, arm: Arm, slot: int) -> Train | None:
        log, division = self.ledger.log, self.division
        started = sum(t.purpose == "explore" for t in log.trials.values())
        if arm.exhausted or (division.max_trials is not None and started >= division.max_trials):
            return None
        until = division.explore_until
        first_rung = division.rungs[0] * division.speed.train
        if until is not None and arm.trials(log) and self.ledger.used + first_rung > until:
            return None
        proposal = arm.propose(self.ledger)
        if proposal is None:
            return None
        configuration = proposal.configuration
        self.ledger.write(
            "configuration",
            hash=configuration.hash,
            configuration=configuration.to_dict(),
            values=dict(proposal.values),
            adapter_params=proposal.adapter_params,
            arm=arm.name,
            predicted_bytes=proposal.predicted_bytes,
        )
        return self._begin(configuration, arm.name, "explore", self.rules.seed + proposal.index, proposal.index, slot)

    def _begin(
        self, configuration: Configuration, arm: ArmName, purpose: Purpose, seed: int, index: int, slot: int
    ) -> Train:
        trial = f"t{len(self.ledger.log.trials):04d}"
        self.ledger.write(
            "trial_started",
            trial=trial,
            hash=configuration.hash,
            arm=arm,
            purpose=purpose,
            seed=seed,
            index=index,
            slot=slot,
        )
        return self._continue(self.ledger.log.trials[trial])

    def _continue(self, trial: TrialLog) -> Train:
        """The job that takes a trial to its next rung."""
        division, confirm = self.division, trial.purpose == "confirm"
        rung = len(division.rungs) - 1 if confirm else len(trial.rungs)
        final = rung == len(division.rungs) - 1
        rows_to = self._final_rows() if confirm else division.rungs[rung]
        return Train(
            trial=trial.id,
            configuration=self.configuration(trial.hash),
            seed=trial.seed,
            rows_from=trial.rows,
            rows_to=rows_to,
            warmup_rows=division.warmup_rows,
            cooldown_rows=round(COOLDOWN_SHARE * rows_to) if final else 0,
            rung=rung,
            folder=f"trials/{trial.id}",
            head=self.head,
            evaluate_rows=division.final_evaluated if final else division.rung_evaluated,
            final=final,
            time_limit=self._time_limit(trial, rows_to - trial.rows),
        )

    def _time_limit(self, trial: TrialLog, rows: int) -> float | None:
        """Several times what is expected, and never past the end of the budget."""
        expected = self._seconds(self.configuration(trial.hash), rows)
        end = self.division.deadline
        patience = 30.0 + 5.0 * expected
        return patience if end is None else max(5.0, min(patience, end - self.ledger.used))

    def _trained(self, slot: int, job: Train, outcome: Outcome) -> None:
        write, limit = self.ledger.write, self.rules.budget.max_memory
        if outcome.status != "ok":
            write("trial_ended", trial=job.trial, status=outcome.status, reason=outcome.reason, detail=outcome.detail)
            return
        trial = self.ledger.log.trials[job.trial]
        write(
            "rung",
            trial=job.trial,
            rung=job.rung,
            rows=job.rows_from + outcome.rows,
            metrics=outcome.metrics,
            loss=outcome.loss,
            seconds=outcome.seconds,
            train_seconds=outcome.train_seconds,
            evaluate_seconds=outcome.evaluate_seconds,
            peak_bytes=outcome.peak_bytes,
            outputs=outcome.outputs,
            adapter=outcome.adapter,
            sha256=outcome.sha256,
            head_params=outcome.values["head_params"],
        )
        self.field.costs.observe(job.configuration, outcome.rows, outcome.train_seconds)
        if limit is not None and outcome.peak_bytes is not None and outcome.peak_bytes > limit:
            detail = f"{outcome.peak_bytes:,} live bytes were measured, above the limit of {limit:,}"
            write("trial_ended", trial=job.trial, status="infeasible", reason="max_memory", detail=detail)
        elif job.final:
            write("trial_ended", trial=job.trial, status="completed", reason="trained in full", detail=None)
        else:
            decision = self.field.arms[trial.arm].judge(trial, self.ledger.log, len(self.division.rungs))  # type: ignore[index]
            write("decision", trial=job.trial, rung=job.rung, action=decision.action, reason=decision.reason)
            if decision.action == "stop":
                write("trial_ended", trial=job.trial, status="stopped", reason=decision.reason, detail=None)
            elif decision.action == "continue":
                self._held[job.trial] = slot

    def _lost(self, event: Lost) -> None:
        job = event.job
        if not isinstance(job, Train):
            if isinstance(job, Probe):
                self._asked_speed.discard(event.slot)
            return
        trial = self.ledger.log.trials[job.trial]
        if trial.attempts >= ATTEMPTS:
            detail = f"{event.reason}; given up after {trial.attempts} attempts"
            self.ledger.write("trial_ended", trial=job.trial, status="failed", reason="lost", detail=detail)
            return
        self.ledger.write("retried", trial=job.trial, reason=event.reason, attempt=trial.attempts + 1)
        self._held[job.trial] = event.slot

    def _close_exploration(self) -> None:
        """Nothing more fits: name the finalists."""
        log, rungs = self.ledger.log, len(self.division.rungs)
        self._held.clear()
        for trial in list(log.trials.values()):
            if trial.ended is None:
                reason = f"exploration ended at rung {len(trial.rungs) - 1}" if trial.rungs else "exploration ended"
                self.ledger.write("trial_ended", trial=trial.id, status="stopped", reason=reason, detail=None)
        finals = Finals(self.ledger, self.division, tuple(self.field.arms))
        if not finals.candidates():
            causes = ", ".join(f"{n} {status}" for status, n in log.counts.items() if n)
            rejected = len([r for r in log.rejected if r["constraint"] == "max_memory"])
            if rejected and not any(trial.status == "failed" for trial in log.trials.values()):
                least = min(r["value"] for r in log.rejected if r["constraint"] == "max_memory")
                raise NothingFeasible(
                    "max_memory",
                    {"max_memory": least},
                    f"no configuration fits into max_memory; the smallest one tried needs {least:,} bytes",
                )
            first = next((t for t in log.trials.values() if t.detail), None)
            why = f" The first: {first.reason}: {first.detail}" if first else ""
            raise AutopeftError(f"no trial reached a rung ({causes}).{why}")
        finals.name(seconds=lambda hash, rows: self._seconds(self.configuration(hash), rows), rungs=rungs)

    def _confirm(self, slot: int) -> Job | Wait | Done:
        log = self.ledger.log
        finals = Finals(self.ledger, self.division, tuple(self.field.arms))
        if self.rules.incumbent is not None and "incumbent" not in log.probes and not self._evaluating("incumbent"):
            return Evaluate("incumbent", self.rules.incumbent, "validation", "probe/incumbent.safetensors")
        for trial in [trial for trial in self._held if log.trials[trial].purpose == "confirm"]:
            del self._held[trial]
            return self._continue(log.trials[trial])
        for arm, hash, seed in finals.pending(until_decided=self.rules.until_decided):
            if self._confirm_fits(hash):
                return self._begin(self.configuration(hash), arm, "confirm", seed, 0, slot)
        if self.running:
            return Wait()
        finals.decide()
        return self._next(slot)

    def _confirm_fits(self, hash: str) -> bool:
        until = self.division.confirm_until
        return (
            until is None
            or self.ledger.used + self._seconds(self.configuration(hash), self._final_rows()) <= until + self._slack()
        )

    def _slack(self) -> float:
        """Half of what is reserved for testing and saving may be lent to the finalists."""
        end, until = self.division.deadline, self.division.confirm_until
        return 0.0 if end is None or until is None else 0.5 * (end - until)

    def _test(self, slot: int) -> Job | Wait | Done:
        names = [name for name in self._tests_left() if not self._evaluating(name)]
        if not names:
            return Wait() if self.running else Done()
        folders = self._test_folders()
        if not self.ledger.log.test_opened:
            finals = Finals(self.ledger, self.division, tuple(self.field.arms))
            chosen = finals.chosen_run()
            self.ledger.write("test_opened", winner_sha256=chosen.rungs[-1].sha256, test_hash=self.rules.test_hash)
        name = names[0]
        return Evaluate(name, folders[name], "test", f"test/{name}.safetensors", rows=self._test_rows())

    def _test_rows(self) -> int | None:
        """Test rows that the time left allows; None for all. Said once, when it is not all."""
        end, log = self.division.deadline, self.ledger.log
        if end is None:
            return None
        if self._tested_rows is None:
            waves = -(-len(self._test_folders()) // self.slots)
            seconds = TEST_SHARE * max(0.0, end - self.ledger.used) / waves
            affordable = max(MIN_TEST_ROWS, int(seconds / self.division.speed.evaluate))
            self._tested_rows = min(affordable, self.rules.test_rows)
            if affordable < self.rules.test_rows:
                rows = f"{affordable:,} of {self.rules.test_rows:,} rows"
                text = f"Test scores are on {rows}: the time left allowed no more."
                if text not in log.notes:
                    self.ledger.note(text)
        return self._tested_rows

    def _evaluated(self, job: Evaluate, outcome: Outcome) -> None:
        if outcome.status != "ok":
            self.ledger.note(f"{job.name} could not be evaluated on {job.split}: {outcome.reason}: {outcome.detail}")
        values = {"metrics": outcome.metrics, "outputs": outcome.outputs, **outcome.values}
        if job.split == "validation":
            self.ledger.write("probe", kind=job.name, values=values, seconds=outcome.seconds)
        else:
            self.ledger.write(
                "test", name=job.name, metrics=outcome.metrics, outputs=outcome.outputs, sha256=job.sha256
            )

    def _test_folders(self) -> dict[str, str]:
        """Adapter folder of every name that is tested."""
        finals = Finals(self.ledger, self.division, tuple(self.field.arms))
        folders: dict[str, str | None] = {role: run.rungs[-1].adapter for role, run in finals.best_runs().items()}
        if self.rules.incumbent is not None and self.ledger.log.probes.get("incumbent", {}).get("metrics"):
            folders["incumbent"] = self.rules.incumbent
        return {name: folder for name, folder in folders.items() if folder is not None}

    def _tests_left(self) -> list[str]:
        return [name for name in self._test_folders() if name not in self.ledger.log.tests]

    # Small questions.

    def _evaluating(self, name: str) -> bool:
        return any(isinstance(job, Evaluate) and job.name == name for job in self.running.values())

    def _busy(self) -> set[str]:
        return {job.trial for job in self.running.values() if isinstance(job, Train)}

    def _seconds(self, configuration: Configuration, rows: int) -> float:
        """Expected seconds of a job: training, and the evaluation at its end."""
        train = self.field.costs.predict(configuration, rows)
        final = rows >= 0.5 * self.division.final_rows
        evaluated = self.division.final_evaluated if final else self.division.rung_evaluated
        return train + evaluated * self.division.speed.evaluate

    def _final_rows(self) -> int:
        finalists = self.ledger.log.finalists
        return int(finalists["rows"]) if finalists else self.division.final_rows

    def _fits(self, trial: TrialLog) -> bool:
        """Whether a trial's next rung ends before exploration does."""
        until = self.division.explore_until
        if until is None or not trial.rungs:
            return True
        rows = self.division.rungs[len(trial.rungs)] - trial.rows
        return self.ledger.used + self._seconds(self.configuration(trial.hash), rows) <= until

    def _learn(self) -> None:
        """Step costs from the journal, after a search was taken up again."""
        if self._field is None:
            return
        for trial in self.ledger.log.trials.values():
            before = 0
            for rung in trial.rungs:
                self._field.costs.observe(self.configuration(trial.hash), rung.rows - before, rung.train_seconds)
                before = rung.rows

    def _take_up(self) -> None:
        """Trials that were running when the last session ended go on from their last rung."""
        for trial in self.ledger.log.trials.values():
            if trial.ended is None and trial.status == "running":
                self._held[trial.id] = 0


def describe_phase(phase: Phase) -> str:
    """A phase in words."""
    words: dict[str, Any] = {
        "probe": "measuring the base model and the workers",
        "explore": "exploring",
        "confirm": "training the finalists again with fresh seeds",
        "test": "reading the test rows",
        "done": "done",
    }
    return str(words[phase])
