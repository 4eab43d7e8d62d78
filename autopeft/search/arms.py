"""An arm of a search: a space bound to the model, explored by a strategy. Tuned LoRA is one, the user's the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from autopeft.cost.memory import Fit
from autopeft.errors import TrialFailure
from autopeft.journal import SearchLog, TrialLog
from autopeft.search.ledger import Ledger
from autopeft.search.scores import Scores
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import Configuration
from autopeft.space.dimension import Choice, Values
from autopeft.space.execution import Execution
from autopeft.space.modules import ModuleMap
from autopeft.strategy.base import Decision, Strategy, TrialView
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.strategy.trials import Trials

TRIES = 60
"""Proposals in a row that may be refused (duplicates, too much memory) before an arm counts as exhausted."""

LEAN_DRAWS = 12
UNBUILDABLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, TrialFailure)
"""What building a configuration without weights can raise where the model does not suit it."""

Gate = Callable[[Configuration], Fit]
"""Whether and how a configuration fits into the memory limit."""
Bytes = Callable[[Configuration, Execution | None], int]
"""The live bytes that training a configuration takes, predicted; None asks for the leanest way to compute it."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration to be trained for the first time."""

    configuration: Configuration
    values: Values
    index: int
    adapter_params: int
    fit: Fit


class Arm:
    """Proposes configurations and judges trials of one space. Final.

    Args:
        name: ``baseline`` or ``space``.
        space: The space, bound to the model and the limits.
        strategy: How it is explored.
        modules: The model's module map.
        gate: The memory limit.
        predict: Predicts memory exactly; asked of finalists, and where nothing fits.
        memory_limit: Its value, or None.
        skip_plain_lora: Whether plain LoRA is left to the other arm.
    """

    def __init__(
        self,
        name: ArmName,
        space: BoundSpace,
        strategy: Strategy,
        modules: ModuleMap,
        gate: Gate,
        predict: Bytes = lambda configuration, execution: 0,
        *,
        memory_limit: int | None,
        skip_plain_lora: bool,
    ) -> None:
        self.name = name
        self.space = space
        self.strategy = strategy
        self.exhausted = False
        self._modules = modules
        self._gate = gate
        self._predict = predict
        self._memory_limit = memory_limit
        self._skip_plain_lora = skip_plain_lora
        self._views, self._read, self._refused = Trials(), 0, 0
        self._seen_by: tuple[SearchLog, dict[int, float]] | None = None

    def trials(self, log: SearchLog) -> list[TrialLog]:
        """The arm's trials of the exploration."""
        return log.index.group(self.name, "explore")

    def seconds(self, log: SearchLog) -> float:
        """Busy seconds that the arm's exploration has taken."""
        return log.index.seconds(self.name, "explore")

    def views(self, log: SearchLog) -> Trials:
        """The arm as its strategy sees it, refused proposals included; not to be changed."""
        scored = Scores(log, self.name)
        if self._seen_by is None or self._seen_by[0] is not log or self._seen_by[1] != scored.marks:
            # Another journal, or LoRA has become better: then all scores within a margin are others.
            self._views, self._read, self._refused = Trials(), 0, 0
            self._seen_by = (log, scored.marks)
        touched = log.index.touched
        for name in dict.fromkeys(touched[self._read :]):
            trial = log.trials[name]
            if (trial.arm, trial.purpose) == (self.name, "explore") and log.configurations[trial.hash].values:
                self._views.put(scored.view(trial))
        self._read = len(touched)
        for refusal in log.rejected[self._refused :]:
            if refusal["arm"] == self.name and refusal["constraint"] == "max_memory":
                over = refusal["value"] / refusal["limit"] - 1.0
                name = f"refused-{refusal['index']}"
                self._views.put(TrialView(name, refusal["index"], refusal["values"], (), "infeasible", over))
        self._refused = len(log.rejected)
        return self._views

    def propose(self, ledger: Ledger, until: float | None = None) -> Proposal | None:
        """The next configuration to train, or None when the space seems exhausted. Refusals are journalled.

        Args:
            ledger: Journal and fold.
            until: Seconds used after which no more is tried; None tries on.
        """
        log = ledger.log
        views = self.views(log)
        index = self._next_index(log)
        for _ in range(TRIES):
            if until is not None and ledger.used > until:
                break
            values = self.strategy.sampler.propose(index, views)
            configuration = self.space.decode(values)
            refusal = self._refusal(configuration, log)
            if refusal is None:
                fit = self._asked(configuration)
                if fit.execution is not None:
                    params = configuration.adapter_params(self._modules)
                    return Proposal(configuration, values, index, params, fit)
                refusal = (
                    ("unsupported", None, None) if fit.bytes is None else ("max_memory", fit.bytes, self._memory_limit)
                )
            constraint, value, limit = refusal
            ledger.write(
                "rejected",
                hash=configuration.hash,
                arm=self.name,
                index=index,
                values=dict(values),
                constraint=constraint,
                value=value,
                limit=limit,
            )
            if constraint == "max_memory":
                views = self.views(log)
            index += 1
        self.exhausted = True
        return self._smallest(log, index)

    def predict(self, configuration: Configuration, execution: Execution) -> int | None:
        """The live bytes that training a configuration takes; None of one that cannot be predicted."""
        try:
            return self._predict(configuration, execution)
        except UNBUILDABLE:
            return None

    def least_bytes(self) -> int:
        """The least memory predicted for a configuration of the space, as far as `lean` knows."""
        known = []
        for configuration in lean(self.space):
            with contextlib.suppress(*UNBUILDABLE):
                known.append(self._predict(configuration, None))
        return min(known, default=0)

    def _asked(self, configuration: Configuration) -> Fit:
        """What the gate says; nothing at all of a configuration that cannot be built on this model."""
        try:
            return self._gate(configuration)
        except UNBUILDABLE:
            return Fit(None)

    def _smallest(self, log: SearchLog, index: int) -> Proposal | None:
        """The last resort of an arm of which nothing fitted yet: a lean configuration, at a point of its own."""
        if self.trials(log):
            return None
        for configuration in lean(self.space):
            fit = self._asked(configuration)
            if fit.execution is not None and self._refusal(configuration, log) is None:
                params = configuration.adapter_params(self._modules)
                return Proposal(configuration, {}, index, params, fit)
        return None

    def judge(self, trial: TrialLog, log: SearchLog, rungs: int) -> Decision:
        """What becomes of a trial after its latest rung."""
        return self.strategy.halving.judge(Scores(log, self.name).view(trial), self.views(log), rungs)

    def promote(self, log: SearchLog, rungs: int) -> str | None:
        """The paused trial that goes on, or None."""
        return self.strategy.halving.promote(self.views(log), rungs)

    def _refusal(self, configuration: Configuration, log: SearchLog) -> tuple[str, int | None, int | None] | None:
        if configuration.hash in log.configurations:
            return ("duplicate", None, None)
        if self._skip_plain_lora and configuration.plain_lora:
            return ("plain_lora", None, None)
        return None

    def _next_index(self, log: SearchLog) -> int:
        return log.index.last_index.get(self.name, -1) + 1


def lean(space: BoundSpace) -> list[Configuration]:
    """Configurations that need little memory: the smallest one, and draws with the smallest batch.

    Which is the leanest depends on activations as much as on parameters, so it is looked for and not computed.
    """
    batches = [min(d.options) for d in space.dimensions if isinstance(d, Choice) and d.name == "batch"]
    draws = [{**space.draw(index, 0), **({"batch": batches[0]} if batches else {})} for index in range(LEAN_DRAWS)]
    return [space.smallest(), *(space.decode(values) for values in draws)]
