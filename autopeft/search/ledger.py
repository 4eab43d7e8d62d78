"""Where the controller writes: the journal first, then everything that is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autopeft.journal import Journal, Record, SearchLog
from autopeft.search.meter import Meter


class Ledger:
    """The journal, its fold, and those who want to know. Final.

    Args:
        journal: Open for writing.
        listeners: Called with every new record after it is on disk; they must not raise.

    Attributes:
        meter: What the search's own work costs.
    """

    def __init__(self, journal: Journal, listeners: tuple[Callable[[Record], None], ...] = ()) -> None:
        self.journal = journal
        self.meter = Meter()
        with self.meter.of("journal"):
            self.log = SearchLog.fold(journal.records)
        self._listeners = listeners
        self._told = len(journal.records)
        self._depth = 0

    def write(self, type: str, /, **data: Any) -> Record:
        """Append a record, fold it, pass it on."""
        with self.together(), self.meter.of("journal"):
            record = self.journal.append(type, **data)
            # All that the fold lacks: a signal may have come between an append and its fold.
            for missing in self.journal.records[self.log.seq + 1 :]:
                self.log.apply(missing)
        return record

    @contextmanager
    def together(self) -> Iterator[None]:
        """Records written inside are on disk, and are passed on, at its end: one wait for the disk for all of them."""
        self._depth += 1
        self.journal.gather = True
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.journal.gather = False
                self._settle()

    def _settle(self) -> None:
        with self.meter.of("journal"):
            self.journal.sync()
        while self._told < len(self.journal.records):
            record = self.journal.records[self._told]
            self._told += 1
            for listener in self._listeners:
                listener(record)

    def note(self, text: str) -> None:
        """A sentence for the user."""
        self.write("note", text=text)

    @property
    def used(self) -> float:
        """Seconds that the search has consumed, over all its sessions."""
        return self.journal.used
