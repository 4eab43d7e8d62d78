"""Eval sets in the journal: what was given, and which of it is new."""

from __future__ import annotations

from collections.abc import Mapping

from autopeft.data.eval_sets import EvalSet
from autopeft.search.ledger import Ledger
from autopeft.search.resume import reopens
from autopeft.spec import Budget


def declare(
    ledger: Ledger,
    sets: Mapping[str, EvalSet],
    sources: Mapping[str, str],
    budget: Budget,
    *,
    until_decided: bool | None = None,
) -> None:
    """Journal the eval sets that are new or have other rows than before, and what is to be known of them.

    A set that is added to a search that has ended is read whole: the time was for the search. One that is given more
    time keeps to it.

    Args:
        ledger: Journal and fold, before a resumed search goes on.
        sets: Those that are given now.
        sources: Name -> file, or a label of what is in memory.
        budget: The limits now.
        until_decided: As for `autopeft.search.opening.opening`.
    """
    log = ledger.log
    again = reopens(log, budget, until_decided=until_decided)
    ended = log.finished is not None and log.verdict is not None and not again
    for name, given in sets.items():
        known = log.eval_sets.get(name, {})
        same = known.get("sha256") == given.sha256
        data = {
            "name": name,
            "source": sources[name],
            "rows": given.split.rows,
            "sha256": given.sha256,
            "whole": bool(known["whole"]) and not again if same else ended,
        }
        if known != data:
            ledger.write("eval_set", **data)
        if not same:
            for note in given.notes:
                ledger.note(note)
