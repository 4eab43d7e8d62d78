"""Following a journal into MLflow, from behind: one thread, one cursor, no effect on the search."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from autopeft.errors import DamagedFile, InputError, RunFolderError
from autopeft.journal import Record, SearchLog, in_use, read_journal
from autopeft.journal.record import encode
from autopeft.space.configuration import digest
from autopeft.tracking.runs import MAX_CHILDREN, VIEW, Looks, Place, Runs
from autopeft.tracking.store import connect, failures, passes, spoilt, tracking_uri

CURSOR = "tracking.json"
RESULT_FILES = ("result.json", "report.html", "charts", "adapter", "winner", "front", "predictions")
LONGEST_PAUSE = 30.0
LOOK_SECONDS = 3.0


@dataclass
class Cursor(Place):
    """How far MLflow has followed; kept in the run folder.

    Attributes:
        cursor: Number of the last record that MLflow has; -1 for none.
        refused: Records that MLflow refused for good, with its words for the first.
        refusal: Those words.
        files: Names of result files that are still to be sent.
    """

    cursor: int = -1
    refused: int = 0
    refusal: str | None = None
    files: list[str] = field(default_factory=list)


@dataclass
class Question:
    """What the search wants to know of the store.

    Attributes:
        test_hash: Checksum of the test rows.
        until: Monotonic seconds after which nobody waits for the answer.
        answered: Set when there is an answer, or none to be had.
        answer: The answer.
    """

    test_hash: str
    until: float
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Looks | None = None


class Tracker:
    """Follows a running search.

    A controller calls `offer` with every record it has appended, and `close` once at the end. Neither raises because
    of MLflow, and `offer` never waits.

    Args:
        uri: The store, as `tracking_uri` spells it.
        experiment: Name of the experiment; None takes the task's name.
        run_name: Name of the parent run; None takes the run folder's.
        folder: The run folder. When it was tracked before, whatever MLflow lacks is sent first.
        max_children: Most child runs of exploration.
    """

    def __init__(
        self,
        uri: str,
        experiment: str | None,
        run_name: str | None,
        folder: str | os.PathLike[str],
        max_children: int = MAX_CHILDREN,
    ) -> None:
        self._folder = Path(folder)
        self._max_children = max_children
        self._cursor = _load(self._folder, tracking_uri(uri, folder) or uri)
        self._cursor.experiment = experiment or self._cursor.experiment
        self._cursor.run_name = run_name or self._cursor.run_name or self._folder.resolve().name
        self._queue: queue.SimpleQueue[Record | Question | None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._closing = threading.Event()
        self._log = SearchLog()
        self._latest = -1
        self._computed = 0.0
        self._runs: Runs | None = None
        self._error: str | None = None
        self._settled = False
        self._thread = threading.Thread(target=self._work, name="autopeft-mlflow", daemon=True)
        self._thread.start()

    def offer(self, record: Record) -> None:
        """Take a record, to be sent when MLflow has time."""
        self._latest = max(self._latest, record.seq)
        self._queue.put(record)

    def catch_up(self, records: Iterable[Record]) -> None:
        """Take the records of earlier sessions; those that MLflow has are passed over."""
        for record in records:
            self.offer(record)

    def looks(self, test_hash: str, wait: float = LOOK_SECONDS) -> Looks | None:
        """How often other searches in the store have read these test rows.

        Args:
            test_hash: Their checksum.
            wait: Most seconds to wait for an answer; none where MLflow is known to be away.

        Returns:
            None where MLflow did not answer in time.
        """
        if self._error is not None or not self._thread.is_alive():
            return None
        question = Question(test_hash, time.monotonic() + wait)
        self._queue.put(question)
        question.answered.wait(wait)
        return question.answer

    @property
    def seconds(self) -> float:
        """Seconds of the processor that following the search has taken until now; waiting for MLflow is not in it."""
        return self._computed

    @property
    def error(self) -> str | None:
        """What MLflow said when it was last asked in vain; None when it follows."""
        return self._error

    def close(self, result_files: Sequence[str | os.PathLike[str]] = (), wait: float = 20.0) -> str | None:
        """Send what is left, the result's files as artifacts of the parent run, and end.

        Args:
            result_files: Files and folders, absolute or relative to the run folder; missing ones are passed over.
            wait: Most seconds to wait for MLflow.

        Returns:
            A sentence about what MLflow lacks and how to send it later, or None when it has everything.
        """
        with self._guard:
            self._cursor.files = [_inside(file, self._folder) for file in result_files]
            self._save()
        self._closing.set()
        self._queue.put(None)
        self._thread.join(wait)
        self._stop.set()
        with self._guard:
            return self._missing()

    def _missing(self) -> str | None:
        said: list[str] = []
        late = self._latest - self._cursor.cursor
        lacks = [f"{late} records"] if late > 0 else []
        lacks += [", ".join(Path(name).name for name in self._cursor.files)] if self._cursor.files else []
        if lacks or not self._settled:
            why = f" ({self._error})" if self._error else ""
            what = " and ".join(lacks) or "the end of the search"
            said.append(f"MLflow lacks {what}{why}; send it with: autopeft track {self._folder}")
        if self._cursor.refused:
            said.append(f"MLflow refused {self._cursor.refused} records ({self._cursor.refusal})")
        return ". ".join(said) or None

    def _work(self) -> None:
        try:
            earlier = read_journal(self._folder)
        except (RunFolderError, DamagedFile):
            earlier = []
        if earlier:
            self._latest = max(self._latest, earlier[-1].seq)
        if self._cursor.cursor >= 0:
            self._persist(self._check)
        for record in earlier:
            self._take(record)
        while not self._stop.is_set():
            item = self._queue.get()
            if item is None:
                self._finish()
                return
            if isinstance(item, Question):
                self._answer(item)
                continue
            # The journal at the start may have held records that were offered since.
            if item.seq > self._log.seq:
                self._take(item)

    def _check(self, runs: Runs) -> None:
        """Begin again when the store has lost the search, or someone has deleted it there."""
        if not runs.found:
            self._cursor.cursor, self._cursor.parent = -1, None
            self._cursor.children.clear()

    def _take(self, record: Record) -> None:
        self._log.apply(record)
        if record.seq == 0 and not self._cursor.search:
            self._cursor.search = digest(encode(record).decode())[:16]
            self._cursor.experiment = self._cursor.experiment or experiment_name(self._log)
        if record.seq <= self._cursor.cursor:
            return
        self._persist(lambda runs: runs.send(record))
        if self._stop.is_set():
            return
        with self._guard:
            self._cursor.cursor = record.seq
            self._save()
        self._computed = time.thread_time()

    def _answer(self, question: Question) -> None:
        """Asked once: nobody waits for a second answer."""
        wrong: tuple[type[Exception], ...] = ()
        try:
            if time.monotonic() < question.until:
                wrong = failures()
                question.answer = self._connected().looks(question.test_hash)
        except wrong as error:
            self._error, self._runs = " ".join(str(error).split())[:300], None
        finally:
            question.answered.set()

    def _finish(self) -> None:
        """After the last record: leave nothing open, then send the files."""
        if self._log.seq < 0:
            self._settled = True
            return
        if self._log.finished is None and self._log.interrupted is None:
            now = int(time.time() * 1000)
            self._persist(lambda runs: runs.end("FAILED", "ended without a result; it can be resumed", now))
        for name in list(self._cursor.files):
            path = self._folder / name
            if path.exists():
                self._persist(partial(Runs.upload, path=path))
            if self._stop.is_set():
                return
            with self._guard:
                self._cursor.files.remove(name)
                self._save()
        self._settled = not self._stop.is_set()

    def _persist(self, action: Callable[[Runs], None]) -> None:
        """Do it until MLflow has taken it or refused it for good, or until the tracker is told to stop."""
        pause = 1.0
        while not self._stop.is_set():
            wrong: tuple[type[Exception], ...] = ()
            try:
                wrong = failures()
                action(self._connected())
            except wrong as error:
                words = " ".join(str(error).split())[:300]
                if self._runs is not None and not passes(error):
                    self._cursor.refused += 1
                    self._cursor.refusal = self._cursor.refusal or words
                    return
                self._error, self._runs = words, None
                if spoilt(error):
                    self._error = f"the database is damaged, move it away ({words})"
                    self._stop.set()
                self._stop.wait(min(pause, 2.0) if self._closing.is_set() else pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._error = None
                return

    def _connected(self) -> Runs:
        if self._runs is None:
            runs = Runs(connect(self._cursor.uri), self._cursor, self._log, self._max_children)
            runs.attach()
            self._runs = runs
        return self._runs

    def _save(self) -> None:
        # Losing it costs a look-up, not data; so a full disk must not end the thread.
        # A copy of the dictionary in one step: the other thread may be adding to it.
        text = json.dumps({**vars(self._cursor), "children": dict(self._cursor.children)}, indent=1)
        half = self._folder / f"{CURSOR}.part"
        try:
            half.write_text(text)
            half.replace(self._folder / CURSOR)
        except OSError as error:
            self._error = f"{CURSOR} cannot be written: {error}"


def replay(
    folder: str | os.PathLike[str], uri: str | None = None, experiment: str | None = None, wait: float = 600.0
) -> str | None:
    """Send to MLflow whatever it lacks of a search that has ended; nothing is sent twice.

    Args:
        folder: The run folder.
        uri: The store; None takes the one that the search was tracked in, else ``mlflow.db`` beside the folder.
        experiment: Name of the experiment; None as before.
        wait: Most seconds to wait for MLflow.

    Returns:
        What MLflow still lacks, as a sentence, or None.

    Raises:
        RunFolderError: The folder holds no run, or its search is still running.
        DamagedFile: Its journal is damaged.
        InputError: `uri` says "none".
    """
    path = Path(folder)
    records = read_journal(path)
    if in_use(path):
        raise RunFolderError.one("run folder", str(folder), "its search is running and is tracked", "Wait for its end")
    asked = None if uri is None else tracking_uri(uri, path)
    if uri is not None and asked is None:
        raise InputError.one("tracking_uri", uri, "names no store", "Give a database or a server's address")
    before = _read(path)
    address = asked or (before or {}).get("uri") or tracking_uri(None, path)
    tracker = Tracker(str(address), experiment, None, path)
    for record in records:
        tracker.offer(record)
    same = before is not None and before.get("uri") == address
    files = before["files"] if before and same and before["files"] else []
    return tracker.close(files or ([] if same else _found(path)), wait)


def page_address(folder: str | os.PathLike[str], server: str = "http://127.0.0.1:5000") -> str:
    """Where MLflow shows the trials of a search, best first with the columns that matter.

    Args:
        folder: The run folder.
        server: Address of the MLflow server, e.g. the one that `serve_ui` starts.

    Returns:
        The server's own address while the search is not in MLflow.
    """
    number = (_read(Path(folder)) or {}).get("experiment_id")
    if not number:
        return server
    return f"{server}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def experiment_name(log: SearchLog) -> str:
    """The experiment that a search belongs to when nobody names one: its task."""
    spec, model, task = (log.header.get(key, {}) for key in ("spec", "model", "task"))
    named = (spec.get("task") or {}).get("name")
    if named:
        return str(named)
    known = [Path(str(model["id"])).name] if model.get("id") else []
    return " ".join(["autopeft", *known, *([str(task["kind"])] if task.get("kind") else [])])


def _inside(file: str | os.PathLike[str], folder: Path) -> str:
    """A path relative to the run folder where it lies in it, so that the folder can be moved."""
    path = Path(file)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _found(folder: Path) -> list[str]:
    return [name for name in RESULT_FILES if (folder / name).exists()]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        values = json.loads((folder / CURSOR).read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _load(folder: Path, uri: str) -> Cursor:
    """Where tracking stood; from the beginning for another store or without a readable file."""
    values = _read(folder)
    if values is None or values.get("uri") != uri:
        return Cursor(uri)
    known = {name: values[name] for name in Cursor.__dataclass_fields__ if name in values}
    return Cursor(**known)
