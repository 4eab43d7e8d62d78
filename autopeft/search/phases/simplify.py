"""Between exploring and confirming: what of the challenger does not earn its place goes."""

from __future__ import annotations

from autopeft.evidence.bootstrap import standard_error
from autopeft.executors import Wait
from autopeft.journal import TrialLog
from autopeft.search.division import EXPLORE_SHARE
from autopeft.search.drops import drops_seconds, most_drops
from autopeft.search.phases.train import Trainer
from autopeft.search.state import State
from autopeft.space.configuration import Configuration
from autopeft.space.simplify import Group, simpler, without
from autopeft.strategy.jobs import Train

SEED = 800_001
"""Of all these runs."""


class Simplify:
    """Trains the challenger without each group of its parts (a method at a depth), then without all that can go. Final.

    The challenger itself is trained beside them with the same seed, which is a new one: the run that made it the
    challenger was a lucky one. Where there is no time for all groups, those with the most parameters are tried. A group
    can go when the score without it is lower by at most one standard error of the difference: the rule of one standard
    error (Breiman, Friedman, Olshen and Stone 1984, ch. 3). Fresh seeds judge what is left like any challenger. Ends
    when the finalists are named.
    """

    def __init__(self, state: State, trainer: Trainer) -> None:
        self._state = state
        self._trainer = trainer
        self._order: tuple[tuple[str, ...], list[str]] = ((), [])
        self._found: tuple[str, dict[str, Group]] = ("", {})

    def reserve(self) -> float:
        """Seconds that are kept for it at the end of the exploration; 0 where there is nothing to try."""
        state, trial = self._state, self._challenger()
        if trial is None or state.division.explore_until is None:
            return 0.0
        return self._cost(trial, len(self._affordable(trial)))

    def begin(self) -> bool:
        """Journal what is tried, if there is anything and there is time for it."""
        state, trial = self._state, self._challenger()
        groups = {} if trial is None else self._affordable(trial)
        if trial is None or not groups:
            return False
        drops = {label: self._journalled(trial, [group]) for label, group in groups.items()}
        state.ledger.write("simplify", challenger=trial.hash, drops=drops)
        return True

    def next(self, slot: int) -> Train | Wait | None:
        """A run without some parts; None when the finalists have just been named."""
        state, log = self._state, self._state.ledger.log
        if log.simplified is None:
            for held in list(state.held):
                if self._fits(log.trials[held].hash):
                    return self._trainer.go_on(log.trials[held])
                del state.held[held]
                reason = "there was no time left to run it again"
                state.ledger.write("trial_ended", trial=held, status="stopped", reason=reason, detail=None)
            for hash in self._wanted():
                if self._run(hash) is None and self._fits(hash):
                    return self._start(hash, slot)
            if state.running:
                return Wait(everyone=True)
            both = self._together()
            if both is not None and self._run(both) is None and self._fits(both):
                return self._start(both, slot)
            self._decide()
        state.name_finalists()
        return None

    def _affordable(self, trial: TrialLog) -> dict[str, Group]:
        """As many groups as there is time for, those with the most parameters first."""
        state, division = self._state, self._state.division
        groups, order = self._ordered(trial)
        started = float(state.ledger.log.plan.get("started") or 0.0)
        explore = None if division.explore_until is None else division.explore_until - started
        most = most_drops(len(order), self._seconds(trial.hash), state.slots, explore, division.max_trials)
        return {label: groups[label] for label in order[:most]}

    def _ordered(self, trial: TrialLog) -> tuple[dict[str, Group], list[str]]:
        """The groups, and their labels, those with the most parameters first."""
        state, groups = self._state, self._groups()
        key = (trial.hash, *groups)
        if self._order[0] != key:
            modules, whole = state.field.modules, state.configuration(trial.hash)
            left = {label: without(whole, modules, [group]).adapter_params(modules) for label, group in groups.items()}
            self._order = (key, sorted(groups, key=lambda label: (left[label], label)))
        return groups, self._order[1]

    def _cost(self, trial: TrialLog, drops: int) -> float:
        """Seconds that so many drops take, and the run without all that can go."""
        return drops_seconds(self._seconds(trial.hash), drops, self._state.slots)

    def _seconds(self, hash: str) -> float:
        state = self._state
        return state.seconds(hash, state.division.final_rows, final=True) + state.limited_seconds()

    def _groups(self) -> dict[str, Group]:
        state, trial = self._state, self._challenger()
        if trial is None or state.rules.evidence == "quick":
            return {}
        known = state.ledger.log.simplified
        if known is not None and known["challenger"] == trial.hash and state.ledger.log.simplify is None:
            # Found out before the search was opened again.
            return {}
        if self._found[0] != trial.hash:
            whole = state.configuration(trial.hash)
            self._found = (trial.hash, simpler(whole, state.field.modules, state.rules.budget.target))
        return self._found[1]

    def _challenger(self) -> TrialLog | None:
        """The challenger as it was explored, if it was trained in full."""
        found = self._state.finals.explored().get("challenger")
        full = len(self._state.division.rungs)
        return found if found is not None and len(found.rungs) == full and found.rungs[-1].outputs else None

    def _journalled(self, trial: TrialLog, groups: list[Group]) -> str:
        """The hash of the challenger without some groups, which is in the journal from now on."""
        state = self._state
        known = state.ledger.log.configurations[trial.hash]
        left: Configuration = without(state.configuration(trial.hash), state.field.modules, groups)
        if left.hash not in state.ledger.log.configurations:
            state.ledger.write(
                "configuration",
                hash=left.hash,
                configuration=left.to_dict(),
                values={},
                adapter_params=left.adapter_params(state.field.modules),
                arm="space",
                predicted_bytes=known.predicted_bytes,
                predicted_exactly=False,
                execution=known.execution,
            )
        return left.hash

    def _drops(self) -> dict[str, str]:
        return dict((self._state.ledger.log.simplify or {}).get("drops", {}))

    def _wanted(self) -> list[str]:
        simplify = self._state.ledger.log.simplify
        return [] if simplify is None else [simplify["challenger"], *simplify["drops"].values()]

    def _run(self, hash: str) -> TrialLog | None:
        runs = self._state.ledger.log.of_configuration(hash, "simplify")
        return runs[-1] if runs else None

    def _start(self, hash: str, slot: int) -> Train:
        return self._trainer.begin(self._state.configuration(hash), "space", "simplify", SEED, 0, slot)

    def _fits(self, hash: str) -> bool:
        state, until = self._state, self._state.explore_until()
        seconds = self._seconds(hash)
        return (until is None or state.ledger.used + seconds <= until) and state.affords(seconds, EXPLORE_SHARE)

    def _differences(self) -> dict[str, tuple[float, float]]:
        """Label -> difference of the score without the group, and its standard error."""
        compared = {label: self._against(hash) for label, hash in self._drops().items()}
        return {label: found for label, found in compared.items() if found is not None}

    def _against(self, hash: str) -> tuple[float, float] | None:
        """The difference of a run to that of the whole challenger, and its standard error; None without one of them."""
        runs = [self._run(each) for each in (hash, self._wanted()[0])]
        done = [run for run in runs if run is not None and run.status == "completed"]
        if len(done) < 2:
            return None
        state = self._state
        return standard_error(state.ledger.log.rung_metric, *(state.finals.outputs(run) for run in done))

    def _losable(self) -> list[str]:
        return [label for label, found in self._differences().items() if self._tolerable(*found)]

    def _tolerable(self, difference: float, error: float) -> bool:
        margin = self._state.finals.margin
        # Half of a margin is what a challenger may seem to lose before fresh seeds judge it.
        return difference >= -(error if margin is None else min(error, margin / 2))

    def _together(self) -> str | None:
        """The challenger without everything that can go, where that is more than one group and leaves something."""
        challenger, losable = self._challenger(), self._losable()
        if challenger is None or len(losable) < 2:
            return None
        groups = self._groups()
        state = self._state
        left = without(state.configuration(challenger.hash), state.field.modules, [groups[each] for each in losable])
        target = state.rules.budget.target
        if not left.sites or (target != "any" and left.methods != state.configuration(challenger.hash).methods):
            return None
        return self._journalled(challenger, [groups[each] for each in losable])

    def _decide(self) -> None:
        log, differences, losable = self._state.ledger.log, self._differences(), self._losable()
        takes, dropped = self._wanted()[0], list[str]()
        both = self._together()
        found = None if both is None else self._against(both)
        if both is not None and found is not None:
            differences = {**differences, " and ".join(losable): found}
            if self._tolerable(*found):
                takes, dropped = both, losable
        if not dropped and losable:
            # Alone, the one whose loss is felt least.
            label = max(losable, key=lambda each: differences[each][0])
            takes, dropped = self._drops()[label], [label]
        self._state.ledger.write(
            "simplified",
            challenger=(log.simplify or {})["challenger"],
            takes=takes,
            dropped=dropped,
            differences={label: list(values) for label, values in differences.items()},
        )
