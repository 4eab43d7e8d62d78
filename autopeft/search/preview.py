"""`plan`: what would run, without training anything."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.compose.identity import config_alone
from autopeft.cost.memory import MemoryModel
from autopeft.cost.size import adapter_bytes
from autopeft.errors import InputError, NothingFeasible
from autopeft.evidence import COUNTED, detectable
from autopeft.executors.base import cores
from autopeft.search.arms import UNBUILDABLE, lean
from autopeft.search.beside import beside
from autopeft.search.division import Division, divide
from autopeft.search.feasible import check_memory
from autopeft.search.front import FRONT_SIZE
from autopeft.search.hours import estimated_speed, measured_speed, time_section, unaffordable
from autopeft.search.machine import live_bytes_per_worker
from autopeft.search.prepare import prepare
from autopeft.search.prepared import Prepared
from autopeft.search.resume import limits
from autopeft.search.serving import serving_warnings
from autopeft.search.sketch import sketch
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.amounts import format_bytes
from autopeft.spec.parse import checked, parse_search
from autopeft.strategy import build

PREDICTED_SITES = 200
"""Places in a model times predictions of memory that a plan makes; two of each sort are made for any model."""
DRAWN = 8
"""Configurations of the space that stand for all of them."""


@dataclass(frozen=True)
class Plan:
    """What a search would do.

    Attributes:
        values: Task, model, limits, spaces, predicted memory and time, and how the budget is divided.
    """

    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return dict(self.values)


def plan(
    task: Task | dict[str, Any],
    budget: Budget | dict[str, Any] | None = None,
    *,
    device_tflops: float | None = None,
    **options: Any,
) -> Plan:
    """Say what `search` would do with the same arguments.

    The model may be a ``config.json`` alone: nothing is then run, and times are estimated.

    Args:
        task: As for `search`.
        budget: As for `search`.
        device_tflops: Plan for a device that achieves so many TFLOP/s in training, instead of for this machine.
        options: As for `search`.

    Raises:
        InputError: As for `search`.
        NothingFeasible: As for `search`.
    """
    spec = parse_search({"task": task, "budget": budget if budget is not None else Budget(), **options})
    return make_plan(spec, device_tflops)


def make_plan(spec: SearchSpec, device_tflops: float | None = None) -> Plan:
    """Say what a search that is fully specified would do.

    The only thing that runs is a throw-away LoRA for about two seconds, to know how fast this machine is; nothing of it
    is kept. Where there are no weights, or another device is planned for, times come from arithmetic.

    Raises:
        InputError: As for `search`.
        NothingFeasible: As for `search`.
    """
    spec = checked(spec)
    if device_tflops is not None and not 0 < device_tflops < math.inf:
        raise InputError.one(
            "device_tflops",
            device_tflops,
            "must be a positive number of TFLOP/s",
            "Give what the device achieves in training, for example 150.",
        )
    estimated = device_tflops is not None or config_alone(spec.task.model) is not None
    prepared = sketch(spec, device_tflops) if estimated else prepare(spec)
    spec = prepared.spec
    infeasible = prepared.infeasible()
    if infeasible is not None:
        raise infeasible
    head = prepared.heads[0]
    bound = prepared.bind(prepared.space, head)
    memory = prepared.memory(head)
    drawn = [bound.decode(bound.draw(index, 0)) for index in range(DRAWN)]
    about_space = _about(bound, prepared, head, memory, drawn)
    # Before anything runs: a probe that does not fit would fail with less to say.
    unfitting = check_memory(prepared, memory, head, bound, about_space["memory_bytes"]["smallest"])
    strategy = build(prepared.strategy, dimensions=bound.dimensions, prior=lambda i: bound.draw(i, 0), seed=spec.seed)
    speed, about_speed = estimated_speed(prepared, head, device_tflops) if estimated else measured_speed(prepared, head)
    # Another device is taken to be one, unless more are asked for.
    workers = 1 if spec.executor == "inprocess" else spec.workers or (cores() if device_tflops is None else 1)
    rows = {name: split.rows for name, split in prepared.data.splits.items()}
    division = divide(
        spec.budget,
        used=0.0,
        workers=workers,
        speed=speed,
        train_rows=rows["train"],
        validation_rows=rows["validation"],
        evidence=spec.evidence,
        rungs=strategy.rungs,
        eta=strategy.eta,
        finalists=2 + (FRONT_SIZE if spec.objective == "pareto" else 0),
    )
    modules = prepared.modules(head)
    more = beside(drawn, modules, division, spec.budget, spec.evidence, cost=spec.cost)
    here = None
    if prepared.memory_limit is None and device_tflops is None and not prepared.gpu:
        here = live_bytes_per_worker(workers, about_space["memory_bytes"]["base"])
    warned = [
        *serving_warnings(bound, kind=prepared.raw.kind, target=spec.budget.target, heads=prepared.heads),
        *unfitting,
        *_memory_warning(about_space["memory_bytes"]["smallest"], here),
        *unaffordable(division, more),
    ]
    return Plan(
        {
            "warnings": warned,
            "task": _about_task(prepared),
            "model": {
                "id": prepared.identity.id,
                "architecture": modules.architecture,
                "base_params": modules.base_params,
                "params_with_output_layer": memory.params() if head == "lm" else None,
                "blocks": modules.blocks,
            },
            "limits": {**limits(spec.budget), "adapter_params": spec.budget.param_limit(modules.base_params)},
            "space": about_space,
            "baseline": _baseline(prepared, head),
            "strategy": strategy.name,
            "time": time_section(division, rows["train"], spec.budget, strategy.eta, about_speed, more),
            "evidence": _evidence(division, prepared),
        }
    )


def _about_task(prepared: Prepared) -> dict[str, Any]:
    given = prepared.eval_sets
    return {
        "kind": prepared.raw.kind,
        "metric": prepared.raw.metric,
        "rows": {name: split.rows for name, split in prepared.data.splits.items()},
        "max_length": prepared.data.max_length,
        "eval_sets": {name: held.split.rows for name, held in given.items()},
        "notes": [*prepared.notes, *(note for held in given.values() for note in held.notes)],
    }


def _memory_warning(least: int, here: int | None) -> list[str]:
    """For a base without weights, which could not be trained here anyway, as far as was looked at."""
    if here is None or least <= here:
        return []
    return [
        f"Training takes {format_bytes(least)} at least, as far as was looked at, where each worker has here "
        f"{format_bytes(here)}. Use fewer --workers, or plan for another device with --device-tflops, a smaller model, "
        "or fewer tokens (--max-length)."
    ]


def _about(
    bound: BoundSpace, prepared: Prepared, head: str, memory: MemoryModel, drawn: list[Configuration]
) -> dict[str, Any]:
    # A prediction runs every operation of a step, so that large models get fewer of them.
    affordable = PREDICTED_SITES // max(1, len(bound.modules.sites))
    sampled, leanest = drawn[: max(2, affordable)], lean(bound)[: max(2, affordable)]
    head_params = prepared.head_params(head)
    sizes = [adapter_bytes(each, bound.modules, head_params) for each in drawn]
    bytes_of = _known_bytes(memory, sampled) or [memory.needed(memory.base_bytes())]
    return {
        "name": bound.values.name,
        "methods": list(bound.methods),
        "left_out": dict(bound.left_out),
        "size": bound.size(),
        "feasible_share": bound.feasible_share(),
        "adapter_params": {"least": bound.smallest().adapter_params(bound.modules), "most": bound.largest_params},
        "adapter_bytes": {"samples_least": min(sizes), "samples_most": max(sizes)},
        "memory_bytes": {
            "base": memory.base_bytes(),
            "smallest": min([*bytes_of, *_known_bytes(memory, leanest, in_pieces=True)]),
            "samples_least": min(bytes_of),
            "samples_most": max(bytes_of),
        },
        "memory_predictions": len(sampled) + len(leanest),
    }


def _known_bytes(memory: MemoryModel, configurations: Sequence[Configuration], *, in_pieces: bool = False) -> list[int]:
    """Predicted bytes of those that can be built, with batches as a whole or in the leanest way."""
    known = []
    for configuration in configurations:
        with contextlib.suppress(*UNBUILDABLE):
            way = memory.leanest(configuration) if in_pieces else PLAIN
            known.append(memory.predict(configuration, execution=way).bytes)
    return known


def _baseline(prepared: Prepared, head: str) -> dict[str, Any] | None:
    try:
        bound = prepared.bind(prepared.baseline, head)
    except NothingFeasible:
        return None
    return {
        "name": bound.values.name,
        "adapter_params": {"least": bound.smallest().adapter_params(bound.modules), "most": bound.largest_params},
    }


def _evidence(division: Division, prepared: Prepared) -> dict[str, Any]:
    """What the verdict can show with these rows and seeds."""
    rows, seeds = division.final_evaluated, len(division.seeds)
    found = detectable(rows, seeds) if prepared.raw.metric in COUNTED else None
    values: dict[str, Any] = {"validation_rows": rows, "seeds_per_finalist": seeds}
    if found is None:
        reason = "is known only for shares of rows" if seeds > 1 else "needs two seeds"
        return {**values, "smallest_difference_shown": None, "note": f"what can be shown {reason}"}
    if found.rows_for_half is None:
        note = "no number of rows would show half of it with these seeds: more seeds do (--evidence strict)"
    else:
        note = f"{found.rows_for_half:,} validation rows would show half of it"
    return {
        **values,
        "smallest_difference_shown": found.difference,
        "by_rows_alone": found.by_rows_alone,
        "rows_that_show_half": found.rows_for_half,
        "assumed_disagreement": found.disagreement,
        "assumed_seed_spread": found.seed_spread,
        "note": f"a difference of that size is called better in four of five searches; {note}",
    }
