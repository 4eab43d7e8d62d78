"""What a search's own work costs, by kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

KINDS = ("ask", "judge", "journal", "tracking", "display", "decide")
"""``ask``: proposing, decoding, predicting memory; ``judge``: halving; ``journal``: writing and folding records;
``tracking``: handing records to MLflow, and the computing of the thread that sends them; ``display``: telling those who
watch; ``decide``: all else that the controller does."""


class Meter:
    """Adds up seconds by kind, each counted once: of nested kinds the inner one gets what is its. Final.

    Args:
        clock: Seconds; only differences count. Not the clock of the journal, which may be a virtual one.

    Attributes:
        calls: Kind -> how often it was entered.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.calls = dict.fromkeys(KINDS, 0)
        self._clock = clock
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """What happens inside is of this kind."""
        self._turn()
        self._open.append(kind)
        self.calls[kind] += 1
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def add(self, kind: str, seconds: float) -> None:
        """Seconds that were measured elsewhere."""
        self._seconds[kind] += seconds

    def seconds(self) -> Mapping[str, float]:
        """Kind -> seconds until now."""
        return dict(self._seconds)

    def _turn(self) -> None:
        now = self._clock()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now
