"""What computes a model fastest on this machine, found by training it for a few seconds.

Candidates take turns, so that what else the machine does meets all of them; slow ones leave early. Only what leaves the
result the same up to rounding is chosen here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import DTYPES, Attention, DType, SharedBase, attach
from autopeft.cost.step import StepTensors, build_optimizer, step_tensors, train_step
from autopeft.data.batches import pad
from autopeft.data.encoded import EncodedData
from autopeft.space.modules import ModuleMap
from autopeft.trial.computing import EVALUATION_ROWS, QUANTILES, Computing
from autopeft.trial.workbench import speed_configuration

HOPELESS = 1.3
"""Candidates that take so many times the best one's time are not tried again."""
WORTH_ROUNDING = 1.15
"""bfloat16 is taken where float32 takes at least so many times as long."""
WORTH_CHANGING = 1.05
"""What the rule says is kept unless something else is faster by so much."""
ROUNDS = 5
LEAST_SECONDS = 0.3
"""Nothing is learned in less."""
MOST_SECONDS = 4.0
SHARE_OF_TIME = 0.02
"""Of a search's limit on time."""
BATCHES = (16, 32, 64, 128)
"""Rows of evaluation batches that are tried."""
CONVERTED_BYTES = 512 << 20
"""Bases of more bytes are not converted to be tried in another precision."""


@dataclass(frozen=True, slots=True)
class _Way:
    precision: DType
    attention: Attention
    threads: int

    @property
    def name(self) -> str:
        threads = "" if self.threads == 1 else f" on {self.threads} threads"
        return f"{self.precision} {self.attention}{threads}"


@dataclass(eq=False)
class _Runner:
    """A way, the throw-away LoRA that it is tried on, and how long its steps took, by batch."""

    model: AdaptedModel
    optimizer: torch.optim.AdamW
    way: _Way
    taken: dict[int, list[float]] = field(default_factory=dict)

    def per_step(self, places: Sequence[int]) -> float:
        """Median seconds of a step, the mean over batches."""
        return sum(median(self.taken[place]) for place in places) / len(places)


def seconds_for(max_time: float | None) -> float:
    """What measuring may take in a search of so many seconds; 0 where it is too short for any."""
    share = MOST_SECONDS if max_time is None else min(MOST_SECONDS, SHARE_OF_TIME * max_time)
    return share if share >= LEAST_SECONDS else 0.0


def tune(
    base: SharedBase,
    data: EncodedData,
    rule: Computing,
    *,
    head: str,
    labels: int,
    device: torch.device,
    seconds: float,
    fixed: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Computing:
    """Train and evaluate for a few seconds, and say what was fastest.

    Args:
        base: The base model in the rule's precision.
        data: The rows; training batches are made of those at three quantiles of length.
        rule: What is taken where nothing better is found; its threads are the most that are tried.
        head: A head that the base can have.
        labels: Outputs of the head.
        device: Where to compute.
        seconds: What it may take, about: a step that has begun is ended.
        fixed: Fields of `Computing` that are not to be chosen -> their values.
        clock: Tells seconds.

    Returns:
        The choice, ``measured``; the rule's where there was no time for one round.
    """
    began = clock()
    until = began + seconds
    with _threads_kept(), torch.random.fork_rng(devices=[]):
        alone = device.type == "cpu" and rule.threads == 1
        # The time of one thread is what it computed, whatever else runs here: workers start meanwhile.
        trials = _Trials(base, data, head, labels, device, clock, time.thread_time if alone else time.perf_counter)
        ways = _ways(rule, base, device, dict(fixed or {}))
        runners, places = trials.race(ways, began + 0.75 * seconds)
        if not runners:
            return replace(rule, seconds=clock() - began)
        chosen = _best(runners, rule, places)
        figures = {**trials.hopeless, **{f"train {each.way.name}": trials.per_row(each, places) for each in runners}}
        answer = replace(
            rule,
            precision=chosen.way.precision,
            attention=chosen.way.attention,
            threads=chosen.way.threads,
            source="measured",
        )
        if base.kind != "causal_lm":
            # A language model's batches are bounded by the width of its vocabulary.
            rows, evaluated = trials.batch_rows(chosen, until)
            answer = replace(answer, evaluation_rows=rows)
            figures |= evaluated
    return replace(answer, seconds=clock() - began, figures={name: round(value, 4) for name, value in figures.items()})


@contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ways(rule: Computing, base: SharedBase, device: torch.device, fixed: Mapping[str, str]) -> list[_Way]:
    """The candidates, the rule's first. float32 is always possible; bfloat16 only where the rule has it."""
    precisions: list[DType] = [rule.precision]
    if rule.precision == "bfloat16" and "precision" not in fixed and base.nbytes <= CONVERTED_BYTES:
        precisions.append("float32")
    attentions: list[Attention] = [rule.attention]
    if "attention" not in fixed:
        attentions.append("eager" if rule.attention == "sdpa" else "sdpa")
    # On a GPU the processor's threads do not compute.
    threads = [rule.threads] if rule.threads == 1 or device.type != "cpu" else [rule.threads, 1]
    return [
        _Way(precision, attention, count) for count in threads for precision in precisions for attention in attentions
    ]


def _best(runners: Sequence[_Runner], rule: Computing, places: Sequence[int]) -> _Runner:
    """The fastest, unless what rounds less, or the rule, is nearly as fast."""

    def fastest(among: Sequence[_Runner]) -> _Runner:
        return min(among, key=lambda runner: runner.per_step(places))

    best = fastest(runners)
    exact = [runner for runner in runners if runner.way.precision == "float32"]
    if best.way.precision != "float32" and exact:
        other = fastest(exact)
        if other.per_step(places) < WORTH_ROUNDING * best.per_step(places):
            best = other
    like = [
        runner
        for runner in runners
        if runner.way.precision == best.way.precision
        and runner.way.attention == rule.attention
        and runner.way.threads == rule.threads
    ]
    if like and like[0].per_step(places) <= WORTH_CHANGING * best.per_step(places):
        return like[0]
    return best


class _Trials:
    """Makes throw-away models and times their steps."""

    def __init__(
        self,
        base: SharedBase,
        data: EncodedData,
        head: str,
        labels: int,
        device: torch.device,
        clock: Callable[[], float],
        ticks: Callable[[], float],
    ) -> None:
        self._base, self._data, self._head, self._labels = base, data, head, labels
        self._device, self._clock, self._ticks = device, clock, ticks
        self._kind = base.kind
        self._built: dict[DType, tuple[AdaptedModel, torch.optim.AdamW]] = {}
        self._modules: ModuleMap | None = None
        split = data.splits["train"]
        order = np.argsort(split.lengths, kind="stable")
        self._order = order
        self.batch = min(split.rows, 8 if self._kind == "causal_lm" else 16)
        self._batches = [self._rows_at(quantile, self.batch) for quantile in QUANTILES]
        self.places = tuple(range(len(self._batches)))
        self.hopeless: dict[str, float] = {}

    def per_row(self, runner: _Runner, places: Sequence[int]) -> float:
        """Milliseconds of training."""
        return 1000 * runner.per_step(places) / self.batch

    def _rows_at(self, quantile: float, rows: int) -> StepTensors:
        split = self._data.splits["train"]
        first = min(max(0, round(quantile * split.rows) - rows // 2), split.rows - rows)
        batch = pad(split, self._order[first : first + rows], self._data.pad_token)
        return step_tensors(batch, self._kind, self._device)

    def _runner(self, way: _Way) -> _Runner | None:
        """None where the architecture has no such attention: it would be another candidate once more."""
        if way.precision not in self._built:
            base = converted(self._base, way.precision)
            carrier = attach(base, head=self._head, labels=self._labels, attention=way.attention)
            carrier.model.to(self._device)
            if self._modules is None:
                self._modules = carrier.modules
            configuration = speed_configuration(self._modules, self._kind)
            model = adapt(carrier, configuration, self._modules, seed=0).to(self._device)
            self._built[way.precision] = model, build_optimizer(model.groups(), configuration.training)
        model, optimizer = self._built[way.precision]
        runner = _Runner(model, optimizer, way)
        return runner if self._switched(runner) else None

    def _switched(self, runner: _Runner) -> bool:
        """Make the model compute in the runner's way; whether it can."""
        # A trial's modules have a config of their own.
        inner = next(module for module in runner.model.modules() if isinstance(module, PreTrainedModel))
        if inner.config._attn_implementation != runner.way.attention:
            if runner.way.attention == "sdpa" and not inner._supports_sdpa:
                return False
            inner.set_attn_implementation(runner.way.attention)
        torch.set_num_threads(runner.way.threads)
        return bool(inner.config._attn_implementation == runner.way.attention)

    def _time(self, runner: _Runner, place: int) -> None:
        self._switched(runner)
        runner.model.train()
        seconds = self._timed(
            lambda: train_step(
                runner.model, self._batches[place], runner.optimizer, self._kind, _autocast(runner.way.precision)
            )
        )
        runner.taken.setdefault(place, []).append(seconds)

    def _timed(self, work: Callable[[], Any]) -> float:
        if self._device.type == "cuda":
            # It computes on after a call has returned.
            torch.cuda.synchronize(self._device)
        began = self._ticks()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._ticks() - began

    def race(self, ways: Sequence[_Way], until: float) -> tuple[list[_Runner], list[int]]:
        """Those that are not hopeless, and the batches that all of them were timed on; none where time was too short.

        The first step on a batch is not counted: memory is taken and kernels are made in it.
        """
        middle = self.places[len(self.places) // 2]
        runners: list[_Runner] = []
        for way in ways:
            runner = self._runner(way)
            if runner is not None:
                self._time(runner, middle)
                runner.taken.clear()
                runners.append(runner)
            if self._clock() > until:
                return [], []
        for number in range(2):
            for runner in runners:
                if number and self._clock() > until:
                    break
                self._time(runner, middle)
        runners = self._without_hopeless(runners, [middle])
        if len(runners) == 1 or self._clock() > until:
            return runners, [middle]
        for place in self.places:
            for runner in runners:
                if place != middle:
                    self._time(runner, place)
                    runner.taken.pop(place)
        for number in range(ROUNDS):
            for place in self.places:
                for runner in runners:
                    if number and self._clock() > until:
                        return runners, list(self.places)
                    self._time(runner, place)
            runners = self._without_hopeless(runners, self.places)
        return runners, list(self.places)

    def _without_hopeless(self, runners: list[_Runner], places: Sequence[int]) -> list[_Runner]:
        best = min(runner.per_step(places) for runner in runners)
        left = [runner for runner in runners if runner.per_step(places) <= HOPELESS * best]
        for runner in runners:
            if runner not in left:
                self.hopeless[f"train {runner.way.name}"] = self.per_row(runner, places)
        return left

    def batch_rows(self, runner: _Runner, until: float) -> tuple[int, dict[str, float]]:
        """Rows of an evaluation batch that take the least time each, and the milliseconds of all."""
        self._switched(runner)
        runner.model.eval()
        most = self._data.splits["train"].rows
        batches = {rows: self._rows_at(0.5, rows) for rows in BATCHES if rows <= most or rows == BATCHES[0]}
        taken: dict[int, list[float]] = {rows: [] for rows in batches}
        precision = _autocast(runner.way.precision)

        @torch.inference_mode()
        def evaluate(batch: StepTensors) -> None:
            with torch.autocast(self._device.type, dtype=precision, enabled=precision is not None):
                runner.model(batch.input_ids, batch.attention_mask, batch.token_types)

        for number in range(1 + ROUNDS):
            for rows, batch in batches.items():
                if number > 1 and self._clock() > until:
                    break
                seconds = self._timed(lambda batch=batch: evaluate(batch))  # type: ignore[misc]
                if number:
                    taken[rows].append(1000 * seconds / len(batch.input_ids))
        each = {rows: median(values) for rows, values in taken.items()}
        best = min(each, key=lambda rows: each[rows])
        usual = each.get(EVALUATION_ROWS)
        if usual is not None and usual <= WORTH_CHANGING * each[best]:
            best = EVALUATION_ROWS
        return best, {f"evaluate {rows} rows": value for rows, value in each.items()}


def _autocast(precision: DType) -> torch.dtype | None:
    return torch.bfloat16 if precision == "bfloat16" else None


def converted(base: SharedBase, dtype: DType) -> SharedBase:
    """The base in another precision, to be timed: from bfloat16 the digits that rounding took do not come back."""
    if base.dtype == dtype:
        return base
    arrays = {}
    for name, array in base.tensors.items():
        tensor = torch.from_numpy(np.array(array))
        if base.dtype == "bfloat16" and array.dtype == np.int16:
            tensor = tensor.view(torch.bfloat16)
        if tensor.is_floating_point():
            tensor = tensor.to(DTYPES[dtype])
        arrays[name] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return replace(base, tensors=arrays, dtype=dtype)
