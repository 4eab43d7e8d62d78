"""What a journal says, folded into one value that reports, the controller and tracking ask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, TypeVar

from autopeft.journal.index import Index
from autopeft.journal.record import Record

Made = TypeVar("Made")
TrialStatus = Literal["running", "paused", "completed", "stopped", "failed", "infeasible", "cancelled"]
ENDED = frozenset({"completed", "stopped", "failed", "infeasible", "cancelled"})


@dataclass(frozen=True, slots=True)
class RungLog:
    """A rung that a trial reached.

    Attributes:
        rung: Its index, from 0.
        rows: Rows that the trial had seen by then.
        metrics: Metric name -> value on the validation rows.
        loss: Mean training loss of the last part, or None.
        losses: `(rows seen by then, mean training loss since the point before)`, in order; empty where unknown.
        seconds: Wall seconds of the job that ended here.
        train_seconds: Of these, in optimizer steps.
        evaluate_seconds: Of these, in evaluation.
        peak_bytes: Highest count of live tensor bytes, or None where it was not measured.
        outputs: File of per-example outputs, relative to the run folder, or None.
        adapter: Folder of the checkpoint, relative to the run folder, or None.
        sha256: Checksum of the checkpoint's weights, or None.
        head_params: Trained parameters of the head, or None.
        latency: Rows in a batch -> time of a forward pass over the bare base's, or None where it was not measured.
        together: Trials that were trained at once where it was trained; their seconds are shared out.
        states: What kept hidden states of frozen blocks did for the job (``blocks`` looked up, 0 for none), or None.
        used: Seconds that the search had consumed.
    """

    rung: int
    rows: int
    metrics: Mapping[str, float]
    loss: float | None = None
    losses: Sequence[tuple[int, float]] = ()
    seconds: float = 0.0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_bytes: int | None = None
    outputs: str | None = None
    adapter: str | None = None
    sha256: str | None = None
    head_params: int | None = None
    latency: Mapping[str, float] | None = None
    together: int = 1
    states: Mapping[str, Any] | None = None
    used: float = 0.0

    @property
    def looked_up(self) -> int:
        """Lowest blocks of the model that its job looked up instead of computing them."""
        return int((self.states or {}).get("blocks", 0))


@dataclass(frozen=True, slots=True)
class DecisionLog:
    """What was decided after a rung, and why."""

    rung: int
    action: str
    reason: str
    used: float = 0.0


@dataclass(slots=True)
class TrialLog:
    """A trial as far as it has come.

    Attributes:
        id: Its id.
        hash: Hash of its configuration.
        arm: ``baseline``, ``space`` or ``incumbent``.
        purpose: ``explore``, ``simplify`` or ``confirm``.
        seed: Its seed.
        index: Its number among the proposals of its arm.
        slot: The worker that it started on.
        status: Where it stands.
        reason: One word or sentence: why it ended.
        detail: One sentence more, or None.
        measured: What was measured of the limit that it broke, in the limit's unit, or None.
        rungs: The rungs reached, in order.
        decisions: What was decided after them.
        attempts: How often it was started: 1, and 1 more for each retry.
        started: Seconds used when it started.
        ended: Seconds used when it ended, or None.
        lost_seconds: Busy seconds of its jobs that reached no rung: they failed, or their worker was lost.
    """

    id: str
    hash: str
    arm: str
    purpose: str
    seed: int
    index: int
    slot: int | None = None
    status: TrialStatus = "running"
    reason: str | None = None
    detail: str | None = None
    measured: float | None = None
    rungs: list[RungLog] = field(default_factory=list)
    decisions: list[DecisionLog] = field(default_factory=list)
    attempts: int = 1
    started: float = 0.0
    ended: float | None = None
    lost_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows seen at the last rung reached."""
        return self.rungs[-1].rows if self.rungs else 0

    @property
    def seconds(self) -> float:
        """Busy seconds of all its jobs: those that reached a rung, and those that failed."""
        return sum(rung.seconds for rung in self.rungs) + self.lost_seconds

    @property
    def peak_bytes(self) -> int | None:
        """The highest count of live tensor bytes over its rungs."""
        return max((rung.peak_bytes for rung in self.rungs if rung.peak_bytes is not None), default=None)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """`(rows seen by then, mean training loss since the point before)` over all its rungs."""
        curve: list[tuple[int, float]] = []
        for rung in self.rungs:
            if rung.losses:
                # A trial that began anew has been there before.
                curve = [point for point in curve if point[0] < rung.losses[0][0]]
                curve += [(int(rows), float(loss)) for rows, loss in rung.losses]
        return curve

    def score(self, metric: str) -> float | None:
        """The metric at the last rung reached, or None."""
        return self.rungs[-1].metrics.get(metric) if self.rungs else None


@dataclass(frozen=True, slots=True)
class ConfigurationLog:
    """A configuration that was trained or is about to be.

    Attributes:
        hash: Its hash.
        configuration: As plain values (`Configuration.from_dict` reads them).
        values: The point of the encoding that decoded to it.
        adapter_params: Its adapter parameters.
        arm: The arm that proposed it first.
        predicted_bytes: Predicted live tensor bytes, or what bounds them from above; None where nothing was predicted.
        predicted_exactly: Whether these are a prediction and no bound.
        execution: How its batches are computed (`autopeft.space.execution.Execution`); None as a whole.
    """

    hash: str
    configuration: Mapping[str, Any]
    values: Mapping[str, Any]
    adapter_params: int
    arm: str
    predicted_bytes: int | None = None
    predicted_exactly: bool = False
    execution: Mapping[str, Any] | None = None


@dataclass(slots=True)
class SearchLog:
    """The read model of a journal. `apply` takes one record, `fold` all of them.

    Attributes:
        header: Data of ``search_started``; empty before it.
        modules: The module map as plain values, or None.
        probes: Probe kind -> its values.
        plan: Data of the latest ``plan``; empty before it.
        trials: Trial id -> trial, in the order in which they started.
        configurations: Configuration hash -> configuration.
        rejected: Data of the proposals that were never trained.
        simplify: Data of the latest ``simplify``: which parts of the challenger are put to the test; None where none.
        simplified: What came of it, or None.
        finalists: Data of the latest ``finalists``, or None.
        verdict: Data of the latest ``verdict``, or None.
        test_opened: Data of every ``test_opened``: how often the test rows were read for a decision taken.
        looks: Data of ``looks`` since the test rows were last opened, or None.
        opened: Whether the test rows were opened for the finalists of now.
        tests: Name (``challenger``, ``baseline``, ``incumbent``) -> data of its ``test``.
        eval_sets: Name of an eval set -> data of its latest ``eval_set``.
        evaluations: Name of an eval set -> name (as in `tests`) -> data of its ``evaluated``.
        notes: Notes for the user, in order.
        overhead: Kind -> seconds of the search's own work, over all sessions that ended.
        finished: Data of ``finished``, or None while the search runs or after it died.
        before: Data of the ``finished`` with a winner that was reopened and has no successor yet, or None.
        sessions: 1, and 1 more for each time that it was resumed.
        reopening: Whether the search was given more to do and has not divided it yet.
        interrupted: The signal that ended the latest session, or None.
        evaluating: Seconds that workers took to evaluate on test rows and eval sets.
        until: ``decided`` where the latest session ends once the verdict is settled, else None.
        used: Seconds consumed at the last record.
        started: Wall-clock time of the first record, ISO 8601.
        seq: Number of the last record; -1 before the first.
        index: Sums and rankings over the trials.
    """

    header: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, Any] | None = None
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    trials: dict[str, TrialLog] = field(default_factory=dict)
    configurations: dict[str, ConfigurationLog] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    simplify: dict[str, Any] | None = None
    simplified: dict[str, Any] | None = None
    finalists: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    test_opened: list[dict[str, Any]] = field(default_factory=list)
    looks: dict[str, Any] | None = None
    opened: bool = False
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    eval_sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluations: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    overhead: dict[str, float] = field(default_factory=dict)
    finished: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    sessions: int = 1
    reopening: bool = False
    interrupted: str | None = None
    evaluating: float = 0.0
    until: str | None = None
    used: float = 0.0
    started: str | None = None
    seq: int = -1
    index: Index = field(default_factory=Index, compare=False, repr=False)

    @classmethod
    def fold(cls, records: Iterable[Record]) -> SearchLog:
        """The log of all these records."""
        log = cls()
        for record in records:
            log.apply(record)
        return log

    def apply(self, record: Record) -> None:
        """Take one more record. Types that this version does not know are passed over."""
        self.seq, self.used = record.seq, record.used
        self.started = self.started or record.time
        data = dict(record.data)
        match record.type:
            case "search_started":
                self.header = data
                self.until = (data.get("spec") or {}).get("until")
            case "modules":
                self.modules = data["map"]
            case "probe":
                self.probes[data["kind"]] = {**data["values"], "seconds": data.get("seconds")}
            case "plan":
                self.plan, self.reopening = data, False
            case "configuration":
                self.configurations.setdefault(data["hash"], _known(ConfigurationLog, data))
            case "rejected":
                self.rejected.append(data)
                self.index.refuse(data["arm"], data["index"], data["constraint"])
            case "simplify":
                self.simplify, self.simplified = data, None
            case "simplified":
                self.simplified = data
            case "finalists":
                self.finalists = data
            case "verdict":
                self.verdict = data
            case "looks":
                self.looks = data
            case "test_opened":
                self.test_opened.append(data)
                self.opened, self.tests, self.looks = True, {}, None
            case "test":
                self.tests[data["name"]] = data
                self.evaluating += float(data.get("seconds") or 0.0)
            case "eval_set":
                if data["sha256"] != self.eval_sets.get(data["name"], {}).get("sha256"):
                    # Scores on the rows that it had before say nothing of these.
                    self.evaluations[data["name"]] = {}
                self.eval_sets[data["name"]] = data
            case "evaluated":
                self.evaluations.setdefault(data["set"], {})[data["name"]] = data
                self.evaluating += float(data.get("seconds") or 0.0)
            case "note":
                self.notes.append(data["text"])
            case "overhead":
                for kind, seconds in data["seconds"].items():
                    self.overhead[kind] = self.overhead.get(kind, 0.0) + seconds
            case "interrupted":
                self.interrupted = str(data.get("signal"))
            case "resumed":
                ended, self.finished = self.finished, None
                self.sessions, self.interrupted = self.sessions + 1, None
                self.until = data.get("until", self.until)
                if data.get("reopened"):
                    self.before = ended if ended and ended["status"] == "found" else self.before
                    self.reopening = True
                    # More budget opens a new generation: it explores on, and names its own finalists. Where they are
                    # the same, the test scores stand.
                    self.finalists, self.verdict, self.opened = None, None, False
                    # What was found out about the parts of a challenger holds as long as it is the challenger.
                    self.simplify = None
            case "finished":
                self.finished = data
                self.before = None if data["status"] == "found" else self.before
            case _:
                self._apply_trial(record, data)

    def _apply_trial(self, record: Record, data: dict[str, Any]) -> None:
        if record.type == "trial_started":
            trial = _known(TrialLog, {**data, "id": data["trial"], "started": record.used})
            self.trials[trial.id] = trial
            self.index.start(trial)
            self._reckon(trial)
            return
        known = self.trials.get(data.get("trial", ""))
        if known is None:
            return
        match record.type:
            case "rung":
                # A retried trial may pass a rung again: what it did there first no longer counts.
                known.rungs = [rung for rung in known.rungs if rung.rung < data["rung"]]
                known.rungs.append(_known(RungLog, {**data, "used": record.used}))
                known.status = "running"
            case "decision":
                known.decisions.append(_known(DecisionLog, {**data, "used": record.used}))
                known.status = "paused" if data["action"] == "pause" else "running"
            case "retried":
                known.attempts += 1
                known.lost_seconds += data.get("seconds") or 0.0
            case "trial_ended":
                known.status, known.ended = data["status"], record.used
                known.reason, known.detail = data.get("reason"), data.get("detail")
                known.lost_seconds += data.get("seconds") or 0.0
                known.measured = data.get("measured")
        self._reckon(known)

    def _reckon(self, trial: TrialLog) -> None:
        self.index.update(trial, self.rung_metric, self.cost(trial.hash, trial.purpose))

    @property
    def busy(self) -> float:
        """Seconds that workers have computed, running jobs not included."""
        probes = sum(float(probe.get("seconds") or 0.0) for probe in self.probes.values())
        return self.index.busy + probes + self.evaluating

    @property
    def metric(self) -> str:
        """The metric that decides; empty before ``search_started``."""
        return str(self.header.get("task", {}).get("metric", ""))

    @property
    def rung_metric(self) -> str:
        """What rungs are compared by: answers are generated for finalists only, so exact match cannot be."""
        return "log_likelihood" if self.metric == "exact_match" else self.metric

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of trials, every status present."""
        return {status: self.index.counts[status] for status in ("running", "paused", *sorted(ENDED))}

    @property
    def winner(self) -> str | None:
        """Hash of the configuration that the verdict takes, or None before a verdict."""
        if self.verdict is None:
            return None
        takes = self.verdict.get("takes")
        chosen = (self.finalists or {}).get(str(takes), takes)
        return chosen if chosen in self.configurations else None

    def best(self, arm: str | None = None, purpose: str | None = None) -> tuple[TrialLog, float] | None:
        """The best trial and its score by `rung_metric`, among those that reached the highest rung.

        Args:
            arm: Only this arm; None for all.
            purpose: Only this purpose; None for both.
        """
        found = self.index.best(arm, purpose)
        if found is None:
            return None
        trial = self.trials[found]
        return trial, trial.rungs[-1].metrics[self.rung_metric]

    @property
    def cost_name(self) -> str:
        """What an adapter is cheap in (`autopeft.spec.costs.COSTS`)."""
        return str(self.header.get("procedure", {}).get("cost") or "params")

    def cost(self, hash: str, purpose: str | None = None) -> float:
        """What a configuration costs; infinite where that is not known.

        Args:
            hash: Its hash.
            purpose: Only what was measured in trials of this purpose counts; None for all.
        """
        known = self.configurations.get(hash)
        match self.cost_name:
            case "memory":
                trials = self.of_configuration(hash, purpose)
                peaks = [trial.peak_bytes for trial in trials if trial.peak_bytes is not None]
                # A bound would say more of its methods than of the configuration.
                exact = known is not None and known.predicted_exactly and purpose != "confirm"
                return float(max(peaks, default=known.predicted_bytes or math.inf if known and exact else math.inf))
            case "latency":
                ratios = self.latency(hash, purpose)
                return round(max(ratios.values()), 2) if ratios else math.inf
        return 0 if known is None else known.adapter_params

    def latency(self, hash: str, purpose: str | None = None) -> dict[str, float] | None:
        """Rows in a batch -> time of a configuration's forward pass over the bare base's, or None where unknown.

        The median over its runs; where it was measured anew with fresh seeds, of these alone: the first measurement may
        be why it was chosen.

        Args:
            hash: Of the configuration.
            purpose: Only what was measured in trials of this purpose counts; None for all.
        """
        measured = [
            (trial.purpose, rung.latency)
            for trial in self.of_configuration(hash, purpose)
            for rung in trial.rungs
            if rung.latency
        ]
        anew = [ratios for why, ratios in measured if why == "confirm"] or [ratios for _, ratios in measured]
        return {rows: median(ratios[rows] for ratios in anew) for rows in anew[0]} if anew else None

    def of_configuration(self, hash: str, purpose: str | None = None) -> list[TrialLog]:
        """The trials of a configuration, in the order in which they started."""
        return [trial for trial in self.index.of_hash(hash) if purpose in (None, trial.purpose)]


def _known(kind: type[Made], data: Mapping[str, Any]) -> Made:
    """A value of this class from the members that it knows."""
    return kind(**{name: data[name] for name in kind.__dataclass_fields__ if name in data})  # type: ignore[attr-defined]
