"""What MLflow is told about a search: names and values, free of MLflow."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from autopeft.journal import ConfigurationLog, Description, RungLog, SearchLog, TrialLog, describe

LONGEST_PARAM = 500
CLOSED = {"completed": "FINISHED", "stopped": "FINISHED", "cancelled": "KILLED"}
"""Trial status -> run status; the others are FAILED. A trial that was stopped by the halving rule did its duty."""

COLUMNS = (
    "trial",
    "arm",
    "purpose",
    "seed",
    "status",
    "methods",
    "adapter_params",
    "total_rank",
    "layers",
    "rate",
    "batch_size",
    "dropout",
    "rung",
    "rows",
    "score",
    "loss",
    "peak_mib",
    "seconds",
    "reason",
)


def short(value: Any) -> str:
    """A parameter's text, at most `LONGEST_PARAM` characters."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 3] + "..."


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Only the numbers that a store keeps as they are: MLflow turns infinity into 1.8e308."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(float(value))
    }


def described(log: SearchLog, trial: TrialLog) -> tuple[ConfigurationLog | None, Description]:
    """A trial's configuration in short."""
    known = log.configurations.get(trial.hash)
    return known, describe(known.configuration if known else {}, log.modules)


def trial_params(log: SearchLog, trial: TrialLog) -> dict[str, str]:
    """The parameters of a child run: what people filter, sort and compare by."""
    known, about = described(log, trial)
    params: dict[str, Any] = {
        "methods": about.methods,
        "adapter_params": known.adapter_params if known else 0,
        "total_rank": about.total_rank,
        "layers": about.layers,
        "n_layers": about.n_layers,
        "rate": about.rate,
        **{f"rate.{method}": rate for method, rate in about.rates.items()},
        "head_rate": about.head_rate,
        "batch_size": about.batch_size,
        "dropout": about.dropout,
        "arm": trial.arm,
        "purpose": trial.purpose,
        "seed": trial.seed,
        "configuration": trial.hash[:12],
    }
    return {name: short(value) for name, value in params.items() if value != ""}


def trial_sizes(log: SearchLog, trial: TrialLog) -> dict[str, float]:
    """Sizes once more as metrics: MLflow compares parameters as text, so that 900 would sort above 10000."""
    known, about = described(log, trial)
    return finite({"adapter_params": known.adapter_params if known else 0, "total_rank": about.total_rank})


def rung_metrics(rung: RungLog) -> dict[str, float]:
    """The metrics of one rung of a child run."""
    values: dict[str, Any] = {f"validation.{name}": value for name, value in rung.metrics.items()}
    values |= {"train.loss": rung.loss, "seconds": rung.seconds, "rung": rung.rung}
    if rung.peak_bytes is not None:
        values["peak_mib"] = rung.peak_bytes / 2**20
    return finite(values)


def view_state(metric: str) -> str:
    """The state of MLflow's list of runs in which trials stand best first with the columns that matter here.

    By itself the list shows the parent alone, with none of our columns. Stored as a tag of the experiment, the state is
    what an address with ``viewStateShareKey`` opens.

    Args:
        metric: What decides.
    """
    score = f"metrics.`validation.{metric}`"
    metrics = [score, *(f"metrics.`{name}`" for name in ("adapter_params", "peak_mib", "train.loss"))]
    params = [f"params.`{name}`" for name in ("methods", "layers", "rate", "batch_size", "arm", "purpose")]
    columns = [*metrics, *params, "tags.`autopeft.status`", "tags.`autopeft.reason`"]
    state = {
        "searchFilter": "",
        "orderByKey": score,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return json.dumps(state)


def search_params(log: SearchLog) -> dict[str, str]:
    """The parameters of the parent run."""
    task, model = log.header.get("task", {}), log.header.get("model", {})
    spec, space = log.header.get("spec", {}), log.header.get("space", {})
    procedure = log.header.get("procedure", {})
    params: dict[str, Any] = {
        "model": model.get("id"),
        "model_revision": model.get("revision"),
        "base_params": model.get("base_params"),
        "blocks": model.get("blocks"),
        "task": task.get("kind"),
        "metric": task.get("metric"),
        "max_length": task.get("max_length"),
        **{f"rows.{split}": rows for split, rows in (task.get("rows") or {}).items()},
        "space": space.get("name"),
        "methods": ", ".join(map(str, space.get("methods") or ())),
        "strategy": spec.get("strategy"),
        "evidence": procedure.get("evidence", spec.get("evidence")),
        "seed": spec.get("seed"),
        "executor": spec.get("executor"),
        **{f"budget.{name}": value for name, value in (spec.get("budget") or {}).items()},
    }
    return {name: short(value) for name, value in params.items() if value not in (None, "")}


def summary_metrics(log: SearchLog) -> dict[str, float]:
    """The figures of a whole search, for its parent run."""
    values: dict[str, Any] = {f"trials.{status}": count for status, count in log.counts.items()}
    values |= {"trials.rejected": sum(r["constraint"] == "max_memory" for r in log.rejected), "seconds_used": log.used}
    winner = log.winner
    if winner is not None:
        values["winner.adapter_params"] = log.configurations[winner].adapter_params
        scores = [
            score for trial in log.of_configuration(winner, "confirm") if (score := trial.score(log.metric)) is not None
        ]
        if scores:
            values[f"winner.validation.{log.metric}"] = sum(scores) / len(scores)
    reference = log.probes.get("heads", {}).get("score")
    values[f"reference.validation.{log.metric}"] = reference
    for name, test in log.tests.items():
        values |= {f"{name}.test.{metric}": value for metric, value in test["metrics"].items()}
    for name, scored in log.evaluations.items():
        for role, data in scored.items():
            values |= {f"{role}.{name}.{metric}": value for metric, value in data["metrics"].items()}
    for name in ("difference", "low", "high"):
        values[f"verdict.{name}"] = (log.verdict or {}).get(name)
    return finite(values)


def summary_tags(log: SearchLog) -> dict[str, str]:
    """The tags of a whole search, for its parent run."""
    verdict = log.verdict or {}
    tags = {"autopeft.sessions": str(log.sessions)}
    if verdict:
        tags["autopeft.verdict"] = str(verdict.get("name"))
        tags["autopeft.reason"] = short(verdict.get("reason"))
        tags["mlflow.note.content"] = f"**{verdict.get('name')}**: {short(verdict.get('reason'))}"
    if log.winner is not None:
        known = log.configurations[log.winner]
        tags["autopeft.winner"] = describe(known.configuration, log.modules).methods
    return tags


def trial_table(log: SearchLog, trials: Iterable[TrialLog]) -> str:
    """Trials as CSV, one a line, so that a search of any length has all of them in MLflow."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in trials:
        known, about = described(log, trial)
        last = trial.rungs[-1] if trial.rungs else None
        row: dict[str, Any] = {
            "trial": trial.id,
            "arm": trial.arm,
            "purpose": trial.purpose,
            "seed": trial.seed,
            "status": trial.status,
            "methods": about.methods,
            "adapter_params": known.adapter_params if known else None,
            "total_rank": about.total_rank,
            "layers": about.layers,
            "rate": about.rate,
            "batch_size": about.batch_size,
            "dropout": about.dropout,
            "rung": last.rung if last else None,
            "rows": trial.rows,
            "score": trial.score(log.rung_metric),
            "loss": last.loss if last else None,
            "peak_mib": None if trial.peak_bytes is None else round(trial.peak_bytes / 2**20, 1),
            "seconds": round(trial.seconds, 3),
            "reason": trial.reason,
        }
        writer.writerow([row[name] for name in COLUMNS])
    return text.getvalue()
