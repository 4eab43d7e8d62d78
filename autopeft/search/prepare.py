"""From what a user asked for to everything that a search runs on, all of it checked before a worker starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from autopeft import catalogue
from autopeft.compose.base import (
    SharedBase,
    attach,
    base_config,
    identify,
    load_base,
    load_tokenizer,
    model_positions,
    reads_left_to_right,
)
from autopeft.compose.identity import config_alone
from autopeft.data.encode import plan_of
from autopeft.data.eval_sets import encode_eval_sets
from autopeft.data.read import RawData, read
from autopeft.data.tokens import encode_once
from autopeft.errors import InputError, Problem
from autopeft.executors import device_there
from autopeft.executors.base import cores
from autopeft.search.computing import Choosing, check_kept
from autopeft.search.incumbent import check_incumbent
from autopeft.search.machine import gpu_bytes, gpu_share, live_bytes_per_worker
from autopeft.search.prepared import BASELINE_SPACE, Prepared
from autopeft.space import resolve
from autopeft.space.values import SpaceValues
from autopeft.spec import SearchSpec
from autopeft.strategy.asked import space_values, strategy_values

T = TypeVar("T")


@dataclass(frozen=True)
class Gathered:
    """What is read before the model is: the request with its preset filled in, spaces, rows and tokenizer."""

    spec: SearchSpec
    space: SpaceValues
    strategy: dict[str, Any]
    raw: RawData
    tokenizer: Any

    def with_model(self, **rest: Any) -> Prepared:
        """A search over what was read.

        Args:
            rest: The fields of `Prepared` that depend on the model.
        """
        return Prepared(
            spec=self.spec,
            raw=self.raw,
            tokenizer=self.tokenizer,
            space=self.space,
            baseline=resolve(catalogue.read("spaces", BASELINE_SPACE)),
            strategy=self.strategy,
            heads=heads_of(self.spec, self.raw.kind),
            **rest,
        )


def gather(spec: SearchSpec, tokenizer: Callable[[], Any]) -> Gathered:
    """Read and check everything but the model.

    Args:
        spec: What was asked for.
        tokenizer: Loads the tokenizer, or says that there can be none.

    Raises:
        InputError: Everything about task, space and strategy that cannot be used.
    """
    spec = _with_preset(spec)
    problems: list[Problem] = []
    space = _collect(problems, lambda: space_values(spec.space, spec.overrides))
    strategy = _collect(problems, lambda: strategy_values(spec.strategy, spec.overrides))
    raw = _collect(problems, lambda: read(spec.task, seed=spec.seed, eval_sets=spec.eval_sets))
    loaded = _collect(problems, tokenizer)
    if raw is not None:
        problems += _check_target(spec, raw.kind)
    if problems or raw is None or space is None or strategy is None:
        raise InputError(problems)
    return Gathered(spec, space, strategy, raw, loaded)


def _tokenizer(spec: SearchSpec) -> Any:
    if config_alone(spec.task.model) is not None:
        raise InputError.one(
            "task.model",
            spec.task.model,
            "has a config and no *.safetensors weights: nothing can be trained",
            "Give a folder with weights; `autopeft plan` works with the config alone.",
        )
    return load_tokenizer(spec.task.model, spec.task.revision)


def prepare(spec: SearchSpec, *, measure: bool = False, gathered: Callable[[], None] = lambda: None) -> Prepared:
    """Read, check and load everything.

    Args:
        spec: What was asked for.
        measure: Whether it may be measured how this machine computes the model fastest; else what is known of it, or
            the rule, is taken.
        gathered: Called once everything but the model has been read and found good.

    Raises:
        InputError: Everything about task, space and strategy that cannot be used.
    """
    at: dict[str, float] = {"libraries loaded": time.monotonic()}
    found = gather(spec, lambda: _tokenizer(spec))
    at["data read"] = time.monotonic()
    gathered()
    spec, raw, tokenizer = found.spec, found.raw, found.tokenizer
    there = device_there(spec)
    gpu, precision, said = (on_gpus(spec), None, None) if there is None else (there.gpu, there.precision, there.note)
    identity = identify(spec.task.model, spec.task.revision)
    model_max = model_positions(base_config(spec.task.model, spec.task.revision))
    data, encoding_notes = encode_once(raw, tokenizer, max_length=spec.task.max_length, model_max=model_max)
    at["tokenised"] = time.monotonic()
    choosing = Choosing(spec, data, raw.kind, gpu=gpu, precision=precision, content_hash=identity.content_hash)
    check_kept(spec, choosing.first)
    base = load_base(spec.task.model, spec.task.revision, kind=raw.kind, dtype=choosing.first.precision)
    at["model loaded"] = time.monotonic()
    if raw.kind == "causal_lm":
        _check_causal(spec, base)
    told = [] if spec.incumbent is None else check_incumbent(spec.incumbent, base, raw)
    computing = choosing.first
    if measure:
        labels = {"causal_lm": 0, "regression": 1}.get(raw.kind, len(data.label_names))
        computing = choosing.measured(base, head="lm" if raw.kind == "causal_lm" else "mean", labels=labels)
        if computing.precision != base.dtype:
            base = load_base(spec.task.model, spec.task.revision, kind=raw.kind, dtype=computing.precision)
    at["way to compute chosen"] = time.monotonic()
    memory_limit = spec.budget.max_memory
    if spec.ray_address is None and (gpu or memory_limit is None):
        workers = 1 if spec.executor == "inprocess" else spec.workers or cores()
        share = gpu_bytes(gpu_share(spec)) if gpu else live_bytes_per_worker(workers, base.nbytes)
        if share is not None and (memory_limit is None or share < memory_limit):
            memory_limit = share
            where = "of the memory of a GPU" if gpu else "of the memory that is free here"
            told = [*told, f"a trial may take {share / 2**30:.1f} GiB {where}; --max-memory sets it"]
    return found.with_model(
        data=data.padded_to(computing.padding),
        text=plan_of(raw, data, tokenizer),
        base=base,
        gpu=gpu,
        precision=computing.precision,
        attention=computing.attention,
        computing=computing,
        at=at,
        memory_limit=memory_limit,
        notes=(
            *raw.notes,
            *encoding_notes,
            *told,
            *([said] if said else []),
            computing.told(),
        ),
        eval_sets=encode_eval_sets(raw, data, encoding_notes, tokenizer, model_max=model_max),
    )


def _with_preset(spec: SearchSpec) -> SearchSpec:
    if spec.preset is None:
        return spec
    preset = catalogue.preset(spec.preset)
    return replace(spec, space=preset.space, strategy=preset.strategy)


def heads_of(spec: SearchSpec, kind: str) -> tuple[str, ...]:
    """The heads to choose from: what was asked for, or what the target can load."""
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


def on_gpus(spec: SearchSpec) -> bool:
    """Whether workers would compute on GPUs."""
    if spec.gpus_per_trial is not None:
        return spec.gpus_per_trial > 0
    return bool(torch.cuda.is_available())


def _check_causal(spec: SearchSpec, base: SharedBase) -> None:
    if not reads_left_to_right(attach(base, head="lm")):
        raise InputError.one(
            "task.model",
            spec.task.model,
            "is no language model: what it says of a token depends on the tokens after it",
            "Give a model that generates text, or data with labels.",
        )
