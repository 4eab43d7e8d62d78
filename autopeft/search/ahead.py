"""Work that asking will need, done while nobody asks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from autopeft.cost.memory import UNBUILDABLE
from autopeft.errors import AutopeftError, NothingFeasible
from autopeft.search.prepared import Prepared

__all__ = ["Ahead"]


class Ahead:
    """Binds the spaces and predicts what memory ceilings are made of, one prediction at a time. Final.

    A worker that is free waits for what is asked on its behalf, and the first questions of a search are the dear ones:
    each new method costs a trace of the whole model. While all workers compute, the search has time for them. Nothing
    that it answers differs for it.

    Args:
        prepared: The search.
        head: The head as far as it is known; until then the most likely one is prepared for.
    """

    def __init__(self, prepared: Prepared, head: Callable[[], str | None]) -> None:
        self._prepared = prepared
        self._head = head
        self._for: str | None = None
        self._left: Iterator[None] = iter(())

    def step(self) -> None:
        """Do one thing more, if there is one left."""
        head = self._head() or self._prepared.heads[0]
        if head != self._for:
            self._for, self._left = head, self._work(head)
        next(self._left, None)

    def _work(self, head: str) -> Iterator[None]:
        prepared, methods = self._prepared, dict[str, None]()
        for values in (prepared.baseline, prepared.space):
            # Who searches says what is wrong with a space of which nothing fits.
            with contextlib.suppress(NothingFeasible):
                methods |= dict.fromkeys(prepared.bind(values, head).methods)
            yield
        gate = prepared.gate(head)
        for prediction in () if gate is None else gate.ahead(list(methods)):
            # Where one is asked about that cannot be built, asking says so.
            with contextlib.suppress(*UNBUILDABLE, AutopeftError, AssertionError):
                prediction()
            yield
