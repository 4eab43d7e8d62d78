"""The one loop of a search, as a passive state machine over the journal.

What happens next follows from the journal alone, so that a search which is taken up again goes on where it was:

    probe     which head, how good the untouched base is, how fast the workers are
    explore   both arms climb the rungs
    simplify  parts of the challenger that do not earn their place go, where there is time
    confirm   the best of each arm is trained again with fresh seeds
    test      the test rows are read once, and after them the eval sets
    done

One file of `autopeft.search.phases` each says what the workers do meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from autopeft.data.sources import SPLITS
from autopeft.executors import Done, Event, Lost, Progressed, Resized, Wait
from autopeft.search.division import Speed
from autopeft.search.ledger import Ledger
from autopeft.search.packing import Packer
from autopeft.search.phases import Confirm, EvalSets, Explore, ProbePhase, Simplify, TestPhase, Trainer
from autopeft.search.phases.train import ATTEMPTS
from autopeft.search.state import Field, Rules, State
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Pack, Probe, Train

PhaseName = Literal["probe", "explore", "simplify", "confirm", "test", "done"]


class Controller:
    """Decides what every worker does next. Nothing here blocks. Final.

    Args:
        ledger: Journal and fold.
        rules: What is fixed.
        field: `(head, speed) -> Field`: binds the arms once the head is known.
        slots: Workers.
        on_tick: Called by `tick`.

    Attributes:
        state: Where the search stands.
    """

    def __init__(
        self,
        ledger: Ledger,
        rules: Rules,
        field: Callable[[str, Speed], Field],
        *,
        slots: int,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = State(ledger, rules, field, slots)
        self._on_tick = on_tick
        self._stopping = False
        self._trainer = Trainer(self.state)
        self._probe = ProbePhase(self.state)
        self._simplify = Simplify(self.state, self._trainer)
        self._explore = Explore(self.state, self._trainer, self._simplify)
        self._confirm = Confirm(self.state, self._trainer)
        self._test = TestPhase(self.state)
        self._eval_sets = EvalSets(self.state, self._test)
        self._packer = Packer(self.state, self._trainer)
        self._losses: dict[tuple[str, str], int] = {}
        for trial in list(ledger.log.trials.values()):
            if trial.ended is None and trial.status == "running":
                # It ran when the last session ended.
                self._trainer.take_up(trial)

    @property
    def phase(self) -> PhaseName:
        """Follows from the journal."""
        log = self.state.ledger.log
        if not self.state.divided:
            return "probe"
        if log.finalists is None:
            return "explore" if log.simplify is None else "simplify"
        if log.verdict is None:
            return "confirm"
        return "test" if self._test.left() or self._eval_sets.left() else "done"

    def next(self, slot: int) -> Job | Wait | Done:
        """What the free slot does now."""
        ledger = self.state.ledger
        # What it is about to act on is on disk when this returns.
        with ledger.meter.of("decide"), ledger.together():
            answer = (None if self._stopping else self._packer.put_by()) or self._next(slot)
            if isinstance(answer, Train) and self._packer.size > 1 and self.phase == "explore":
                answer = self._packer.fill(answer, slot, self._explore.until(), lambda: self._next(slot))
            if not isinstance(answer, Wait | Done):
                self.state.occupy(slot, answer)
        return answer

    def on_event(self, event: Event) -> None:
        """Take note of what happened."""
        ledger = self.state.ledger
        with ledger.meter.of("decide"), ledger.together():
            self._take(event)

    def _take(self, event: Event) -> None:
        state = self.state
        if isinstance(event, Progressed):
            state.progress[event.slot] = event.progress
            return
        if isinstance(event, Resized):
            state.slots = event.slots
            state.ledger.note(event.text)
            self._probe.resized()
            return
        state.release(event.slot)
        if isinstance(event, Lost):
            self._lost(event)
            return
        outcome = event.outcome
        match outcome.job:
            case Train():
                self._trainer.took(event.slot, outcome.job, outcome)
            case Pack():
                self._packer.took(event.slot, outcome.job, outcome)
            case Probe():
                self._probe.took(outcome.job, outcome)
            case Evaluate():
                self._evaluated(outcome.job, outcome)

    def tick(self) -> None:
        """Called at least once a second while jobs run."""
        self._on_tick()

    def stop(self) -> None:
        """Start nothing more."""
        self._stopping = True

    def _next(self, slot: int) -> Job | Wait | Done:
        answer: Job | Wait | Done | None = None
        while answer is None:
            # A phase answers None when it has just written what ends it.
            phase = "done" if self._stopping else self.phase
            match phase:
                case "probe":
                    answer = self._probe.next(slot)
                case "explore":
                    answer = self._probe.mark() or self._explore.next(slot)
                case "simplify":
                    answer = self._simplify.next(slot)
                case "confirm":
                    answer = self._confirm.next(slot)
                case "test":
                    answer = self._test.next(slot) if self._test.left() else self._eval_sets.next(slot)
                case "done":
                    answer = Done()
        return answer

    def _lost(self, event: Lost) -> None:
        match event.job:
            case Train():
                self._trainer.lost(event.job, event)
            case Pack():
                self._packer.lost(event, event.job)
            case Probe():
                self._probe.lost(event.slot, event.reason)
            case Evaluate(name=name, split=split):
                # Asked for again, as nothing of it is in the journal; but not for ever.
                key = (split, name)
                self._losses[key] = self._losses.get(key, 0) + 1
                if self._losses[key] >= ATTEMPTS:
                    self._evaluated(event.job, Outcome(event.job, "failed", "lost", event.reason))

    def _evaluated(self, job: Evaluate, outcome: Outcome) -> None:
        phase = self._test if job.split in SPLITS else self._eval_sets
        phase.took(job, outcome)
