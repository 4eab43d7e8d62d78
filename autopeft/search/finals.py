"""Finalists, their fresh seeds, and the verdict between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from heapq import heapreplace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autopeft.data.encoded import Array
from autopeft.errors import AutopeftError
from autopeft.evidence.bootstrap import LEVEL, Interval, Verdict, compare, interval
from autopeft.evidence.metrics import needs
from autopeft.evidence.selection import optimism
from autopeft.journal import TrialLog
from autopeft.search.division import FINALIST_SEEDS, MIN_RUNG_ROWS, Division
from autopeft.search.front import spread
from autopeft.search.ledger import Ledger
from autopeft.spec.costs import COSTS
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.trial.checkpoint import read_arrays

Role = Literal["baseline", "challenger"]
ROLES: dict[ArmName, Role] = {"baseline": "baseline", "space": "challenger"}
"""Arm -> what its finalist is called."""
EARLY_LEVEL = 0.99
"""Confidence at which a verdict may end the race of seeds early: a look after every seed at `LEVEL` would err twice as
often (``benchmarks/verdict_error_rate.py``, column ``hasty``)."""
UNTRAINED = (
    "But the tuned LoRA scores no more than the frozen base does without any adapter: it was not trained well enough "
    "here for this to say anything about LoRA. Give the search more time."
)
ARMS: dict[Role, ArmName] = {role: arm for arm, role in ROLES.items()}


class Finals:
    """Everything about finalists, read off the journal. Final.

    Args:
        ledger: Journal and fold.
        division: How the budget is divided.
        arms: Names of the arms.
    """

    def __init__(self, ledger: Ledger, division: Division, arms: tuple[ArmName, ...]) -> None:
        self._ledger = ledger
        self._division = division
        self._arms = arms

    def candidates(self) -> dict[Role, TrialLog]:
        """Role -> the arm's best trial: the best score among those that went furthest.

        With a margin, the challenger is the cheapest that seems to keep it. Where parts of it did not earn their place
        (`autopeft.search.phases.simplify`), it is what is left without them.
        """
        found, simplified = self.explored(), self._ledger.log.simplified
        if simplified is None or simplified["takes"] == simplified["challenger"]:
            return found
        if "challenger" not in found or found["challenger"].hash != simplified["challenger"]:
            return found
        runs = self._ledger.log.of_configuration(simplified["takes"], "simplify")
        return {**found, "challenger": runs[-1]}

    def explored(self) -> dict[Role, TrialLog]:
        """Role -> the best trial of the arm's exploration, as `candidates` says."""
        log = self._ledger.log
        found: dict[Role, TrialLog] = {}
        for arm in self._arms:
            # Of equal scores, the cheaper adapter.
            standings = log.index.standings(arm, "explore")
            if standings:
                found[ROLES[arm]] = log.trials[standings[0][-1]]
        if self.margin is not None and len(found) == 2:
            found["challenger"] = self._cheapest(found)
        return found

    def _tried(self, arm: ArmName) -> list[TrialLog]:
        """The arm's trials of the exploration that reached a rung."""
        trials = [t for t in self._ledger.log.trials.values() if t.arm == arm and t.purpose == "explore" and t.rungs]
        return [trial for trial in trials if trial.status not in ("failed", "infeasible")]

    @property
    def margin(self) -> float | None:
        """By how much a cheaper challenger may be worse, in the metric's unit; None where the best is looked for."""
        margin: float | None = self._ledger.log.header.get("procedure", {}).get("margin")
        return margin

    def _cheapest(self, found: dict[Role, TrialLog]) -> TrialLog:
        """The cheapest of those that went furthest and seem to keep half of the margin; fresh seeds must show it all.

        Where none seems to, the best of those that are cheaper than the baseline: nothing else could be returned as
        within the margin. Where trials are judged by another metric than the final one the margin says nothing.
        """
        log, baseline, best = self._ledger.log, found["baseline"], found["challenger"]
        if log.rung_metric != log.metric or self.margin is None:
            return best

        # As it was when it was explored: what is measured later does not change what was chosen.
        most = log.cost(baseline.hash, "explore")
        mark = baseline.rungs[-1].metrics[log.metric] - self.margin / 2
        standings = log.index.standings(ARMS["challenger"], "explore")
        # (cost, minus the score, number, id) of those that went furthest and are cheaper.
        furthest = takewhile(lambda standing: standing[0] == standings[0][0], standings)
        cheaper = [(cost, worth, number, name) for _, worth, cost, number, name in furthest if cost < most]
        if not cheaper:
            return best
        kept = [each for each in cheaper if -each[1] >= mark]
        return log.trials[min(kept)[-1] if kept else min(cheaper, key=lambda each: (each[1], *each))[-1]]

    def name(
        self,
        *,
        seconds: Callable[[str, int], float],
        rungs: int,
        predict: Callable[[str], int | None],
        front: bool = False,
        once: float = 0.0,
    ) -> None:
        """Journal the finalists, with as many seeds and rows as the time left admits.

        Args:
            seconds: `(configuration hash, rows) -> expected seconds` of one run.
            rungs: Number of rungs.
            predict: `configuration hash -> live bytes` of its training, exactly.
            front: Whether others that are worth their size get fresh seeds as well.
            once: Expected seconds of what the first run of a configuration measures beside.
        """
        candidates = self.candidates()
        hashes = {role: trial.hash for role, trial in candidates.items()}
        others = spread(self._ledger.log, list(hashes.values()), self._reference()) if front else []
        until, rows, seeds = self._division.confirm_until, self._division.final_rows, list(self._division.seeds)
        if until is not None:
            left = until - self._ledger.used

            def fits(rows: int, seeds: int) -> bool:
                runs = [seconds(h, rows) for h in (*hashes.values(), *others)]
                first = [run + once for run in runs]
                return makespan([*first, *runs * (seeds - 1)], self._division.workers) <= left

            while len(seeds) > 2 and not fits(rows, len(seeds)):
                seeds.pop()
            while rows > MIN_RUNG_ROWS and not fits(rows, len(seeds)):
                rows = max(MIN_RUNG_ROWS, int(0.9 * rows))
            if not fits(rows, len(seeds)):
                seeds = seeds[:1] if fits(rows, 1) else []
        self._ledger.write(
            "finalists",
            baseline=hashes.get("baseline"),
            challenger=hashes.get("challenger"),
            seeds=seeds,
            rows=rows,
            rung=rungs - 1,
            predicted_bytes={role: predict(hash) for role, hash in hashes.items()},
            front=others,
        )

    def _reference(self) -> float | None:
        """The linear probe's score, where there is one."""
        probe = self._ledger.log.probes.get("heads", {})
        return None if probe.get("head") in (None, "lm") else float(probe["score"])

    def front(self) -> list[str]:
        """Configurations beside the finalists that get fresh seeds."""
        return list(self._named().get("front") or ())

    def front_runs(self, hash: str) -> list[TrialLog]:
        """The completed runs of a configuration with fresh seeds."""
        return [run for run in self._runs() if (run.hash, run.status) == (hash, "completed")]

    def pending(self, *, until_decided: bool) -> list[tuple[ArmName, str, int]]:
        """Runs that were not started yet: seed by seed, both arms in turn, and then the others of the front."""
        named = self._named()
        started = {(run.arm, run.hash, run.seed) for run in self._runs() if not self._again(run)}
        # What does not fit is not tried unchanged with another seed.
        unfit = self._unfit()
        settled = until_decided and self._settled()
        seeds = [] if settled else named["seeds"]
        runs = [(arm, named.get(role), seed) for seed in seeds for arm, role in ROLES.items()]
        runs += [(self._arm(hash), hash, seed) for seed in named["seeds"] for hash in self.front()]
        return [
            (arm, hash, seed)
            for arm, hash, seed in runs
            if hash and hash not in unfit and (arm, hash, seed) not in started
        ]

    def _again(self, run: TrialLog) -> bool:
        """Whether a run may be made anew: it came to nothing before the search was given more, and has had one chance.

        What only lacked the time is made anew whenever there is more of it.
        """
        if run.started >= float(self._ledger.log.plan.get("started") or 0.0):
            return False
        same = [other for other in self._runs() if (other.arm, other.hash, other.seed) == (run.arm, run.hash, run.seed)]
        return run.status == "stopped" or (run.status == "failed" and sum(o.status == "failed" for o in same) < 2)

    def _arm(self, hash: str) -> ArmName:
        return "baseline" if self._ledger.log.configurations[hash].arm == "baseline" else "space"

    def hashes(self) -> list[str]:
        """Configurations of the finalists."""
        return [hash for role in ROLES.values() if (hash := self._named().get(role))]

    def further_seed(self, *, idle: bool = False) -> int | None:
        """The next of the fixed seeds, when both finalists are there and have been confirmed by all seeds so far.

        Args:
            idle: Whether workers would wait meanwhile: then it need not wait for the seeds so far, of which it does not
                depend. A finalist with a run that broke is not asked for more.
        """
        seeds = self._named()["seeds"]
        hashes = self.hashes()
        broken = any(run.hash in hashes and run.status not in ("running", "completed") for run in self._runs())
        confirmed = all(len(self.runs(role)) >= len(seeds) for role in ROLES.values())
        complete = len(hashes) == 2 and (confirmed or (idle and not broken))
        left = [seed for seed in FINALIST_SEEDS if seed not in seeds]
        return left[0] if seeds and complete and left else None

    def extend(self, seed: int) -> None:
        """Journal one more seed for the finalists."""
        named = self._named()
        self._ledger.write("finalists", **{**named, "seeds": [*named["seeds"], seed]})

    def runs(self, role: Role) -> list[TrialLog]:
        """The completed runs of a finalist with fresh seeds."""
        hash, arm = self._named().get(role), ARMS[role]
        return [run for run in self._runs() if (run.arm, run.hash, run.status) == (arm, hash, "completed")]

    def evidence(self, role: Role) -> list[TrialLog]:
        """What is known of a finalist: its runs with fresh seeds, or else its exploration."""
        runs, hash = self.runs(role), self._named().get(role)
        if runs or hash is None or hash in self._unfit():
            return runs
        trial = self.candidates().get(role)
        return [] if trial is None else [trial]

    def _unfit(self) -> set[str]:
        """Configurations of which a run with a fresh seed broke a limit."""
        return {run.hash for run in self._runs() if run.status == "infeasible"}

    def outputs(self, run: TrialLog) -> dict[str, Array]:
        """Per-example outputs of a run on the validation rows."""
        file = run.rungs[-1].outputs
        if file is None:
            raise ValueError(f"{run.id} kept no outputs")
        return read_arrays(Path(self._ledger.journal.folder) / file)

    def interval_of(self, runs: list[TrialLog], metric: str) -> Interval:
        """The score of one configuration's runs, with its interval over seeds and examples."""
        return interval(metric, [self.outputs(run) for run in runs])

    def optimism(self, role: Role, metric: str) -> float | None:
        """What choosing the arm's best among those that went furthest adds to its score (`evidence.optimism`).

        None where there was no choice, or where it was made by another metric.
        """
        tried = self._tried(ARMS[role])
        top = max((trial.rungs[-1].rung for trial in tried), default=-1)
        outputs = [self.outputs(trial) for trial in tried if trial.rungs[-1].rung == top and trial.rungs[-1].outputs]
        # Answers are generated after a full training only.
        outputs = [each for each in outputs if all(name in each for name in needs(metric))]
        rows = max((evaluated_rows(each) for each in outputs), default=0)
        alike = [each for each in outputs if evaluated_rows(each) == rows]
        return optimism(metric, alike) if len(alike) > 1 else None

    def decide(self) -> None:
        """Journal the verdict."""
        verdict, seeds = self._compare()
        self._ledger.write(
            "verdict",
            name=verdict.name,
            difference=verdict.difference,
            low=verdict.low,
            high=verdict.high,
            takes=verdict.takes,
            reason=verdict.reason,
            seeds=seeds,
            margin=self.margin,
            cost=self._ledger.log.cost_name,
            costs=self._costs(),
        )

    def best_runs(self) -> dict[Role, TrialLog]:
        """Role -> the run whose weights stand for it: the best seed by validation, a rule fixed beforehand."""
        if self._ledger.log.finalists is None:
            return {}
        metric = self._metric()
        runs = {role: self.evidence(role) for role in ROLES.values()}
        return {
            role: max(of_role, key=lambda t: t.rungs[-1].metrics.get(metric, -np.inf))
            for role, of_role in runs.items()
            if of_role
        }

    def chosen_run(self) -> TrialLog:
        """The run whose weights are the winner."""
        verdict = self._ledger.log.verdict
        if verdict is None:
            raise ValueError("there is no verdict yet")
        return self.best_runs()["challenger" if verdict["takes"] == "challenger" else "baseline"]

    def _compare(self, level: float = LEVEL) -> tuple[Verdict, int]:
        log = self._ledger.log
        runs = {role: self.evidence(role) for role in ROLES.values()}
        present = [role for role, of_role in runs.items() if of_role]
        if not present:
            raise AutopeftError("both finalists broke a limit when they were trained again; see report.html")
        if len({bool(self.runs(role)) for role in present}) > 1:
            # A run with a fresh seed is not held against one that was chosen for its luck.
            explored = self.candidates()
            runs = {role: [explored[role]] if role in present else [] for role in runs}
        if len(present) == 1:
            missing = "tuned LoRA" if present[0] == "challenger" else "the space"
            reason = f"nothing of {missing} was trained within the limits"
            return Verdict("unconfirmed", 0.0, 0.0, 0.0, present[0], reason), len(runs[present[0]])
        outputs = {role: [self.outputs(run) for run in of_role] for role, of_role in runs.items()}
        if len({evaluated_rows(run) for of_role in outputs.values() for run in of_role}) > 1:
            scores = {role: np.mean([run.rungs[-1].metrics[log.rung_metric] for run in runs[role]]) for role in present}
            reason = "no time was left to train both finalists with fresh seeds, and they were judged on different rows"
            return Verdict("unconfirmed", 0.0, 0.0, 0.0, max(present, key=lambda role: scores[role]), reason), 0
        verdict = compare(
            self._metric(),
            outputs["challenger"],
            outputs["baseline"],
            costs=(self._cost(runs["challenger"]), self._cost(runs["baseline"])),
            cost=COSTS[log.cost_name],
            margin=self.margin,
            level=level,
        )
        if verdict.name in ("better", "within") and self._untrained(runs["baseline"]):
            verdict = replace(verdict, name="unconfirmed", reason=f"{verdict.reason} {UNTRAINED}")
        return verdict, min(len(self.runs(role)) for role in present)

    def _cost(self, runs: list[TrialLog]) -> float:
        """What these runs of one configuration cost; with fresh seeds, as measured with these."""
        fresh = runs[0].purpose == "confirm"
        return self._ledger.log.cost(runs[0].hash, "confirm" if fresh else None)

    def _costs(self) -> dict[str, float | None]:
        """Role -> what its finalist costs, None where that is not known."""
        found = {role: self._cost(runs) for role in ROLES.values() if (runs := self.evidence(role))}
        return {role: cost if np.isfinite(cost) else None for role, cost in found.items()}

    def _untrained(self, runs: list[TrialLog]) -> bool:
        """Whether these runs score no more than the frozen base does without any adapter."""
        probe, metric = self._ledger.log.probes.get("heads", {}), self._metric()
        known = "log_likelihood" if probe.get("head") == "lm" else self._ledger.log.metric
        if probe.get("score") is None or metric != known:
            return False
        return float(np.mean([run.rungs[-1].metrics[metric] for run in runs])) <= float(probe["score"])

    def _settled(self) -> bool:
        """Whether both finalists have two runs or more and the verdict is not a tie."""
        counts = [len(self.runs(role)) for role in ROLES.values() if self._named().get(role)]
        if len(counts) < 2 or min(counts) < 2:
            return False
        return self._compare(EARLY_LEVEL)[0].name in ("better", "within", "worse")

    def _metric(self) -> str:
        log = self._ledger.log
        if all(self.runs(role) for role in ROLES.values() if self._named().get(role)):
            return log.metric
        return log.rung_metric

    def _named(self) -> dict[str, Any]:
        return self._ledger.log.finalists or {"seeds": []}

    def _runs(self) -> list[TrialLog]:
        """Runs with fresh seeds on as many rows as these finalists get: a reopened search may have shorter ones."""
        rows = self._named().get("rows", 0)
        runs = self._ledger.log.index.of_purpose("confirm")
        return [run for run in runs if run.status != "completed" or run.rows >= rows]


def evaluated_rows(outputs: Mapping[str, Array]) -> int:
    """Rows that per-example outputs are over."""
    return len(outputs["prediction" if "prediction" in outputs else "log_likelihood"])


def makespan(seconds: list[float], workers: int) -> float:
    """When the last of these runs ends, longest first on the worker that is free first."""
    # Workers beyond the number of runs stay free.
    ends = [0.0] * max(1, min(workers, len(seconds)))
    for run in sorted(seconds, reverse=True):
        heapreplace(ends, ends[0] + run)
    return max(ends)
