"""What there is to say about a search, as plain values: the same for the terminal and the page."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.evidence.advice import advise
from autopeft.evidence.limits import Extensible, ending
from autopeft.evidence.signatures import Signature
from autopeft.journal import SearchLog
from autopeft.report.command import command
from autopeft.report.contenders import Contender, by_role, contenders_of
from autopeft.report.doubts import Doubt, doubts
from autopeft.report.figures import Figures, figures
from autopeft.report.headline import calibrated, extended, headline
from autopeft.report.trials import TrialRow, busy, failures, progress, rates, summed, trial_row
from autopeft.space.beside import BIASES_STAY, writes_base_biases
from autopeft.space.configuration import Configuration

State = Literal["running", "ended", "interrupted", "died"]
PREDICTED_LIMIT = "max_memory"
"""The limit that a prediction is held against; proposals are also passed over for saying nothing new."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that reports show.

    Attributes:
        state: Whether the search runs, has ended, was interrupted by a signal, or its process died.
        headline: The answer in one sentence.
        reason: The sentence that the evidence adds, or empty.
        metric: What decides.
        rung_metric: What rungs are compared by.
        contenders: What was compared, the taken one first.
        trials: All trials, in the order in which they started.
        progress: Arm -> `(seconds used, best score so far)`.
        rates: `(arm, methods, learning rate over the default, last score, whether it was trained in full)`.
        counts: Status -> number of trials.
        failures: Cause -> `(number, an example's words)`.
        rejected: Limit -> number of proposals that broke it by prediction.
        stops: Reason -> number of trials.
        busy: What workers computed -> busy seconds.
        arm_busy: Arm -> busy seconds of its trials.
        used: Seconds used.
        limit: Seconds allowed, or None.
        limits: Limit -> value, where one is set now.
        header: Data of ``search_started``.
        plan: Data of the latest ``plan``.
        notes: Sentences for the user.
        left_out: Method -> why the space left it out.
        test_reads: How often the test rows were opened.
        test_rows: `(rows read, all test rows)` where not all of them were read, else None.
        advice: What was looked for in it, once it has ended; what asks for something first.
        looks: How often its test rows were read by all searches, as the journal has it, or None.
        sessions: How many processes worked on it.
        started: Wall-clock time of its start, or None.
        command: The command that repeats it, or None where data were given in memory.
        figures: The numbers behind the figures.
        status: How it ended (``found``, ``infeasible``, ``cancelled``, ``failed``), or empty.
        ending: The limit that ended it, or will.
        verdict: Data of the latest ``verdict``, or None.
        doubts: Why it is about less than it seems, the gravest first.
        adapter: The folder of the winner's adapter, relative to the run folder, or None.
        simplified: Data of the latest ``simplified``, or None.
        result: What ``result.json`` holds; empty before the end.
        calibration: How often such a verdict errs, in short and in sentences, or None.
        extended: Whether contenders, verdict and result are those of before it was given more.
    """

    state: State
    headline: str
    reason: str
    metric: str
    rung_metric: str
    contenders: tuple[Contender, ...]
    trials: tuple[TrialRow, ...]
    progress: Mapping[str, list[tuple[float, float]]]
    rates: tuple[tuple[str, str, float, float, bool], ...]
    counts: Mapping[str, int]
    failures: Mapping[str, tuple[int, str]]
    rejected: Mapping[str, int]
    stops: Mapping[str, int]
    busy: Mapping[str, float]
    arm_busy: Mapping[str, float]
    used: float
    limit: float | None
    limits: Mapping[str, Any]
    header: Mapping[str, Any]
    plan: Mapping[str, Any]
    figures: Figures
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    test_reads: int = 0
    test_rows: tuple[int, int] | None = None
    advice: tuple[Signature, ...] = ()
    looks: Mapping[str, Any] | None = None
    sessions: int = 1
    started: str | None = None
    command: str | None = None
    status: str = ""
    ending: Extensible = "max_time"
    verdict: Mapping[str, Any] | None = None
    doubts: tuple[Doubt, ...] = ()
    adapter: str | None = None
    simplified: Mapping[str, Any] | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    extended: bool = False
    calibration: tuple[str, str] | None = None

    @property
    def detail(self) -> str:
        """What the evidence adds, and the cautions."""
        return " ".join(text for text in (self.reason, *(f"Caution: {doubt.words}" for doubt in self.doubts)) if text)


def gather(log: SearchLog, running: bool = False) -> Facts:
    """Everything that reports show of a journal.

    Args:
        log: The journal, folded.
        running: Whether a living process writes it.
    """
    past = _answered(log)
    contenders = contenders_of(past)
    state = _state(log, running)
    spec = log.header.get("spec", {})
    # A resumed search may have other limits than the one that began.
    budget = log.plan.get("budget") or spec.get("budget") or {}
    limits = {name: value for name, value in budget.items() if value not in (None, "any")}
    task = log.header.get("task", {})
    drawn = figures(log)
    cautions = doubts(past, contenders, drawn.rates)
    sentence, reason = headline(past, state, by_role(contenders), cautions)
    winner = ((log.finished or {}).get("result") or {}).get("winner")
    if past is not log:
        sentence, kept = extended(sentence, state, winner is not None)
        reason = f"{kept} {reason}"
    return Facts(
        state=state,
        headline=sentence,
        reason=reason,
        metric=log.metric,
        rung_metric=log.rung_metric,
        contenders=contenders,
        trials=tuple(trial_row(log, trial) for trial in log.trials.values()),
        progress=progress(log),
        rates=rates(log),
        counts=log.counts,
        failures=failures(log),
        rejected=Counter(PREDICTED_LIMIT for refusal in log.rejected if refusal.get("constraint") == PREDICTED_LIMIT),
        stops=Counter(str(trial.reason) for trial in log.trials.values() if trial.status == "stopped"),
        busy=busy(log),
        arm_busy=summed((trial.arm, trial.seconds) for trial in log.trials.values()),
        used=log.used,
        limit=limits.get("max_time"),
        limits=limits,
        header=log.header,
        plan=log.plan,
        figures=drawn,
        notes=(*map(str, task.get("notes") or ()), *log.notes, *_biases_stay(log, contenders, budget)),
        left_out=dict(log.header.get("space", {}).get("left_out") or {}),
        test_reads=len(log.test_opened),
        test_rows=_test_rows(log),
        advice=tuple(advise(log)) if (log.finished or {}).get("status") == "found" else (),
        looks=log.looks,
        sessions=log.sessions,
        started=log.started,
        # Under the limits of the latest session.
        status=str((log.finished or {}).get("status") or ""),
        ending=ending(log),
        verdict=past.verdict,
        doubts=cautions,
        simplified=log.simplified,
        adapter=(winner or ((past.finished or {}).get("result") or {}).get("winner") or {}).get("adapter_path"),
        command=command({**spec, "budget": budget, "eval_sets": _eval_sets(log)}),
        result=(past.finished or {}).get("result") or {},
        extended=past is not log,
        calibration=calibrated(past),
    )


def _answered(log: SearchLog) -> SearchLog:
    """The log, or where it was reopened and has no new verdict yet, as it was when it had its answer."""
    if log.before is None or log.verdict is not None:
        return log
    result: Mapping[str, Any] = log.before.get("result") or {}
    past = copy.copy(log)
    past.finished = log.before
    past.verdict = result.get("verdict") or {"name": "unconfirmed", "takes": (result.get("winner") or {}).get("role")}
    past.finalists = {role: block["hash"] for role in ("challenger", "baseline") if (block := result.get(role))}
    return past


def _test_rows(log: SearchLog) -> tuple[int, int] | None:
    read = log.test_opened[-1].get("rows") if log.test_opened else None
    total = (log.header.get("task", {}).get("rows") or {}).get("test")
    return (int(read), int(total)) if read is not None and total and read < total else None


def _eval_sets(log: SearchLog) -> dict[str, Any]:
    """Those of the first session, and those that later ones added."""
    first: Mapping[str, Any] = log.header.get("spec", {}).get("eval_sets") or {}
    return {**first, **{name: known.get("source") for name, known in log.eval_sets.items()}}


def _state(log: SearchLog, running: bool) -> State:
    if log.interrupted is not None:
        return "interrupted"
    if log.finished is not None:
        return "ended"
    return "running" if running else "died"


def _biases_stay(log: SearchLog, contenders: tuple[Contender, ...], budget: Mapping[str, Any]) -> list[str]:
    taken = next((log.configurations.get(str(contender.hash)) for contender in contenders if contender.taken), None)
    if taken is None:
        return []
    configuration = Configuration.from_dict(taken.configuration)
    return [BIASES_STAY] if writes_base_biases(configuration, str(budget.get("target"))) else []
