"""The verb: search for the best configuration and its trained adapter."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft import __version__
from autopeft.errors import AutopeftError, InputError, NothingFeasible
from autopeft.executors import Executor, Starting
from autopeft.journal import Journal, Record, check_folder
from autopeft.search.controller import Controller
from autopeft.search.division import FINISH_SECONDS
from autopeft.search.eval_sets import declare
from autopeft.search.events import Event, Listener, Snapshot
from autopeft.search.ledger import Ledger
from autopeft.search.opening import check_opening
from autopeft.search.prepare import prepare
from autopeft.search.prepared import Prepared
from autopeft.search.result import SearchResult, build_result, place_winner, write_json
from autopeft.search.resume import check_fingerprint, note_nothing_new, take_up
from autopeft.search.rows import FinalRows
from autopeft.search.snapshot import Snapshots, snapshot
from autopeft.search.state import Rules
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.parse import checked, parse_search, spec_to_dict
from autopeft.trial.frozen import states_folder

if TYPE_CHECKING:
    from autopeft.tracking import Tracker

REPORTED_PACKAGES = ("torch", "transformers", "peft", "optuna", "ray", "datasets", "mlflow", "numpy", "safetensors")


def search(
    task: Task | dict[str, Any],
    budget: Budget | dict[str, Any] | None = None,
    *,
    on_event: Listener | None = None,
    **options: Any,
) -> SearchResult:
    """Search for the best PEFT configuration of a task under a budget.

    Args:
        task: Base model, data, kind, metric, head.
        budget: The limits; values may carry units (``{"max_adapter_params": "1%", "max_time": "5m"}``).
        on_event: Called with every `Event`, from this thread; about once a second while trials run.
        options: Any other field of `SearchSpec`: ``space``, ``strategy``, ``workers``, ``executor``, ``out``, ...

    Raises:
        InputError: Something given cannot be used: all problems at once.
        NothingFeasible: No configuration fits the limits.
    """
    spec = parse_search({"task": task, "budget": budget if budget is not None else Budget(), **options})
    return run(spec, on_event)


def run(
    spec: SearchSpec,
    on_event: Listener | None = None,
    *,
    started: float | None = None,
    workers: Starting | None = None,
) -> SearchResult:
    """Run a search that is fully specified.

    Args:
        spec: What to do.
        on_event: As for `search`.
        started: `time.monotonic()` at which the budget's time began; None takes now.
        workers: Workers that come up already; None starts them once the data has been read.

    Raises:
        InputError: As for `search`.
        NothingFeasible: As for `search`.
    """
    began = time.monotonic() if started is None else started
    spec = checked(spec)
    notify = on_event or (lambda event: None)
    spec = replace(spec, out=spec.out or default_folder())
    folder = Path(str(spec.out))
    starting = [] if workers is None else [workers]

    def start() -> None:
        if not starting:
            starting.append(Starting(spec))

    with terminating() as renew:
        try:
            check_folder(folder, resume=spec.resume, overwrite=spec.overwrite)
            notify(Event("prepare"))
            prepared = prepare(spec, measure=True, gathered=start)
            infeasible = prepared.infeasible()
            # Before the folder is touched: workers that cannot be had are bad input like any other.
            executor = None if infeasible else starting[0].take()
            renew()
            at = {**prepared.at, "workers there": time.monotonic()}
            phases = {name: round(moment - began, 3) for name, moment in at.items()}
            opened = Journal.resume if spec.resume else partial(Journal.create, overwrite=spec.overwrite)
            with opened(folder, started=began) as journal:
                return _Session(prepared, journal, notify, phases).run(executor, infeasible)
        finally:
            for each in starting:
                each.drop()


def default_folder() -> str:
    """A new run folder under ``runs/``."""
    return str(Path("runs") / time.strftime("%Y%m%d-%H%M%S"))


def environment() -> dict[str, Any]:
    """Versions and machine, without names, paths or addresses."""
    packages = {}
    for name in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "autopeft": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


class _Session:
    """One process's stretch of a search."""

    def __init__(self, prepared: Prepared, journal: Journal, notify: Listener, phases: dict[str, float]) -> None:
        from autopeft.tracking import Tracker, tracking_uri

        self._prepared, self._spec = prepared, prepared.spec
        self._folder = Path(journal.folder)
        self._phases = phases
        self._notify = notify
        self._environment = environment()
        self._controller: Controller | None = None
        uri = tracking_uri(self._spec.tracking_uri, self._folder)
        name = self._spec.task.name or prepared.raw.source
        self._tracker = None if uri is None else Tracker(uri, f"autopeft/{name}", self._folder.name, self._folder)
        self._snapshots = Snapshots()
        self._ledger = Ledger(journal, (self._offer, self._tell))
        self._began = self._ledger.used
        self._started = bool(journal.records)

    def run(self, executor: Executor | None, infeasible: NothingFeasible | None) -> SearchResult:
        """Start or take up the search, run it to its end, save what it found.

        Args:
            executor: The workers; None where nothing fits the limits.
            infeasible: Why nothing fits, or None.
        """
        log = self._ledger.log
        repaired = self._ledger.journal.repaired
        if repaired:
            self._ledger.note(repaired)
        if self._started:
            check_fingerprint(log.header.get("fingerprint", {}), self._prepared.fingerprint())
            shut = check_opening(log, self._spec.budget, until_decided=self._spec.until == "decided")
            if shut is not None:
                self._notify(Event("note", {"text": shut}))
            if self._tracker is not None:
                self._tracker.catch_up(self._ledger.journal.records)
        else:
            self._ledger.write(
                "search_started",
                schema=1,
                version=__version__,
                **self._prepared.header(self._environment),
                started=self._phases,
            )
            self._ledger.write("modules", map=self._prepared.modules(self._prepared.heads[0]).to_dict())
        sources = spec_to_dict(self._spec)["eval_sets"]
        decided = self._spec.until == "decided"
        declare(self._ledger, self._prepared.eval_sets, sources, self._spec.budget, until_decided=decided)
        status, message = "found", None
        smallest: dict[str, float] | None = None
        fault: AutopeftError | None = None
        try:
            if executor is None:
                raise infeasible or AutopeftError("there are no workers")
            self._search(executor)
            if self._controller is None or self._controller.phase != "done":
                status, message = "cancelled", "stopped by a signal"
        except KeyboardInterrupt:
            status, message = "cancelled", "stopped by a signal"
        except NothingFeasible as error:
            status, message, smallest, fault = "infeasible", str(error), error.smallest, error
        except InputError:
            raise
        except AutopeftError as error:
            status, message, fault = "failed", str(error), error
        if status == "cancelled":
            self._ledger.write("interrupted", signal=message)
        return self._finish(status, message, smallest, fault)

    def _search(self, executor: Executor) -> None:
        spec, prepared = self._spec, self._prepared
        before = len(self._ledger.log.trials)
        decided = spec.until == "decided"
        again = self._started and take_up(self._ledger, spec.budget, executor.slots, until_decided=decided)
        rules = Rules(
            budget=spec.budget,
            evidence=spec.evidence,
            until_decided=decided,
            heads=prepared.heads,
            train_rows=prepared.data.splits["train"].rows,
            validation_rows=prepared.data.splits["validation"].rows,
            test_rows=prepared.data.splits["test"].rows,
            test_hash=prepared.data.hashes["test"],
            incumbent=None if spec.incumbent is None else str(Path(spec.incumbent).resolve()),
            seed=spec.seed,
            objective=spec.objective,
            cost=spec.cost,
            pack="off" if spec.executor == "tune" else spec.pack,
            eval_rows={name: given.split.rows for name, given in prepared.eval_sets.items()},
        )
        self._controller = Controller(
            self._ledger, rules, prepared.field, slots=executor.slots, on_tick=lambda: self._tell(None)
        )
        executor.run(self._controller, prepared.setup(self._folder))
        if again and self._controller.phase == "done":
            note_nothing_new(self._ledger, before)

    def _tell(self, record: Record | None) -> None:
        if self._controller is None:
            return
        with self._ledger.meter.of("display"):
            if record is None and not self._snapshots.due():
                return
            shown = self._snapshots.take(self._controller, "tick" if record is None else record.type)
            event = Event("tick", {}, shown) if record is None else Event(record.type, record.data, shown)
            self._notify(event)

    def _offer(self, record: Record) -> None:
        if self._tracker is not None:
            with self._ledger.meter.of("tracking"):
                self._tracker.offer(record)

    def _account(self) -> None:
        """Journal what the search's own work took in this session."""
        meter = self._ledger.meter
        if self._tracker is not None:
            meter.add("tracking", self._tracker.seconds)
        seconds = {kind: round(value, 6) for kind, value in meter.seconds().items()}
        self._ledger.write("overhead", seconds=seconds, wall=round(self._ledger.used - self._began, 6))

    def _finish(
        self, status: str, message: str | None, smallest: dict[str, float] | None, fault: AutopeftError | None
    ) -> SearchResult:
        from autopeft.report import report

        if status == "failed" and self._ledger.log.finalists is not None:
            self._ledger.note(f"the search broke after its finalists were named: {message}")
        limit, used = self._spec.budget.max_time, self._ledger.used
        if limit is not None and used > limit:
            # Loading, probing and one trial of each arm are done whatever the limit is.
            self._ledger.note(f"the limit of {limit:.0f} s was passed by {used - limit:.1f} s")
        if self._tracker is not None:
            count_looks(self._ledger, self._tracker)
        self._account()
        values = build_result(
            self._ledger,
            status=status,
            budget=self._spec.budget,
            environment=self._environment,
            message=message,
            smallest=smallest,
        )
        if status == "found" and values["winner"] is None:
            values["status"], values["message"] = "failed", "no trial ended well; see the causes in report.html"
        if status != "cancelled":
            shutil.rmtree(states_folder(self._folder), ignore_errors=True)
        place_winner(self._folder, values)
        values["predictions"] = FinalRows(self._ledger).write()
        self._ledger.write("finished", status=values["status"], result=values)
        write_json(self._folder / "result.json", values)
        report(self._folder)
        if self._tracker is not None:
            files = [self._folder / "result.json", self._folder / "report.html", self._folder / "charts"]
            if values["winner"] is not None:
                files.append(self._folder / "winner")
            files += [self._folder / name for name in ("front", "predictions") if values[name]]
            missing = self._tracker.close(files, wait=FINISH_SECONDS)
            if missing:
                shown = Snapshot("done") if self._controller is None else snapshot(self._controller)
                self._notify(Event("note", {"text": missing}, shown))
        if fault is not None and not self._ledger.log.trials:
            raise fault
        return SearchResult(self._folder, values)


def count_looks(ledger: Ledger, tracker: Tracker) -> None:
    """Journal how often the test rows were read by all searches, where the tracking store answers at once.

    Args:
        ledger: Journal and fold; what this search has read is counted there.
        tracker: Knows what the others have read.
    """
    log = ledger.log
    if not log.test_opened:
        return
    test_hash, own = str(log.test_opened[-1]["test_hash"]), len(log.test_opened)
    others = tracker.looks(test_hash)
    if others is not None:
        reads, searches = own + others.reads, 1 + others.searches
        ledger.write("looks", test_hash=test_hash, this_search=own, all_searches=reads, searches=searches)


@contextlib.contextmanager
def terminating() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP end a search as cleanly as Ctrl-C does.

    Yields:
        Puts the handlers in place again: Ray installs its own when it starts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def install() -> None:
        for number in earlier:
            signal.signal(number, interrupt)

    install()
    try:
        yield install
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
