"""Trials as strategies see them, in order, with what samplers and rules ask of all of them kept sorted."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any, overload

from autopeft.space.configuration import Scalar
from autopeft.strategy.base import TrialView

Place = tuple[float, int, str]
"""Of a trial in a ranking: its score with the sign turned, its index, its id. The smallest is the best."""


class Trials(Sequence[TrialView]):
    """A sequence of trials that answers in the time that the answer takes, however many trials there are. Final.

    A strategy is a function of the trials, whatever holds them: `of` makes one of these of any sequence, and what is
    put in one by one gives the same answers as what is put in at once. Only whoever owns it changes it.

    Args:
        views: The trials.

    Attributes:
        looked_at: How many trials have been handed out by the answers, for tests of how much work a question is.
    """

    def __init__(self, views: Iterable[TrialView] = ()) -> None:
        self.looked_at = 0
        self._order: list[str] = []
        self._views: dict[str, TrialView] = {}
        self._position: dict[str, int] = {}
        self._sorted: dict[Hashable, list[Any]] = {}
        self._points: set[int] = set()
        self._splits: dict[Hashable, tuple[Callable[[TrialView], int], dict[int, Trials]]] = {}
        for view in views:
            self.put(view)

    @classmethod
    def of(cls, views: Sequence[TrialView]) -> Trials:
        """These trials, sorted; itself where they are."""
        return views if isinstance(views, cls) else cls(views)

    def put(self, view: TrialView) -> None:
        """Add a trial, or replace what was known of it."""
        before = self._views.get(view.trial)
        if before is None:
            self._position[view.trial] = len(self._order)
            self._order.append(view.trial)
            self._points.add(_point(view.values))
        position = self._position[view.trial]
        old = set() if before is None else _entries(before, position)
        new = _entries(view, position)
        for key, entry in old - new:
            ranking = self._sorted[key]
            del ranking[bisect_left(ranking, entry)]
        for key, entry in new - old:
            insort(self._sorted.setdefault(key, []), entry)
        self._views[view.trial] = view
        for of, parts in self._splits.values():
            parts.setdefault(of(view), Trials()).put(view)

    @overload
    def __getitem__(self, place: int) -> TrialView: ...
    @overload
    def __getitem__(self, place: slice) -> list[TrialView]: ...
    def __getitem__(self, place: int | slice) -> TrialView | list[TrialView]:
        if isinstance(place, slice):
            return [self._views[name] for name in self._order[place]]
        return self._views[self._order[place]]

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[TrialView]:
        return (self._seen(name) for name in self._order)

    def named(self, name: str) -> TrialView:
        """A trial by its id."""
        return self._seen(name)

    def reached(self, rung: int) -> Sequence[Place]:
        """The trials that have reached a rung and may win, best first; the earlier one of equals first."""
        return self._list(("reached", rung))

    def rank(self, view: TrialView, rung: int) -> int:
        """The place, from 0, that a trial's score at a rung has there."""
        return bisect_left(self.reached(rung), _place(view, rung))

    def waiting(self, rung: int) -> Place | None:
        """The best of the trials that may win and are paused at a rung."""
        return next(iter(self._list(("waiting", rung))), None)

    def paused(self) -> Iterator[TrialView]:
        """All paused trials with a score, by index."""
        return (self._seen(name) for _, name in self._list("paused"))

    def lifts(self) -> list[float]:
        """By rungs reached (from 1): what a last score there lacks of the highest rung that any trial has reached.

        The median gains of the trials that were observed at both ends of each step, summed up.
        """
        top = 0
        while self.reached(top):
            top += 1
        lift = [0.0] * max(top, 1)
        for rung in range(top - 2, -1, -1):
            lift[rung] = lift[rung + 1] + median([gain for gain, _ in middle(self._list(("gain", rung)))])
        return lift

    def best(self) -> Iterator[tuple[float, TrialView]]:
        """Estimated score at the highest rung and trial, best first; the earlier one of equals first."""

        def lifted(rung: int, lift: float) -> Iterator[Place]:
            return ((-(lift - worth), index, name) for worth, index, name in self._list(("last", rung)))

        rungs = [lifted(rung, lift) for rung, lift in enumerate(self.lifts())]
        return ((-worth, self._seen(name)) for worth, _, name in merge(*rungs))

    def latest(self) -> Iterator[TrialView]:
        """Those with a result, which is a score or a broken limit, the highest index first."""
        return (self._seen(name) for _, name in reversed(self._list("settled")))

    def unscored(self) -> Iterator[TrialView]:
        """Those that run without a score, the last one first."""
        return (self._seen(name) for _, name in reversed(self._list("unscored")))

    def tried(self, values: Mapping[str, Scalar]) -> bool:
        """Whether a trial has this very point."""
        return _point(values) in self._points

    def split(self, name: Hashable, of: Callable[[TrialView], int]) -> Mapping[int, Trials]:
        """The trials by what a function says of them; kept up from the first question on.

        Args:
            name: Of the function: equal names must mean equal functions.
            of: Trial -> its part. It may depend on what never changes of a trial.
        """
        if name not in self._splits:
            parts: dict[int, Trials] = {}
            for trial in self._order:
                view = self._views[trial]
                parts.setdefault(of(view), Trials()).put(view)
            self._splits[name] = (of, parts)
        return self._splits[name][1]

    def _list(self, key: Hashable) -> list[Any]:
        return self._sorted.get(key, [])

    def _seen(self, name: str) -> TrialView:
        self.looked_at += 1
        return self._views[name]


def usable(trial: TrialView) -> bool:
    """Whether a trial's scores say something about its point: it has some, all finite, and is allowed."""
    allowed = trial.status not in ("failed", "infeasible")
    return allowed and bool(trial.scores) and all(math.isfinite(value) for value in trial.scores)


def middle(ordered: Sequence[Any]) -> Sequence[Any]:
    """The one or two in the middle of a sorted sequence that is not empty."""
    half = len(ordered) // 2
    return ordered[half : half + 1] if len(ordered) % 2 else ordered[half - 1 : half + 1]


def median(middle: Sequence[float]) -> float:
    """Of the one or two numbers in the middle."""
    return float(sum(middle) / len(middle))


def _place(view: TrialView, rung: int) -> Place:
    return -view.scores[rung], view.index, view.trial


def _point(values: Mapping[str, Scalar]) -> int:
    """A number for a point, equal for equal points. Points themselves would take most of the memory of a search."""
    return hash(frozenset(values.items()))


def _entries(view: TrialView, position: int) -> set[tuple[Hashable, Any]]:
    """In which sorted lists a trial stands, and as what."""
    entries: set[tuple[Hashable, Any]] = set()
    if usable(view):
        last = len(view.scores) - 1
        places = [_place(view, rung) for rung in range(last + 1)]
        entries |= {(("reached", rung), place) for rung, place in enumerate(places)}
        entries |= {(("gain", r), (view.scores[r + 1] - view.scores[r], view.trial)) for r in range(last)}
        entries.add((("last", last), places[last]))
        if view.status == "paused":
            entries.add((("waiting", last), places[last]))
    elif view.status == "running":
        entries.add(("unscored", (position, view.trial)))
    if view.status == "paused" and view.scores:
        entries.add(("paused", (view.index, view.trial)))
    if usable(view) or view.status == "infeasible":
        entries.add(("settled", (view.index, view.trial)))
    return entries
