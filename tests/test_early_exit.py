"""The replay of recorded learning curves, and rules on them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from autopeft.strategy.halving import Asha, NoHalving


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parent.parent / "benchmarks" / "early_exit.py"
    spec = importlib.util.spec_from_file_location("early_exit", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def curves(count: int) -> list[dict[str, Any]]:
    """The better a curve ends, the better it begins; the best comes last."""
    rows = [round(2700 / 1.4 ** (7 - rung)) for rung in range(8)]
    return [
        {"rows": rows, "scores": [0.5 + (0.2 + i / 100) * (1 - np.exp(-row / 900)) for row in rows]}
        for i in range(count)
    ]


def test_without_a_rule_a_budget_buys_its_full_trainings(benchmark: ModuleType) -> None:
    recorded = curves(24)
    found = benchmark.replay(NoHalving(), (7,), recorded)
    assert found == [recorded[budget - 1]["scores"][-1] for budget in benchmark.BUDGETS]


def test_halving_sees_more_configurations_for_the_same_rows(benchmark: ModuleType) -> None:
    recorded = curves(24)
    plain = benchmark.replay(NoHalving(), (7,), recorded)
    halved = benchmark.replay(Asha(2.7), (1, 4, 7), recorded)
    assert all(after >= before for before, after in zip(plain[1:], halved[1:], strict=True))
    assert halved[2] > plain[2]


def test_every_rule_is_compared_with_the_default(benchmark: ModuleType) -> None:
    table = benchmark.compare(curves(24), orders=6)["rules"]
    assert set(table) == set(benchmark.RULES)
    assert table[benchmark.DEFAULT]["against_default"] == 0
    assert table["none"]["mean"] > table[benchmark.DEFAULT]["mean"]
    assert all(shortfall >= 0 for row in table.values() for shortfall in row["shortfall"])
