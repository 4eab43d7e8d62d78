"""The end of the last phase: the eval sets are scored for those that were tested; they decide nothing."""

from __future__ import annotations

from autopeft.executors import Done, Wait
from autopeft.search.opening import NO_TIME
from autopeft.search.phases.test import MIN_TEST_ROWS, TEST_SHARE, TestPhase
from autopeft.search.state import GRACE_SECONDS, PATIENCE, State
from autopeft.strategy.jobs import Evaluate, Job, Outcome


class EvalSets:
    """Ends when every adapter that was tested has its scores on every eval set, or no time is left. Final.

    Args:
        state: Where the search stands.
        tested: Says what is tested.
    """

    def __init__(self, state: State, tested: TestPhase) -> None:
        self._state = state
        self._tested = tested

    def left(self) -> list[tuple[str, str]]:
        """Eval set and adapter of every evaluation that is due."""
        sets = self._state.rules.eval_rows
        if not sets:
            return []
        names = list(self._tested.folders())
        return [(set, name) for set in sets for name in names if self._due(set, name)]

    def next(self, slot: int) -> Job | Wait | Done | None:
        """An evaluation; None when it has just been journalled that there is no time for one."""
        state = self._state
        pairs = [pair for pair in self.left() if pair not in self._running()]
        if not pairs:
            return Wait() if state.running else Done()
        set, name = pairs[0]
        total = state.rules.eval_rows[set]
        if not self._affordable(set):
            state.ledger.note(f"{name} was not evaluated on {set}: there was no time left.")
            self._write(set, name, reason=NO_TIME)
            return None
        rows = self._rows(set, len(pairs))
        expected = state.evaluation_seconds(rows)
        least = GRACE_SECONDS + PATIENCE * expected if self._whole(set) else 2 * expected
        return Evaluate(
            name,
            self._tested.folders()[name],
            set,
            f"eval/{set}/{name}.safetensors",
            rows=None if rows == total else rows,
            sha256=self._tested.weights().get(name),
            time_limit=state.time_limit(expected, least=least),
        )

    def took(self, job: Evaluate, outcome: Outcome) -> None:
        """Journal scores; an evaluation that broke is noted and not tried again."""
        reason = None
        if outcome.status != "ok":
            reason = outcome.reason
            text = f"{job.name} could not be evaluated on {job.split}: {outcome.reason}: {outcome.detail}"
            self._state.ledger.note(text)
        rows = self._state.rules.eval_rows[job.split] if job.rows is None else job.rows
        self._write(job.split, job.name, outcome=outcome, sha256=job.sha256, rows=rows, reason=reason)

    def _write(
        self,
        set: str,
        name: str,
        *,
        outcome: Outcome | None = None,
        sha256: str | None = None,
        rows: int = 0,
        reason: str | None,
    ) -> None:
        found: dict[str, float | None] = dict(outcome.metrics) if outcome else {}
        if outcome is not None:
            # A nought would read as a score.
            found.update(dict.fromkeys(outcome.values.get("undefined", ())))
        self._state.ledger.write(
            "evaluated",
            set=set,
            name=name,
            metrics=found,
            outputs=outcome.outputs if outcome else None,
            sha256=sha256 if outcome else self._tested.weights().get(name),
            rows=rows,
            reason=reason,
            seconds=outcome.seconds if outcome else 0.0,
        )

    def _due(self, set: str, name: str) -> bool:
        known = self._state.ledger.log.evaluations.get(set, {}).get(name)
        if known is None or known["sha256"] != self._tested.weights().get(name):
            return True
        return known["reason"] == NO_TIME and self._affordable(set)

    def _running(self) -> list[tuple[str, str]]:
        jobs = [job for job in self._state.running.values() if isinstance(job, Evaluate)]
        return [(job.split, job.name) for job in jobs]

    def _whole(self, set: str) -> bool:
        return bool(self._state.ledger.log.eval_sets.get(set, {}).get("whole"))

    def _seconds_left(self) -> float | None:
        """Seconds that evaluations may take, one after the other; None without a limit."""
        state, end, compute = self._state, self._state.division.deadline, self._state.rules.budget.max_compute
        left = [] if end is None else [end - state.ledger.used]
        if compute is not None:
            left.append(compute - state.busy())
        return TEST_SHARE * max(0.0, min(left)) if left else None

    def _affordable(self, set: str) -> bool:
        """Whether there is time for the fewest rows that say anything."""
        left = None if self._whole(set) else self._seconds_left()
        rows = min(MIN_TEST_ROWS, self._state.rules.eval_rows[set])
        return left is None or self._state.evaluation_seconds(rows) <= left

    def _rows(self, set: str, pending: int) -> int:
        """Rows to evaluate on: as many for every adapter, as many as the time left allows. Said when it is not all."""
        state, total = self._state, self._state.rules.eval_rows[set]
        weights = self._tested.weights()
        known = [job.rows for job in state.running.values() if isinstance(job, Evaluate) and job.split == set]
        for name, data in state.ledger.log.evaluations.get(set, {}).items():
            if data["metrics"] and data["sha256"] == weights.get(name):
                known.append(data["rows"])
        if known:
            return total if known[0] is None else min(total, known[0])
        left = None if self._whole(set) else self._seconds_left()
        if left is None:
            return total
        seconds = left / -(-pending // state.slots) - state.division.speed.generate
        rows = max(MIN_TEST_ROWS, int(seconds / state.division.speed.evaluate))
        if rows < total:
            state.ledger.note(f"Scores on {set} are on {rows:,} of {total:,} rows: the time left allowed no more.")
        return min(rows, total)
