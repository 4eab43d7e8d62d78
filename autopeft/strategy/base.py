"""How a space is explored.

A strategy is a sampler and a halving rule. Both are pure functions of what has happened so far, so that a search which
is rebuilt from its journal goes on exactly as it would have: a sampler's randomness comes from its seed and the index
of the question alone.

The life of a trial: the controller calls `Halving.promote`; if no paused trial deserves its next rung, it calls
`Sampler.propose` for a new one. After every rung it calls `Halving.judge`, and the trial goes on, pauses or stops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft.space.dimension import Dimension, Values

Action = Literal["continue", "pause", "stop"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a trial after a rung, and why (the reason is stored and shown)."""

    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class TrialView:
    """A trial as a strategy sees it.

    Attributes:
        trial: Its id.
        index: Its number among the trials of its arm, from 0.
        values: The point of the encoding.
        scores: The score after each rung reached so far (larger is better), by rung from 0.
        status: ``running``, ``paused``, ``completed``, ``stopped``, ``failed``, ``infeasible``.
        violation: How far a constraint was missed, above 0 when infeasible (0.3: 30 % over the limit); 0 otherwise.
    """

    trial: str
    index: int
    values: Values
    scores: tuple[float, ...]
    status: str
    violation: float = 0.0


class Sampler(ABC):
    """Proposes points of an encoding."""

    @abstractmethod
    def propose(self, index: int, trials: Sequence[TrialView]) -> Values:
        """The next point to try.

        Called whenever a worker is free and no paused trial is promoted.

        Args:
            index: How many points have been proposed before in this arm (rejected ones count).
            trials: All trials of the arm so far, running and infeasible ones included.
        """


class Halving(ABC):
    """Decides which trials get more rows.

    Rungs are numbered from 0; the last is the full training.
    """

    @abstractmethod
    def judge(self, trial: TrialView, trials: Sequence[TrialView], rungs: int) -> Decision:
        """What becomes of a trial that has just reached a rung that is not the last.

        Args:
            trial: The trial; ``trial.scores[-1]`` is the new score.
            trials: All trials of the arm, this one included.
            rungs: Number of rungs.
        """

    @abstractmethod
    def promote(self, trials: Sequence[TrialView], rungs: int) -> str | None:
        """The paused trial that deserves its next rung now, or None."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A sampler and a halving rule under a name.

    Attributes:
        name: For reports.
        sampler: Proposes.
        halving: Judges.
        rungs: Number of rungs.
        eta: Ratio of rows between neighbouring rungs.
        dimensions: What the sampler sees.
    """

    name: str
    sampler: Sampler
    halving: Halving
    rungs: int
    eta: float
    dimensions: tuple[Dimension, ...]
