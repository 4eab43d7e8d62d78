"""How a budget is divided: rungs, seeds and seconds from one dial."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from autopeft.spec import Budget

EXPLORE_SHARE, CONFIRM_SHARE = 0.55, 0.35
SEEDS = {"quick": 2, "standard": 3, "strict": 5}
BASELINE_SHARE = {"quick": 1 / 3, "standard": 1 / 3, "strict": 1 / 2}
"""Evidence level -> share of the exploration's device-seconds that tuned LoRA gets at least."""
FINALIST_SEEDS = (900_001, 900_002, 900_003, 900_004, 900_005)
"""Fixed once for all searches, so that nobody can search over them."""
MAX_EPOCHS = 6.0
MIN_RUNG_ROWS = 256
DEFAULT_TRIALS = 24
FINISH_SECONDS = 10.0
"""What saving, the report, MLflow and the end of the process take after the last job."""
RUNG_EVALUATION, FINAL_EVALUATION = 0.5, 0.3
"""Evaluation may take this share of the first rung's training, and of a finalist's run."""
MIN_EVALUATED, MAX_RUNG_EVALUATED = 100, 1000
WARMUP_SHARE, COOLDOWN_SHARE = 0.06, 0.3


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured on one worker, all workers busy.

    Attributes:
        train: Seconds per row of training.
        evaluate: Seconds per row of evaluation.
        generate: Seconds of one round of generated answers; 0 where there is none.
    """

    train: float
    evaluate: float
    generate: float = 0.0


@dataclass(frozen=True, slots=True)
class Division:
    """A budget, divided.

    Attributes:
        rungs: Rows seen at the end of each rung; the last is the full training.
        warmup_rows: Rows of the linear rise of the rates.
        cooldown_rows: Rows of the linear fall, in the last rung only.
        seeds: Seeds of the finalists' runs.
        baseline_share: Share of exploration that tuned LoRA gets at least.
        max_trials: Trials that may start while exploring, or None.
        rung_evaluated: Validation rows evaluated below the last rung.
        final_evaluated: Validation rows evaluated after a full training.
        explore_until: Seconds used at which exploration ends, or None.
        confirm_until: Seconds used at which the finalists' runs end, or None.
        deadline: Seconds used at which the result must be saved, or None.
        speed: What the division was computed from.
        workers: Workers that it counts on.
        finalists: Configurations that it counts on to be trained with fresh seeds.
        busy_before: Busy seconds that earlier generations of the search had used; the shares are of what is left.
    """

    rungs: tuple[int, ...]
    warmup_rows: int
    cooldown_rows: int
    seeds: tuple[int, ...]
    baseline_share: float
    max_trials: int | None
    rung_evaluated: int
    final_evaluated: int
    explore_until: float | None
    confirm_until: float | None
    deadline: float | None
    speed: Speed
    workers: int
    busy_before: float = 0.0
    finalists: int = 2

    @property
    def final_rows(self) -> int:
        """Rows of a full training."""
        return self.rungs[-1]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the journal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Division:
        """The inverse of `to_dict`."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(
            **{
                **known,
                "rungs": tuple(known["rungs"]),
                "seeds": tuple(known["seeds"]),
                "speed": Speed(**known["speed"]),
            }
        )


def divide(
    budget: Budget,
    *,
    used: float,
    workers: int,
    speed: Speed,
    train_rows: int,
    validation_rows: int,
    evidence: str,
    rungs: int,
    eta: float,
    finalists: int = 2,
) -> Division:
    """Divide what is left of a budget.

    A little over half explores, a third confirms with fresh seeds, a tenth tests, saves and is slack. The length of a
    full training follows from the confirming share: every finalist must fit with every seed.

    Args:
        budget: The limits.
        used: Seconds used before exploration starts.
        workers: Workers.
        speed: Seconds per row on each of them.
        train_rows: Rows of the training split.
        validation_rows: Rows of the validation split.
        evidence: How many seeds.
        rungs: Rungs that the strategy asks for; fewer when a full training is short.
        eta: Ratio of rows between neighbouring rungs.
        finalists: Arms to be confirmed.
    """
    seconds = _seconds(budget, used, workers)
    seeds = SEEDS[evidence]
    longest = MAX_EPOCHS * train_rows
    if seconds is None:
        final, evaluated = 3.0 * train_rows, validation_rows
        explore_until, confirm_until, deadline = None, None, None
    else:
        final, evaluated = _affordable(CONFIRM_SHARE * seconds, finalists * seeds, workers, speed, validation_rows)
        # One epoch with fewer seeds says more than a fraction of an epoch with many, but never fewer than two.
        while final < train_rows and seeds > 2:
            seeds -= 1
            final, evaluated = _affordable(CONFIRM_SHARE * seconds, finalists * seeds, workers, speed, validation_rows)
        explore_until = used + EXPLORE_SHARE * seconds
        confirm_until = used + (EXPLORE_SHARE + CONFIRM_SHARE) * seconds
        deadline = used + seconds
    full = int(max(MIN_RUNG_ROWS, min(longest, final)))
    levels = max(1, min(rungs, 1 + int(math.log(full / MIN_RUNG_ROWS, eta)) if full > MIN_RUNG_ROWS else 1))
    ladder = tuple(round(full / eta ** (levels - 1 - level)) for level in range(levels))
    quick = int(RUNG_EVALUATION * ladder[0] * speed.train / speed.evaluate)
    unlimited = seconds is None and budget.max_trials is None
    return Division(
        rungs=ladder,
        warmup_rows=max(1, round(WARMUP_SHARE * ladder[0] if levels > 1 else WARMUP_SHARE * full)),
        cooldown_rows=round(COOLDOWN_SHARE * full),
        seeds=FINALIST_SEEDS[:seeds],
        baseline_share=BASELINE_SHARE[evidence],
        max_trials=DEFAULT_TRIALS if unlimited else budget.max_trials,
        rung_evaluated=min(evaluated, MAX_RUNG_EVALUATED, max(MIN_EVALUATED, quick)),
        final_evaluated=evaluated,
        explore_until=explore_until,
        confirm_until=confirm_until,
        deadline=deadline,
        speed=speed,
        workers=workers,
        finalists=finalists,
    )


def extend(
    division: Division,
    budget: Budget,
    *,
    used: float,
    started: float,
    workers: int,
    busy: float = 0.0,
    reopened: bool = False,
) -> Division:
    """The same rungs and seeds under the limits of a resumed search.

    Args:
        division: As it was.
        budget: The limits now.
        used: Seconds used until now.
        started: Seconds used when exploration began.
        workers: Workers now.
        busy: Busy seconds used until now.
        reopened: Whether a search that had ended is given more: what is left is then divided anew.
    """
    if reopened:
        division, started = replace(division, busy_before=busy), used
    seconds = _seconds(budget, started, workers)
    trials = trials_of(budget, division)
    if seconds is None:
        return replace(
            division, max_trials=trials, explore_until=None, confirm_until=None, deadline=None, workers=workers
        )
    return replace(
        division,
        max_trials=trials,
        explore_until=max(used, started + EXPLORE_SHARE * seconds),
        confirm_until=max(used, started + (EXPLORE_SHARE + CONFIRM_SHARE) * seconds),
        deadline=max(used, started + seconds),
        workers=workers,
    )


def trials_of(budget: Budget, division: Division) -> int | None:
    """Trials that a resumed search may start in all, or None where a clock ends it.

    Args:
        budget: The limits now.
        division: As it was; what it allowed is not taken back where every limit is lifted.
    """
    if budget.max_trials is not None:
        return budget.max_trials
    unlimited = budget.max_time is None and budget.max_compute is None
    return max(DEFAULT_TRIALS, division.max_trials or 0) if unlimited else None


def _seconds(budget: Budget, used: float, workers: int) -> float | None:
    """Wall seconds left, by the tighter of the limits on time and on busy seconds; None without either."""
    left = [] if budget.max_time is None else [budget.max_time - used - FINISH_SECONDS]
    if budget.max_compute is not None:
        left.append(budget.max_compute / workers)
    return max(1.0, min(left)) if left else None


def _affordable(seconds: float, runs: int, workers: int, speed: Speed, validation_rows: int) -> tuple[float, int]:
    """Rows of a full training, and of its evaluation, when so many runs share so many wall seconds."""
    each = max(0.0, 0.9 * seconds / math.ceil(runs / workers) - speed.generate)
    evaluated = min(validation_rows, max(MIN_EVALUATED, int(FINAL_EVALUATION * each / speed.evaluate)))
    return max(0.0, (each - evaluated * speed.evaluate) / speed.train), evaluated
