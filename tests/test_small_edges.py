"""Rules at their edge, one by one: what may be dropped, what a finalist's first run costs, what is left alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from example_search import division
from peft.tuners.lora.layer import Linear
from test_search_simulated import Bench
from test_spared import built, carrier

from autopeft.compose.base import Carrier
from autopeft.compose.host import spare_casts
from autopeft.cost.scratch import scratch_bytes
from autopeft.journal import SearchLog, TrialLog
from autopeft.journal.log import ConfigurationLog, RungLog
from autopeft.search.finals import Finals
from autopeft.search.phases.confirm import Confirm
from autopeft.search.phases.simplify import Simplify
from autopeft.spec import Budget
from autopeft.testing.worlds import SyntheticWorld
from autopeft.trial import latency

__all__ = ["carrier"]


@pytest.mark.parametrize(
    ("margin", "difference", "error", "goes"),
    [
        (None, -0.015, 0.02, True),
        (None, -0.015, 0.012, False),
        (0.02, -0.015, 0.02, False),
        (0.02, -0.009, 0.02, True),
        (0.02, -0.009, 0.005, False),
    ],
)
def test_a_part_goes_within_one_error_and_half_of_the_margin(
    margin: float | None, difference: float, error: float, goes: bool
) -> None:
    state = cast(Any, SimpleNamespace(finals=SimpleNamespace(margin=margin)))
    assert Simplify(state, cast(Any, None))._tolerable(difference, error) is goes


def test_nothing_is_within_the_margin_of_a_lora_that_was_not_trained_well(tmp_path: Path) -> None:
    # The probe of this world scores 0.7.
    world = SyntheticWorld(lambda configuration: 0.66, rows=4000, seed_noise=0.0)
    log = Bench(tmp_path / "run", world, Budget(max_adapter_params=0.01, max_time=900.0), margin=0.05).run()
    assert log.verdict["low"] > -0.05
    assert log.verdict["name"] == "unconfirmed"
    assert "no more than the frozen base" in log.verdict["reason"]


@pytest.mark.parametrize(("once", "seeds"), [(0.0, 3), (20.0, 2)])
def test_what_a_first_run_measures_beside_is_paid_for(once: float, seeds: int) -> None:
    log = SearchLog(header={"task": {"metric": "accuracy"}})
    for number, (name, arm) in enumerate((("lora", "baseline"), ("other", "space"))):
        log.configurations[name] = ConfigurationLog(name, {}, {"x": 1}, 1000, arm)
        trial = TrialLog(f"t{number}", name, arm, "explore", 0, number, 0)
        trial.rungs.append(RungLog(2, 9000, {"accuracy": 0.8}))
        log.trials[trial.id] = trial
        log.index.start(trial)
        log.index.update(trial, "accuracy", 1000)
    written: dict[str, Any] = {}
    made = division()
    assert made.confirm_until is not None
    # Two workers, two finalists of three seeds, 100 s each: 300 s, or 320 s with the first ones longer.
    ledger = SimpleNamespace(log=log, used=made.confirm_until - 310.0, write=lambda type, **data: written.update(data))
    finals = Finals(cast(Any, ledger), made, ("baseline", "space"))
    finals.name(seconds=lambda hash, rows: 100.0, rungs=3, predict=lambda hash: None, once=once)
    assert len(written["seeds"]) == seeds
    assert written["rows"] == made.rungs[-1]


@pytest.mark.parametrize(("known", "fits"), [(None, False), ({"1": 1.1}, True)])
def test_a_run_that_would_have_to_measure_latency_fits_only_with_it(known: dict[str, float] | None, fits: bool) -> None:
    state = SimpleNamespace(
        ledger=SimpleNamespace(log=SimpleNamespace(latency=lambda hash: known), used=1000.0),
        rules=SimpleNamespace(latency_of_all=False),
        division=SimpleNamespace(deadline=1120.0, confirm_until=1100.0),
        latency_seconds=lambda: 20.0,
        final_rows=lambda: 9000,
        confirm_seconds=lambda hash, rows: 100.0,
        affords=lambda seconds, share: True,
        slots=2,
    )
    assert Confirm(cast(Any, state), cast(Any, None))._fits("lora") is fits


def test_a_batch_for_latency_may_not_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(latency, "overhead", lambda *arguments, **options: asked.update(options) or {})
    monkeypatch.setattr(latency, "evaluation_batches", lambda split, rows: [None])
    monkeypatch.setattr(latency, "pad", lambda *arguments: None)
    monkeypatch.setattr(latency, "step_tensors", lambda *arguments: None)
    data = SimpleNamespace(splits={"validation": None}, pad_token=0)
    setup = SimpleNamespace(data=data, kind="regression", precision="float32", merged=False)
    model = torch.nn.Linear(1, 1)
    for limit, most in ((None, latency.MOST_SECONDS), (1.2, latency.LIMITED_SECONDS)):
        latency.measure_latency(cast(Any, model), cast(Any, model), cast(Any, setup), torch.device("cpu"), limit=limit)
        assert (asked["longest"], asked["most_seconds"], asked["limit"]) == (latency.LONGEST, most, limit)


def test_a_lora_with_a_bias_of_its_own_is_scaled_as_peft_does(carrier: Carrier) -> None:
    model = built(carrier, "lora", scale=2.0)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    (name,) = layers[0].active_adapters
    layers[0].lora_bias[name] = True
    spare_casts(model)
    assert ["forward" in vars(layer) for layer in layers] == [False] + [True] * (len(layers) - 1)


def test_kernels_elsewhere_than_on_processors_copy_nothing() -> None:
    for device, copied in (("cpu", 4 * 64), ("meta", 0)):
        left, right = (torch.empty(64, dtype=d, device=device) for d in (torch.float32, torch.bfloat16))
        assert scratch_bytes(torch.ops.aten.add.Tensor, (left, right)) == copied


def test_a_run_without_some_parts_pays_for_its_latency_too() -> None:
    state = SimpleNamespace(
        division=SimpleNamespace(final_rows=9000),
        seconds=lambda hash, rows, *, final: 100.0,
        limited_seconds=lambda: 20.0,
    )
    assert Simplify(cast(Any, state), cast(Any, None))._seconds("challenger") == 120.0
