"""A job's own clock: it tells how far the job is, and ends the job past its limit."""

from __future__ import annotations

import time
from collections.abc import Callable

from autopeft.errors import TrialFailure
from autopeft.trial.setup import Progress

REPORT_SECONDS = 0.5


class JobClock:
    """Asked between the batches of a job, whatever the job does. Final.

    Args:
        limit: Seconds that the job may take, or None.
        report: Called about twice a second with how far the job is.
    """

    def __init__(self, limit: float | None = None, report: Callable[[Progress], None] = lambda progress: None) -> None:
        self._limit = limit
        self._report = report
        self._began = time.monotonic()
        self._reported = 0.0
        self._latest: Progress | None = None

    def check(self, progress: Progress | None = None) -> None:
        """Note progress (None: the same as before, so that the job is seen to be alive), and look at the limit.

        Raises:
            TrialFailure: ``timeout`` past the limit.
        """
        now = time.monotonic()
        self._latest = progress or self._latest
        if self._latest is not None and now - self._reported > REPORT_SECONDS:
            self._report(self._latest)
            self._reported = now
        if self._limit is not None and now - self._began > self._limit:
            raise TrialFailure("timeout", f"the job took longer than its limit of {self._limit:.0f} s")
