"""Taking up a search: what must be the same, and what more budget opens again."""

from __future__ import annotations

import re
from typing import Any

from autopeft.errors import InputError, Problem
from autopeft.journal import SearchLog
from autopeft.search.division import Division, extend
from autopeft.search.ledger import Ledger
from autopeft.search.opening import opening
from autopeft.spec import Budget


def limits(budget: Budget) -> dict[str, Any]:
    """The budget as plain values."""
    return {name: getattr(budget, name) for name in budget.__dataclass_fields__}


def check_fingerprint(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with another search, naming every field that differs.

    Raises:
        InputError: Something but time, trials and workers was changed.
    """
    problems = [
        Problem(
            field,
            _shown(now.get(field)),
            f"differs from the search in this folder ({_shown(before.get(field))!r})",
            "A resumed search keeps task, space, strategy, seed and limits; use another --out for a new one.",
        )
        # What an earlier version did not write down, it did not vary.
        for field in sorted(before)
        if before[field] != now.get(field)
    ]
    if problems:
        raise InputError(problems)


def _shown(value: Any) -> Any:
    """A checksum shortened; nobody typed it."""
    long = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value)
    return f"checksum {value[:10]}..." if long else value


def reopens(log: SearchLog, budget: Budget, *, until_decided: bool | None = None) -> bool:
    """Whether a search that had ended is given more to do; arguments as for `opening`."""
    return opening(log, budget, until_decided=until_decided).opens


def take_up(ledger: Ledger, budget: Budget, workers: int, *, until_decided: bool | None = None) -> bool:
    """Journal that a search goes on, with the budget as it is now, unless it had ended and nothing is opened by that.

    Args:
        ledger: Journal and fold of the search until now.
        budget: The limits now.
        workers: Workers now.
        until_decided: Whether it now ends once the verdict is settled; None keeps what it did.

    Returns:
        Whether a search that had ended explores on.
    """
    log = ledger.log
    found = opening(log, budget, until_decided=until_decided)
    # A session that was killed between these two records has divided nothing yet.
    again = found.opens or log.reopening
    until = log.until if until_decided is None else "decided" if until_decided else None
    ledger.write("resumed", records=len(ledger.journal.records), reopened=again, until=until)
    if not log.plan or (found.ended and not again):
        return again
    started = float(log.plan["started"])
    division = extend(
        Division.from_dict(log.plan),
        budget,
        used=ledger.used,
        started=started,
        workers=workers,
        busy=log.busy,
        reopened=again,
    )
    if again:
        started = ledger.used
    ledger.write("plan", **division.to_dict(), started=started, budget=limits(budget))
    return again


def note_nothing_new(ledger: Ledger, trials: int) -> None:
    """Say that a search that was given more has trained nothing with it.

    Args:
        ledger: Journal and fold, after it.
        trials: Trials before it.
    """
    if len(ledger.log.trials) == trials:
        ledger.note(
            "This search was given more, and nothing further was trained: all that its space holds was tried, or no "
            "further training fits into what is left."
        )
