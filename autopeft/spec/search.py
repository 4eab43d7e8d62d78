"""All that defines one search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from autopeft.spec.budget import Budget
from autopeft.spec.costs import CostName
from autopeft.spec.task import Task

Evidence = Literal["quick", "standard", "strict"]
Objective = Literal["best", "pareto"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
EVIDENCE: tuple[str, ...] = get_args(Evidence)
PRECISIONS = ("auto", "float32", "bfloat16")
ATTENTIONS = ("auto", "eager", "sdpa")
ExecutorName = Literal["ray", "tune", "inprocess"]
EXECUTORS: tuple[str, ...] = get_args(ExecutorName)


@dataclass(frozen=True)
class SearchSpec:
    """One search: task, budget, space, strategy, and how it is run.

    Attributes:
        task: The task.
        budget: The limits.
        space: A preset's name, a file, or the values themselves.
        strategy: Likewise.
        preset: A published pair of space and strategy; None for none.
        incumbent: Folder of the adapter in use today, to be compared; None for none.
        eval_sets: Name -> file, or from Python a `Dataset`, a `DataFrame` or a list of mappings: further labelled rows
            with the columns and labels of the task, which are scored in the end and decide nothing.
        evidence: How much of the budget goes to certainty: 2, 3 or 5 fresh seeds for each finalist.
        until: ``decided`` ends the search as soon as the verdict is settled; None uses the whole budget.
        within: Return the cheapest adapter that is shown to be no worse than tuned LoRA by more than so many points
            (hundredths of a metric that is bounded by 1, else the metric's own unit); None looks for the best.
        cost: What is cheap: ``params`` of the adapter, ``memory`` of its training, or ``latency``; ties go to what
            costs less of it, and `within` looks for what costs least.
        objective: ``best`` returns one adapter; ``pareto`` also those that are worth their size, memory or time.
        overrides: ``("space.x", value)`` and ``("strategy.x", value)`` pairs from ``--set``.
        workers: Trials at a time; None takes one per GPU, or one per core, and follows the nodes of a cluster.
        max_workers: Where `workers` is None: the most that follow a cluster. So many are asked for, so that a cluster
            that grows by what waits starts nodes for them.
        gpus_per_trial: Fraction of a GPU per worker; None takes 1 where there are GPUs, else 0.
        pack: Trials that a worker trains together while exploring: a number, ``off``, or ``auto``, which measures on
            GPUs whether and how many pay, and is off elsewhere.
        executor: What runs the trials.
        ray_address: Address of a running Ray cluster; None starts one here.
        cache_bytes: What kept hidden states of frozen blocks may take on each machine; 0 keeps none, None takes a share
            of its memory.
        seed: Seed of all that is random, except the finalists' seeds.
        out: The run folder; None makes one under ``runs/``.
        overwrite: Whether a non-empty run folder may be replaced.
        resume: Whether a run folder is continued.
        tracking_uri: MLflow tracking store; None takes ``mlflow.db`` beside the run folder; ``"none"`` writes nothing.
        precision: ``float32`` or ``bfloat16`` for the frozen base; ``auto`` takes what is fastest on the machine.
        attention: ``eager`` or ``sdpa``; ``auto`` likewise.
    """

    task: Task
    budget: Budget = field(default_factory=Budget)
    space: Any = "hybrid"
    strategy: Any = "tpe-asha"
    preset: str | None = None
    incumbent: str | None = None
    eval_sets: Mapping[str, Any] = field(default_factory=dict)
    evidence: Evidence = "standard"
    until: Literal["decided"] | None = None
    within: float | None = None
    cost: CostName = "params"
    objective: Objective = "best"
    overrides: tuple[tuple[str, Any], ...] = ()
    workers: int | None = None
    max_workers: int | None = None
    gpus_per_trial: float | None = None
    pack: int | Literal["auto", "off"] = "auto"
    executor: ExecutorName = "ray"
    ray_address: str | None = None
    cache_bytes: int | None = None
    seed: int = 0
    out: str | None = None
    overwrite: bool = False
    resume: bool = False
    tracking_uri: str | None = None
    precision: str = "auto"
    attention: str = "auto"
