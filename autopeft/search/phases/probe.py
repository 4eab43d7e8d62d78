"""The first phase: which head, how good the untouched base is, how fast the workers are."""

from __future__ import annotations

from dataclasses import asdict

from autopeft.errors import AutopeftError
from autopeft.executors import Wait
from autopeft.search.division import Speed, divide
from autopeft.search.front import FRONT_SIZE
from autopeft.search.state import State
from autopeft.strategy.jobs import Job, Outcome, Probe

ATTEMPTS = 3
"""How often a probe may lose its worker."""


class ProbePhase:
    """Ends when the budget is divided. Final."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._speeds: list[Speed] = []
        self._asked: set[int] = set()
        self._lost = 0
        self._seconds = 0.0

    def next(self, slot: int) -> Job | Wait:
        """The head probe first, alone; then the speed probe on all workers at once: they share the machine later."""
        state = self._state
        if "heads" not in state.ledger.log.probes:
            return Wait() if state.running else Probe("heads", state.rules.heads, self._time_limit())
        if slot in self._asked:
            return Wait()
        self._asked.add(slot)
        return Probe("speed", (state.head,), self._time_limit())

    def took(self, job: Probe, outcome: Outcome) -> None:
        """Note a probe's outcome; after the last one, divide the budget.

        Raises:
            AutopeftError: The probe could not be done: nothing else could be, either.
        """
        if outcome.status != "ok":
            raise AutopeftError(f"the {job.kind} probe ended {outcome.status} ({outcome.reason}): {outcome.detail}")
        ledger = self._state.ledger
        if job.kind == "heads":
            values = {**outcome.values, "metrics": outcome.metrics, "outputs": outcome.outputs}
            ledger.write("probe", kind="heads", values=values, seconds=outcome.seconds)
            return
        measured = outcome.values
        generate = measured.get("generate_seconds", 0.0)
        self._seconds += outcome.seconds
        self._speeds.append(Speed(measured["train_seconds_per_row"], measured["evaluate_seconds_per_row"], generate))
        if len(self._speeds) == self._state.slots:
            self._divide()

    def lost(self, slot: int, reason: str) -> None:
        """The worker died; another one does the probe.

        Raises:
            AutopeftError: It keeps dying.
        """
        self._asked.discard(slot)
        self._lost += 1
        if self._lost >= ATTEMPTS:
            raise AutopeftError(f"workers die before they can train anything: {reason}")

    def _time_limit(self) -> float | None:
        """Nothing is known yet of what anything takes: only the end of the budget."""
        limit = self._state.rules.budget.max_time
        return None if limit is None else max(1.0, limit - self._state.ledger.used)

    def _divide(self) -> None:
        state = self._state
        slowest = [max(getattr(s, name) for s in self._speeds) for name in ("train", "evaluate", "generate")]
        speed = Speed(*slowest)
        values = asdict(speed)
        state.ledger.write("probe", kind="speed", values=values, seconds=self._seconds)
        arms = state.bind(speed).arms
        strategy = next(iter(arms.values())).strategy
        division = divide(
            state.rules.budget,
            used=state.ledger.used,
            workers=state.slots,
            speed=speed,
            train_rows=state.rules.train_rows,
            validation_rows=state.rules.validation_rows,
            evidence=state.rules.evidence,
            rungs=strategy.rungs,
            eta=strategy.eta,
            finalists=len(arms) + (FRONT_SIZE if state.rules.objective == "pareto" else 0),
        )
        state.divide(division)
