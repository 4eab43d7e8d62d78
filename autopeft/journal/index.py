"""What is asked of all trials of a journal while a search runs, kept up record by record."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from autopeft.journal.log import TrialLog

Standing = tuple[int, float, float, int, str]
"""Of a trial: rung and score with the sign turned, what it costs, its number, its id. The smallest is the best."""
Entry = TypeVar("Entry", float, Standing)
UNFIT = ("failed", "infeasible")


@dataclass(frozen=True, slots=True)
class _Share:
    """What one trial adds to the sums, so that it can be taken out again."""

    status: str
    seconds: float
    standing: Standing | None
    marks: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Index:
    """Sums and rankings over trials; each update costs the logarithm of their number. Final.

    Attributes:
        touched: Ids of trials in the order in which records spoke of them; whoever has read so far reads on from there.
        counts: Status -> number of trials.
        busy: Busy seconds of all trials.
        started: Purpose -> number of trials.
        refused: Constraint -> number of proposals that were never trained.
        last_index: Arm -> the highest index of its explored trials and refused proposals.
    """

    touched: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    busy: float = 0.0
    started: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    last_index: dict[str, int] = field(default_factory=dict)
    _of_hash: dict[str, list[TrialLog]] = field(default_factory=dict)
    _of_group: defaultdict[tuple[str, str], list[TrialLog]] = field(default_factory=lambda: defaultdict(list))
    _seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    _standings: defaultdict[tuple[str, str], list[Standing]] = field(default_factory=lambda: defaultdict(list))
    _marks: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _numbers: dict[str, int] = field(default_factory=dict)
    _shares: dict[str, _Share] = field(default_factory=dict)

    def start(self, trial: TrialLog) -> None:
        """A trial has started."""
        self._numbers[trial.id] = len(self._numbers)
        self._of_hash.setdefault(trial.hash, []).append(trial)
        self._of_group[trial.arm, trial.purpose].append(trial)
        self.started[trial.purpose] += 1
        if trial.purpose == "explore":
            self.last_index[trial.arm] = max(self.last_index.get(trial.arm, -1), trial.index)

    def refuse(self, arm: str, index: int, constraint: str) -> None:
        """A proposal was refused."""
        self.refused[constraint] += 1
        self.last_index[arm] = max(self.last_index.get(arm, -1), index)

    def update(self, trial: TrialLog, metric: str, cost: float) -> None:
        """A trial has changed, or has just started.

        Args:
            trial: As it is now.
            metric: What rungs are compared by.
            cost: What its adapter costs.
        """
        group, before = (trial.arm, trial.purpose), self._shares.get(trial.id)
        now = self._share(trial, metric, cost)
        self._shares[trial.id] = now
        self.touched.append(trial.id)
        if before is not None:
            self.counts[before.status] -= 1
        self.counts[now.status] += 1
        more = now.seconds - (0.0 if before is None else before.seconds)
        self.busy += more
        self._seconds[group] += more
        if before is None or before.standing != now.standing:
            if before is not None and before.standing is not None:
                _take(self._standings[group], before.standing)
            if now.standing is not None:
                insort(self._standings[group], now.standing)
        if before is None or before.marks != now.marks:
            for rung, mark in () if before is None else before.marks:
                _take(self._marks[rung], mark)
            for rung, mark in now.marks:
                insort(self._marks[rung], mark)

    def group(self, arm: str, purpose: str) -> list[TrialLog]:
        """The trials of an arm with one purpose, in the order in which they started; not to be changed."""
        return self._of_group.get((arm, purpose), [])

    def of_purpose(self, purpose: str) -> list[TrialLog]:
        """The trials with one purpose, in the order in which they started."""
        groups = [trials for (_, of), trials in self._of_group.items() if of == purpose]
        return groups[0] if len(groups) == 1 else sorted((t for g in groups for t in g), key=self.number)

    def of_hash(self, hash: str) -> list[TrialLog]:
        """The trials of a configuration, in the order in which they started; not to be changed."""
        return self._of_hash.get(hash, [])

    def number(self, trial: TrialLog) -> int:
        """Of a trial, from 0, in the order in which they started."""
        return self._numbers[trial.id]

    def seconds(self, arm: str, purpose: str) -> float:
        """Busy seconds of an arm's trials with one purpose."""
        return self._seconds.get((arm, purpose), 0.0)

    def standings(self, arm: str, purpose: str) -> list[Standing]:
        """The trials that reached a rung and are allowed, best first; of equal ones the cheaper, then the earlier."""
        return self._standings.get((arm, purpose), [])

    def best(self, arm: str | None, purpose: str | None) -> str | None:
        """The id of the trial with the best score at the highest rung, the earliest of equal ones."""
        groups = [g for (of, why), g in self._standings.items() if arm in (None, of) and purpose in (None, why)]
        first = min((group[0][:2] for group in groups if group), default=None)
        equal = (standing for group in groups for standing in _like(group, first))
        return min(equal, key=lambda standing: standing[3])[4] if first is not None else None

    def marks(self) -> dict[int, float]:
        """Rung -> the best score of tuned LoRA's exploration there."""
        return {rung: -marks[0] for rung, marks in self._marks.items() if marks}

    def _share(self, trial: TrialLog, metric: str, cost: float) -> _Share:
        fit = bool(trial.rungs) and trial.status not in UNFIT
        score = trial.rungs[-1].metrics.get(metric) if fit else None
        standing = None
        if score is not None:
            standing = (-trial.rungs[-1].rung, -score, cost, self._numbers[trial.id], trial.id)
        marks: tuple[tuple[int, float], ...] = ()
        if fit and (trial.arm, trial.purpose) == ("baseline", "explore"):
            marks = tuple((rung.rung, -rung.metrics[metric]) for rung in trial.rungs if metric in rung.metrics)
        return _Share(trial.status, trial.seconds, standing, marks)


def _like(standings: list[Standing], first: tuple[int, float] | None) -> Iterator[Standing]:
    """Those at the head that have the rung and score of the first."""
    for standing in standings:
        if standing[:2] != first:
            return
        yield standing


def _take(ordered: list[Entry], value: Entry) -> None:
    del ordered[bisect_left(ordered, value)]
