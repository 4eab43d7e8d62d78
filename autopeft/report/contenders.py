"""What a search compares: the finalists, what is in use today, and the base without an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.journal import SearchLog, describe

ROLE_LABELS = {"baseline": "tuned LoRA", "challenger": "best of the space", "incumbent": "in use today"}

PROBE_LABEL = "linear probe"


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


def by_role(contenders: tuple[Contender, ...]) -> dict[str, Contender]:
    """Role -> contender."""
    return {
        role: contender for contender in contenders for role, label in ROLE_LABELS.items() if contender.label == label
    }


def contenders_of(log: SearchLog) -> tuple[Contender, ...]:
    """What was compared, the taken one first."""
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
