"""Latency relative to the bare base model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autopeft.cost.latency import overhead, overhead_seconds
from autopeft.cost.step import StepTensors


class Machine:
    """A clock that moves only when a forward pass runs, by a cost that depends on the rows."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []
        self.load: Callable[[int], float] = lambda call: 1.0

    def forward(self, name: str, cost: Callable[[int], float]) -> Callable[[Tensor, Tensor, Tensor | None], object]:
        def run(ids: Tensor, mask: Tensor, types: Tensor | None) -> None:
            assert mask.shape == ids.shape
            assert types is None or types.shape == ids.shape
            assert torch.is_inference_mode_enabled()
            self.calls.append((name, ids.shape[0]))
            self.now += cost(ids.shape[0]) * self.load(len(self.calls))

        return run


def _batch(rows: int = 16, *, types: bool = False) -> StepTensors:
    ids = torch.zeros(rows, 8, dtype=torch.int64)
    return StepTensors(ids, torch.ones_like(ids), torch.zeros_like(ids) if types else None, torch.zeros(rows))


def test_one_row_and_a_batch_are_told_apart() -> None:
    machine = Machine()
    base = machine.forward("base", lambda rows: 0.01 * rows)
    # A fixed cost for each call weighs most on a single row.
    adapted = machine.forward("adapted", lambda rows: 0.01 * rows + 0.005)
    found = overhead(adapted, base, _batch(types=True), clock=lambda: machine.now)
    assert found == {1: pytest.approx(1.5), 16: pytest.approx(1.03125)}
    heavy = machine.forward("adapted", lambda rows: 0.01 * rows * (2.0 if rows > 1 else 1.0))
    found = overhead(heavy, base, _batch(), clock=lambda: machine.now)
    assert found == {1: pytest.approx(1.0), 16: pytest.approx(2.0)}


def test_at_least_five_turns_and_three_tenths_of_a_second() -> None:
    machine = Machine()
    slow = machine.forward("base", lambda rows: 1.0)
    overhead(machine.forward("adapted", lambda rows: 1.0), slow, _batch(1), clock=lambda: machine.now)
    assert machine.calls.count(("base", 1)) == machine.calls.count(("adapted", 1)) == 1 + 5
    machine.calls.clear()
    fast = machine.forward("base", lambda rows: 0.001)
    overhead(machine.forward("adapted", lambda rows: 0.001), fast, _batch(1), clock=lambda: machine.now)
    assert 1 + 150 <= machine.calls.count(("base", 1)) <= 1 + 151


def test_a_slow_model_gets_one_turn() -> None:
    machine = Machine()
    slow = machine.forward("base", lambda rows: 4.0)
    adapted = machine.forward("adapted", lambda rows: 5.0)
    found = overhead(adapted, slow, _batch(), most_seconds=8.0, clock=lambda: machine.now)
    assert found == {1: pytest.approx(1.25), 16: pytest.approx(1.25)}
    # One pass to warm up and one turn, for one row and for the batch.
    assert machine.calls.count(("base", 1)) == machine.calls.count(("adapted", 16)) == 2


@pytest.mark.parametrize(("limit", "decided"), [(1.05, False), (1.5, True), (None, True)])
def test_near_a_limit_it_is_measured_for_longer(limit: float | None, decided: bool) -> None:
    machine = Machine()
    # Passes are up to a fifth slower, whoever runs: single ratios scatter on both sides of 1.05.
    chance = torch.Generator().manual_seed(0)
    machine.load = lambda call: 1.0 + 0.2 * float(torch.rand(1, generator=chance))
    base = machine.forward("base", lambda rows: 0.01)
    slower = machine.forward("adapted", lambda rows: 0.0105)
    found = overhead(slower, base, _batch(1), limit=limit, clock=lambda: machine.now)
    assert found[1] == pytest.approx(1.05, abs=0.06)
    turns = machine.calls.count(("base", 1))
    assert turns < 20 if decided else turns > 60


def test_a_burst_of_load_and_a_slow_first_pass_do_not_count() -> None:
    machine = Machine()
    machine.load = lambda call: 50.0 if call <= 2 or call == 7 else 1.0
    base = machine.forward("base", lambda rows: 0.02)
    adapted = machine.forward("adapted", lambda rows: 0.024)
    assert overhead(adapted, base, _batch(1), clock=lambda: machine.now) == {1: pytest.approx(1.2)}


def test_a_merged_adapter_costs_nothing_and_is_not_run() -> None:
    machine = Machine()
    run = machine.forward("adapted", lambda rows: 1.0)
    assert overhead(run, run, _batch(), merged=True, clock=lambda: machine.now) == {1: 1.0, 16: 1.0}
    assert machine.calls == []


def test_real_layers_are_ranked() -> None:
    torch.manual_seed(0)
    small = torch.nn.Linear(8, 1024)
    large = torch.nn.Sequential(small, *(torch.nn.Linear(1024, 1024) for _ in range(4)))

    def through(model: torch.nn.Module) -> Callable[[Tensor, Tensor, Tensor | None], object]:
        return lambda ids, mask, types: model(ids.float())

    assert max(overhead(through(large), through(small), _batch(), autocast_dtype=torch.bfloat16).values()) > 1.5


@pytest.mark.parametrize("most", [4.0, 20.0, float("inf")])
@pytest.mark.parametrize("row", [1e-4, 0.003, 0.1, 0.5, 3.0, 40.0])
def test_what_it_takes_is_known_before(row: float, most: float) -> None:
    machine = Machine()
    run = machine.forward("base", lambda rows: row * rows)
    limits = {"most_seconds": most, "longest": 60.0}
    found = overhead(run, run, _batch(), clock=lambda: machine.now, **limits)
    assert machine.now == pytest.approx(overhead_seconds(row, 16, **limits), rel=0.01)
    assert 1 in found
    # Two ratios of at most the patience and a turn beyond, or one turn of what takes longer.
    if most < float("inf"):
        assert machine.now <= 2 * (most + 60.0) + 4 * row
    assert overhead_seconds(row, 16, merged=True, **limits) == 0.0


def test_the_batch_of_a_very_large_model_has_fewer_rows() -> None:
    machine = Machine()
    run = machine.forward("base", lambda rows: 3.0 * rows)
    assert set(overhead(run, run, _batch(), longest=60.0, clock=lambda: machine.now)) == {1, 5}
    slower = machine.forward("base", lambda rows: 40.0 * rows)
    assert set(overhead(slower, slower, _batch(), longest=60.0, clock=lambda: machine.now)) == {1}
