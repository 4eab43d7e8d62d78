"""One worker's bench on MiniLM, or its first blocks: what it promises about checkpoints, limits and the frozen base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fresh import run_script

from autopeft.compose.base import checksum, meta_carrier
from autopeft.compose.store import describe
from autopeft.cost.memory import MemoryModel
from autopeft.data.batches import longest_batch
from autopeft.data.encoded import EncodedSplit
from autopeft.space.configuration import WHOLE, Configuration, Part
from autopeft.space.execution import PLAIN, Execution
from autopeft.strategy.jobs import Evaluate, Train
from autopeft.testing.executors import lora_job
from autopeft.trial.checkpoint import read_arrays
from autopeft.trial.schedule import factor
from autopeft.trial.setup import Progress, WorkSetup
from autopeft.trial.workbench import Workbench


def with_rate(job: Train, rate: float) -> Train:
    values = job.configuration.to_dict()
    values["training"]["rates"] = dict.fromkeys(values["training"]["rates"], rate)
    return replace(job, configuration=Configuration.from_dict(values))


def test_it_learns_and_leaves_the_base_alone(whole_setup: WorkSetup) -> None:
    setup = whole_setup
    bench = Workbench(setup)
    before = checksum(bench.carrier("mean"))
    seen: list[Progress] = []
    outcome = bench.run(replace(lora_job(setup, "t", rows=400), final=True), seen.append)
    assert outcome.status == "ok", outcome.detail
    assert outcome.metrics["accuracy"] > 0.9
    assert outcome.rows == 400
    assert checksum(bench.carrier("mean")) == before
    arrays = read_arrays(setup.path / str(outcome.outputs))
    assert len(arrays["prediction"]) == setup.data.splits["validation"].rows
    assert float((arrays["prediction"] == arrays["label"]).mean()) == outcome.metrics["accuracy"]


def test_measured_memory_is_what_was_predicted(whole_setup: WorkSetup) -> None:
    setup = whole_setup
    bench = Workbench(setup)
    job = replace(lora_job(setup, "t", rows=64, rank=8), final=True)
    outcome = bench.run(job)
    carrier = lambda: meta_carrier(setup.base.config, kind=setup.kind, head="mean", labels=setup.labels)  # noqa: E731
    length = longest_batch(setup.data.splits["train"], 16)[1]
    predicted = MemoryModel(carrier, bench.modules("mean"), length=length, dtype="float32").predict(job.configuration)
    assert outcome.peak_bytes == pytest.approx(predicted.bytes, rel=0.01)


@pytest.mark.parametrize("way", [Execution(4), Execution(checkpointing=True), Execution(2, checkpointing=True)])
def test_batches_in_pieces_and_recomputed_blocks_train_the_same(whole_setup: WorkSetup, way: Execution) -> None:
    setup = whole_setup
    job = replace(lora_job(setup, "t", rows=32, rank=8), final=True)
    plain, lean = (Workbench(setup).run(replace(job, trial=str(e), execution=e)) for e in (PLAIN, way))
    assert lean.status == "ok", lean.detail
    assert lean.loss == pytest.approx(plain.loss, rel=1e-5)
    arrays = [read_arrays(setup.path / str(outcome.outputs)) for outcome in (plain, lean)]
    np.testing.assert_allclose(arrays[1]["log_likelihood"], arrays[0]["log_likelihood"], rtol=1e-4, atol=1e-5)
    carrier = lambda: meta_carrier(setup.base.config, kind=setup.kind, head="mean", labels=setup.labels)  # noqa: E731
    length = longest_batch(setup.data.splits["train"], 16)[1]
    model = MemoryModel(carrier, Workbench(setup).modules("mean"), length=length, dtype="float32")
    predicted = model.predict(job.configuration, execution=way).bytes
    assert lean.peak_bytes == pytest.approx(predicted, rel=0.01)
    assert plain.peak_bytes is not None
    assert predicted < 0.95 * plain.peak_bytes


def test_a_trial_whose_blocks_are_recomputed_goes_on_from_its_checkpoint(setup: WorkSetup) -> None:
    way = Execution(4, checkpointing=True)
    first = replace(lora_job(setup, "t", rows=64), execution=way)
    bench = Workbench(setup)
    assert bench.run(first).status == "ok"
    second = replace(first, rows_from=64, rows_to=128, rung=1)
    resident, read = bench.run(second), Workbench(setup).run(second)
    assert (resident.rows, read.rows) == (64, 64)
    assert read.loss == resident.loss


@pytest.mark.parametrize("file", ["optimizer.safetensors", "adapter/adapter_model.safetensors"])
def test_a_damaged_checkpoint_starts_the_trial_anew(setup: WorkSetup, file: str) -> None:
    first = lora_job(setup, "t", rows=64)
    done = Workbench(setup).run(first)
    path = setup.path / "trials" / "t" / "rung-0" / file
    path.write_bytes(path.read_bytes()[:-20])
    second = replace(first, rows_from=done.rows, rows_to=128, rung=1)
    outcome = Workbench(setup).run(second)
    assert outcome.status == "ok", outcome.detail
    assert outcome.rows == 128
    assert isinstance(outcome.job, Train)
    assert outcome.job.rows_from == 0


def test_a_trial_for_plain_peft_goes_on_exactly(setup: WorkSetup) -> None:
    """Though its folder holds trained biases as sums with the base's, which are rounded."""
    setup = replace(setup, target="peft")
    job = lora_job(setup, "resident", rows=64)
    values = job.configuration.to_dict()
    values["sites"] = {f"bert.{name}": [*parts, {"method": "bias"}] for name, parts in values["sites"].items()}
    values["training"]["rates"]["bias"] = 4e-3
    job = replace(job, configuration=Configuration.from_dict(values), head="stock")
    parted = replace(job, trial="parted", folder="trials/parted")
    bench, ends = Workbench(setup), []
    for first, later in ((job, bench), (parted, Workbench(setup))):
        done = bench.run(first)
        assert done.status == "ok", done.detail
        about = describe(setup.path / str(done.adapter))
        assert (about["lowered_to"], about["writes_base_biases"]) == ("LORA", True)
        ends.append(later.run(replace(first, rows_from=done.rows, rows_to=256, rung=1)))
    assert [(end.status, end.rows) for end in ends] == [("ok", 192), ("ok", 192)]
    assert ends[0].sha256 == ends[1].sha256
    assert (ends[0].metrics, ends[0].loss) == (ends[1].metrics, ends[1].loss)


@pytest.mark.parametrize("head", ["mean", "stock"])
def test_the_latency_limit_is_measured_before_training(setup: WorkSetup, head: str) -> None:
    job = replace(lora_job(setup, "t", rows=32), head=head, latency=True)
    if head == "stock":
        values = job.configuration.to_dict()
        values["sites"] = {f"bert.{name}": parts for name, parts in values["sites"].items()}
        job = replace(job, configuration=Configuration.from_dict(values))
    strict = Workbench(replace(setup, max_latency_overhead=0.01)).run(job)
    assert (strict.status, strict.reason, strict.rows) == ("infeasible", "max_latency_overhead", 0)
    assert 0.1 < strict.values["measured"] < 50
    loose = Workbench(replace(setup, max_latency_overhead=100.0)).run(job)
    assert loose.status == "ok", loose.detail


@pytest.mark.parametrize(("method", "fits"), [("prompt_tuning", False), ("prefix_tuning", False), ("lora", True)])
def test_rows_that_do_not_fit_behind_a_prompt(setup: WorkSetup, method: str, fits: bool) -> None:
    split = setup.data.splits["validation"]
    # One row as long as the model's 512 positions after it was padded to a multiple of 8.
    ids = np.concatenate([np.full(505, 2000, dtype=split.input_ids.dtype), split.input_ids[: split.offsets[8]]])
    offsets = np.concatenate([[0], 505 + split.offsets[:9]]).astype(split.offsets.dtype)
    types = None if split.token_types is None else np.zeros(len(ids), dtype=split.token_types.dtype)
    assert split.labels is not None
    long = EncodedSplit(offsets, ids, types, labels=split.labels[:9])
    setup = replace(setup, data=replace(setup.data, splits={**setup.data.splits, "validation": long}))
    job = lora_job(setup, "t", rows=16)
    if not fits:
        configuration = Configuration.of({WHOLE: [Part.of(method, {"tokens": 1})]}, job.configuration.training)
        rates = replace(job.configuration.training, rates=((method, 1e-3),))
        job = replace(job, configuration=replace(configuration, training=rates))
    outcome = Workbench(setup).run(job)
    assert (outcome.status == "ok") == fits, outcome.detail
    if not fits:
        assert (outcome.status, outcome.reason, outcome.peak_bytes) == ("infeasible", "unsupported", None)
        assert "512 tokens do not fit" in outcome.detail


def test_an_adapter_too_large_for_the_disk_limit(setup: WorkSetup) -> None:
    outcome = Workbench(replace(setup, max_adapter_size=1000)).run(lora_job(setup, "t", rows=16))
    assert (outcome.status, outcome.reason) == ("infeasible", "max_adapter_size")
    assert not (setup.path / "trials" / "t" / "rung-0").exists()


def test_a_loss_that_is_no_number_is_a_failure_with_a_name(setup: WorkSetup) -> None:
    outcome = Workbench(setup).run(with_rate(lora_job(setup, "t", rows=400), 3e38))
    assert (outcome.status, outcome.reason) == ("failed", "nan")


def test_weights_that_are_not_the_chosen_ones_are_not_evaluated(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    trained = bench.run(lora_job(setup, "t", rows=32))
    job = Evaluate("winner", str(trained.adapter), "test", "test/winner.safetensors", sha256=trained.sha256)
    assert bench.run(job).metrics["accuracy"] >= 0
    assert bench.run(replace(job, sha256="0" * 64)).reason == "damaged"


def test_an_evaluation_says_which_metrics_its_rows_admit(setup: WorkSetup) -> None:
    test = setup.data.splits["test"]
    assert test.labels is not None
    types = None if test.token_types is None else test.token_types[: test.offsets[1]]
    one = EncodedSplit(
        test.offsets[:2], test.input_ids[: test.offsets[1]], types, labels=np.zeros_like(test.labels[:1])
    )
    setup = replace(setup, data=replace(setup.data, splits={**setup.data.splits, "one": one}))
    bench = Workbench(setup)
    trained = bench.run(lora_job(setup, "t", rows=16))
    told = [
        bench.run(Evaluate("a", str(trained.adapter), split, f"{split}.safetensors")).values["undefined"]
        for split in ("test", "one")
    ]
    assert told == [[], ["f1", "matthews"]]


def test_an_evaluation_past_its_limit_is_given_up(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    trained = bench.run(lora_job(setup, "t", rows=32))
    job = Evaluate("winner", str(trained.adapter), "test", "test/winner.safetensors", time_limit=0.0)
    assert [(o.status, o.reason) for o in [bench.run(job)]] == [("failed", "timeout")]
    assert bench.run(replace(job, time_limit=600.0)).status == "ok"


def test_a_bench_goes_on_after_a_failure(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    assert bench.run(Evaluate("gone", "no/such/folder", "test", "test/x.safetensors")).status == "failed"
    assert bench.run(lora_job(setup, "t", rows=16)).status == "ok"


def test_the_schedule_rises_holds_and_falls() -> None:
    shape = {"warmup_rows": 10, "rows_to": 100, "cooldown_rows": 20}
    values = [factor(rows, **shape) for rows in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[9:80] == [1.0] * 71
    assert np.all(np.diff(values[80:]) < 0)
    assert values[-1] == pytest.approx(0.05)
    # Below the last rung there is no fall: rungs compare.
    assert factor(99, warmup_rows=10, rows_to=100, cooldown_rows=0) == 1.0


OUT_OF_MEMORY = """
import json, resource, sys
import json
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from autopeft.testing.executors import lora_job, make_setup
from autopeft.trial.workbench import Workbench
model, data, folder = map(Path, sys.argv[1:])
setup = make_setup(model, data, folder)
bench = Workbench(setup)
small = lora_job(setup, "small", rows=32)
first = bench.run(small)
values = lora_job(setup, "large", rows=64).configuration.to_dict()
values["training"]["batch_size"] = 64
pages = int(Path("/proc/self/statm").read_text().split()[0])
# Room for less than what a batch of 64 rows of 512 tokens takes.
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, resource.RLIM_INFINITY))
from autopeft.space.configuration import Configuration
import numpy as np
train = setup.data.splits["train"]
ids = np.tile(train.input_ids[:512], 64)
long = replace(train, offsets=np.arange(65) * 512, input_ids=ids, labels=np.zeros(64, dtype=np.int64),
               token_types=None if train.token_types is None else np.zeros_like(ids))
wide = replace(setup, data=replace(setup.data, splits={**setup.data.splits, "train": long}))
bench.setup = wide
large = bench.run(replace(lora_job(setup, "large", rows=64), configuration=Configuration.from_dict(values)))
bench.setup = setup
again = bench.run(replace(small, trial="again", folder="trials/again"))
print(json.dumps([[o.status, o.reason, o.detail, o.seconds] for o in (first, large, again)]))
"""


def test_a_real_lack_of_memory_ends_the_job_and_frees_it(minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    lines = run_script(OUT_OF_MEMORY, minilm, tiny_reviews, tmp_path).splitlines()
    first, large, again = json.loads(lines[-1])
    assert first[0] == "ok", first
    assert large[:2] == ["infeasible", "oom"], large
    assert "had taken" in large[2]
    assert large[3] > 0
    assert again[0] == "ok", again
