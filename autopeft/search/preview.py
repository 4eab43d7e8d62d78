"""`plan`: what would run, without training anything."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autopeft.cost.memory import MemoryModel
from autopeft.cost.size import adapter_bytes
from autopeft.errors import AutopeftError, NothingFeasible
from autopeft.evidence import COUNTED, detectable
from autopeft.executors.base import cores
from autopeft.search.arms import UNBUILDABLE, lean
from autopeft.search.division import Division, Speed, divide
from autopeft.search.prepare import prepare
from autopeft.search.prepared import Prepared
from autopeft.search.resume import limits
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN
from autopeft.spec import Budget, SearchSpec, Task
from autopeft.spec.parse import checked, parse_search
from autopeft.strategy import build
from autopeft.strategy.jobs import Probe
from autopeft.trial.workbench import Workbench


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


def plan(task: Task | dict[str, Any], budget: Budget | dict[str, Any] | None = None, **options: Any) -> Plan:
    """Say what `search` would do with the same arguments.

    Raises:
        InputError: As for `search`.
        NothingFeasible: As for `search`.
    """
    return make_plan(parse_search({"task": task, "budget": budget if budget is not None else Budget(), **options}))


def make_plan(spec: SearchSpec) -> Plan:
    """Say what a search that is fully specified would do.

    The only thing that runs is a throw-away LoRA for about two seconds, to know how fast this machine is; nothing of it
    is kept.

    Raises:
        InputError: As for `search`.
        NothingFeasible: As for `search`.
    """
    spec = checked(spec)
    prepared = prepare(spec)
    infeasible = prepared.infeasible()
    if infeasible is not None:
        raise infeasible
    head = prepared.heads[0]
    bound = prepared.bind(prepared.space, head)
    strategy = build(prepared.strategy, dimensions=bound.dimensions, prior=lambda i: bound.draw(i, 0), seed=spec.seed)
    speed = _speed(prepared, head)
    workers = 1 if spec.executor == "inprocess" else spec.workers or cores()
    division = divide(
        spec.budget,
        used=0.0,
        workers=workers,
        speed=speed,
        train_rows=prepared.data.splits["train"].rows,
        validation_rows=prepared.data.splits["validation"].rows,
        evidence=spec.evidence,
        rungs=strategy.rungs,
        eta=strategy.eta,
    )
    modules = prepared.modules(head)
    return Plan(
        {
            "task": {
                "kind": prepared.raw.kind,
                "metric": prepared.raw.metric,
                "rows": {name: split.rows for name, split in prepared.data.splits.items()},
                "max_length": prepared.data.max_length,
                "notes": list(prepared.notes),
            },
            "model": {
                "id": prepared.identity.id,
                "architecture": modules.architecture,
                "base_params": modules.base_params,
                "blocks": modules.blocks,
            },
            "limits": {**limits(spec.budget), "adapter_params": spec.budget.param_limit(modules.base_params)},
            "space": _about(bound, prepared, head),
            "baseline": _baseline(prepared, head),
            "strategy": strategy.name,
            "time": _time(division, prepared, speed),
            "evidence": _evidence(division, prepared),
        }
    )


def _speed(prepared: Prepared, head: str) -> Speed:
    threads = torch.get_num_threads()
    # A worker of a search has one thread.
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            outcome = Workbench(prepared.setup(Path(folder))).run(Probe("speed", (head,)))
    finally:
        torch.set_num_threads(threads)
    if outcome.status != "ok":
        raise AutopeftError(f"the speed probe ended {outcome.status} ({outcome.reason}): {outcome.detail}")
    measured = outcome.values
    return Speed(
        measured["train_seconds_per_row"], measured["evaluate_seconds_per_row"], measured.get("generate_seconds", 0.0)
    )


def _about(bound: BoundSpace, prepared: Prepared, head: str) -> dict[str, Any]:
    memory = prepared.memory(head)
    drawn = [bound.decode(bound.draw(index, 0)) for index in range(8)]
    head_params = prepared.head_params(head)
    sizes = [adapter_bytes(each, bound.modules, head_params) for each in drawn]
    bytes_of = _known_bytes(memory, drawn) or [memory.base_bytes()]
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
            "smallest": min([*bytes_of, *_known_bytes(memory, lean(bound), leanest=True)]),
            "samples_least": min(bytes_of),
            "samples_most": max(bytes_of),
        },
    }


def _known_bytes(memory: MemoryModel, configurations: Sequence[Configuration], *, leanest: bool = False) -> list[int]:
    """Predicted bytes of those that can be built, with batches as a whole or in the leanest way."""
    known = []
    for configuration in configurations:
        with contextlib.suppress(*UNBUILDABLE):
            way = memory.leanest(configuration) if leanest else PLAIN
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


def _time(division: Division, prepared: Prepared, speed: Speed) -> dict[str, Any]:
    rows = prepared.data.splits["validation"].rows
    full = division.final_rows * speed.train + rows * speed.evaluate
    explore = division.explore_until
    return {
        "workers": division.workers,
        "train_seconds_per_1000_rows": 1000 * speed.train,
        "evaluate_seconds_per_1000_rows": 1000 * speed.evaluate,
        "rungs_rows": list(division.rungs),
        "epochs_of_a_full_training": division.final_rows / prepared.data.splits["train"].rows,
        "seconds_of_a_full_training": full,
        "seeds_per_finalist": len(division.seeds),
        "baseline_share": division.baseline_share,
        "explore_seconds": explore,
        "confirm_seconds": None
        if explore is None or division.confirm_until is None
        else division.confirm_until - explore,
        "reserve_seconds": None
        if division.deadline is None or division.confirm_until is None
        else division.deadline - division.confirm_until,
        "full_trainings_that_exploration_affords": None if explore is None else explore * division.workers / full,
        "max_trials": division.max_trials,
    }
