"""Whole searches without training: the real spaces, strategies, controller and journal in a synthetic world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from autopeft import catalogue
from autopeft.cost.memory import Fit
from autopeft.cost.time import StepCosts
from autopeft.executors.simulated import SimulatedExecutor, VirtualClock
from autopeft.executors.simulated import World as AnyWorld
from autopeft.journal import Journal, SearchLog
from autopeft.search.arms import Arm, Gate
from autopeft.search.controller import Controller
from autopeft.search.division import Speed
from autopeft.search.ledger import Ledger
from autopeft.search.resume import limits
from autopeft.search.state import Field, Rules
from autopeft.space import bind, resolve
from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN, Execution
from autopeft.space.modules import ModuleMap
from autopeft.spec import Budget
from autopeft.strategy import build
from autopeft.strategy.jobs import Arm as ArmName
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import speed_configuration

KIND = "sequence_classification"
TRAIN_ROWS, TEST_ROWS = 7000, 2000


def field_of(
    modules: ModuleMap,
    budget: Budget,
    speed: Speed,
    *,
    space: str = "hybrid",
    strategy: str = "tpe-asha",
    seed: int = 0,
    gate: Gate = lambda configuration: Fit(PLAIN),
) -> Field:
    """Both arms of a search, as `autopeft.search.prepared` binds them.

    Args:
        modules: The model's module map.
        budget: The limits.
        speed: Of the workers.
        space: A name of `autopeft ls spaces`; tuned LoRA is the other arm.
        strategy: A name of `autopeft ls strategies`.
        seed: Of the search.
        gate: The memory limit.
    """
    values = catalogue.read("strategies", strategy)
    limit = budget.param_limit(modules.base_params)

    def arm(name: ArmName, of: str, salt: int) -> Arm:
        bound = bind(resolve(catalogue.read("spaces", of)), modules, kind=KIND, param_limit=limit)
        own = seed * 2 + salt
        explored = build(values, dimensions=bound.dimensions, prior=lambda i: bound.draw(i, own), seed=own)
        skip = name == "space" and not bound.is_plain_lora
        memory = budget.max_memory
        return Arm(name, bound, explored, modules, gate, _bytes, memory_limit=memory, skip_plain_lora=skip)

    costs = StepCosts(modules)
    costs.observe(speed_configuration(modules, KIND), 1000, 1000 * speed.train)
    return Field(modules, {"baseline": arm("baseline", "lora", 1), "space": arm("space", space, 0)}, costs)


def simulated_search(
    folder: Path,
    world: World,
    budget: Budget,
    *,
    modules: ModuleMap,
    space: str = "hybrid",
    strategy: str = "tpe-asha",
    evidence: str = "standard",
    margin: float | None = None,
    cost: str = "params",
    until_decided: bool = False,
    objective: str = "best",
    seed: int = 0,
    slots: int = 2,
    watch: Callable[[Ledger], None] = lambda ledger: None,
) -> SearchLog:
    """Run one search on the virtual clock, from the probes to the test scores.

    Args:
        folder: The run folder. The journal is written to the disk record by record, as in life: a folder in memory
            (``/dev/shm``) makes many searches faster.
        world: What would happen.
        budget: The limits.
        modules: The model's module map.
        space: As `field_of`.
        strategy: As `field_of`.
        evidence: ``quick``, ``standard`` or ``strict``.
        margin: Of ``--within``, as a share: 0.005 for half a point.
        cost: Of ``--cost``.
        until_decided: ``--until decided``.
        objective: ``best`` or ``pareto``.
        seed: Of the search.
        slots: Workers.
        watch: Called with the journal after every event.

    Returns:
        The journal, folded.
    """
    clock = VirtualClock()
    header: dict[str, Any] = {
        "schema": 1,
        "version": "0",
        "spec": {"budget": limits(budget)},
        "fingerprint": {},
        "task": {"kind": KIND, "metric": "accuracy", "notes": [], "rows": {}, "hashes": {}},
        "model": {"id": "local:0", "base_params": modules.base_params},
        "space": {},
        "environment": {},
        "procedure": {"margin": margin, "cost": cost},
    }

    def field(head: str, speed: Speed) -> Field:
        return field_of(modules, budget, speed, space=space, strategy=strategy, seed=seed)

    with Journal.create(folder, clock=clock) as journal:
        ledger = Ledger(journal)
        ledger.write("search_started", **header)
        rules = Rules(
            budget,
            evidence,
            until_decided,
            ("mean",),
            TRAIN_ROWS,
            world.rows,
            TEST_ROWS,
            "hash",
            incumbent=None,
            seed=seed,
            objective=objective,
            cost=cost,
        )
        controller = Controller(ledger, rules, field, slots=slots, on_tick=lambda: watch(ledger))
        SimulatedExecutor(slots, world, clock).run(controller, cast(WorkSetup, _Folder(str(folder))))
        return ledger.log


def _bytes(configuration: Configuration, execution: Execution | None) -> int:
    """What training anything takes in these searches."""
    return 5000


class World(AnyWorld, Protocol):
    """What would happen, on so many validation rows."""

    rows: int


class _Folder:
    """All that simulated workers ask of a setup."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
