"""Every exception that autopeft raises on purpose.

    AutopeftError                 exit 1   a fault of ours, said plainly
    ├── InputError                exit 2   what the user gave cannot be used: all problems at once
    │   ├── DamagedFile           exit 2   a journal, adapter or result that fails its checksum
    │   └── RunFolderError        exit 2   the output folder is taken, locked or belongs to another search
    ├── NothingFeasible           exit 3   no configuration fits the limits
    ├── Interrupted               exit 4   stopped by a signal; the search can be resumed
    └── TrialFailure              (never leaves a worker: it becomes the outcome of one trial)

A command line exits with ``exit_code``; a service maps it to a status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AutopeftError",
    "DamagedFile",
    "InputError",
    "Interrupted",
    "NothingFeasible",
    "Problem",
    "RunFolderError",
    "TrialFailure",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input.

    Attributes:
        field: The dotted name of the field, e.g. ``budget.max_adapter_params``.
        value: What was given.
        rule: The rule that it breaks, as a sentence fragment ("must be above 0").
        next_step: What the user can do about it, in the imperative.
    """

    field: str
    value: Any
    rule: str
    next_step: str

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 200:
            shown = shown[:197] + "..."
        return f"{self.field} = {shown}: {self.rule}. {self.next_step}"


class AutopeftError(Exception):
    """Base of all of them."""

    exit_code = 1


class InputError(AutopeftError):
    """What the user gave cannot be used.

    Args:
        problems: All that was found wrong, in the order of the fields.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))

    @classmethod
    def one(cls, field: str, value: Any, rule: str, next_step: str) -> InputError:
        """An error about a single field."""
        return cls([Problem(field, value, rule, next_step)])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


class DamagedFile(InputError):
    """A file of ours that fails its checksum or cannot be parsed."""


class RunFolderError(InputError):
    """The output folder is not empty, locked by another process, or holds another search."""


class NothingFeasible(AutopeftError):
    """No configuration of the space fits the limits.

    Args:
        binds: The limit that rules out the cheapest configuration, by its budget field.
        smallest: The smallest value of each limit that would admit one configuration.
        detail: One sentence for the user.
    """

    exit_code = 3

    def __init__(self, binds: str, smallest: Mapping[str, float], detail: str) -> None:
        self.binds = binds
        self.smallest = dict(smallest)
        self.detail = detail
        super().__init__(detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.binds, self.smallest, self.detail)


class Interrupted(AutopeftError):
    """The search was stopped by a signal; what was found is kept and it can be resumed."""

    exit_code = 4


class TrialFailure(AutopeftError):
    """A trial cannot go on.

    Args:
        reason: One word for counting: ``nan``, ``oom``, ``coverage``, ``unsupported``, ``timeout``, ``lost``.
        detail: One sentence for the user.
        infeasible: True when the configuration itself is at fault and must not be tried again.
        measured: What was measured of the limit that was broken, in the limit's unit, or None.
    """

    def __init__(self, reason: str, detail: str, *, infeasible: bool = False, measured: float | None = None) -> None:
        self.reason = reason
        self.detail = detail
        self.infeasible = infeasible
        self.measured = measured
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _trial_failure, (self.reason, self.detail, self.infeasible)


def _trial_failure(reason: str, detail: str, infeasible: bool) -> TrialFailure:
    return TrialFailure(reason, detail, infeasible=infeasible)
