"""The tree-structured Parzen estimator, by Optuna, as a pure function of the trials so far."""

from __future__ import annotations

import contextlib
import copy
import datetime
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.space.configuration import Scalar
from autopeft.space.dimension import Choice, Dimension, Values
from autopeft.strategy.base import Sampler, TrialView
from autopeft.strategy.samplers import Prior, inside, mutate, position
from autopeft.strategy.trials import Trials, usable

EPOCH = datetime.datetime.fromtimestamp(0)
"""When Optuna is told that trials ran: it does not ask."""


class TPESampler(Sampler):
    """Proposes where good points are dense and bad ones are not (Bergstra et al. 2011, NeurIPS; Watanabe 2023).

    Each question builds a small in-memory Optuna study and asks it once: nothing is kept between questions, so a search
    rebuilt from its journal goes on as it would have. What Optuna sees of a trial:

    * one with a score: complete, with the score that it is estimated to reach at the highest rung
      (`autopeft.strategy.samplers.estimates`), whether it is running, paused, stopped or complete;
    * one that is running without a score: running (the constant liar of Ginsbourger et al. 2010 keeps other workers
      away from it);
    * an infeasible one: its violation as a constraint, so that it counts as worse than every allowed one;
    * a failed one: nothing, as the estimator leaves out failed trials (a point that can never work is infeasible).

    The cost of a question grows with the number of trials seen, so at most `window` are shown: half of them the best,
    the rest the latest.

    Args:
        dimensions: The encoding.
        prior: Point number i of the space's prior.
        seed: Seed; the randomness of a question is a function of it and of the question's index.
        startup: Questions answered from the prior before the estimator is used, and trials with a result it needs.
        window: Trials shown to the estimator.
        prior_share: Share of later questions still answered from the prior, which keeps the search from closing in on
            an early mistake (Falkner et al. 2018, BOHB, do the same).
        mutate: Share of the questions from `mutate_from` on that are answered by a neighbour of one of the three best
            points.
        mutate_from: Index from which on points are mutated; None for three times `startup`.

    Raises:
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        prior: Prior,
        *,
        seed: int = 0,
        startup: int = 10,
        window: int = 200,
        prior_share: float = 0.1,
        mutate: float = 0.0,
        mutate_from: int | None = None,
    ) -> None:
        if startup < 1 or window < 2 or seed < 0:
            raise ValueError(f"startup {startup}, window {window} and seed {seed} must be at least 1, 2 and 0")
        if not (0 <= prior_share <= 1 and 0 <= mutate <= 1 and prior_share + mutate <= 1):
            raise ValueError(f"prior_share {prior_share} and mutate {mutate} must be shares, and 1 at most together")
        self._dimensions = tuple(dimensions)
        self._prior = prior
        self._seed = seed
        self._startup = startup
        self._window = window
        self._prior_share = prior_share
        self._mutate = mutate
        self._mutate_from = 3 * startup if mutate_from is None else mutate_from
        self._places: dict[str, tuple[Values, dict[str, float | int] | None]] = {}
        self._distributions = {d.name: _distribution(d) for d in self._dimensions}

    def propose(self, index: int, trials: Sequence[TrialView]) -> Values:
        """A point of the prior, a neighbour of a good point, or the estimator's; see the class."""
        rng = np.random.default_rng([self._seed, index])
        draw = float(rng.random())
        known = Trials.of(trials)
        settled = len(self._some(known.latest(), self._startup))
        if not self._dimensions or index < self._startup or settled < self._startup or draw < self._prior_share:
            return dict(self._prior(index))
        if index >= self._mutate_from and draw < self._prior_share + self._mutate:
            best = self._some((view for _, view in known.best()), 3)
            if best:
                return self._fresh_neighbour(best[int(rng.integers(len(best)))], known, rng)
        lifts = known.lifts()
        shown = [
            _Shown(
                self._encoded(trial),
                self._distributions,
                trial,
                trial.scores[-1] + lifts[len(trial.scores) - 1] if usable(trial) else None,
            )
            for trial in self._seen(known)
        ]
        return self._ask(shown, int(rng.integers(2**32)))

    def _seen(self, known: Trials) -> list[TrialView]:
        """The trials shown: those running without a score, and of the rest the best and the latest."""
        chosen = {view.trial: view for view in self._some((view for _, view in known.best()), self._window // 2)}
        latest = (view for view in known.latest() if view.trial not in chosen)
        chosen |= {view.trial: view for view in self._some(latest, self._window - len(chosen))}
        chosen |= {view.trial: view for view in self._some(known.unscored(), self._window // 2)}
        return sorted(chosen.values(), key=lambda trial: (trial.index, trial.trial))

    def _some(self, views: Iterable[TrialView], count: int) -> list[TrialView]:
        """The first so many that the encoding can express."""
        return list(islice((view for view in views if self._encoded(view) is not None), count))

    def _fresh_neighbour(self, parent: TrialView, known: Trials, rng: np.random.Generator) -> dict[str, Scalar]:
        point = mutate(parent.values, self._dimensions, rng)
        for _ in range(10):
            if not known.tried(point):
                break
            # A small space may have no untried neighbour: walk on from the one that is taken.
            point = mutate(point, self._dimensions, rng)
        return point

    def _encoded(self, trial: TrialView) -> dict[str, float | int] | None:
        """A point in Optuna's terms: choices by their place, since 1, 1.0 and True are one category to it.

        None for a point that the encoding cannot express. It is remembered for the trials that were asked about last.
        """
        found = self._places.pop(trial.trial, None)
        if found is None or found[0] is not trial.values:
            legal = inside(trial.values, self._dimensions)
            places = {d.name: _place(d, trial.values[d.name]) for d in self._dimensions} if legal else None
            found = (trial.values, places)
        self._places[trial.trial] = found
        if len(self._places) > 4 * self._window:
            del self._places[next(iter(self._places))]
        return found[1]

    def _ask(self, shown: Sequence[FrozenTrial], seed: int) -> dict[str, Scalar]:
        # The startup is counted here, over all trials; a study that shows only a window of them must not count again.
        sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=seed)
        with _quiet():
            storage = InMemoryStorage()
            number = storage.create_new_study([StudyDirection.MAXIMIZE], "question")
            for trial in shown:
                # `Study.add_trial` would check again what every question checks of every trial.
                storage.create_new_trial(number, trial)
            study = optuna.load_study(study_name="question", storage=storage, sampler=sampler)
        answer = study.ask(dict(self._distributions)).params
        point: dict[str, Scalar] = {}
        for dimension in self._dimensions:
            value = answer[dimension.name]
            if isinstance(dimension, Choice):
                point[dimension.name] = dimension.options[int(value)]
            else:
                point[dimension.name] = min(max(float(value), dimension.low), dimension.high)
        return point


class _Once:
    """Distributions of one sampler are compared thousands of times a question, and mostly with themselves."""

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()


class _Float(_Once, FloatDistribution): ...


class _Int(_Once, IntDistribution): ...


class _Categorical(_Once, CategoricalDistribution): ...


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not isinstance(dimension, Choice):
        return _Float(dimension.low, dimension.high, log=dimension.log)
    if dimension.ordered:
        return _Int(0, len(dimension.options) - 1)
    return _Categorical(tuple(range(len(dimension.options))))


def _place(dimension: Dimension, value: Scalar) -> float | int:
    if isinstance(dimension, Choice):
        place = position(dimension, value)
        assert place is not None
        return place
    return float(value)


class _Shown(FrozenTrial):
    """A trial as Optuna sees it. Nobody changes its values, so that a study's own copy may share them."""

    def __init__(
        self,
        places: dict[str, float | int] | None,
        distributions: dict[str, BaseDistribution],
        trial: TrialView,
        estimate: float | None,
    ) -> None:
        state, value = TrialState.RUNNING, None
        if trial.status == "infeasible":
            state = TrialState.PRUNED
        elif estimate is not None:
            state, value = TrialState.COMPLETE, estimate
        super().__init__(-1, state, value, EPOCH, EPOCH, dict(places or {}), distributions, {}, {}, {}, -1)
        if state is TrialState.PRUNED:
            # Infinite and missing violations still have to sort behind the measured ones.
            self.set_constraint("limits", trial.violation if 0 < trial.violation < 1e6 else 1e6)

    def __deepcopy__(self, memo: dict[int, object]) -> _Shown:
        return copy.copy(self)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna from announcing each study; its other messages stay."""
    logger = logging.getLogger("optuna.storages._in_memory")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
