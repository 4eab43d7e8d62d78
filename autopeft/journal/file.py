"""The journal's file: one writer, append-only, on disk before it is acted upon."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from autopeft.errors import DamagedFile, InputError, RunFolderError
from autopeft.journal.record import FIELDS, Record, decode, encode, read_data, spell

FILE = "journal.jsonl"
LOCK = "journal.lock"
TORN = "journal.torn"


def read_journal(folder: str | os.PathLike[str]) -> list[Record]:
    """All records of a run folder, also while another process appends to it.

    A torn last line (being written, or left by a crash) is left out.

    Raises:
        RunFolderError: The folder holds no journal.
        DamagedFile: A line inside fails its checksum or is missing.
    """
    path = Path(folder) / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _no_run(folder, error) from error
    return _parse(content, path)[0]


def in_use(folder: str | os.PathLike[str]) -> bool:
    """Whether a living process writes the journal of this folder."""
    try:
        lock = os.open(Path(folder) / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class Journal:
    """The writer of a run folder's journal; `create` and `resume` make one.

    One thread appends. The lock is held until `close`, or until the process ends in whatever way.

    Attributes:
        folder: The run folder.
        records: All records, those of earlier sessions included.
        repaired: What was repaired while opening, as a sentence; None when nothing was.
        gather: Whether records wait for `sync` to be on disk, so that several wait for it once.
    """

    def __init__(self, folder: Path, lock: int, clock: Callable[[], float], started: float | None) -> None:
        self.folder = folder
        self.records: list[Record] = []
        self.repaired: str | None = None
        self.gather = False
        self._late = False
        self._lock = lock
        self._clock = clock
        path = folder / FILE
        content = path.read_bytes() if path.exists() else b""
        self.records, good = _parse(content, path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # Records that count and the bytes that they fill: one value, so that no interruption finds half of it changed.
        self._kept = (len(self.records), good)
        if good != len(content):
            self._repair(content, good)
        _sync_folder(folder)
        # Time is measured from a monotonic clock alone and carried from session to session by the records.
        self._origin = (clock() if started is None else started) - (self.records[-1].used if self.records else 0.0)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> Journal:
        """A new journal in a new or empty folder.

        Args:
            folder: The run folder; made when missing.
            overwrite: Whether an earlier run in it is deleted. Only a folder that holds a journal is ever emptied.
            clock: Monotonic seconds.
            started: The clock's reading when the search began; None takes now.

        Raises:
            RunFolderError: The folder is not empty, is in use, or cannot be written.
        """
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_taken(path, overwrite)
            lock = _lock(path)
            try:
                # Asked again under the lock: another process may have been faster.
                _refuse_taken(path, overwrite)
                _empty(path)
                return cls(path, lock, clock, started)
            except BaseException:
                # Nobody would let go of the lock; whatever it was goes on.
                os.close(lock)
                raise
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def resume(
        cls,
        folder: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> Journal:
        """The journal of an earlier run, to be continued; its seconds used go on from the last record.

        Args:
            folder: The run folder.
            clock: Monotonic seconds.
            started: The clock's reading when this session began; None takes now.

        Raises:
            RunFolderError: There is no journal, or it is in use.
            DamagedFile: A line inside fails its checksum or is missing.
        """
        path = Path(folder)
        if not (path / FILE).is_file():
            raise _no_run(folder, None)
        try:
            lock = _lock(path)
            try:
                return cls(path, lock, clock, started)
            except BaseException:
                # Nobody would let go of the lock; whatever it was goes on.
                os.close(lock)
                raise
        except OSError as error:
            raise _unwritable(path, error) from error

    @property
    def used(self) -> float:
        """Seconds that the search has consumed until now, all sessions together."""
        last = self.records[-1].used if self.records else 0.0
        return max(last, self._clock() - self._origin)

    def append(self, type: str, /, **data: Any) -> Record:
        """Write one record; it is on disk when this returns, or after `sync` where records are gathered.

        Args:
            type: A key of `FIELDS`.
            data: Its members: JSON values.

        Returns:
            The record as a reader will see it (tuples have become lists).

        Raises:
            ValueError: The type is unknown, or a number is NaN or infinite.
            TypeError: A value is not a JSON value.
            RunFolderError: The disk refuses; nothing of the record is left in the file.

        Whatever else is raised in the middle, a `KeyboardInterrupt` for one, file and `records` agree afterwards: both
        hold the record or neither does.
        """
        if type not in FIELDS:
            raise ValueError(f"unknown record type {type!r}; known: {', '.join(FIELDS)}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = spell(data)
        plain = read_data(type, text)
        try:
            # A second signal may have cut short the undoing after the first.
            self._undo()
            count, size = self._kept
            record = Record(count, type, round(self.used, 6), now, plain)
            line = encode(record, text)
            try:
                self._write(line)
                self.records.append(record)
                self._kept = (count + 1, size + len(line))
            except BaseException:
                # A signal too: half of a line must not stay; whatever it was goes on.
                self._undo()
                raise
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return record

    def sync(self) -> None:
        """See to it that all records are on disk.

        Raises:
            RunFolderError: The disk refuses.
        """
        try:
            self._flush()
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def close(self) -> None:
        """Release the file and the lock. Harmless when called again."""
        if self._file >= 0:
            self._flush()
            os.close(self._file)
            os.close(self._lock)
            self._file = self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._late = True
        if not self.gather:
            self._flush()

    def _flush(self) -> None:
        if self._late:
            os.fsync(self._file)
            self._late = False

    def _undo(self) -> None:
        """Take back what does not count: the next line would be unreadable after half of one, or repeat its number."""
        count, size = self._kept
        del self.records[count:]
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, size)

    def _repair(self, content: bytes, good: int) -> None:
        tail, line = content[good:], len(self.records) + 1
        try:
            record = decode(tail)
        except ValueError:
            record = None
        if record is not None and record.seq == len(self.records):
            self._write(b"\n")
            self.records.append(record)
            self._kept = (len(self.records), len(content) + 1)
            self.repaired = f"line {line} of {FILE} had lost its line end; it was added"
            return
        with (self.folder / TORN).open("ab") as torn:
            torn.write(tail.rstrip(b"\n") + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        os.ftruncate(self._file, good)
        os.fsync(self._file)
        self.repaired = f"line {line} of {FILE} was torn ({len(tail)} bytes) and was cut; a copy is in {TORN}"


def _parse(content: bytes, path: Path) -> tuple[list[Record], int]:
    """The records, and the number of bytes that they fill: less than all when the last line is torn."""
    records: list[Record] = []
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        if end < 0:
            break
        line = content[start:end]
        try:
            record = decode(line)
        except ValueError as error:
            # A power cut can leave blocks of zeros where the last write was going to be.
            if b"\0" in line and b"\n" not in content[end + 1 :].rstrip(b"\0\n"):
                break
            raise _damaged(path, len(records) + 1, str(error)) from error
        if record.seq != len(records):
            raise _damaged(path, len(records) + 1, f"record {len(records)} is missing (found {record.seq})")
        records.append(record)
        start = end + 1
    return records, start


def _lock(folder: Path) -> int:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise RunFolderError.one(
            "out",
            str(folder),
            f"is in use by process {owner}",
            "Wait for it, stop it, or choose another folder with --out",
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def check_folder(folder: str | os.PathLike[str], *, resume: bool, overwrite: bool) -> None:
    """Say early what opening a journal there would say; nothing is made or changed.

    Raises:
        RunFolderError: The folder is taken, or there is nothing to resume.
    """
    path = Path(folder)
    if resume:
        if not (path / FILE).is_file():
            raise _no_run(folder, None)
    elif path.is_dir():
        _refuse_taken(path, overwrite)


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    names = {entry.name for entry in folder.iterdir()} - {LOCK}
    if not names:
        return
    if not _is_run(folder):
        raise RunFolderError.one(
            "out",
            str(folder),
            "is not empty and is not a run of autopeft, so it is never deleted",
            "Choose another folder with --out, or empty this one by hand",
        )
    if not overwrite:
        raise RunFolderError.one(
            "out",
            str(folder),
            "already holds a run",
            "Continue it with --resume, replace it with --overwrite, or choose another folder with --out",
        )


def _is_run(folder: Path) -> bool:
    path = folder / FILE
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline()
    # Shorter than the mark, or empty, is what a crash right after the start leaves.
    mark = b'{"seq":0,'
    return first[: len(mark)] == mark[: len(first)]


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, line: int, what: str) -> InputError:
    return DamagedFile.one(
        str(path), f"line {line}", what, "Restore the file from a copy, or start again with --overwrite"
    )


def _no_run(folder: str | os.PathLike[str], error: OSError | None) -> InputError:
    if error is None or isinstance(error, FileNotFoundError | NotADirectoryError):
        rule = f"holds no run (no {FILE})"
    else:
        rule = f"cannot be read ({error.strerror})"
    return RunFolderError.one("run folder", str(folder), rule, "Give the folder that `autopeft search` printed")


def _unwritable(folder: Path, error: OSError) -> InputError:
    return RunFolderError.one(
        "out",
        str(folder),
        f"cannot be written ({error.strerror or error})",
        "Free space or correct the permissions, then continue with --resume, or choose another folder with --out",
    )
