"""Several trials trained at once on one worker: one pass over the rows of all, and each one's own everything else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from autopeft.compose.layers import reseed
from autopeft.compose.pack import PackedModel, packable
from autopeft.cost.pack import packed_logits, packed_step
from autopeft.cost.step import StepTensors, step_tensors
from autopeft.data.batches import TrainStream, pad
from autopeft.data.encoded import Array
from autopeft.errors import TrialFailure
from autopeft.space.execution import PLAIN
from autopeft.strategy.jobs import Outcome, Pack, Train
from autopeft.trial import train
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import answer_outputs, autocast, batches_of, label_outputs, subset
from autopeft.trial.schedule import factor
from autopeft.trial.setup import Progress, WorkSetup
from autopeft.trial.started import Started

if TYPE_CHECKING:
    from autopeft.trial.workbench import Workbench

__all__ = ["Member", "can_pack", "evaluate", "run", "train_together"]

CPU = torch.device("cpu")


def can_pack(job: Train) -> bool:
    """Whether a job can be done beside others: by its methods, and because its batches are computed in one piece."""
    return job.execution == PLAIN and packable(job.configuration)


@dataclass(slots=True)
class Member:
    """A trial while it is trained with others.

    Attributes:
        started: Its job, model and optimizer.
        measured: Whether its live bytes are counted, before its second step.
        result: What its training took and showed; of a step's seconds it has its share of the rows.
        failure: Why it left early, or None.
    """

    started: Started
    measured: bool = False
    result: train.TrainResult = field(default_factory=train.TrainResult)
    failure: TrialFailure | None = None
    _smoothed: float = math.nan
    _stream: Iterator[Array] | None = None

    @property
    def seen(self) -> int:
        """Rows that the trial has seen."""
        return self.started.job.rows_from + self.result.rows

    @property
    def left(self) -> bool:
        """Whether it is done, well or not."""
        return self.failure is not None or self.seen >= self.started.job.rows_to

    def begin(self, setup: WorkSetup) -> None:
        """The order of its rows and its dropout, as where it is trained alone."""
        job = self.started.job
        stream = TrainStream(setup.data.splits["train"], job.configuration.training.batch_size, job.seed)
        self._stream = stream.batches(job.rows_from)
        reseed(self.started.model, job.seed * 1_000_003 + job.rows_from)

    def next_batch(self, setup: WorkSetup, device: torch.device) -> StepTensors:
        """Its next batch, on the processor; its rates are set to where its schedule is."""
        if self._stream is None:
            raise ValueError("a member begins before it takes a step")
        job, optimizer, model = self.started.job, self.started.optimizer, self.started.model
        scale = factor(self.seen, warmup_rows=job.warmup_rows, rows_to=job.rows_to, cooldown_rows=job.cooldown_rows)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        if self.measured and len(self.result.losses) == 1:
            self.result.peak_bytes = train.peak_bytes(model, optimizer, job, setup, device)
        batch = pad(setup.data.splits["train"], next(self._stream), setup.data.pad_token)
        return step_tensors(batch, setup.kind)

    def took(self, rows: int, loss: float | None, seconds: float) -> Progress:
        """Note a step."""
        job, result = self.started.job, self.result
        result.seconds += seconds
        if loss is None:
            self.failure = TrialFailure("nan", "the loss or a gradient was not finite")
        else:
            result.rows += rows
            result.losses.append((rows, loss))
            before = loss if math.isnan(self._smoothed) else self._smoothed
            self._smoothed = train.SMOOTHING * before + (1 - train.SMOOTHING) * loss
        if job.time_limit is not None and result.seconds > job.time_limit:
            self.failure = TrialFailure("timeout", f"the job took longer than its limit of {job.time_limit:.0f} s")
        return Progress(job.trial, self.seen, self._smoothed)


def train_together(
    members: Sequence[Member], setup: WorkSetup, device: torch.device, clock: JobClock | None = None
) -> None:
    """Train every member to its end; whoever is done or breaks leaves, and the others go on.

    Args:
        members: They are given their results.
        setup: Data, kind and precision.
        device: Where the models are.
        clock: The clock of all; None for no limit.

    Raises:
        TrialFailure: ``timeout`` past the clock's limit; ``unsupported`` where these models cannot be run together.
    """
    clock = clock or JobClock()
    precision = torch.bfloat16 if setup.precision == "bfloat16" else None
    for member in members:
        member.begin(setup)
    present: list[Member] = []
    packed: PackedModel | None = None
    while staying := [member for member in members if not member.left]:
        if packed is None or len(staying) < len(present):
            present = staying
            packed = PackedModel([member.started.model for member in present]).train()
        began = time.monotonic()
        batches = [member.next_batch(setup, device) for member in present]
        optimizers = [member.started.optimizer for member in present]
        losses = packed_step(packed, batches, optimizers, setup.kind, precision, pad_token=setup.data.pad_token)
        counts = [len(batch.input_ids) for batch in batches]
        seconds = (time.monotonic() - began) / sum(counts)
        for member, count, loss in zip(present, counts, losses, strict=True):
            clock.check(member.took(count, loss, seconds * count))


@torch.inference_mode()
def evaluate(
    members: Sequence[Member], setup: WorkSetup, device: torch.device, *, rows: Array, clock: JobClock | None = None
) -> list[dict[str, Array]]:
    """The per-example outputs of every member, as `autopeft.trial.evaluate.outputs` gives them for one.

    Args:
        members: Whom to evaluate.
        setup: Kind, precision and data.
        device: Where the models are.
        rows: int64 `[n]` row numbers of the validation split.
        clock: The clock of all.

    Raises:
        TrialFailure: ``timeout`` past the clock's limit.
    """
    clock = clock or JobClock()
    packed = PackedModel([member.started.model for member in members]).eval()
    split = setup.data.splits["validation"]
    place = np.full(split.rows, -1)
    place[rows] = np.arange(len(rows))
    results: list[dict[str, Array]] = [{} for _ in members]
    for batch in batches_of(split, rows, setup):
        clock.check()
        step = step_tensors(batch, setup.kind)
        with autocast(setup, device):
            logits, labels = packed_logits(packed, [step] * len(members), setup.kind, setup.data.pad_token)
        for result, own, right in zip(results, logits, labels, strict=True):
            if setup.kind == "causal_lm":
                values = {"log_likelihood": answer_outputs(own, step.to(device))}
            else:
                values = label_outputs(own, right, setup.kind)
            for name, value in values.items():
                array = value.cpu().numpy()
                result.setdefault(name, np.zeros(len(rows), dtype=array.dtype))[place[batch.rows]] = array
    return results


def run(bench: Workbench, pack: Pack, clock: JobClock, report: Callable[[Progress], None]) -> Outcome:
    """Do the jobs of a pack, together where that works and else one after the other.

    Args:
        bench: The worker's bench.
        pack: What to do.
        clock: Of the pack as a whole.
        report: Told how far the members are.

    Returns:
        An outcome with the members' own in ``members``, in the order of the jobs; ``values["together"]`` says how many
        were trained together to their end.
    """
    began = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    members: list[Member] = []
    trials = {job.trial for job in pack.members}
    for job in filter(can_pack, pack.members):
        started = time.monotonic()
        found = bench.attempt(job, partial(_begun, bench, job, clock, trials, members))
        if found.status != "ok":
            outcomes[job.trial] = replace(found, seconds=time.monotonic() - started)
    whole = bench.attempt(pack, partial(_together, bench, pack, members, clock, outcomes))
    if whole.status != "ok":
        bench.forget()
    for job in pack.members:
        if job.trial in outcomes:
            continue
        if whole.reason == "timeout":
            outcomes[job.trial] = Outcome(job, "failed", "timeout", whole.detail)
        else:
            outcomes[job.trial] = bench.run(job, report)
    # Building, evaluating and storing are shared out alike: the members' seconds add up to the pack's.
    rest = time.monotonic() - began - sum(outcome.seconds for outcome in outcomes.values())
    share = max(0.0, rest) / len(pack.members)
    ended = [replace(outcomes[job.trial], seconds=outcomes[job.trial].seconds + share) for job in pack.members]
    values = {"together": whole.values.get("together", 0), "reason": whole.reason, "detail": whole.detail}
    return Outcome(pack, members=tuple(ended), values=values)


def _begun(bench: Workbench, job: Train, clock: JobClock, trials: set[str], members: list[Member]) -> Outcome:
    members.append(Member(bench.begin(job, clock, keep=trials), bench.measures(job)))
    return Outcome(job)


def _together(
    bench: Workbench, pack: Pack, members: Sequence[Member], clock: JobClock, outcomes: dict[str, Outcome]
) -> Outcome:
    """Train and evaluate; outcomes of members are entered as they are known."""
    if len(members) < 2:
        return Outcome(pack, "failed", "alone", "fewer than two of them can be trained together")
    with bench.within_memory():
        train_together(members, bench.setup, bench.device, clock)
    done = [member for member in members if member.failure is None]
    for member in members:
        if member.failure is not None:
            outcome = bench.attempt(member.started.job, partial(_raise, member.failure))
            outcomes[member.started.job.trial] = replace(outcome, seconds=member.result.seconds)
    split = bench.setup.data.splits["validation"]
    for count in dict.fromkeys(member.started.job.evaluate_rows for member in done):
        alike = [member for member in done if member.started.job.evaluate_rows == count]
        before = time.monotonic()
        arrays = evaluate(alike, bench.setup, bench.device, rows=subset(split, count), clock=clock)
        share = (time.monotonic() - before) / len(alike)
        for member, own in zip(alike, arrays, strict=True):
            job, before = member.started.job, time.monotonic()
            outcome = bench.attempt(job, partial(bench.finish, member.started, member.result, own, share, clock))
            seconds = member.result.seconds + share + time.monotonic() - before
            outcomes[job.trial] = replace(outcome, seconds=seconds)
    return Outcome(pack, values={"together": len(done)})


def _raise(failure: TrialFailure) -> Outcome:
    raise failure
