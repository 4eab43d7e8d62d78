"""What other limits open of a search that has ended: whether anything more can be trained, and if not, why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.errors import InputError, Problem
from autopeft.journal import SearchLog
from autopeft.search.division import CONFIRM_SHARE, EXPLORE_SHARE, FINALIST_SEEDS, FINISH_SECONDS, Division, trials_of
from autopeft.spec import Budget
from autopeft.spec.amounts import format_at_least, format_seconds

EXTENSIBLE = ("max_time", "max_trials", "max_compute")
"""Limits of which a search can be given more."""
CLOCKS = ("max_time", "max_compute")
NO_TIME = "time"
"""Reason of an evaluation for which no time was left: it is made when there is more."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a search that had ended is given.

    Attributes:
        ended: Whether it had ended with a result, and all of it; else it just goes on.
        opens: Whether more can be trained than before.
        changed: Limits that are not what they were.
        problems: Which limits keep it shut, and what would do; empty where it opens.
    """

    ended: bool
    opens: bool = False
    changed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def opening(log: SearchLog, budget: Budget, *, until_decided: bool | None = None) -> Opening:
    """What these limits open of a search that has ended.

    It opens where a limit is above what it was, and all of them leave room for a new trial, or, where no trial may
    start any more, for one more seed of both finalists.

    Args:
        log: The journal until now, before the record that takes it up.
        budget: The limits now.
        until_decided: Whether the session that begins ends once the verdict is settled; None as the latest one did.
    """
    if log.finished is None or log.finished["status"] != "found" or not log.plan:
        return Opening(ended=False)
    before: Mapping[str, Any] = log.plan.get("budget") or log.header["spec"]["budget"]
    division = Division.from_dict(dict(log.plan))
    trials = trials_of(budget, division)
    now = {"max_time": budget.max_time, "max_compute": budget.max_compute, "max_trials": trials}
    then = {**{name: before.get(name) for name in CLOCKS}, "max_trials": division.max_trials}
    raised = [name for name in EXTENSIBLE if _above(now[name], then[name])]
    changed = tuple(name for name in EXTENSIBLE if before.get(name) != getattr(budget, name))
    started = log.index.started["explore"]
    decided = log.until == "decided" if until_decided is None else until_decided
    problems = []
    may_start = trials is None or started < trials
    if not may_start and not (set(raised) & set(CLOCKS) and _seeds_left(log, division, budget, decided)):
        problems.append(_trials_problem(budget, trials, division.max_trials, started))
    # Where no trial may start there is nothing that the clocks could leave too little for.
    wall, busy = (0.0, 0.0) if problems else _least(log, division, may_start)
    for name, used, least in (("max_time", log.used + FINISH_SECONDS, wall), ("max_compute", log.busy, busy)):
        limit = now[name]
        if limit is not None and limit < used + least:
            problems.append(_clock_problem(name, limit, used, used + least))
    unread = [data for of_set in log.evaluations.values() for data in of_set.values() if data["reason"] == NO_TIME]
    if problems and unread and set(raised) & set(CLOCKS):
        # More time reads the eval sets that it lacked for; nothing else is opened by that.
        return Opening(ended=False)
    if not raised and not problems:
        problems = [_not_above(name, getattr(budget, name)) for name in changed]
    return Opening(True, bool(raised) and not problems, changed, tuple(problems))


def check_opening(log: SearchLog, budget: Budget, *, until_decided: bool | None = None) -> str | None:
    """Refuse limits that were changed and open nothing: they would stay behind in the folder and do nothing.

    Args:
        log: As for `opening`.
        budget: As for `opening`.
        until_decided: As for `opening`.

    Returns:
        A sentence where a search that had ended is taken up under the limits that it had, else None.

    Raises:
        InputError: Which limit ended the search, and what to give.
    """
    found = opening(log, budget, until_decided=until_decided)
    if not found.ended or found.opens:
        return None
    if found.changed:
        raise InputError(found.problems)
    steps = " ".join(problem.next_step for problem in found.problems)
    return f"This search has ended, and its limits are as they were: nothing was opened. {steps}".strip()


def _above(now: float | None, then: float | None) -> bool:
    return then is not None and (now is None or now > then)


def _seeds_left(log: SearchLog, division: Division, budget: Budget, until_decided: bool) -> bool:
    """Whether more time could pay for another fresh seed of both finalists."""
    verdict = log.verdict or {}
    if until_decided and verdict.get("name") in ("better", "within", "worse"):
        return False
    finalists = log.finalists or {}
    both = bool(finalists.get("baseline") and finalists.get("challenger"))
    clocked = budget.max_time is not None or budget.max_compute is not None
    most = len(FINALIST_SEEDS) if both and clocked and not until_decided else len(division.seeds)
    return int(verdict.get("seeds") or 0) < most


def _least(log: SearchLog, division: Division, may_start: bool) -> tuple[float, float]:
    """Wall and busy seconds below which nothing can be trained: a trial's first rung, else a finalists' round."""
    speed = division.speed
    if may_start:
        least = division.rungs[0] * speed.train / EXPLORE_SHARE
        return least, least
    rows = int((log.finalists or {}).get("rows") or division.final_rows)
    run = rows * speed.train + division.final_evaluated * speed.evaluate + speed.generate
    each = run / (EXPLORE_SHARE + CONFIRM_SHARE)
    return math.ceil(2 / division.workers) * each, 2 * each


def _trials_problem(budget: Budget, now: int | None, then: int | None, started: int) -> Problem:
    if budget.max_trials is None:
        rule = f"is {now} where nothing is limited, and {started} trials have started: nothing is opened"
    elif now == then:
        rule = f"ended this search ({started} trials have started), and no other limit opens it again"
    else:
        rule = f"opens nothing: {started} trials have started"
    return Problem("budget.max_trials", budget.max_trials, rule, f"Give budget.max_trials above {started}.")


def _clock_problem(name: str, limit: float, used: float, needed: float) -> Problem:
    told = f"opens nothing: {format_seconds(used)} are used"
    if limit > used:
        told += f", and what is left does not pay for the {format_seconds(needed - used)} of one more training"
    return Problem(f"budget.{name}", limit, told, f"Give budget.{name} of {format_at_least(name, needed)} or more.")


def _not_above(name: str, value: Any) -> Problem:
    rule = "opens nothing: it is no more than this search had"
    return Problem(f"budget.{name}", value, rule, f"Give more of budget.{name}, or leave it out.")
