"""The first phase: which head, how good the untouched base is, how fast the workers are."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from autopeft.errors import AutopeftError
from autopeft.executors import Wait
from autopeft.search.division import Speed, divide
from autopeft.search.front import FRONT_SIZE
from autopeft.search.state import State
from autopeft.strategy.jobs import Job, Outcome, Probe
from autopeft.trial.pack_speed import about_packs

ATTEMPTS = 3
"""How often a probe may lose its worker."""
HEADS = -1
"""Counts the losses of the head probe, whichever worker had it."""


class ProbePhase:
    """Ends when the budget is divided. Final."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._speeds: list[Speed] = []
        self._packs: list[dict[int, float]] = []
        self._seconds = 0.0
        self._asked: set[int] = set()
        self._lost: Counter[int] = Counter()

    def next(self, slot: int) -> Job | Wait:
        """One worker probes the heads, the others their speed meanwhile: they share the machine later as well.

        The head on top makes no difference to the speed. A single worker does one after the other.
        """
        state = self._state
        heads_known = "heads" in state.ledger.log.probes
        if not heads_known and not any(isinstance(j, Probe) and j.kind == "heads" for j in state.running.values()):
            return Probe("heads", state.rules.heads, self._time_limit())
        measuring = sum(isinstance(job, Probe) and job.kind == "speed" for job in state.running.values())
        if slot in self._asked or len(self._speeds) + measuring >= self._needed:
            return Wait()
        self._asked.add(slot)
        return Probe("speed", (state.head if heads_known else state.rules.heads[0],), self._time_limit())

    def mark(self) -> Probe | None:
        """A probe of all rows, where few of them told which head is best: what adapters are held against."""
        state = self._state
        known = state.ledger.log.probes["heads"]
        if known.get("whole", True) or any(isinstance(job, Probe) for job in state.running.values()):
            return None
        return Probe("heads", state.rules.heads, self._time_limit(), whole=True)

    @property
    def _needed(self) -> int:
        """Speeds that divide the budget: of all workers but the one that probes the heads, unless it is alone."""
        return max(1, self._state.slots - 1)

    def took(self, job: Probe, outcome: Outcome) -> None:
        """Note a probe's outcome; after the last one, divide the budget.

        Raises:
            AutopeftError: The probe could not be done: nothing else could be, either.
        """
        if job.whole:
            self._marked(outcome)
            return
        if outcome.status != "ok":
            raise AutopeftError(f"the {job.kind} probe ended {outcome.status} ({outcome.reason}): {outcome.detail}")
        ledger = self._state.ledger
        if job.kind == "heads":
            values = {**outcome.values, "metrics": outcome.metrics, "outputs": outcome.outputs}
            ledger.write("probe", kind="heads", values=values, seconds=outcome.seconds)
            self._divide_if_known()
            return
        if self._state.divided:
            return
        measured = outcome.values
        generate = measured.get("generate_seconds", 0.0)
        self._seconds += outcome.seconds
        self._speeds.append(Speed(measured["train_seconds_per_row"], measured["evaluate_seconds_per_row"], generate))
        self._packs.append(measured.get("packs") or {})
        self._divide_if_known()

    def _marked(self, outcome: Outcome) -> None:
        """Note the score of all rows; the head stays the one that trials have been trained under."""
        ledger = self._state.ledger
        before = dict(ledger.log.probes["heads"])
        busy = float(before.pop("seconds") or 0.0) + outcome.seconds
        values = {**before, "whole": True}
        if outcome.status == "ok":
            values |= {**outcome.values, "metrics": outcome.metrics, "outputs": outcome.outputs, "whole": True}
            values["head"] = before["head"]
        else:
            ledger.note(f"The linear probe is of {before.get('rows')} rows: that of all ended {outcome.reason}.")
        ledger.write("probe", kind="heads", values=values, seconds=busy)

    def resized(self) -> None:
        """Other workers are there than before: with fewer of them, all that are needed may have answered."""
        self._divide_if_known()

    def _divide_if_known(self) -> None:
        known = "heads" in self._state.ledger.log.probes and not self._state.divided
        if known and len(self._speeds) >= self._needed:
            self._divide()

    def lost(self, slot: int, reason: str) -> None:
        """The worker died; another one does the probe.

        Raises:
            AutopeftError: They keep dying.
        """
        # A node that is lost takes many workers with it: once for each.
        probe = slot if slot in self._asked else HEADS
        self._asked.discard(slot)
        self._lost[probe] += 1
        if self._lost[probe] >= ATTEMPTS:
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
        if all(self._packs):
            slowest_pack = {str(size): max(found[size] for found in self._packs) for size in self._packs[0]}
            values["packs"] = slowest_pack
        state.ledger.write("probe", kind="speed", values=values, seconds=self._seconds)
        if state.pack_speeds:
            state.ledger.note(about_packs(state.pack_speeds, state.rules.pack))
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
