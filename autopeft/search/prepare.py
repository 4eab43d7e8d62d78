"""From what a user asked for to everything that a search runs on, all of it checked before a worker starts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from autopeft import catalogue
from autopeft.compose.base import Attention, DType, SharedBase, load_base, load_tokenizer, meta_carrier
from autopeft.compose.identity import BaseIdentity
from autopeft.cost.memory import MemoryGate, MemoryModel
from autopeft.cost.time import StepCosts
from autopeft.data.batches import longest_batch
from autopeft.data.encode import encode, plan_of
from autopeft.data.encoded import EncodedData
from autopeft.data.plan import TextPlan
from autopeft.data.read import RawData, read
from autopeft.errors import InputError, NothingFeasible, Problem
from autopeft.inspect import module_map
from autopeft.search.arms import Arm
from autopeft.search.controller import Field
from autopeft.search.division import Speed
from autopeft.space import bind, resolve
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import Configuration, digest
from autopeft.space.modules import ModuleMap
from autopeft.space.values import SpaceValues
from autopeft.spec import SearchSpec
from autopeft.spec.parse import spec_to_dict
from autopeft.strategy import build, validate
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import speed_configuration

T = TypeVar("T")
BASELINE_SPACE = "lora"
LONG_ROWS = 256
"""Tokens from which fused attention pays on a processor: below, its backward pass costs more than it saves."""
LIMIT_FIELDS = ("max_adapter_params", "max_memory", "max_adapter_size", "max_latency_overhead", "target")


def precision_here(gpu: bool) -> DType:
    """The dtype of the frozen base: bfloat16 where the machine computes in it, else float32."""
    if gpu:
        return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


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
        precision: Dtype of the frozen base.
        attention: Attention implementation of the base.
        notes: What was inferred and decided, as sentences.
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
    precision: DType
    attention: Attention
    notes: tuple[str, ...]

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
        size = budget.max_adapter_size
        return bind(
            values,
            modules,
            param_limit=budget.param_limit(modules.base_params),
            target=budget.target,
            kind=self.raw.kind,
            max_bytes=None if size is None else max(1, size - 4 * self.head_params(head)),
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
        return MemoryModel(lambda: self.meta(head), self.modules(head), length=length, dtype=self.precision)

    def field(self, head: str, speed: Speed) -> Field:
        """Both arms on the model under a head.

        Raises:
            NothingFeasible: Nothing of the user's space fits.
        """
        modules, limit = self.modules(head), self.spec.budget.max_memory
        gate = MemoryGate(self.memory(head), limit) if limit is not None else None

        def fits(configuration: Configuration) -> tuple[bool, int | None]:
            return (True, None) if gate is None else gate.fits(configuration)

        def arm(name: ArmName, bound: BoundSpace, salt: int) -> Arm:
            seed = self.spec.seed * 2 + salt
            strategy = build(self.strategy, dimensions=bound.dimensions, prior=lambda i: bound.draw(i, seed), seed=seed)
            skip = name == "space" and not bound.is_plain_lora
            return Arm(name, bound, strategy, modules, fits, memory_limit=limit, skip_plain_lora=skip)

        arms: dict[ArmName, Arm] = {}
        # Where LoRA does not fit, the result says so by a null baseline.
        with contextlib.suppress(NothingFeasible):
            arms["baseline"] = arm("baseline", self.bind(self.baseline, head), 1)
        arms["space"] = arm("space", self.bind(self.space, head), 0)
        costs = StepCosts(modules)
        costs.observe(speed_configuration(modules, self.raw.kind), 1000, 1000 * speed.train)
        return Field(modules, arms, costs)

    def setup(self, folder: Path) -> WorkSetup:
        """What the workers get."""
        lm = self.raw.kind == "causal_lm"
        return WorkSetup(
            base=self.base,
            data=self.data,
            kind=self.raw.kind,
            metric=self.raw.metric,
            labels=self.labels,
            folder=str(folder.resolve()),
            precision=self.precision,
            attention=self.attention,
            max_latency_overhead=self.spec.budget.max_latency_overhead,
            tokenizer=self.tokenizer if lm else None,
            meta={"text": self.text.to_dict(), "metric": self.raw.metric},
        )

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
            "incumbent": None if self.spec.incumbent is None else str(Path(self.spec.incumbent).resolve()),
            **{f"budget.{name}": getattr(budget, name) for name in LIMIT_FIELDS},
        }

    def header(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """The journal's first record."""
        head = self.heads[0]
        modules, bound = self.modules(head), self.bind(self.space, head)
        columns = [*self.raw.text_columns, self.raw.label_column, self.raw.prompt_column, self.raw.response_column]
        return {
            "spec": spec_to_dict(self.spec),
            "fingerprint": self.fingerprint(),
            "task": {
                "name": self.spec.task.name or f"{Path(self.spec.task.model).name} on {self.raw.source}",
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
            "space": {
                "name": self.space.name,
                "methods": list(bound.methods),
                "size": bound.size(),
                "left_out": dict(bound.left_out),
            },
            "environment": dict(environment),
            "procedure": {"evidence": self.spec.evidence, "strategy": dict(self.strategy), "baseline": BASELINE_SPACE},
        }


def prepare(spec: SearchSpec) -> Prepared:
    """Read, check and load everything.

    Raises:
        InputError: Everything about task, space and strategy that cannot be used.
        NothingFeasible: No configuration of the space fits the limits.
    """
    spec = _with_preset(spec)
    problems: list[Problem] = []
    space = _collect(problems, lambda: _space_values(spec.space, spec.overrides))
    strategy = _collect(problems, lambda: _strategy_values(spec.strategy, spec.overrides))
    raw = _collect(problems, lambda: read(spec.task, seed=spec.seed))
    tokenizer = _collect(problems, lambda: load_tokenizer(spec.task.model, spec.task.revision))
    if raw is not None:
        problems += _check_target(spec, raw.kind)
    if problems or raw is None or space is None or strategy is None:
        raise InputError(problems)
    gpu = bool(spec.gpus_per_trial) or (spec.gpus_per_trial is None and torch.cuda.is_available())
    precision = precision_here(gpu)
    base = load_base(spec.task.model, spec.task.revision, kind=raw.kind, dtype=precision)
    data, encoding_notes = encode(
        raw, tokenizer, max_length=spec.task.max_length, model_max=model_positions(base.config)
    )
    attention: Attention = "sdpa" if gpu or data.max_length > LONG_ROWS else "eager"
    prepared = Prepared(
        spec=spec,
        raw=raw,
        data=data,
        text=plan_of(raw, data, tokenizer),
        tokenizer=tokenizer,
        base=base,
        space=space,
        baseline=resolve(catalogue.read("spaces", BASELINE_SPACE)),
        strategy=strategy,
        heads=_heads(spec, raw.kind),
        precision=precision,
        attention=attention,
        notes=(*raw.notes, *encoding_notes, f"the frozen base computes in {precision} with {attention} attention"),
    )
    # A space that cannot fit is told before any worker starts; the formulas do not depend on the head.
    prepared.bind(space, prepared.heads[0])
    return prepared


def model_positions(config: Mapping[str, Any]) -> int | None:
    """Longest row that the model has positions for, or None."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int):
        return None
    # RoBERTa counts positions from after its padding token.
    reserved = (
        int(config.get("pad_token_id") or 0) + 1
        if config.get("model_type") in ("roberta", "xlm-roberta", "camembert")
        else 0
    )
    return positions - reserved


def _with_preset(spec: SearchSpec) -> SearchSpec:
    if spec.preset is None:
        return spec
    preset = catalogue.preset(spec.preset)
    return replace(spec, space=preset.space, strategy=preset.strategy)


def _values(what: str, given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else catalogue.read(what, str(given))


def _space_values(given: Any, overrides: tuple[tuple[str, Any], ...]) -> SpaceValues:
    return resolve(_values("spaces", given), [(name, value) for name, value in overrides if name.startswith("space.")])


def _strategy_values(given: Any, overrides: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    values = _values("strategies", given)
    for name, value in overrides:
        path = name.split(".")
        if path[0] != "strategy":
            continue
        inner = values
        for key in path[1:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {"name": inner[key]} if key in inner else {}
            inner = inner[key]
        inner[path[-1]] = value
    problems = validate(values)
    if problems:
        raise InputError(problems)
    return values


def _heads(spec: SearchSpec, kind: str) -> tuple[str, ...]:
    if kind == "causal_lm":
        return ("lm",)
    if spec.task.head != "auto":
        return (spec.task.head,)
    return ("stock",) if spec.budget.target in ("peft", "merged") else ("mean", "cls", "stock")


def _check_target(spec: SearchSpec, kind: str) -> list[Problem]:
    target, head = spec.budget.target, spec.task.head
    if target == "vllm" and kind != "causal_lm":
        return [
            Problem(
                "budget.target",
                target,
                f"vLLM serves adapters of language models, not of {kind}",
                "Use the target peft or merged, or the kind causal_lm.",
            )
        ]
    if kind != "causal_lm" and target in ("peft", "merged") and head in ("cls", "mean"):
        return [
            Problem(
                "task.head",
                head,
                f"a plain {target} folder can only hold the stock head",
                "Use the head stock or auto, or the target any.",
            )
        ]
    return []


def _collect(problems: list[Problem], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except InputError as error:
        problems.extend(error.problems)
        return None
