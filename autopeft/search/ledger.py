"""Where the controller writes: the journal first, then everything that is derived from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autopeft.journal import Journal, Record, SearchLog


class Ledger:
    """The journal, its fold, and those who want to know. Final.

    Args:
        journal: Open for writing.
        listeners: Called with every new record after it is on disk; they must not raise.
    """

    def __init__(self, journal: Journal, listeners: tuple[Callable[[Record], None], ...] = ()) -> None:
        self.journal = journal
        self.log = SearchLog.fold(journal.records)
        self._listeners = listeners

    def write(self, type: str, /, **data: Any) -> Record:
        """Append a record, fold it, pass it on."""
        record = self.journal.append(type, **data)
        # All that the fold lacks: a signal may have come between an append and its fold.
        for missing in self.journal.records[self.log.seq + 1 :]:
            self.log.apply(missing)
            for listener in self._listeners:
                listener(missing)
        return record

    def note(self, text: str) -> None:
        """A sentence for the user."""
        self.write("note", text=text)

    @property
    def used(self) -> float:
        """Seconds that the search has consumed, over all its sessions."""
        return self.journal.used
