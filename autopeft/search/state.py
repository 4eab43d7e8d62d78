"""Where a search stands, as far as all its phases need to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autopeft.cost.time import KEPT, StepCosts
from autopeft.errors import AutopeftError
from autopeft.journal import RungLog
from autopeft.search.arms import Arm
from autopeft.search.division import FINALIST_SEEDS, Division, Speed
from autopeft.search.finals import Finals, makespan
from autopeft.search.front import FRONT_SIZE
from autopeft.search.ledger import Ledger
from autopeft.space.configuration import Configuration
from autopeft.space.execution import Execution
from autopeft.space.modules import ModuleMap
from autopeft.spec import Budget
from autopeft.spec.costs import latency_of_all
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.strategy.jobs import Evaluate, Job, Pack, Train
from autopeft.trial.latency import latency_seconds
from autopeft.trial.pack_speed import pack_gain
from autopeft.trial.setup import Progress

MADE = 2048
"""Configurations that are kept as values; the others are made again from the journal when they are asked for."""
CAUTION = 1.3
"""So many times what is expected is kept for the finalists."""
LENT = 0.2
"""Share of what is left to the finalists that a job of the exploration may take: less than what `CAUTION` adds."""
PATIENCE, GRACE_SECONDS, SHORTEST_LIMIT = 5.0, 30.0, 5.0
"""A job may take so many times what is expected, plus so many seconds; a limit is never shorter than so many."""


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
        objective: ``best`` or ``pareto``.
        cost: What an adapter is cheap in.
        eval_rows: Name -> rows of the eval sets that are given now.
        pack: Trials that a worker trains together while exploring: ``auto``, ``off`` or a number.
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
    eval_rows: Mapping[str, int] = field(default_factory=dict)
    objective: str = "best"
    pack: int | str = "off"
    cost: str = "params"

    @property
    def latency_of_all(self) -> bool:
        """Whether every configuration's latency is measured, and not only that of finalists."""
        return latency_of_all(self.budget, self.cost)


@dataclass(frozen=True, slots=True)
class Field:
    """The arms of a search on the model under its head.

    Attributes:
        modules: The module map.
        arms: By name, in the order of precedence.
        costs: Learned step costs.
        measured: Told the bytes that training a configuration really took.
        pack_fits: Whether configurations fit into a worker's memory together.
    """

    modules: ModuleMap
    arms: Mapping[ArmName, Arm]
    costs: StepCosts
    measured: Callable[[Configuration, int, Execution], None] = lambda configuration, count, execution: None
    pack_fits: Callable[[Sequence[Configuration]], bool] = lambda configurations: True


class State:
    """The journal, what is fixed, and what runs right now. Final.

    Args:
        ledger: Journal and fold.
        rules: What is fixed.
        field: `(head, speed) -> Field`: binds the arms once the head is known.
        slots: Workers.

    Attributes:
        slots: Workers now.
        running: Slot -> its job.
        began: Slot -> seconds used when its job was handed out.
        progress: Slot -> how far its job is.
        held: Trial -> slot: trials that go on without being asked about again, best on that slot.
        put_by: Jobs that were handed out and wait for a slot.
    """

    def __init__(self, ledger: Ledger, rules: Rules, field: Callable[[str, Speed], Field], slots: int) -> None:
        self.ledger = ledger
        self.rules = rules
        self.slots = slots
        self.running: dict[int, Job] = {}
        self.began: dict[int, float] = {}
        self.progress: dict[int, Progress] = {}
        self.held: dict[str, int] = {}
        self.put_by: list[Train] = []
        self._configurations: dict[str, Configuration] = {}
        self._training: set[str] = set()
        self._expected: dict[int, list[tuple[str, str, float]]] = {}
        self._sums: dict[str, float] = {}
        self._make_field = field
        self._field: Field | None = None
        self._division = Division.from_dict(ledger.log.plan) if ledger.log.plan else None

    @property
    def divided(self) -> bool:
        """Whether the budget has been divided: the probes are over."""
        return self._division is not None

    @property
    def division(self) -> Division:
        """How the budget is divided; known after the probes."""
        if self._division is None:
            raise AutopeftError("the budget is divided only after the workers' speed is known")
        return self._division

    def divide(self, division: Division) -> None:
        """Fix how the budget is divided, in the journal first."""
        self.ledger.write("plan", **division.to_dict(), started=self.ledger.used)
        self._division = division

    @property
    def head(self) -> str:
        """The head on top, chosen by the probe."""
        return str(self.ledger.log.probes["heads"]["head"])

    def bind(self, speed: Speed) -> Field:
        """Bind the arms, at the measured speed; step costs are learned from the journal where there are any."""
        self._field = self._make_field(self.head, speed)
        done: list[tuple[RungLog, str, int]] = []
        for trial in self.ledger.log.trials.values():
            before = 0
            for rung in trial.rungs:
                done.append((rung, trial.hash, rung.rows - before))
                before = rung.rows
        # In the order in which they ran; what came before the latest of them does not count any more.
        for rung, hash, rows in sorted(done, key=lambda job: job[0].used)[-KEPT:]:
            self._field.costs.observe(
                self.configuration(hash),
                rows,
                self._alone(rung),
                execution=self.execution(hash),
                looked_up=rung.looked_up,
            )
        return self._field

    @property
    def field(self) -> Field:
        """The arms; known after the head."""
        return self._field or self.bind(self.division.speed)

    @property
    def finals(self) -> Finals:
        """Everything about finalists."""
        return Finals(self.ledger, replace(self.division, workers=self.slots), tuple(self.field.arms))

    def explore_until(self) -> float | None:
        """Seconds used at which exploring ends: later than planned where the finalists cannot use all their time."""
        division = self.division
        if division.explore_until is None or division.confirm_until is None:
            return None
        hashes = [trial.hash for trial in self.finals.explored().values()]
        if len(hashes) < len(self.field.arms):
            return division.explore_until
        finalists = [self.seconds(hash, division.final_rows, final=True) for hash in hashes]
        runs = finalists * len(FINALIST_SEEDS)
        if self.rules.objective == "pareto":
            runs += [max(finalists)] * FRONT_SIZE * len(division.seeds)
        return max(division.explore_until, division.confirm_until - CAUTION * makespan(runs, self.slots))

    def explore_limit(self) -> float | None:
        """Seconds used at which a job of the exploration is given up.

        Where a machine gets slower than it was, half of the finalists' time is theirs all the same, and where exploring
        was extended at their cost, most of what is left to them.
        """
        until, division = self.explore_until(), self.division
        if until is None or division.explore_until is None or division.confirm_until is None:
            return None
        lent = until + LENT * (division.confirm_until - until)
        return max(lent, (division.explore_until + division.confirm_until) / 2)

    def name_finalists(self) -> None:
        """Journal the finalists."""
        self.finals.name(
            seconds=self.confirm_seconds,
            once=0.0 if self.rules.latency_of_all else self.latency_seconds(),
            rungs=len(self.division.rungs),
            predict=self.predicted_bytes,
            front=self.rules.objective == "pareto",
        )

    def configuration(self, hash: str) -> Configuration:
        """A configuration by its hash."""
        found = self._configurations.pop(hash, None)
        if found is None:
            found = Configuration.from_dict(self.ledger.log.configurations[hash].configuration)
        # The one asked for last stands last; the first one goes.
        self._configurations[hash] = found
        if len(self._configurations) > MADE:
            del self._configurations[next(iter(self._configurations))]
        return found

    def execution(self, hash: str) -> Execution:
        """How the batches of a configuration are computed."""
        return Execution.from_dict(self.ledger.log.configurations[hash].execution)

    def predicted_bytes(self, hash: str) -> int | None:
        """The live bytes that training a configuration takes, predicted exactly; None where that cannot be done."""
        arms = list(self.field.arms.values())
        return arms[0].predict(self.configuration(hash), self.execution(hash))

    def final_rows(self) -> int:
        """Rows of a finalist's run."""
        finalists = self.ledger.log.finalists
        return int(finalists["rows"]) if finalists else self.division.final_rows

    def seconds(self, hash: str, rows: int, *, final: bool) -> float:
        """Expected seconds of a job: training, and the evaluation at its end."""
        division = self.division
        evaluated = division.final_evaluated if final else division.rung_evaluated
        own = self._own_rate(hash)
        if own is None:
            train = self.field.costs.predict(self.configuration(hash), rows, execution=self.execution(hash))
        else:
            train = rows * own
        return train + (self.evaluation_seconds(evaluated) if final else evaluated * division.speed.evaluate)

    def limited_seconds(self) -> float:
        """Seconds that measuring its latency takes of a new configuration, where it is measured of all; else 0."""
        return self.latency_seconds() if self.rules.latency_of_all else 0.0

    def confirm_seconds(self, hash: str, rows: int) -> float:
        """Expected seconds of a finalist's run, with what it measures every time."""
        every = self.latency_seconds() if self.rules.cost == "latency" else 0.0
        return self.seconds(hash, rows, final=True) + every

    def _own_rate(self, hash: str) -> float | None:
        """Seconds per row that training this very configuration has taken; None before it has run."""
        rows, seconds = 0, 0.0
        for trial in self.ledger.log.index.of_hash(hash):
            rows += trial.rows
            seconds += sum(self._alone(rung) for rung in trial.rungs)
        return seconds / rows if rows and seconds > 0 else None

    def _alone(self, rung: RungLog) -> float:
        """Seconds that a rung's steps would have taken alone, where they were taken together with others'."""
        return rung.train_seconds * pack_gain(self.pack_speeds, rung.together)

    @property
    def pack_speeds(self) -> dict[int, float]:
        """Members of a pack -> seconds of a row's training in it, as the speed probe found; empty without one."""
        found = self.ledger.log.probes.get("speed", {}).get("packs") or {}
        return {int(size): seconds for size, seconds in found.items()}

    def evaluation_seconds(self, rows: int) -> float:
        """Expected seconds of a whole evaluation, generated answers included."""
        return rows * self.division.speed.evaluate + self.division.speed.generate

    def latency_seconds(self) -> float:
        """Expected seconds of measuring a configuration's latency."""
        budget = self.rules.budget
        limited, merged = budget.max_latency_overhead is not None, budget.target == "merged"
        return latency_seconds(self.division.speed.evaluate, limited=limited, merged=merged)

    def busy(self) -> float:
        """Seconds that workers have computed until now, running jobs included."""
        return self.ledger.log.busy + sum(self.ledger.used - self.began[slot] for slot in self.running)

    def affords(self, seconds: float, share: float) -> bool:
        """Whether a job of so many seconds stays within a share of the limit on busy seconds."""
        limit, before = self.rules.budget.max_compute, self.division.busy_before
        return limit is None or self.busy() + seconds <= before + share * (limit - before)

    def time_limit(self, expected: float, *, least: float = SHORTEST_LIMIT, until: float | None = None) -> float:
        """What a job may take: several times what is expected, and never past the end of the budget.

        Args:
            expected: Seconds that it should take.
            least: Seconds that it gets even when the budget is used up.
            until: Seconds used at which it has to end; None for no such moment.
        """
        limits = [GRACE_SECONDS + PATIENCE * expected]
        if until is not None:
            limits.append(until - self.ledger.used)
        if self.division.deadline is not None:
            limits.append(self.division.deadline - self.ledger.used)
        if self.rules.budget.max_compute is not None:
            # Its neighbours may use as much as it does.
            limits.append((self.rules.budget.max_compute - self.busy()) / self.slots)
        return max(least, min(limits))

    def training(self) -> set[str]:
        """Trials that run right now, or wait for a slot; not to be changed."""
        return self._training | {job.trial for job in self.put_by} if self.put_by else self._training

    def occupy(self, slot: int, job: Job) -> None:
        """A job has been handed out, in the place of what the slot had."""
        self.release(slot)
        self.running[slot] = job
        self.began[slot] = self.ledger.used
        expected = [(each.trial, *self._due(each)) for each in _trains(job)]
        for trial, arm, seconds in expected:
            self._training.add(trial)
            self._sums[arm] = self._sums.get(arm, 0.0) + seconds
        if expected:
            self._expected[slot] = expected

    def release(self, slot: int) -> None:
        """A job has come to its end, well or not."""
        self.running.pop(slot, None)
        self.progress.pop(slot, None)
        for trial, arm, seconds in self._expected.pop(slot, ()):
            self._training.discard(trial)
            self._sums[arm] -= seconds
        if not self._expected:
            # What rounding has left.
            self._sums.clear()

    def expected(self, arm: str) -> float:
        """Seconds that the jobs of an arm that run, or wait for a slot, are expected to take."""
        waiting = [self._due(job) for job in self.put_by]
        return self._sums.get(arm, 0.0) + sum(seconds for name, seconds in waiting if name == arm)

    def _due(self, job: Train) -> tuple[str, float]:
        """The arm of a job, and the seconds that it is expected to take."""
        trial = self.ledger.log.trials[job.trial]
        return trial.arm, self.seconds(trial.hash, job.rows_to - job.rows_from, final=job.final)

    def evaluating(self, name: str) -> bool:
        """Whether an evaluation of this name runs right now."""
        return any(isinstance(job, Evaluate) and job.name == name for job in self.running.values())


def _trains(job: Job) -> tuple[Train, ...]:
    """The training in a job."""
    return job.members if isinstance(job, Pack) else (job,) if isinstance(job, Train) else ()
