"""Work that asking will need, done while nobody asks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from autopeft.cost.memory import UNBUILDABLE
from autopeft.errors import AutopeftError, NothingFeasible
from autopeft.search.prepared import Prepared

__all__ = ["ahead"]


def ahead(prepared: Prepared, head: str) -> Iterator[None]:
    """Bind the spaces and predict what memory ceilings are made of, one thing at each step.

    A worker that is free waits for what is asked on its behalf, and the first questions of a search are the dear ones:
    each new method costs a trace of the whole model. While all workers compute, the search has time for them. Nothing
    that it answers differs for it.

    Args:
        prepared: The search.
        head: The head on top.
    """
    methods: dict[str, None] = {}
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
