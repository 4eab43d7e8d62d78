"""The tree-structured Parzen estimator, by Optuna, as a pure function of the trials so far."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.space.configuration import Scalar
from autopeft.space.dimension import Choice, Dimension, Values
from autopeft.strategy.base import Sampler, TrialView
from autopeft.strategy.samplers import Prior, estimates, inside, mutate, position


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
        self._distributions = {d.name: _distribution(d) for d in self._dimensions}

    def propose(self, index: int, trials: Sequence[TrialView]) -> Values:
        """A point of the prior, a neighbour of a good point, or the estimator's; see the class."""
        rng = np.random.default_rng([self._seed, index])
        draw = float(rng.random())
        ranked = {name: value for name, value in estimates(trials).items() if np.isfinite(value)}
        known = [trial for trial in trials if inside(trial.values, self._dimensions)]
        scored = [trial for trial in known if trial.trial in ranked]
        infeasible = [trial for trial in known if trial.status == "infeasible"]
        enough = index >= self._startup and len(scored) + len(infeasible) >= self._startup
        if not self._dimensions or not enough or draw < self._prior_share:
            return dict(self._prior(index))
        if index >= self._mutate_from and scored and draw < self._prior_share + self._mutate:
            best = sorted(scored, key=lambda trial: (-ranked[trial.trial], trial.index))[:3]
            return self._fresh_neighbour(best[int(rng.integers(len(best)))], known, rng)
        shown = [
            _frozen(self._internal(trial.values), self._distributions, trial, ranked.get(trial.trial))
            for trial in self._seen(known, scored, infeasible, ranked)
        ]
        return self._ask(shown, int(rng.integers(2**32)))

    def _seen(
        self,
        known: Sequence[TrialView],
        scored: Sequence[TrialView],
        infeasible: Sequence[TrialView],
        ranked: dict[str, float],
    ) -> list[TrialView]:
        """The trials shown: those running without a score, and of the rest the best and the latest."""
        latest_first = sorted([*scored, *infeasible], key=lambda trial: -trial.index)
        best_first = sorted(scored, key=lambda trial: (-ranked[trial.trial], trial.index))
        chosen = {trial.trial: trial for trial in best_first[: self._window // 2]}
        for trial in latest_first:
            if len(chosen) >= self._window:
                break
            chosen.setdefault(trial.trial, trial)
        running = [trial for trial in known if trial.status == "running" and trial.trial not in ranked]
        for trial in running[-self._window :]:
            chosen[trial.trial] = trial
        return sorted(chosen.values(), key=lambda trial: (trial.index, trial.trial))

    def _fresh_neighbour(
        self, parent: TrialView, known: Sequence[TrialView], rng: np.random.Generator
    ) -> dict[str, Scalar]:
        tried = [dict(trial.values) for trial in known]
        point = mutate(parent.values, self._dimensions, rng)
        for _ in range(10):
            if point not in tried:
                break
            # A small space may have no untried neighbour: walk on from the one that is taken.
            point = mutate(point, self._dimensions, rng)
        return point

    def _internal(self, values: Values) -> dict[str, float | int]:
        """A point in Optuna's terms: choices by their place, since 1, 1.0 and True are one category to it."""
        return {d.name: _place(d, values[d.name]) for d in self._dimensions}

    def _ask(self, shown: Sequence[FrozenTrial], seed: int) -> dict[str, Scalar]:
        # The startup is counted here, over all trials; a study that shows only a window of them must not count again.
        sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=seed)
        with _quiet():
            study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(shown)
        answer = study.ask(dict(self._distributions)).params
        point: dict[str, Scalar] = {}
        for dimension in self._dimensions:
            value = answer[dimension.name]
            if isinstance(dimension, Choice):
                point[dimension.name] = dimension.options[int(value)]
            else:
                point[dimension.name] = min(max(float(value), dimension.low), dimension.high)
        return point


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not isinstance(dimension, Choice):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if dimension.ordered:
        return IntDistribution(0, len(dimension.options) - 1)
    return CategoricalDistribution(tuple(range(len(dimension.options))))


def _place(dimension: Dimension, value: Scalar) -> float | int:
    if isinstance(dimension, Choice):
        place = position(dimension, value)
        assert place is not None
        return place
    return float(value)


def _frozen(
    params: dict[str, float | int],
    distributions: dict[str, BaseDistribution],
    trial: TrialView,
    estimate: float | None,
) -> FrozenTrial:
    if trial.status == "infeasible":
        # Infinite and missing violations still have to sort behind the measured ones.
        over = trial.violation if 0 < trial.violation < 1e6 else 1e6
        return create_trial(
            state=TrialState.PRUNED, params=params, distributions=distributions, constraints={"limits": over}
        )
    if estimate is not None:
        return create_trial(state=TrialState.COMPLETE, value=estimate, params=params, distributions=distributions)
    return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)


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
