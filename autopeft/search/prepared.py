"""A search that is ready to run: its parts, and how they are bound to the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.compose.base import Attention, DType, SharedBase, meta_carrier
from autopeft.compose.identity import BaseIdentity
from autopeft.cost.memory import Fit, MemoryGate, MemoryModel
from autopeft.cost.time import StepCosts
from autopeft.data.batches import longest_batch
from autopeft.data.encoded import EncodedData, EncodedSplit
from autopeft.data.eval_sets import EvalSet
from autopeft.data.plan import TextPlan
from autopeft.data.read import RawData
from autopeft.errors import NothingFeasible
from autopeft.evidence import LEVEL, bounds
from autopeft.inspect import module_map
from autopeft.search.arms import Arm
from autopeft.search.division import FINALIST_SEEDS, SEEDS, Speed
from autopeft.search.incumbent import weights_of
from autopeft.search.machine import gpu_share
from autopeft.search.state import Field
from autopeft.space import bind
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import Configuration, digest
from autopeft.space.dimension import Choice
from autopeft.space.execution import PLAIN, Execution
from autopeft.space.modules import ModuleMap
from autopeft.space.values import SpaceValues
from autopeft.spec import SearchSpec
from autopeft.spec.parse import spec_to_dict
from autopeft.strategy import build
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.trial.computing import Computing
from autopeft.trial.frozen import default_cache_bytes
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import speed_configuration

BASELINE_SPACE = "lora"
PROBE_SHARE = 0.05
"""Share of the time that measuring the heads may take."""
AUTO_PACKS = (2, 4, 8)
LIMIT_FIELDS = ("max_adapter_params", "max_memory", "max_adapter_size", "max_latency_overhead", "target")


@dataclass(frozen=True)
class Prepared:
    """A search, ready to run.

    Attributes:
        spec: What was asked for, presets filled in.
        raw: The rows.
        data: The tokenised rows.
        text: How further rows are tokenised.
        tokenizer: The base model's tokenizer.
        base: The base model's tensors.
        space: The user's space.
        baseline: The space of tuned LoRA.
        strategy: Values of the strategy.
        heads: Heads to choose from.
        gpu: Whether the workers compute on GPUs.
        precision: Dtype of the frozen base.
        attention: Attention implementation of the base.
        computing: How these two were chosen, and the rest of how numbers are computed.
        memory_limit: Bytes that a trial may take, live ones on processors and reserved ones on GPUs: the limit of the
            budget, or each worker's share of this machine or its GPU; None where neither is known.
        notes: What was inferred and decided, as sentences.
        eval_sets: Further rows that are scored in the end and decide nothing.
        at: What was done -> `time.monotonic()` by then.
    """

    spec: SearchSpec
    raw: RawData
    data: EncodedData
    text: TextPlan
    tokenizer: Any
    base: SharedBase
    space: SpaceValues
    baseline: SpaceValues
    strategy: Mapping[str, Any]
    heads: tuple[str, ...]
    gpu: bool
    precision: DType
    attention: Attention
    computing: Computing
    memory_limit: int | None
    notes: tuple[str, ...]
    eval_sets: Mapping[str, EvalSet]
    at: Mapping[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> BaseIdentity:
        """Which base model it is."""
        return self.base.identity

    @property
    def labels(self) -> int:
        """Outputs of the head."""
        return {"sequence_classification": len(self.data.label_names), "regression": 1}.get(self.raw.kind, 0)

    @cached_property
    def _maps(self) -> dict[str, ModuleMap]:
        return {}

    def modules(self, head: str) -> ModuleMap:
        """The module map of the base under a head, without its weights."""
        if head not in self._maps:
            self._maps[head] = module_map(self.meta(head).model)
        return self._maps[head]

    def meta(self, head: str) -> Any:
        """A carrier without weights."""
        return meta_carrier(
            self.base.config,
            kind=self.raw.kind,
            head=head,
            labels=self.labels,
            attention=self.attention,
            identity=self.identity,
        )

    def bind(self, values: SpaceValues, head: str) -> BoundSpace:
        """A space on this model within the budget's limits.

        Raises:
            NothingFeasible: Nothing of it fits.
        """
        modules, budget = self.modules(head), self.spec.budget
        size, head_bytes = budget.max_adapter_size, 4 * self.head_params(head)
        try:
            return self._bind(values, modules, None if size is None else max(1, size - head_bytes))
        except NothingFeasible as error:
            if "max_adapter_size" not in error.smallest:
                raise
            # The folder holds the head as well.
            needed = error.smallest["max_adapter_size"] + head_bytes
            text = f"{error.detail} With the head: {needed:,.0f} bytes."
            raise NothingFeasible(error.binds, {**error.smallest, "max_adapter_size": needed}, text) from error

    def _bind(self, values: SpaceValues, modules: ModuleMap, max_bytes: int | None) -> BoundSpace:
        budget = self.spec.budget
        return bind(
            values,
            modules,
            param_limit=budget.param_limit(modules.base_params),
            target=budget.target,
            kind=self.raw.kind,
            max_bytes=max_bytes,
        )

    def head_params(self, head: str) -> int:
        """Trained parameters of a head."""
        if head == "lm":
            return 0
        if head != "stock":
            return (self.modules(head).hidden_size + 1) * self.labels
        carrier = self.meta(head)
        layers = [carrier.model.get_submodule(name) for name in carrier.head_modules]
        return sum(parameter.numel() for layer in layers for parameter in layer.parameters())

    def memory(self, head: str) -> MemoryModel:
        """Predicts live bytes at the longest batch."""
        length = longest_batch(self.data.splits["train"], 1)[1]
        train = self.data.splits["train"]
        return MemoryModel(
            lambda: self.meta(head),
            self.modules(head),
            length=length,
            dtype=self.precision,
            answers=answer_share(train, length) if head == "lm" else 1.0,
            longest_answer=longest_answer(train),
            gpu=self.gpu,
        )

    def field(self, head: str, speed: Speed) -> Field:
        """Both arms on the model under a head.

        Raises:
            NothingFeasible: Nothing of the user's space fits.
        """
        modules, limit = self.modules(head), self.memory_limit
        memory = self.memory(head)
        bounds: dict[ArmName, BoundSpace] = {}
        # Where LoRA does not fit, the result says so by a null baseline.
        with contextlib.suppress(NothingFeasible):
            bounds["baseline"] = self.bind(self.baseline, head)
        bounds["space"] = self.bind(self.space, head)
        gate = None if limit is None else MemoryGate(memory, limit, rows=largest_batch(bounds.values()))

        def fits(configuration: Configuration) -> Fit:
            return Fit(PLAIN) if gate is None else gate.fits(configuration)

        def exact(configuration: Configuration, execution: Execution | None) -> int:
            if execution is not None:
                return memory.predict(configuration, execution=execution).bytes
            if gate is not None:
                return gate.least(configuration)
            return memory.predict(configuration, execution=memory.leanest(configuration)).bytes

        def arm(name: ArmName, bound: BoundSpace, salt: int) -> Arm:
            seed = self.spec.seed * 2 + salt
            strategy = build(self.strategy, dimensions=bound.dimensions, prior=lambda i: bound.draw(i, seed), seed=seed)
            skip = name == "space" and not bound.is_plain_lora
            return Arm(name, bound, strategy, modules, fits, exact, memory_limit=limit, skip_plain_lora=skip)

        salts: dict[ArmName, int] = {"baseline": 1, "space": 0}
        arms = {name: arm(name, bound, salts[name]) for name, bound in bounds.items()}
        costs = StepCosts(modules)
        costs.observe(speed_configuration(modules, self.raw.kind), 1000, 1000 * speed.train)
        if gate is None:
            return Field(modules, arms, costs)
        # On a processor what is measured is what was predicted.
        if not self.gpu:
            return Field(modules, arms, costs, pack_fits=gate.pack_fits)
        return Field(modules, arms, costs, gate.observe, gate.pack_fits)

    def infeasible(self) -> NothingFeasible | None:
        """Why nothing of the user's space fits the limits, or None. The formulas do not depend on the head."""
        try:
            self.bind(self.space, self.heads[0])
        except NothingFeasible as error:
            return error
        return None

    def _about_space(self, head: str) -> dict[str, Any]:
        about: dict[str, Any] = {"name": self.space.name, "methods": [], "size": 0.0, "left_out": {}}
        with contextlib.suppress(NothingFeasible):
            bound = self.bind(self.space, head)
            about |= {"methods": list(bound.methods), "size": bound.size(), "left_out": dict(bound.left_out)}
            about |= bound.about()
        with contextlib.suppress(NothingFeasible):
            about["baseline"] = self.bind(self.baseline, head).about()
        return about

    @property
    def margin(self) -> float | None:
        """By how much a smaller adapter may be worse than tuned LoRA, in the metric's unit."""
        within = self.spec.within
        return None if within is None else within / 100 if bounds(self.raw.metric)[1] == 1.0 else within

    def setup(self, folder: Path) -> WorkSetup:
        """What the workers get."""
        lm, budget = self.raw.kind == "causal_lm", self.spec.budget
        padding = self.computing.padding
        eval_splits = {name: replace(each.split, pad_multiple=padding) for name, each in self.eval_sets.items()}
        return WorkSetup(
            base=self.base,
            data=replace(self.data, splits={**self.data.splits, **eval_splits}),
            kind=self.raw.kind,
            metric=self.raw.metric,
            labels=self.labels,
            folder=str(folder.resolve()),
            precision=self.precision,
            attention=self.attention,
            gpu=self.gpu,
            packs=self._packs(),
            limited_memory=budget.max_memory is not None,
            memory_limit=self.memory_limit,
            gpu_share=gpu_share(self.spec),
            memory_of_all=budget.max_memory is not None or self.spec.cost == "memory",
            probe_seconds=60.0 if budget.max_time is None else min(60.0, PROBE_SHARE * budget.max_time),
            # Merged weights cost nothing when they are used.
            max_latency_overhead=None if budget.target == "merged" else budget.max_latency_overhead,
            merged=budget.target == "merged",
            max_adapter_size=budget.max_adapter_size,
            target=budget.target,
            # Asked here, so that all workers decide alike.
            cache_bytes=default_cache_bytes(folder) if self.spec.cache_bytes is None else self.spec.cache_bytes,
            tokenizer=self.tokenizer if lm else None,
            meta={"text": self.text.to_dict(), "metric": self.raw.metric},
            evaluation_rows=self.computing.evaluation_rows,
            threads=self.computing.threads,
        )

    def _packs(self) -> tuple[int, ...]:
        """Sizes of packs to measure: chosen automatically they have paid on GPUs only."""
        wanted = self.spec.pack
        # What one of several trials takes cannot be told from a GPU's allocator.
        told_apart = not (self.gpu and self.spec.cost == "memory")
        if wanted == "off" or self.spec.executor == "tune" or not told_apart:
            return ()
        return (AUTO_PACKS if self.gpu else ()) if wanted == "auto" else (int(wanted),)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when a search is taken up again, by field."""
        budget = self.spec.budget
        return {
            "task.model": self.identity.content_hash,
            "task.data": dict(self.data.hashes),
            "task.kind": self.raw.kind,
            "task.metric": self.raw.metric,
            "task.head": self.spec.task.head,
            "space": self.space.fingerprint,
            "strategy": digest(dict(self.strategy)),
            "seed": self.spec.seed,
            "evidence": self.spec.evidence,
            "within": self.spec.within,
            "cost": self.spec.cost,
            "objective": self.spec.objective,
            "incumbent": None if self.spec.incumbent is None else weights_of(self.spec.incumbent),
            **{f"budget.{name}": getattr(budget, name) for name in LIMIT_FIELDS},
        }

    def header(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """The journal's first record."""
        head = self.heads[0]
        modules = self.modules(head)
        columns = [*self.raw.text_columns, self.raw.label_column, self.raw.prompt_column, self.raw.response_column]
        return {
            "spec": spec_to_dict(self.spec),
            "fingerprint": self.fingerprint(),
            "task": {
                "name": self.spec.task.name or f"{model_label(self.spec.task.model)} on {self.raw.source}",
                "kind": self.raw.kind,
                "metric": self.raw.metric,
                "label_names": list(self.data.label_names),
                "columns": [column for column in columns if column],
                "max_length": self.data.max_length,
                "notes": list(self.notes),
                "rows": {name: split.rows for name, split in self.data.splits.items()},
                "hashes": dict(self.data.hashes),
            },
            "model": {
                "id": self.identity.id,
                "revision": self.identity.revision,
                "content_hash": self.identity.content_hash,
                "architecture": modules.architecture,
                "base_params": modules.base_params,
                "blocks": modules.blocks,
            },
            "space": self._about_space(head),
            "environment": dict(environment),
            "computing": self.computing.to_dict(),
            "procedure": {
                "evidence": self.spec.evidence,
                "margin": self.margin,
                "cost": self.spec.cost,
                "objective": self.spec.objective,
                "level": LEVEL,
                "seeds": list(FINALIST_SEEDS[: SEEDS[self.spec.evidence]]),
                "further_seeds": list(FINALIST_SEEDS[SEEDS[self.spec.evidence] :]),
                "strategy": dict(self.strategy),
                "baseline": BASELINE_SPACE,
            },
        }


def answer_share(split: EncodedSplit, length: int) -> float:
    """The largest share of answer positions in a batch of the longest rows, at their padded length."""
    if split.answer_from is None:
        return 1.0
    answers = (split.lengths - split.answer_from)[np.argsort(split.lengths, kind="stable")[::-1]]
    return min(1.0, max(float(answers[:rows].mean()) for rows in (4, 8, 16, 32)) / max(1, length - 1))


def longest_answer(split: EncodedSplit) -> int | None:
    """Most answer tokens of a row; None where rows have no answers."""
    return None if split.answer_from is None else int((split.lengths - split.answer_from).max(initial=1))


def model_label(model: str) -> str:
    """A short name for a model: the last part of its id or folder that says something."""
    parts = [part for part in Path(model).parts if part not in ("/", "model", "models", "snapshots")]
    return parts[-1] if parts else model


def largest_batch(spaces: Iterable[BoundSpace]) -> int:
    """Rows of the largest batch of these spaces; 0 where none varies it."""
    dimensions = (each for space in spaces for each in space.dimensions)
    batches = [each.options for each in dimensions if isinstance(each, Choice) and each.name == "batch"]
    return max((int(option) for options in batches for option in options), default=0)
