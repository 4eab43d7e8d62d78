"""Packs on one worker's bench, on MiniLM or its first blocks: every member's outcome is the one it has alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from autopeft.compose.adapt import adapt
from autopeft.compose.base import Carrier, attach, checksum, meta_carrier
from autopeft.compose.pack import PackedModel
from autopeft.cost.live import LiveBytes, measure
from autopeft.cost.memory import PACK_CAUTION, MemoryGate, MemoryModel
from autopeft.cost.pack import packed_gradients
from autopeft.cost.step import StepTensors, apply_gradients, build_optimizer
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration, Part, Training
from autopeft.space.execution import Execution
from autopeft.strategy.jobs import Outcome, Pack, Train
from autopeft.testing.executors import lora_job
from autopeft.trial import packs
from autopeft.trial.checkpoint import read_arrays
from autopeft.trial.pack_speed import pack_speeds
from autopeft.trial.setup import Progress, WorkSetup
from autopeft.trial.workbench import Workbench


def job_of(setup: WorkSetup, trial: str, method: str, *, batch: int, rows: int, rate: float, seed: int) -> Train:
    """A method on every place of the top block or, where there are more, of the top two."""
    job, row = lora_job(setup, trial), METHODS[method]
    modules = attach(setup.base, head="mean", labels=setup.labels).modules
    first = max(1, modules.blocks - 2)
    places = [site for site in modules.sites if site.block is not None and site.block >= first and row.fits(site)]
    sites = {site.name: [Part.of(method, row.knobs(site, 4 if row.size else None))] for site in places}
    configuration = Configuration.of(sites, Training(((method, rate),), rate, batch, 0.1))
    return replace(job, configuration=configuration, rows_to=rows, seed=seed, evaluate_rows=24)


def jobs(setup: WorkSetup) -> list[Train]:
    return [
        job_of(setup, "a", "lora", batch=8, rows=64, rate=3e-3, seed=1),
        job_of(setup, "b", "serial", batch=4, rows=24, rate=1e-3, seed=2),
        job_of(setup, "c", "prefix", batch=6, rows=48, rate=5e-3, seed=3),
    ]


def alike(setup: WorkSetup, one: Outcome, other: Outcome) -> None:
    assert (one.status, other.status) == ("ok", "ok"), (one.detail, other.detail)
    assert one.rows == other.rows
    assert one.loss == pytest.approx(other.loss, rel=1e-4)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    arrays = [read_arrays(setup.path / str(outcome.outputs)) for outcome in (one, other)]
    assert set(arrays[0]) == set(arrays[1])
    for name, values in arrays[0].items():
        np.testing.assert_allclose(values, arrays[1][name], rtol=2e-3, atol=1e-4)


def test_members_end_as_they_do_alone_and_go_on(setup: WorkSetup) -> None:
    bench, seen = Workbench(setup), list[Progress]()
    before = checksum(bench.carrier("mean"))
    members = jobs(setup)
    outcome = bench.run(Pack(tuple(members)), seen.append)
    assert outcome.status == "ok", outcome.detail
    assert outcome.values["together"] == 3
    alone = [Workbench(setup).run(replace(job, folder=f"alone/{job.trial}")) for job in members]
    for one, other in zip(outcome.members, alone, strict=True):
        alike(setup, one, other)
    assert 0 < sum(one.seconds for one in outcome.members) <= outcome.seconds
    assert sum(one.train_seconds for one in outcome.members) < outcome.seconds
    assert {progress.trial for progress in seen} <= {"a", "b", "c"}
    # Two go on, with one that joins them.
    further = [replace(job, rows_from=job.rows_to, rows_to=2 * job.rows_to, rung=1) for job in (members[0], members[2])]
    joined = job_of(setup, "d", "ia3", batch=5, rows=30, rate=1e-2, seed=4)
    second = bench.run(Pack((*further, joined)))
    again = [
        *(Workbench(setup).run(replace(job, folder=f"alone/{job.trial}")) for job in further),
        Workbench(setup).run(replace(joined, folder="alone/d")),
    ]
    for one, other in zip(second.members, again, strict=True):
        alike(setup, one, other)
    assert checksum(bench.carrier("mean")) == before


def test_a_member_that_breaks_leaves_the_others(setup: WorkSetup) -> None:
    first, second, third = jobs(setup)
    values = second.configuration.training
    broken = replace(
        second,
        rows_to=400,
        configuration=replace(second.configuration, training=replace(values, rates=(("serial", 1e30),))),
    )
    outcome = Workbench(setup).run(Pack((first, broken, third)))
    ended = [(one.status, one.reason) for one in outcome.members]
    assert ended == [("ok", None), ("failed", "nan"), ("ok", None)]
    assert outcome.values["together"] == 2


def test_what_cannot_be_trained_together_is_trained_alone(setup: WorkSetup) -> None:
    first, second, _ = jobs(setup)
    vera = METHODS["vera"]
    modules = Workbench(setup).carrier("mean").modules
    part = Part.of("vera", vera.knobs(modules, vera.sizes(modules)[0]))
    whole = replace(
        second, trial="w", configuration=Configuration.of({WHOLE: [part]}, Training((("vera", 1e-3),), 1e-3, 8))
    )
    pieces = replace(second, trial="p", folder="trials/p", execution=Execution(2))
    assert [packs.can_pack(job) for job in (first, whole, pieces)] == [True, False, False]
    outcome = Workbench(setup).run(Pack((first, replace(whole, folder="trials/w"), pieces)))
    assert [one.status for one in outcome.members] == ["ok", "ok", "ok"], [one.detail for one in outcome.members]
    assert outcome.values["together"] == 0


def test_without_memory_for_all_each_is_trained_alone(setup: WorkSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(packs, "packed_step", full)
    outcome = Workbench(setup).run(Pack(tuple(jobs(setup)[:2])))
    assert [one.status for one in outcome.members] == ["ok", "ok"]
    assert [one.rows for one in outcome.members] == [64, 24]
    assert outcome.values["reason"] == "oom"


def test_time_limits(setup: WorkSetup) -> None:
    first, second, third = jobs(setup)
    late = Workbench(setup).run(Pack((first, replace(second, rows_to=10**6, time_limit=0.5), third)))
    assert [(one.status, one.reason) for one in late.members] == [("ok", None), ("failed", "timeout"), ("ok", None)]
    over = Workbench(setup).run(Pack((replace(first, rows_to=10**6), third), time_limit=0.0))
    assert {(one.status, one.reason) for one in over.members} == {("failed", "timeout")}


def live_bytes(carrier: Carrier, configurations: list[Configuration], length: int) -> int:
    """Peak of a second step, in float32."""
    modules = carrier.modules
    models = [adapt(carrier, configuration, modules, seed=1) for configuration in configurations]
    optimizers = [build_optimizer(m.groups(), c.training) for m, c in zip(models, configurations, strict=True)]
    packed = PackedModel(models).train()
    batches = []
    for configuration in configurations:
        ids = torch.randint(1000, 20000, (configuration.training.batch_size, length))
        types = torch.zeros_like(ids)
        batches.append(StepTensors(ids, torch.ones_like(ids), types, torch.zeros(len(ids), dtype=torch.int64)))

    def step(counter: LiveBytes) -> None:
        packed_gradients(packed, batches, optimizers, "sequence_classification", None)
        for optimizer in optimizers:
            apply_gradients(optimizer)

    step(LiveBytes())
    held = [t for model in (packed, *models) for t in (*model.parameters(), *model.buffers())]
    moments = [value for o in optimizers for state in o.state.values() for value in state.values()]
    return measure(step, [*held, *moments, *(t for batch in batches for t in batch.all())]).bytes


@pytest.mark.parametrize("batch", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_the_memory_of_a_pack_is_what_was_predicted(whole_setup: WorkSetup, batch: int) -> None:
    setup = whole_setup
    carrier = Workbench(setup).carrier("mean")
    modules = carrier.modules
    low = {site.name: [Part.of("ssf", METHODS["ssf"].knobs(site))] for site in modules.select(("query", "up"))}
    configurations = [job.configuration for job in jobs(setup)]
    configurations.append(Configuration.of(low, Training((("ssf", 1e-3),), 1e-3, batch)))
    measured = live_bytes(carrier, configurations, 64)
    memory = MemoryModel(
        lambda: meta_carrier(setup.base.config, kind=setup.kind, head="mean", labels=setup.labels),
        modules, length=64, dtype="float32",
    )  # fmt: skip
    predicted = memory.predict_pack(configurations)
    assert predicted is not None
    assert measured == pytest.approx(predicted.bytes, rel=0.01)
    # The lowest part makes everybody's activations be kept: no sum of what they take alone.
    alone = [memory.predict(configuration).bytes for configuration in configurations]
    assert measured > sum(alone) - 3 * memory.base_bytes()
    for limit, fits in ((measured + 2**20, True), (measured - 2**22, False)):
        assert MemoryGate(memory, limit).pack_fits(configurations) is fits
    assert MemoryGate(memory, 2**40).pack_fits(configurations)
    # What is sure by far without a prediction really is more than what it takes.
    gate = MemoryGate(memory, 1)
    sure = sum(PACK_CAUTION * (int(gate._ceiling(c) or 0) - memory.base_bytes()) for c in configurations)
    assert measured <= memory.base_bytes() + sure


def test_the_speed_of_packs(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    found = pack_speeds(
        bench.carrier("mean"), bench.modules("mean"), [job.configuration for job in jobs(setup)], setup, bench.device,
        sizes=(1, 2), seconds=0.0,
    )  # fmt: skip
    assert set(found) == {1, 2}
    assert all(0 < seconds < 60 for seconds in found.values())
