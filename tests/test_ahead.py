"""What asking needs is computed while nobody asks, and changes no answer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.cost.memory import MemoryModel
from autopeft.executors import Event
from autopeft.executors.simulated import SimulatedExecutor, VirtualClock
from autopeft.journal import Journal
from autopeft.search.ahead import ahead
from autopeft.search.controller import Controller
from autopeft.search.division import Speed
from autopeft.search.ledger import Ledger
from autopeft.search.prepare import prepare
from autopeft.search.prepared import Prepared
from autopeft.search.state import State
from autopeft.spec.parse import parse_search
from autopeft.testing.worlds import SyntheticWorld, by_method

run_module: Any = importlib.import_module("autopeft.search.run")

SPEED = Speed(0.004, 0.001)


def prepared_of(model: Path, data: Path, **budget: Any) -> Prepared:
    task = {"model": str(model), "data": str(data)}
    space = {"name": "two", "encoding": "recipe", "methods": ["lora", "ia3"], "attention_sites": ["qv", "all"]}
    return prepare(parse_search({"task": task, "budget": budget, "space": space, "executor": "inprocess"}))


def asked(prepared: Prepared, folder: Path, count: int = 3) -> list[tuple[str, int | None]]:
    """What both arms propose first, with the bytes that were said of it."""
    with Journal.create(folder) as journal:
        ledger = Ledger(journal)
        ledger.write("search_started", schema=1, version="0", **prepared.header({}))
        found = []
        for index in range(count):
            for name, arm in prepared.field("mean", SPEED).arms.items():
                proposal = arm.propose(ledger)
                assert proposal is not None
                made, trial = proposal.configuration, f"{name}{index}"
                found.append((made.hash, proposal.fit.bytes))
                about = {"values": dict(proposal.values), "adapter_params": proposal.adapter_params, "arm": name}
                ledger.write("configuration", hash=made.hash, configuration=made.to_dict(), **about)
                where = {"purpose": "explore", "seed": 0, "index": proposal.index, "slot": 0}
                ledger.write("trial_started", trial=trial, hash=made.hash, arm=name, **where)
        return found


def test_then_asking_predicts_nothing_more_and_answers_the_same(
    short_minilm: Path, tiny_reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = asked(prepared_of(short_minilm, tiny_reviews, max_memory="2GiB"), tmp_path / "plain")
    prepared = prepared_of(short_minilm, tiny_reviews, max_memory="2GiB")
    runs = list[str]()
    run = MemoryModel._run
    monkeypatch.setattr(MemoryModel, "_run", lambda *given, **options: runs.append("run") or run(*given, **options))
    before = 0
    for _ in ahead(prepared, "mean"):
        # Each step makes one at most.
        assert len(runs) - before <= 1
        before = len(runs)
    # The bare model, and one for each method.
    assert len(runs) == 3
    assert asked(prepared, tmp_path / "ahead") == plain
    assert len(runs) == 3
    assert prepared.gate("stock") is not prepared.gate("mean")


def test_without_a_limit_or_anything_that_fits_there_is_nothing_to_do(
    short_minilm: Path, tiny_reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryModel, "_run", lambda *given, **options: pytest.fail("something was predicted"))
    prepared = prepared_of(short_minilm, tiny_reviews, max_adapter_params=1)
    monkeypatch.setattr(Prepared, "gate", lambda prepared, head: None)
    assert len(list(ahead(prepared, "mean"))) == 2


class Waiting(SimulatedExecutor):
    """Nothing happens every other time that it is asked, as with workers that compute."""

    quiet = False

    def poll(self) -> Sequence[Event]:
        self.quiet = not self.quiet
        return [] if self.quiet else super().poll()


@pytest.mark.parametrize(("executor", "used"), [("ray", True), ("inprocess", False)])
def test_a_search_does_it_while_all_workers_of_other_processes_compute(
    short_minilm: Path, tiny_reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, used: bool
) -> None:
    states: list[State] = []
    seen: list[tuple[str, int, bool]] = []

    def counted(prepared: Prepared, head: str) -> Iterator[None]:
        while True:
            (state,) = states
            seen.append((head, len(state.running), state.divided))
            yield

    made = Controller.__init__

    def kept(self: Controller, *given: Any, **options: Any) -> None:
        made(self, *given, **options)
        states.append(self.state)

    monkeypatch.setattr(Controller, "__init__", kept)
    monkeypatch.setattr(run_module, "ahead", counted)
    # Simulated workers leave no adapter that could be saved.
    monkeypatch.setattr(run_module._Session, "_finish", lambda *given: None)
    workers = Waiting(2, SyntheticWorld(by_method({})), VirtualClock())
    asked = {"model": str(short_minilm), "data": str(tiny_reviews)}
    spec = parse_search(
        {
            "task": asked,
            "budget": {"max_trials": 4},
            "space": "lora",
            "executor": executor,
            "out": str(tmp_path / "run"),
            "tracking_uri": "none",
        }
    )
    starting: Any = SimpleNamespace(take=lambda: workers, drop=lambda: None)
    run_module.run(spec, workers=starting)
    assert bool(seen) is used
    assert set(seen) <= {("mean", 2, True)}
