"""What every executor must do, as a pytest mix-in: subclass `ExecutorContract`, provide `executor` and the fixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from autopeft.compose.base import load_base, load_tokenizer, meta_carrier
from autopeft.data.encode import encode
from autopeft.data.read import read
from autopeft.executors.base import Done, Event, Executor, Finished, Lost, Progressed, Wait
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.spec import Task
from autopeft.strategy.jobs import Job, Outcome, Probe, Train
from autopeft.trial.setup import WorkSetup


class Script:
    """A controller that hands out a list of jobs and remembers what happened. Final.

    Args:
        jobs: In order; a callable is asked, when its turn comes, for the job that follows from the events so far, and
            answers None until it can tell.
    """

    def __init__(self, jobs: Sequence[Job | Callable[[list[Event]], Job | None]]) -> None:
        self.jobs = list(jobs)
        self.events: list[Event] = []
        self.ticks = 0
        self.running = 0

    def next(self, slot: int) -> Job | Wait | Done:
        """The next job of the list."""
        if not self.jobs:
            return Done()
        first = self.jobs[0]
        job = first(self.events) if callable(first) else first
        if job is None:
            return Wait()
        self.jobs.pop(0)
        self.running += 1
        return job

    def on_event(self, event: Event) -> None:
        """Remember."""
        if not isinstance(event, Progressed):
            self.running -= 1
        self.events.append(event)

    def tick(self) -> None:
        """Count."""
        self.ticks += 1

    @property
    def outcomes(self) -> list[Outcome]:
        """Outcomes in the order of their ends."""
        return [event.outcome for event in self.events if isinstance(event, Finished)]

    @property
    def lost(self) -> list[Lost]:
        """Jobs whose worker died."""
        return [event for event in self.events if isinstance(event, Lost)]


def make_setup(model: Path, data: Path, folder: Path) -> WorkSetup:
    """A small classification task on a real or random encoder, in float32."""
    raw = read(Task(str(model), str(data)), seed=0)
    encoded, _ = encode(raw, load_tokenizer(str(model)), max_length=32, model_max=512)
    base = load_base(str(model), kind=raw.kind, dtype="float32")
    return WorkSetup(
        base=base, data=encoded, kind=raw.kind, metric=raw.metric, labels=len(encoded.label_names),
        folder=str(folder), precision="float32", attention="eager",
    )  # fmt: skip


def lora_job(setup: WorkSetup, trial: str, *, rate: float = 3e-3, rows: int = 128, rank: int = 2) -> Train:
    """LoRA on every query."""
    carrier = meta_carrier(setup.base.config, kind=setup.kind, head="mean", labels=setup.labels)
    sites = carrier.modules.select(("query",))
    parts = {site.name: [Part.of("lora", {"r": rank, "scale": 1.0})] for site in sites}
    configuration = Configuration.of(parts, Training((("lora", rate),), 3e-3, 16, 0.1))
    return Train(trial, configuration, 1, 0, rows, 16, 0, 0, f"trials/{trial}", "mean")


class ExecutorContract:
    """Inherit, and define `executor`; the fixture `setup` is a `WorkSetup`."""

    def executor(self) -> Executor:
        """A new executor, with two workers where it can have them."""
        raise NotImplementedError

    def test_every_job_comes_back_once(self, setup: WorkSetup) -> None:
        """Also when there are more jobs than workers."""
        jobs = [lora_job(setup, f"t{number}", rows=32) for number in range(5)]
        script = Script(jobs)
        self.executor().run(script, setup)
        assert sorted(outcome.job.trial for outcome in script.outcomes) == [f"t{number}" for number in range(5)]  # type: ignore[union-attr]
        assert all(outcome.status == "ok" for outcome in script.outcomes)
        assert script.running == 0

    def test_equal_jobs_have_equal_outcomes(self, setup: WorkSetup) -> None:
        """On whichever worker they run."""
        script = Script([lora_job(setup, "a"), lora_job(setup, "b")])
        self.executor().run(script, setup)
        one, other = script.outcomes
        assert one.metrics == other.metrics
        assert one.sha256 == other.sha256

    def test_a_trial_goes_on_from_its_checkpoint_anywhere(self, setup: WorkSetup) -> None:
        """After other trials, perhaps on another worker, exactly as if nothing had come between."""

        def halves(trial: str) -> tuple[Train, Callable[[list[Event]], Train | None]]:
            first = lora_job(setup, trial, rows=64)

            def second(events: list[Event]) -> Train | None:
                done = [e.outcome for e in events if isinstance(e, Finished) and e.outcome.job == first]
                return replace(first, rows_from=done[0].rows, rows_to=128, rung=1) if done else None

            return first, second

        resident = Script([*halves("resident")])
        self.executor().run(resident, setup)
        first, second = halves("parted")
        others = [lora_job(setup, f"other{number}", rows=32) for number in range(3)]
        parted = Script([first, *others, second])
        self.executor().run(parted, setup)
        ends = [o for script in (resident, parted) for o in script.outcomes if isinstance(o.job, Train) and o.job.rung]
        assert [end.status for end in ends] == ["ok", "ok"], [end.detail for end in ends]
        assert ends[0].metrics == ends[1].metrics
        assert ends[0].sha256 is not None

    def test_what_a_configuration_breaks_breaks_nothing_else(self, setup: WorkSetup) -> None:
        """Its outcome says so; the next job runs."""
        broken = Configuration.of(
            {"no.such.module": [Part.of("lora", {"r": 2, "scale": 1.0})]}, Training((("lora", 1e-3),), 1e-3, 16)
        )
        bad = Train("bad", broken, 1, 0, 32, 16, 0, 0, "trials/bad", "mean")
        script = Script([bad, lora_job(setup, "good", rows=32)])
        self.executor().run(script, setup)
        by_trial = {o.job.trial: o for o in script.outcomes}  # type: ignore[union-attr]
        assert by_trial["bad"].status == "infeasible"
        assert by_trial["bad"].reason == "unsupported"
        assert by_trial["good"].status == "ok"

    def test_probes_answer(self, setup: WorkSetup) -> None:
        """The head probe ranks the heads, the speed probe measures."""
        script = Script([Probe("heads", ("mean", "cls")), Probe("speed", ("mean",))])
        self.executor().run(script, setup)
        heads, speed = sorted(script.outcomes, key=lambda o: o.job.kind)  # type: ignore[union-attr]
        assert set(heads.values["scores"]) == {"mean", "cls"}
        assert heads.values["head"] in ("mean", "cls")
        assert speed.values["train_seconds_per_row"] > 0

    def test_nothing_to_do(self, setup: WorkSetup) -> None:
        """Ends at once."""
        script = Script([])
        self.executor().run(script, setup)
        assert script.events == []
