"""A worker's bench: the resident base and data, and the jobs done on them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError

from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import Carrier, attach, checksum
from autopeft.compose.stock import is_stock_folder, load_stock, stock_head
from autopeft.compose.store import describe, load_adapter, save_adapter
from autopeft.cost.reserved import CONTEXT_BYTES, allocator_settings
from autopeft.cost.step import build_optimizer
from autopeft.data.sources import SPLITS
from autopeft.errors import InputError, TrialFailure
from autopeft.evidence.metrics import score, undefined
from autopeft.space.beside import BIAS, writes_base_biases
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.modules import ModuleMap
from autopeft.spec import METRICS
from autopeft.spec.amounts import format_bytes
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Pack, Probe, Train
from autopeft.trial import checkpoint, packs, probes, train
from autopeft.trial.ability import ability
from autopeft.trial.choosing import FromTraining
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import generated, outputs, subset
from autopeft.trial.frozen import FrozenStates
from autopeft.trial.latency import measure_latency
from autopeft.trial.pack_speed import pack_speeds
from autopeft.trial.setup import Progress, WorkSetup
from autopeft.trial.started import Started

SPEED_SECONDS = 2.0
SPEED_ROWS = 128
BARE_ROWS = 200
"""Rows on which an untouched language model is evaluated, as a reference."""
BARE = Training((), 1e-3, 16)
"""Training of a configuration without parts: the base and a head."""


BROKEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What a configuration, a checkpoint or the data can make torch and its friends raise."""


def _taken() -> str:
    """What the worker's process has taken at most; the tensors of a computation that broke are not counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"the worker's process had taken {format_bytes(peak)} at most"


def pick_device(gpu: bool) -> torch.device:
    """The first GPU that this process may see where one is wanted, its allocator set, else the processor."""
    if not gpu or not torch.cuda.is_available():
        return torch.device("cpu")
    # They are read when something is first allocated there.
    os.environ.update(allocator_settings())
    return torch.device("cuda", 0)


class Workbench:
    """Does jobs one after the other over one resident base model. Final.

    Args:
        setup: What stays the same for all trials.
        device: Where to compute; None picks.
    """

    def __init__(self, setup: WorkSetup, device: torch.device | None = None) -> None:
        self.setup = setup
        self.device = device or pick_device(setup.gpu)
        self._carriers: dict[str, Carrier] = {}
        self._resident: dict[str, tuple[int, AdaptedModel, torch.optim.AdamW]] = {}
        self._checksums: dict[str, str] = {}
        self._states = FrozenStates(setup, self.device)
        self._out_of_memory_at: int | None = None
        self._capped = False
        self._allow(None)

    def run(self, job: Job, report: Callable[[Progress], None] = lambda progress: None) -> Outcome:
        """Do a job. Never raises for what a configuration or the data can cause: that becomes the outcome.

        Args:
            job: What to do.
            report: Called about twice a second while training.
        """
        began = time.monotonic()
        clock = JobClock(job.time_limit, report)

        def do() -> Outcome:
            match job:
                case Train():
                    return self._train(job, clock)
                case Probe():
                    return self._probe(job, clock)
                case Evaluate():
                    return self._evaluate(job, clock)
                case Pack():
                    return packs.run(self, job, clock, report)

        outcome = self.attempt(job, do)
        if outcome.status != "ok":
            self.forget()
        if self.device.type == "cpu":
            give_back()
        return replace(outcome, seconds=time.monotonic() - began)

    def attempt(self, job: Job, do: Callable[[], Outcome]) -> Outcome:
        """What comes of a job, failures that a configuration or the data can cause included."""
        try:
            return do()
        except TrialFailure as failure:
            status: Literal["infeasible", "failed"] = "infeasible" if failure.infeasible else "failed"
            values = {} if failure.measured is None else {"measured": failure.measured}
            return Outcome(job, status, failure.reason, failure.detail, values=values)
        except InputError as error:
            return Outcome(job, "failed", "damaged", str(error))
        except torch.OutOfMemoryError as error:
            peak, self._out_of_memory_at = self._out_of_memory_at, None
            return Outcome(job, "infeasible", "oom", str(error).splitlines()[0], peak_bytes=peak)
        except BROKEN as error:
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, MemoryError) or "can't allocate memory" in text:
                return Outcome(job, "infeasible", "oom", f"{text.splitlines()[0]} ({_taken()})")
            return Outcome(job, "failed", "error", text[:2000])

    def carrier(self, head: str) -> Carrier:
        """The base model under a head, made once; its tensors are shared by all of them."""
        if head not in self._carriers:
            setup = self.setup
            carrier = attach(setup.base, head=head, labels=setup.labels, attention=setup.attention)
            carrier.model.to(self.device)
            self._carriers[head] = carrier
            self._checksums[head] = checksum(carrier)
        return self._carriers[head]

    def modules(self, head: str) -> ModuleMap:
        """The module map of the base under a head."""
        return self.carrier(head).modules

    def _train(self, job: Train, clock: JobClock) -> Outcome:
        started = self.begin(job, clock)
        with contextlib.closing(self._states.prefix(started.job, started.model, self.modules(job.head))) as prefix:
            # Evaluation and generation may take more, and are not what was predicted.
            with self.within_memory():
                trained = train.run(
                    started.model,
                    started.optimizer,
                    started.job,
                    self.setup,
                    self.device,
                    clock,
                    measured=self.measures(job),
                    prefix=prefix,
                )
            if self.device.type == "cuda":
                trained.peak_bytes = self._device_peak()
            began, filled = time.monotonic(), prefix.use.fill_seconds
            split = self.setup.data.splits["validation"]
            rows = subset(split, job.evaluate_rows)
            entry = prefix.entry("validation", rows)
            arrays = outputs(started.model, split, self.setup, self.device, rows=rows, clock=clock, entry=entry)
            seconds = time.monotonic() - began - (prefix.use.fill_seconds - filled)
            return self.finish(started, trained, arrays, seconds, clock, states=prefix.use.to_dict())

    def measures(self, job: Train) -> bool:
        """Whether a step of a job is measured for its live bytes; on a GPU the allocator knows what it reserved."""
        return self.device.type == "cpu" and (job.final or (self.setup.memory_of_all and job.rows_from == 0))

    def begin(self, job: Train, clock: JobClock, keep: Collection[str] = ()) -> Started:
        """A trial's model and optimizer, checked against the limits that can be checked before training.

        Args:
            job: What will be done.
            clock: Its clock.
            keep: Trials whose resident models are kept as well.

        Raises:
            TrialFailure: The model cannot be built or breaks a limit.
        """
        carrier = self.carrier(job.head)
        job, model, optimizer = self._take(job, carrier, clock, keep)
        latency = None
        if job.rows_from == 0:
            self._check_length(model)
            latency = self._latency(job, model, carrier)
        return Started(job, model, optimizer, latency)

    def finish(
        self,
        started: Started,
        trained: train.TrainResult,
        arrays: dict[str, np.ndarray],
        seconds: float,
        clock: JobClock,
        states: dict[str, Any] | None = None,
    ) -> Outcome:
        """Score, check and store what was trained.

        Args:
            started: What was trained.
            trained: How that went.
            arrays: Its outputs on the validation rows.
            seconds: What evaluating took.
            clock: The job's clock.
            states: What kept hidden states did for it, or None.

        Raises:
            TrialFailure: The base was changed, or the adapter breaks a limit.
        """
        setup, job, model = self.setup, started.job, started.model
        began = time.monotonic()
        metrics = {name: score(name, arrays) for name in METRICS[setup.kind] if name != "exact_match"}
        if job.final and setup.kind == "causal_lm":
            metrics["exact_match"], arrays["exact"] = self._exact_match(model, "validation", clock)
        evaluated = seconds + time.monotonic() - began
        if checksum(model.carrier) != self._checksums[job.head]:
            raise TrialFailure("base_changed", "the frozen base was written to", infeasible=True)
        final = checkpoint.rung_folder(setup.path / job.folder, job.rung)
        sha256 = self._store(job, model, started.optimizer, arrays, final)
        self._resident[job.trial] = (job.rows_from + trained.rows, model, started.optimizer)
        return Outcome(
            job,
            metrics=metrics,
            loss=trained.late_loss(),
            losses=trained.curve(job.rows_from),
            train_seconds=trained.seconds,
            evaluate_seconds=evaluated,
            rows=trained.rows,
            peak_bytes=trained.peak_bytes,
            outputs=str((final / "outputs.safetensors").relative_to(setup.path)),
            adapter=str((final / "adapter").relative_to(setup.path)),
            sha256=sha256,
            values={
                "adapter_params": model.adapter_params,
                "head_params": model.head_params,
                "latency": started.latency,
                "states": states,
            },
        )

    def _take(
        self, job: Train, carrier: Carrier, clock: JobClock, keep: Collection[str]
    ) -> tuple[Train, AdaptedModel, torch.optim.AdamW]:
        """The trial's model and optimizer: the resident ones, from its checkpoint, or fresh.

        Where the checkpoint is damaged the trial starts anew: the job returned says from which row.
        """
        rows, *held = self._resident.get(job.trial, (-1,))
        self.forget(keep)
        if held and rows == job.rows_from > 0:
            model, optimizer = held
            self._resident[job.trial] = (rows, model, optimizer)
            return job, model, optimizer
        job, model, optimizer = self._make(job, carrier, clock)
        if job.execution.checkpointing:
            model.checkpoint_blocks()
        return job, model, optimizer

    def _make(self, job: Train, carrier: Carrier, clock: JobClock) -> tuple[Train, AdaptedModel, torch.optim.AdamW]:
        """The same where no model of the trial is resident."""
        training = job.configuration.training
        if job.rows_from > 0:
            folder = checkpoint.rung_folder(self.setup.path / job.folder, job.rung - 1)
            try:
                model = load_adapter(carrier, folder / "adapter", trainable=True).to(self.device)
                optimizer = build_optimizer(model.groups(), training)
                checkpoint.load_optimizer(folder / "optimizer.safetensors", model, optimizer)
            except (InputError, SafetensorError, OSError):
                job = replace(job, rows_from=0)
            else:
                return job, model, optimizer
        data = FromTraining(self.setup, lambda: self._bare(carrier), self.device, clock)
        model = adapt(carrier, job.configuration, self.modules(job.head), seed=job.seed, data=data).to(self.device)
        self._start_head(model)
        return job, model, build_optimizer(model.groups(), training)

    def _store(
        self, job: Train, model: AdaptedModel, optimizer: torch.optim.AdamW, arrays: dict[str, np.ndarray], final: Path
    ) -> str:
        working = final.with_name(f".{final.name}.partial")
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir(parents=True)
        meta = {**self.setup.meta, "trial": job.trial, "seed": job.seed, "rung": job.rung}
        sha256 = save_adapter(model, working / "adapter", meta=meta, target=self.setup.target)
        if not job.final:
            rounded = (BIAS,) if writes_base_biases(job.configuration, self.setup.target) else ()
            checkpoint.save_optimizer(working / "optimizer.safetensors", model, optimizer, rounded)
        checkpoint.write_arrays(working / "outputs.safetensors", arrays)
        limit = self.setup.max_adapter_size
        size = sum(path.stat().st_size for path in (working / "adapter").iterdir())
        if limit is not None and size > limit:
            shutil.rmtree(working)
            detail = f"the adapter takes {size:,} bytes on disk, above the limit of {limit:,}"
            raise TrialFailure("max_adapter_size", detail, infeasible=True, measured=size)
        checkpoint.finish_rung(working, final)
        return sha256

    def _start_head(self, model: AdaptedModel) -> None:
        """Regression starts at the mean of the targets, so that no training is spent on reaching it."""
        labels = self.setup.data.splits["train"].labels
        if self.setup.kind == "regression" and labels is not None:
            model.set_output_bias(float(labels.mean()))

    def _exact_match(self, model: AdaptedModel, name: str, clock: JobClock | None = None) -> tuple[float, np.ndarray]:
        split = self.setup.data.splits[name]
        rows = subset(split, self.setup.generate_rows)
        texts = generated(model, split, self.setup, self.device, rows=rows, clock=clock)
        references = split.references or ()
        exact = np.array(
            [text == references[row].strip() for text, row in zip(texts, rows, strict=True)], dtype=np.float32
        )
        return float(exact.mean()), exact

    def _check_length(self, model: AdaptedModel) -> None:
        # Eval sets have no say in what can be trained.
        own = [split for name, split in self.setup.data.splits.items() if name in SPLITS]
        longest = max(split.longest for split in own)
        if model.positions is not None and longest > model.positions:
            detail = f"batches of {longest} tokens do not fit behind the prompt: {model.positions} positions are left"
            raise TrialFailure("unsupported", detail, infeasible=True, measured=longest)

    def _latency(self, job: Train, model: AdaptedModel, carrier: Carrier) -> dict[str, float] | None:
        """Rows -> ratio to the bare base, where it was asked for; held against the limit."""
        limit = self.setup.max_latency_overhead if job.latency_limited else None
        if not job.latency:
            return None
        ratios = measure_latency(model, self._bare(carrier), self.setup, self.device, limit=limit)
        worst = max(ratios.values())
        if limit is not None and worst > limit:
            detail = f"a forward pass takes {worst:.4g} times the bare base's, above the limit of {limit:g}"
            raise TrialFailure("max_latency_overhead", detail, infeasible=True, measured=worst)
        return {str(rows): ratio for rows, ratio in ratios.items()}

    def _bare(self, carrier: Carrier) -> AdaptedModel:
        """The base under its head without any part."""
        nothing = Configuration.of({}, BARE)
        if carrier.head in ("cls", "mean"):
            model = adapt(carrier, nothing, self.modules(carrier.head), seed=0)
            model.to(self.device)
            return model
        return AdaptedModel(carrier, nothing, carrier.model, None)

    def _probe(self, job: Probe, clock: JobClock) -> Outcome:
        if job.heads == ("lm",) and job.kind == "heads":
            return self._bare_language_model(job, clock)
        if job.kind == "heads":
            carrier = self.carrier("mean")
            found = probes.choose_head(carrier, job.heads, self.setup, self.device, clock, whole=job.whole)
            arrays = found.pop("outputs")
            path = Path("probe") / "outputs.safetensors"
            checkpoint.write_arrays(self.setup.path / path, arrays)
            metrics = {name: score(name, arrays) for name in METRICS[self.setup.kind]}
            return Outcome(job, metrics=metrics, outputs=str(path), values=found)
        return Outcome(job, values=self._speed(job.heads[0], clock))

    def _bare_language_model(self, job: Probe, clock: JobClock) -> Outcome:
        """What the untouched base scores: a language model has no linear probe."""
        model = self._bare(self.carrier("lm"))
        split = self.setup.data.splits["validation"]
        arrays = outputs(model, split, self.setup, self.device, rows=subset(split, BARE_ROWS), clock=clock)
        value = score("log_likelihood", arrays)
        path = Path("probe") / "outputs.safetensors"
        checkpoint.write_arrays(self.setup.path / path, arrays)
        values = {"head": "lm", "score": value, "scores": {"lm": value}}
        return Outcome(job, metrics={"log_likelihood": value}, outputs=str(path), values=values)

    def _speed(self, head: str, clock: JobClock) -> dict[str, Any]:
        """Seconds per row of training and of evaluation, for LoRA of rank 8 on every linear layer."""
        carrier, modules = self.carrier(head), self.modules(head)
        configuration = speed_configuration(modules, self.setup.kind)
        batch = configuration.training.batch_size
        model = adapt(carrier, configuration, modules, seed=0).to(self.device)
        job = Train("speed", configuration, 0, 0, batch, 0, 0, 0, "", head)
        optimizer = build_optimizer(model.groups(), configuration.training)
        split = self.setup.data.splits["validation"]
        sample = subset(split, SPEED_ROWS if self.setup.kind != "causal_lm" else SPEED_ROWS // 4)
        train.run(model, optimizer, job, self.setup, self.device, clock)
        if self.device.type == "cuda":
            # The first of anything loads its kernels.
            outputs(model, split, self.setup, self.device, rows=sample[: self.setup.evaluation_rows], clock=clock)
        rows, seconds = 0, 0.0
        while seconds < SPEED_SECONDS:
            more = replace(job, rows_from=rows, rows_to=rows + 4 * batch)
            done = train.run(model, optimizer, more, self.setup, self.device, clock)
            rows, seconds = rows + done.rows, seconds + done.seconds
        began = time.monotonic()
        outputs(model, split, self.setup, self.device, rows=sample, clock=clock)
        evaluated = time.monotonic()
        if self.setup.kind == "causal_lm":
            self._exact_match(model, "validation", clock)
        generated_by = time.monotonic()
        return {
            "train_seconds_per_row": seconds / rows,
            "evaluate_seconds_per_row": (evaluated - began) / len(sample),
            "generate_seconds": generated_by - evaluated,
            "packs": self._packs(carrier, configuration, clock),
        }

    def _packs(self, carrier: Carrier, configuration: Configuration, clock: JobClock) -> dict[int, float]:
        """Seconds per row in packs, where that is to be measured."""
        if not self.setup.packs:
            return {}
        return pack_speeds(
            carrier, self.modules(carrier.head), [configuration], self.setup, self.device,
            sizes=(1, *self.setup.packs), seconds=SPEED_SECONDS, clock=clock,
        )  # fmt: skip

    def _evaluate(self, job: Evaluate, clock: JobClock) -> Outcome:
        folder = Path(job.folder) if Path(job.folder).is_absolute() else self.setup.path / job.folder
        model = self._stored(job, folder).to(self.device)
        split = self.setup.data.splits[job.split]
        arrays = outputs(model, split, self.setup, self.device, rows=subset(split, job.rows), clock=clock)
        metrics = {name: score(name, arrays) for name in METRICS[self.setup.kind] if name != "exact_match"}
        if self.setup.kind == "causal_lm":
            metrics["exact_match"], arrays["exact"] = self._exact_match(model, job.split, clock)
        checkpoint.write_arrays(self.setup.path / job.outputs, arrays)
        values: dict[str, Any] = {"adapter_params": model.adapter_params, "head_params": model.head_params}
        if self.setup.kind == "causal_lm" and job.split == "test":
            values["ability"] = self._ability(model, clock)
        values["undefined"] = [name for name in metrics if undefined(name, arrays)]
        return Outcome(job, metrics=metrics, outputs=job.outputs, adapter=job.folder, values=values)

    def _ability(self, model: AdaptedModel, clock: JobClock) -> dict[str, Any] | None:
        """What the base could do before and can after; None where there was no time left for it."""
        split = self.setup.data.splits["validation"]
        with contextlib.suppress(TrialFailure):
            return ability(model, self._bare(self.carrier("lm")), split, self.setup, self.device, clock)
        return None

    def _stored(self, job: Evaluate, folder: Path) -> AdaptedModel:
        if is_stock_folder(folder):
            return load_stock(self.carrier(stock_head(self.setup.kind)), folder)
        about = describe(folder)
        if job.sha256 is not None and about["weights"] != job.sha256:
            raise TrialFailure("damaged", f"the weights of {job.folder} are not those that were chosen")
        return load_adapter(self.carrier(str(about["head"])), folder)

    def forget(self, keep: Collection[str] = ()) -> None:
        """Let go of all resident models but those of some trials."""
        self._resident = {trial: held for trial, held in self._resident.items() if trial in keep}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _device_peak(self) -> int | None:
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else None

    @contextlib.contextmanager
    def within_memory(self) -> Iterator[None]:
        """On a GPU the limit is the allocator's own for a while, and its peaks are counted from here."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._allow(self.setup.memory_limit)
        try:
            yield
        except torch.OutOfMemoryError:
            self._out_of_memory_at = self._device_peak()
            raise
        finally:
            self._allow(None)

    def release(self) -> None:
        """Let go of what holds this process to its share of a GPU."""
        if self._capped:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            self._capped = False

    def _allow(self, limit: int | None) -> None:
        """On a GPU: hold the allocator to a limit, and to this worker's share where it is not alone there."""
        if self.device.type != "cuda":
            return
        total, share = torch.cuda.get_device_properties(self.device).total_memory, self.setup.gpu_share
        most = total if share >= 1 else max(0, int(share * total) - CONTEXT_BYTES)
        if limit is not None:
            most = min(most, limit)
        if most < total or self._capped:
            torch.cuda.set_per_process_memory_fraction(most / total, self.device)
            self._capped = most < total


def give_back() -> None:
    """Return freed memory to the system: the C library keeps what it was given, and workers share one machine."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def speed_configuration(modules: ModuleMap, kind: str) -> Configuration:
    """What the speed probe trains: LoRA of rank 8 on every linear layer."""
    linear = modules.select(("query", "key", "value", "qkv", "output", "up", "gate", "down"))
    parts = {site.name: [Part.of("lora", {"r": 8, "scale": 1.0})] for site in linear}
    batch = 8 if kind == "causal_lm" else 16
    return Configuration.of(parts, Training((("lora", 1e-4),), 1e-4, batch))
