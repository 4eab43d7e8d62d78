"""What there is to say about a search, as plain values: the same for the terminal and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.evidence.advice import advise
from autopeft.evidence.signatures import Signature
from autopeft.journal import SearchLog, TrialLog, describe
from autopeft.report.command import command
from autopeft.report.figures import Figures, figures
from autopeft.report.headline import headline
from autopeft.space.beside import BIASES_STAY, writes_base_biases
from autopeft.space.configuration import Configuration

State = Literal["running", "ended", "interrupted", "died"]
ROLE_LABELS = {"baseline": "tuned LoRA", "challenger": "best of the space", "incumbent": "in use today"}

PROBE_LABEL = "linear probe"
PREDICTED_LIMIT = "max_memory"
"""The limit that a prediction is held against; proposals are also passed over for saying nothing new."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A line of the comparison.

    Attributes:
        label: What it is.
        methods: Its method mix; empty for a reference without adapter.
        taken: Whether it is what the search returns.
        hash: Its configuration, or None.
        adapter_params: Its adapter parameters, or None.
        share: These as a share of the base model, or None.
        head_params: Parameters of its head, or None.
        peak_bytes: Memory of its training, or None.
        latency: Rows in a batch -> time of a forward pass over the bare base's, or None.
        validation: Mean score on validation, or None.
        low: Lower end of its interval, or None.
        high: Upper end, or None.
        seeds: Over how many trainings.
        test: Score on test, or None.
    """

    label: str
    methods: str = ""
    taken: bool = False
    hash: str | None = None
    adapter_params: int | None = None
    share: float | None = None
    head_params: int | None = None
    peak_bytes: int | None = None
    latency: Mapping[str, float] | None = None
    validation: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    test: float | None = None


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A line of the table of trials; the numbers are those of its last rung."""

    trial: str
    arm: str
    purpose: str
    seed: int
    status: str
    methods: str
    adapter_params: int | None
    layers: str
    rate: float
    batch_size: int
    rows: int
    score: float | None
    loss: float | None
    peak_bytes: int | None
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """All that reports show.

    Attributes:
        state: Whether the search runs, has ended, was interrupted by a signal, or its process died.
        headline: The answer in one sentence.
        detail: The sentence that the evidence adds, or empty.
        metric: What decides.
        rung_metric: What rungs are compared by.
        contenders: What was compared, the taken one first.
        trials: All trials, in the order in which they started.
        progress: Arm -> `(seconds used, best score so far)`.
        rates: `(arm, methods, learning rate, last score, whether it was trained in full)`.
        counts: Status -> number of trials.
        failures: Cause -> `(number, an example's words)`.
        rejected: Limit -> number of proposals that broke it by prediction.
        stops: Reason -> number of trials.
        busy: What became of the trials -> busy seconds spent on them.
        arm_busy: Arm -> busy seconds.
        used: Seconds used.
        limit: Seconds allowed, or None.
        limits: Limit -> value, where one is set now.
        header: Data of ``search_started``.
        plan: Data of the latest ``plan``.
        notes: Sentences for the user.
        left_out: Method -> why the space left it out.
        test_reads: How often the test rows were opened.
        advice: What was looked for in it, once it has ended; what asks for something first.
        looks: How often its test rows were read by all searches, as the journal has it, or None.
        sessions: How many processes worked on it.
        started: Wall-clock time of its start, or None.
        command: The command that repeats it, or None where data were given in memory.
        figures: The numbers behind the figures.
        verdict: Data of the latest ``verdict``, or None.
        adapter: The folder of the winner's adapter, relative to the run folder, or None.
        simplified: Data of the latest ``simplified``, or None.
        result: What ``result.json`` holds; empty before the end.
    """

    state: State
    headline: str
    detail: str
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
    advice: tuple[Signature, ...] = ()
    looks: Mapping[str, Any] | None = None
    sessions: int = 1
    started: str | None = None
    command: str | None = None
    verdict: Mapping[str, Any] | None = None
    adapter: str | None = None
    simplified: Mapping[str, Any] | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


def gather(log: SearchLog, running: bool = False) -> Facts:
    """Everything that reports show of a journal.

    Args:
        log: The journal, folded.
        running: Whether a living process writes it.
    """
    contenders = _contenders(log)
    state = _state(log, running)
    spec = log.header.get("spec", {})
    # A resumed search may have other limits than the one that began.
    budget = log.plan.get("budget") or spec.get("budget") or {}
    limits = {name: value for name, value in budget.items() if value not in (None, "any")}
    task = log.header.get("task", {})
    sentence, detail = headline(log, state, _named(contenders))
    return Facts(
        state=state,
        headline=sentence,
        detail=" ".join(text for text in (detail, _caution(contenders)) if text),
        metric=log.metric,
        rung_metric=log.rung_metric,
        contenders=contenders,
        trials=tuple(_row(log, trial) for trial in log.trials.values()),
        progress=_progress(log),
        rates=_rates(log),
        counts=log.counts,
        failures=_failures(log),
        rejected=Counter(PREDICTED_LIMIT for refusal in log.rejected if refusal.get("constraint") == PREDICTED_LIMIT),
        stops=Counter(str(trial.reason) for trial in log.trials.values() if trial.status == "stopped"),
        busy=_busy(log),
        arm_busy=_summed((trial.arm, trial.seconds) for trial in log.trials.values()),
        used=log.used,
        limit=limits.get("max_time"),
        limits=limits,
        header=log.header,
        plan=log.plan,
        figures=figures(log),
        notes=(*map(str, task.get("notes") or ()), *log.notes, *_biases_stay(log, contenders, budget)),
        left_out=dict(log.header.get("space", {}).get("left_out") or {}),
        test_reads=len(log.test_opened),
        advice=() if log.finished is None else tuple(advise(log)),
        looks=log.looks,
        sessions=log.sessions,
        started=log.started,
        # Under the limits of the latest session.
        verdict=log.verdict,
        simplified=log.simplified,
        adapter=(((log.finished or {}).get("result") or {}).get("winner") or {}).get("adapter_path"),
        command=command({**spec, "budget": budget, "eval_sets": _eval_sets(log)}),
        result=(log.finished or {}).get("result") or {},
    )


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


def _named(contenders: tuple[Contender, ...]) -> dict[str, Contender]:
    return {
        role: contender for contender in contenders for role, label in ROLE_LABELS.items() if contender.label == label
    }


def _contenders(log: SearchLog) -> tuple[Contender, ...]:
    result: Mapping[str, Any] = (log.finished or {}).get("result") or {}
    takes = str((log.verdict or {}).get("takes") or (result.get("winner") or {}).get("role") or "")
    found = [made for role in ("challenger", "baseline") if (made := _finalist(log, role, takes, result)) is not None]
    found.sort(key=lambda contender: not contender.taken)
    incumbent = log.probes.get("incumbent")
    if incumbent and incumbent.get("metrics"):
        found.append(
            Contender(
                ROLE_LABELS["incumbent"],
                adapter_params=incumbent.get("adapter_params"),
                share=_share(log, incumbent.get("adapter_params")),
                head_params=incumbent.get("head_params"),
                validation=incumbent["metrics"].get(log.metric),
                seeds=1,
                test=log.tests.get("incumbent", {}).get("metrics", {}).get(log.metric),
            )
        )
    reference = log.probes.get("heads")
    if reference and reference.get("score") is not None:
        label = "frozen base" if reference.get("head") == "lm" else PROBE_LABEL
        found.append(Contender(label, validation=float(reference["score"]), seeds=1))
    return tuple(found)


def _biases_stay(log: SearchLog, contenders: tuple[Contender, ...], budget: Mapping[str, Any]) -> list[str]:
    taken = next((log.configurations.get(str(contender.hash)) for contender in contenders if contender.taken), None)
    if taken is None:
        return []
    configuration = Configuration.from_dict(taken.configuration)
    return [BIASES_STAY] if writes_base_biases(configuration, str(budget.get("target"))) else []


def _caution(contenders: tuple[Contender, ...]) -> str:
    """What must be said when the frozen base does better without any adapter."""
    taken = next((contender.validation for contender in contenders if contender.taken), None)
    probe = next((contender for contender in contenders if contender.label == PROBE_LABEL), None)
    if taken is None or probe is None or probe.validation is None or probe.validation < taken:
        return ""
    return (
        f"Caution: a {PROBE_LABEL} on the frozen base scores {probe.validation:.4f} on validation, no less than this "
        "adapter: either nothing more is to be had here, or the budget was too small to train one well."
    )


def _finalist(log: SearchLog, role: str, takes: str, result: Mapping[str, Any]) -> Contender | None:
    block: Mapping[str, Any] = result.get(role) or {}
    hash = block.get("hash") or (log.finalists or {}).get(role)
    if hash is None:
        best = log.best("baseline" if role == "baseline" else "space")
        hash = best[0].hash if best else None
    known = log.configurations.get(str(hash))
    if known is None:
        return None
    runs = log.of_configuration(known.hash, "confirm") or log.of_configuration(known.hash)
    scores = [score for run in runs if (score := run.score(log.metric)) is not None]
    measured: Mapping[str, Any] = block.get("validation") or {}
    peaks = [run.peak_bytes for run in log.of_configuration(known.hash) if run.peak_bytes is not None]
    heads = [run.rungs[-1].head_params for run in runs if run.rungs and run.rungs[-1].head_params is not None]
    tested = log.tests.get(role) or (log.tests.get("winner") if role == takes else None) or {}
    # A result may say by another metric what the rungs said before the finalists were trained.
    same = measured.get("metric") == log.metric
    return Contender(
        label=ROLE_LABELS[role],
        methods=describe(known.configuration, log.modules).methods,
        taken=role == takes,
        hash=known.hash,
        adapter_params=known.adapter_params,
        share=_share(log, known.adapter_params),
        head_params=heads[-1] if heads else None,
        peak_bytes=max(peaks, default=None),
        latency=log.latency(known.hash),
        validation=measured["mean"] if same else (sum(scores) / len(scores) if scores else None),
        low=measured.get("low") if same else None,
        high=measured.get("high") if same else None,
        seeds=measured["seeds"] if same else len(scores),
        test=(tested.get("metrics") or {}).get(log.metric),
    )


def _share(log: SearchLog, params: int | None) -> float | None:
    base = log.header.get("model", {}).get("base_params")
    return params / base if params is not None and base else None


def _row(log: SearchLog, trial: TrialLog) -> TrialRow:
    known = log.configurations.get(trial.hash)
    about = describe(known.configuration if known else {}, log.modules)
    reason = trial.reason or (trial.decisions[-1].reason if trial.decisions and trial.ended is None else "")
    return TrialRow(
        trial=trial.id,
        arm=trial.arm,
        purpose=trial.purpose,
        seed=trial.seed,
        status=trial.status,
        methods=about.methods,
        adapter_params=known.adapter_params if known else None,
        layers=about.layers,
        rate=about.rate,
        batch_size=about.batch_size,
        rows=trial.rows,
        score=trial.score(log.rung_metric),
        loss=trial.rungs[-1].loss if trial.rungs else None,
        peak_bytes=trial.peak_bytes,
        seconds=trial.seconds,
        reason=": ".join(text for text in (reason, trial.detail) if text),
    )


def _progress(log: SearchLog) -> dict[str, list[tuple[float, float]]]:
    reached = [(rung.used, trial, rung) for trial in log.trials.values() for rung in trial.rungs]
    curves: dict[str, list[tuple[float, float]]] = {}
    for used, trial, rung in sorted(reached, key=lambda point: point[0]):
        score = rung.metrics.get(log.rung_metric)
        curve = curves.setdefault(trial.arm, [])
        if score is not None and trial.purpose == "explore" and (not curve or score > curve[-1][1]):
            curve.append((used, score))
    return {arm: curve for arm, curve in curves.items() if curve}


def _rates(log: SearchLog) -> tuple[tuple[str, str, float, float, bool], ...]:
    points = []
    for trial in log.trials.values():
        known, score = log.configurations.get(trial.hash), trial.score(log.rung_metric)
        if known is None or score is None or trial.purpose != "explore":
            continue
        about = describe(known.configuration)
        if about.rate > 0:
            points.append((trial.arm, about.methods, about.rate, score, trial.status == "completed"))
    return tuple(points)


def _failures(log: SearchLog) -> dict[str, tuple[int, str]]:
    causes: dict[str, tuple[int, str]] = {}
    for trial in log.trials.values():
        if trial.status in ("failed", "infeasible"):
            cause = f"{trial.status}: {trial.reason}"
            count, words = causes.get(cause, (0, ""))
            causes[cause] = (count + 1, words or trial.detail or "")
    return causes


def _busy(log: SearchLog) -> dict[str, float]:
    return _summed(
        ("confirming finalists" if trial.purpose == "confirm" else trial.status, trial.seconds)
        for trial in log.trials.values()
    )


def _summed(pairs: Any) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, seconds in pairs:
        sums[name] = sums.get(name, 0.0) + seconds
    return sums
