"""The runs of one search in MLflow: each record of the journal becomes a few idempotent calls."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autopeft.journal import Record, SearchLog, TrialLog
from autopeft.tracking.content import (
    CLOSED,
    described,
    finite,
    rung_metrics,
    search_params,
    short,
    summary_metrics,
    summary_tags,
    trial_params,
    trial_sizes,
    trial_table,
    view_state,
)
from autopeft.tracking.store import experiment_id

VIEW = "autopeft"
"""Key of the shared view of the list of runs, for addresses."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
MAX_CHILDREN = 300
"""Child runs of exploration; MLflow's list gets slow and unreadable above. All trials are in ``trials.csv``."""


TEST_HASH, TEST_READS = "autopeft.test_hash", "autopeft.test_reads"
"""Tags of a parent run: which test rows the search has read, and how often."""
EXPERIMENTS_ASKED = 100
"""Experiments in one question: their ids travel in it."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How often other searches have read the same test rows.

    Attributes:
        reads: Their reads, summed.
        searches: How many they are.
    """

    reads: int
    searches: int


@dataclass
class Place:
    """Where a search is in MLflow.

    Attributes:
        uri: The store.
        search: What identifies the search there.
        experiment: Name of the experiment.
        experiment_id: Its id in the store, once it is there.
        run_name: Name of the parent run.
        parent: Id of the parent run, once it is there.
        children: Trial id -> run id.
    """

    uri: str
    search: str = ""
    experiment: str = ""
    experiment_id: str = ""
    run_name: str = ""
    parent: str | None = None
    children: dict[str, str] = field(default_factory=dict)


class Runs:
    """Sends records. Every call may be repeated after a failure: values are set, runs are found before they are made.

    Attributes:
        found: Whether the store had the search's parent run when it was connected.

    Args:
        client: An ``mlflow.MlflowClient``.
        place: Where the search is; filled in as runs are made.
        log: The journal so far; whoever calls `send` has applied the record to it.
        max_children: Most child runs of exploration.
    """

    def __init__(self, client: Any, place: Place, log: SearchLog, max_children: int = MAX_CHILDREN) -> None:
        self._client = client
        self._place = place
        self._log = log
        self._max_children = max_children
        self._open: set[str] = set()
        self.found = False

    def attach(self) -> None:
        """Find what is there already: once after every connection."""
        self._place.experiment_id = experiment_id(self._client, self._place.uri, self._place.experiment)
        self._open.clear()
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._place.experiment_id],
                f"tags.`autopeft.search` = '{self._place.search}'",
                max_results=1000,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                trial = run.data.tags.get("autopeft.trial")
                if trial is None:
                    self._place.parent, self.found = run.info.run_id, True
                    continue
                self._place.children.setdefault(trial, run.info.run_id)
                if run.info.status == "RUNNING":
                    self._open.add(trial)
            token = page.token
            if not token:
                return

    def send(self, record: Record) -> None:
        """Write what a record says.

        Raises:
            mlflow.exceptions.MlflowException: The store does not answer or refuses.
        """
        data, moment = record.data, _milliseconds(record.time)
        match record.type:
            case "search_started":
                self._start(moment)
            case "probe":
                values = {f"probe.{data['kind']}.{name}": value for name, value in data["values"].items()}
                self._write(self._parent, metrics={**finite(values), **summary_metrics(self._log)}, moment=moment)
            case "plan":
                self._client.log_dict(self._parent, dict(data), "plan.json")
            case "trial_started" | "rung" | "decision" | "retried" | "trial_ended":
                self._trial(record, self._log.trials[data["trial"]], moment)
            case "test_opened":
                tags = {TEST_HASH: str(data["test_hash"]), TEST_READS: str(len(self._log.test_opened))}
                self._write(self._parent, tags=tags)
            case "verdict":
                for trial, run in self._place.children.items():
                    if trial in self._log.trials and self._log.trials[trial].hash == self._log.winner:
                        self._write(run, tags={"autopeft.winner": "true"})
                self._write(self._parent, summary_metrics(self._log), summary_tags(self._log), moment=moment)
            case "test" | "evaluated":
                self._write(self._parent, metrics=summary_metrics(self._log), moment=moment)
            case "interrupted":
                self.end("KILLED", f"stopped by {data.get('signal')}; it can be resumed", moment)
            case "resumed":
                self._close_children("the process that trained it ended", moment)
                self._client.update_run(self._parent, status="RUNNING")
                self._write(self._parent, tags={"autopeft.status": "running", **summary_tags(self._log)})
            case "finished":
                status = str(data.get("status"))
                ends = {"interrupted": "KILLED", "cancelled": "KILLED", "failed": "FAILED", "error": "FAILED"}
                self.end(ends.get(status, "FINISHED"), status, moment)

    def end(self, status: str, said: str, moment: int) -> None:
        """Close the parent and whatever is still open.

        Args:
            status: Run status in MLflow.
            said: What the parent's tag ``autopeft.status`` says.
            moment: Milliseconds since 1970.
        """
        self._close_children("the search ended first", moment)
        self._client.log_text(self._parent, trial_table(self._log, self._log.trials.values()), "trials.csv")
        tags = {**summary_tags(self._log), "autopeft.status": said}
        hidden = len(self._log.trials) - len(self._place.children)
        if hidden > 0:
            tags["autopeft.not_listed"] = f"{hidden} more trials are in trials.csv"
        self._write(self._parent, summary_metrics(self._log), tags, moment=moment)
        self._client.set_terminated(self._parent, status, end_time=moment)

    def looks(self, test_hash: str) -> Looks:
        """How often other searches, in all experiments of the store, have read these test rows.

        A search counts once, wherever and however often it was sent; what was deleted was read all the same.

        Args:
            test_hash: Checksum of the test rows.
        """
        from mlflow.entities import ViewType

        experiments, token = [], None
        while True:
            found = self._client.search_experiments(view_type=ViewType.ALL, page_token=token)
            experiments += [experiment.experiment_id for experiment in found]
            token = found.token
            if not token:
                break
        reads: dict[str, int] = {}
        wanted = f"tags.`{TEST_HASH}` = '{test_hash}'"
        for first in range(0, len(experiments), EXPERIMENTS_ASKED):
            some, token = experiments[first : first + EXPERIMENTS_ASKED], None
            while True:
                page = self._client.search_runs(some, wanted, ViewType.ALL, max_results=1000, page_token=token)
                for run in page:
                    search = run.data.tags.get("autopeft.search", run.info.run_id)
                    known = run.data.tags.get(TEST_READS, "")
                    if search != self._place.search:
                        reads[search] = max(reads.get(search, 0), int(known) if known.isdigit() else 1)
                token = page.token
                if not token:
                    break
        return Looks(sum(reads.values()), len(reads))

    def upload(self, path: Path) -> None:
        """A file or folder as an artifact of the parent, under its own name."""
        if path.is_dir():
            self._client.log_artifacts(self._parent, str(path), path.name)
        else:
            self._client.log_artifact(self._parent, str(path))

    @property
    def _parent(self) -> str:
        if self._place.parent is None:
            self._start(None)
        assert self._place.parent is not None
        return self._place.parent

    def _start(self, moment: int | None) -> None:
        if self._place.parent is None:
            tags = {**self._common_tags(), "autopeft.status": "running"}
            run = self._client.create_run(self._place.experiment_id, moment, tags, self._place.run_name)
            self._place.parent = run.info.run_id
        self._write(self._place.parent, params=search_params(self._log))
        if self._log.header:
            self._client.set_experiment_tag(self._place.experiment_id, VIEW_TAG, view_state(self._log.metric))
            self._client.log_dict(self._place.parent, self._log.header, "search.json")

    def _trial(self, record: Record, trial: TrialLog, moment: int) -> None:
        run = self._child(trial, moment)
        if record.type == "rung":
            self._progress(trial, moment)
        if run is None:
            return
        if record.type == "rung":
            if trial.id not in self._open:
                # Its run was closed when an earlier driver died.
                self._client.update_run(run, status="RUNNING")
                self._open.add(trial.id)
            rung = trial.rungs[-1]
            self._write(run, rung_metrics(rung), {"autopeft.status": "running"}, moment=moment, step=rung.rows)
        elif record.type == "decision":
            tags = {"autopeft.status": trial.status, "autopeft.reason": short(record.data.get("reason"))}
            self._write(run, tags=tags)
        elif record.type == "retried":
            self._write(run, tags={"autopeft.attempts": str(trial.attempts)})
        elif record.type == "trial_ended":
            self._close(trial, run, moment)

    def _child(self, trial: TrialLog, moment: int) -> str | None:
        """The run of a trial, made when missing; None for one that is not listed."""
        run = self._place.children.get(trial.id)
        if run is not None:
            return run
        known_trials = (self._log.trials.get(name) for name in self._place.children)
        listed = sum(other is not None and other.purpose == "explore" for other in known_trials)
        if trial.purpose == "explore" and listed >= self._max_children:
            return None
        known, about = described(self._log, trial)
        tags = {
            **self._common_tags(),
            "mlflow.parentRunId": self._parent,
            "autopeft.trial": trial.id,
            "autopeft.status": trial.status,
        }
        name = f"{trial.id} {about.methods}" + (f" seed {trial.seed}" if trial.purpose == "confirm" else "")
        made = self._client.create_run(self._place.experiment_id, moment, tags, name)
        run = str(made.info.run_id)
        self._place.children[trial.id] = run
        self._open.add(trial.id)
        self._write(run, trial_sizes(self._log, trial), params=trial_params(self._log, trial), moment=moment)
        if known is not None:
            self._client.log_dict(run, dict(known.configuration), "configuration.json")
        return run

    def _progress(self, trial: TrialLog, moment: int) -> None:
        for name, arm in (("best", None), ("best.baseline", "baseline"), ("best.space", "space")):
            best = self._log.best(arm)
            if best is not None and best[0].id == trial.id:
                metrics = {f"{name}.validation.{self._log.rung_metric}": best[1]}
                self._write(self._parent, finite(metrics), moment=moment, step=int(self._log.used))

    def _close_children(self, reason: str, moment: int) -> None:
        for name in sorted(self._open):
            trial, run = self._log.trials.get(name), self._place.children[name]
            if trial is not None and trial.ended is not None:
                self._close(trial, run, moment)
            else:
                self._write(run, tags={"autopeft.status": "cancelled", "autopeft.reason": reason})
                self._client.set_terminated(run, "KILLED", end_time=moment)
        self._open.clear()

    def _close(self, trial: TrialLog, run: str, moment: int) -> None:
        said = " - ".join(str(text) for text in (trial.reason, trial.detail) if text)
        tags = {"autopeft.status": trial.status, **({"autopeft.reason": short(said)} if said else {})}
        self._write(run, tags=tags)
        self._client.set_terminated(run, CLOSED.get(trial.status, "FAILED"), end_time=moment)
        self._open.discard(trial.id)

    def _common_tags(self) -> dict[str, str]:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        return {
            "autopeft.search": self._place.search,
            "mlflow.source.name": "autopeft",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": user,
        }

    def _write(
        self,
        run: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        moment: int = 0,
        step: int = 0,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        # The record's own time, so that the same point sent twice is one point.
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, moment, step) for name, value in (metrics or {}).items()],
            params=[Param(name, value) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)
