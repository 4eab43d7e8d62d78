"""The last phase: the test rows are read once, for what is reported; they decide nothing."""

from __future__ import annotations

from autopeft.executors import Done, Wait
from autopeft.search.state import State
from autopeft.strategy.jobs import Evaluate, Job, Outcome

TEST_SHARE, MIN_TEST_ROWS = 0.7, 100
"""Share of the time and of the busy seconds left that reading the test rows may take; rows that are read anyway."""


class TestPhase:
    """Ends when every finalist, and the incumbent, has its test scores. Final."""

    __test__ = False

    def __init__(self, state: State) -> None:
        self._state = state

    def left(self) -> list[str]:
        """Names that have no test scores yet."""
        tests, weights = self._state.ledger.log.tests, self.weights()
        return [name for name in self.folders() if name not in tests or tests[name]["sha256"] != weights.get(name)]

    def next(self, slot: int) -> Job | Wait | Done:
        """An evaluation on the test rows. Before the first one, what is read for whom is journalled."""
        state = self._state
        names = [name for name in self.left() if not state.evaluating(name)]
        if not names:
            return Wait() if state.running else Done()
        if not state.ledger.log.opened:
            chosen = state.finals.chosen_run().rungs[-1].sha256
            rows = self._affordable_rows()
            state.ledger.write("test_opened", winner_sha256=chosen, test_hash=state.rules.test_hash, rows=rows)
        name = names[0]
        sha256 = self.weights().get(name)
        folder, outputs = self.folders()[name], f"test/{name}.safetensors"
        # As many for all of them, also for those that are read by a later session.
        rows = state.ledger.log.test_opened[-1].get("rows")
        expected = state.evaluation_seconds(state.rules.test_rows if rows is None else rows)
        limit = state.time_limit(expected, least=2 * expected)
        return Evaluate(name, folder, "test", outputs, rows=rows, sha256=sha256, time_limit=limit)

    def took(self, job: Evaluate, outcome: Outcome) -> None:
        """Note scores; an evaluation that broke is noted and not tried again."""
        ledger = self._state.ledger
        if outcome.status != "ok":
            ledger.note(f"{job.name} could not be evaluated on {job.split}: {outcome.reason}: {outcome.detail}")
        if job.split == "validation":
            values = {"metrics": outcome.metrics, "outputs": outcome.outputs, **outcome.values}
            ledger.write("probe", kind=job.name, values=values, seconds=outcome.seconds)
            return
        ledger.write(
            "test",
            name=job.name,
            metrics=outcome.metrics,
            outputs=outcome.outputs,
            sha256=job.sha256,
            ability=outcome.values.get("ability"),
            seconds=outcome.seconds,
        )

    def folders(self) -> dict[str, str]:
        """Adapter folder of every name that is tested."""
        state = self._state
        folders: dict[str, str | None] = {r: run.rungs[-1].adapter for r, run in state.finals.best_runs().items()}
        if state.rules.incumbent is not None and state.ledger.log.probes.get("incumbent", {}).get("metrics"):
            folders["incumbent"] = state.rules.incumbent
        return {name: folder for name, folder in folders.items() if folder is not None}

    def weights(self) -> dict[str, str | None]:
        """Checksum of the weights that are tested, by name; an incumbent has none."""
        return {role: run.rungs[-1].sha256 for role, run in self._state.finals.best_runs().items()}

    def _affordable_rows(self) -> int | None:
        """Test rows that the time left allows; None for all. Said when it is not all."""
        state, end, compute = self._state, self._state.division.deadline, self._state.rules.budget.max_compute
        names = len(self.folders())
        each = [] if end is None else [(end - state.ledger.used) / -(-names // state.slots)]
        if compute is not None:
            each.append((compute - state.busy()) / names)
        if not each:
            return None
        seconds = TEST_SHARE * max(0.0, min(each)) - state.division.speed.generate
        affordable = max(MIN_TEST_ROWS, int(seconds / state.division.speed.evaluate))
        if affordable < state.rules.test_rows:
            rows = f"{affordable:,} of {state.rules.test_rows:,} rows"
            state.ledger.note(f"Test scores are on {rows}: the time left allowed no more.")
        return min(affordable, state.rules.test_rows)
