"""Kept hidden states of frozen blocks: the same numbers as whole passes, whatever lies on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compose_models import carrier_of, save_tiny, uniform
from transformers import AlbertConfig, AutoModel, T5Config

import autopeft
from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import Carrier, load_base, meta_carrier
from autopeft.compose.lookup import Entry, block_stack, frozen_part, states_after
from autopeft.cost.memory import MemoryModel
from autopeft.cost.step import build_optimizer, compute_gradients, step_tensors
from autopeft.cost.time import StepCosts
from autopeft.data.batches import longest_batch, pad
from autopeft.data.encoded import Batch, EncodedData, EncodedSplit
from autopeft.space.configuration import WHOLE, Configuration, Part, Training
from autopeft.space.execution import PLAIN, Execution
from autopeft.space.frozen import frozen_blocks
from autopeft.space.modules import ModuleMap
from autopeft.strategy.jobs import Outcome, Train
from autopeft.testing.executors import make_setup
from autopeft.trial.checkpoint import read_arrays
from autopeft.trial.fit import fit_of
from autopeft.trial.frozen import FrozenStates, default_cache_bytes, states_folder
from autopeft.trial.setup import WorkSetup
from autopeft.trial.statefile import StateFolder
from autopeft.trial.workbench import Workbench

CPU = torch.device("cpu")
HEADS = {"bert": ("sequence_classification", "mean"), "llama": ("causal_lm", "lm"), "gpt2": ("causal_lm", "lm")}


def from_block(modules: ModuleMap, lowest: int, *methods: str, dropout: float = 0.0) -> Configuration:
    """The methods on every site from a block on."""
    blocks = {site.name: site.block for site in modules.sites}
    values = uniform(modules, *methods, dropout=dropout).to_dict()
    values["sites"] = {name: parts for name, parts in values["sites"].items() if blocks[name] >= lowest}
    return Configuration.from_dict(values)


def encoded(rows: int, kind: str, seed: int) -> EncodedSplit:
    """Random rows of 3 to 40 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 41, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(3, 100, offsets[-1]).astype(np.int32)
    if kind == "causal_lm":
        return EncodedSplit(offsets, ids, answer_from=(lengths // 2).astype(np.int32), references=("x",) * rows)
    return EncodedSplit(offsets, ids, labels=rng.integers(0, 3, rows))


def tiny_setup(name: str, folder: Path, *, precision: str = "float32", kind: str | None = None) -> WorkSetup:
    kind = kind or HEADS[name][0]
    model = folder / "model"
    if not model.is_dir():
        save_tiny(name, model)
    splits = {"train": encoded(60, kind, 1), "validation": encoded(40, kind, 2), "test": encoded(5, kind, 3)}
    data = EncodedData(splits, kind, ("a", "b", "c"), 0, 40, {name: name for name in splits}).padded_to(2)
    base = load_base(model, kind=kind, dtype=precision)  # type: ignore[arg-type]
    labels = 0 if kind == "causal_lm" else 3
    return WorkSetup(base, data, kind, "accuracy", labels, str(folder), precision, "eager")  # type: ignore[arg-type]


def train_job(bench: Workbench, head: str, lowest: int, trial: str = "t", *methods: str) -> Train:
    configuration = from_block(bench.modules(head), lowest, *(methods or ("lora",)), dropout=0.1)
    configuration = replace(configuration, training=replace(configuration.training, batch_size=8))
    return Train(trial, configuration, 1, 0, 120, 16, 0, 0, f"trials/{trial}", head)


def losses_and_gradients(
    adapted: AdaptedModel, batch: Batch, kind: str, precision: torch.dtype | None, entry: Entry | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    optimizer = build_optimizer(adapted.groups(), adapted.configuration.training)
    optimizer.zero_grad()
    tensors = replace(step_tensors(batch, kind), entry=entry)
    loss, norm = compute_gradients(adapted, tensors, optimizer, kind, precision)
    trained = adapted.trained().values()
    found = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]
    assert len(found) == len(adapted.trained())
    assert float(norm) > 0
    return loss, found


class TestThePass:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("name", HEADS)
    @pytest.mark.parametrize("recomputed", [False, True])
    def test_on_equal_batches_it_is_the_whole_pass_exactly(
        self, name: str, precision: str, recomputed: bool, tmp_path: Path
    ) -> None:
        kind, head = HEADS[name]
        carrier = carrier_of(save_tiny(name, tmp_path), kind, head, dtype=precision)
        modules = carrier.modules
        stack = block_stack(carrier.model, modules)
        assert stack is not None
        dtype = torch.bfloat16 if precision == "bfloat16" else None
        batch = pad(encoded(6, kind, 5), np.arange(6), 0)
        inputs = {
            "input_ids": torch.from_numpy(batch.input_ids),
            "attention_mask": torch.from_numpy(batch.attention_mask),
        }
        for layer in range(1, modules.blocks):
            adapted = adapt(carrier, from_block(modules, layer, "lora", "serial"), modules, seed=3)
            with torch.no_grad():
                for parameter in adapted.trained().values():
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
            if recomputed:
                adapted.checkpoint_blocks()
            blocks = frozen_part(adapted, stack, layer)
            assert blocks is not None
            with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                states = states_after(carrier, stack, layer, inputs)
            states[inputs["attention_mask"] == 0] = 0
            before = [dict(block.__dict__) for block in blocks]
            whole = losses_and_gradients(adapted, batch, kind, dtype, None)
            begun = losses_and_gradients(adapted, batch, kind, dtype, Entry(blocks, states.clone))
            assert torch.equal(whole[0], begun[0])
            assert all(torch.equal(one, other) for one, other in zip(whole[1], begun[1], strict=True))
            assert [block.__dict__ for block in blocks] == before

    def test_it_takes_what_it_is_given(self, tmp_path: Path) -> None:
        """Other states give another loss: the lower blocks are really passed over."""
        carrier = carrier_of(save_tiny("bert", tmp_path), "sequence_classification", "mean")
        modules = carrier.modules
        adapted = adapt(carrier, from_block(modules, 2, "lora"), modules, seed=3)
        blocks = frozen_part(adapted, "encoder.layer", 2)
        assert blocks is not None
        batch = pad(encoded(6, "sequence_classification", 5), np.arange(6), 0)
        ran: list[int] = []
        for index, block in enumerate(adapted.model.base_model.model.encoder.layer):
            block.attention.register_forward_hook(lambda *_, index=index: ran.append(index))
        entry = Entry(blocks, lambda: torch.zeros(*batch.input_ids.shape, 32))
        loss, _ = losses_and_gradients(adapted, batch, "sequence_classification", None, entry)
        assert ran == [2]
        assert loss != losses_and_gradients(adapted, batch, "sequence_classification", None, None)[0]

    def test_the_blocks_come_back_after_an_error(self, tmp_path: Path) -> None:
        carrier = carrier_of(save_tiny("gpt2", tmp_path), "causal_lm", "lm")
        modules = carrier.modules
        adapted = adapt(carrier, from_block(modules, 1, "lora"), modules, seed=3)
        blocks = frozen_part(adapted, "transformer.h", 1)
        assert blocks is not None

        def broken() -> torch.Tensor:
            raise OSError("no disk")

        ids = torch.arange(3, 11)[None]
        before = adapted(ids, torch.ones_like(ids))
        with pytest.raises(OSError, match="no disk"), Entry(blocks, broken).passing():
            adapted(ids, torch.ones_like(ids))
        assert torch.equal(adapted(ids, torch.ones_like(ids)), before)


class TestWhatIsFrozen:
    def test_lowest_block(self) -> None:
        from space_models import bert

        modules = bert()
        assert frozen_blocks(Configuration((), Training((), 1e-3, 8)), modules) == modules.blocks
        for block in range(modules.blocks):
            assert frozen_blocks(from_block(modules, block, "lora"), modules) == block
        whole = Configuration.of({WHOLE: [Part.of("prompt_tuning", {"tokens": 4})]}, Training((), 1e-3, 8))
        assert frozen_blocks(whole, modules) == 0

    @pytest.mark.parametrize("method", ["bias", "layernorm", "prefix", "lora", "serial", "trainable_tokens"])
    def test_nothing_is_looked_up_above_something_trained(self, method: str, tmp_path: Path) -> None:
        carrier = carrier_of(save_tiny("bert", tmp_path), "sequence_classification", "mean")
        modules = carrier.modules
        top = from_block(modules, 2, "lora").to_dict()["sites"]
        low = {name: p for name, p in uniform(modules, method).to_dict()["sites"].items() if modules[name].block == 0}
        assert low
        values = uniform(modules, "lora", method).to_dict() | {"sites": low | top}
        adapted = adapt(carrier, Configuration.from_dict(values), modules, seed=0)
        assert frozen_blocks(adapted.configuration, modules) == 0
        assert all(frozen_part(adapted, "encoder.layer", layer) is None for layer in (1, 2, 3))

    def test_a_block_in_training_mode_is_not_frozen(self, tmp_path: Path) -> None:
        carrier = carrier_of(save_tiny("bert", tmp_path), "sequence_classification", "mean")
        modules = carrier.modules
        adapted = adapt(carrier, from_block(modules, 2, "lora"), modules, seed=0)
        assert frozen_part(adapted, "encoder.layer", 2) is not None
        assert frozen_part(adapted, "encoder.layer", 3) is None
        adapted.model.base_model.model.encoder.layer[0].attention.self.dropout.train()
        assert frozen_part(adapted, "encoder.layer", 2) is None


def carrier_with(config: object, folder: Path) -> Carrier:
    AutoModel.from_config(config).save_pretrained(folder / "model")
    return carrier_of(folder / "model", "sequence_classification", "mean")


class TestModels:
    @pytest.mark.parametrize("name", HEADS)
    def test_fit(self, name: str, tmp_path: Path) -> None:
        setup = tiny_setup(name, tmp_path)
        bench = Workbench(setup)
        head = HEADS[name][1]
        for layer in range(1, bench.modules(head).blocks + 1):
            fit = fit_of(setup, CPU, bench.carrier(head), bench.modules(head), layer)
            assert (fit.reason, fit.width, fit.dtype) == (None, 32, torch.float32)

    def test_t5_passes_position_biases_up(self, tmp_path: Path) -> None:
        config = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, vocab_size=100, use_cache=False)
        carrier = carrier_with(config, tmp_path)
        setup = tiny_setup("bert", tmp_path / "bert")
        fit = fit_of(setup, CPU, carrier, carrier.modules, 1)
        assert fit.reason is not None
        assert "more than hidden states" in fit.reason

    def test_albert_has_one_block_for_all(self, tmp_path: Path) -> None:
        config = AlbertConfig(
            vocab_size=100, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64,
        )  # fmt: skip
        carrier = carrier_with(config, tmp_path)
        fit = fit_of(tiny_setup("bert", tmp_path / "bert"), CPU, carrier, carrier.modules, 1)
        assert fit.reason == "the blocks of this model are not one list"

    def test_a_block_that_reads_the_embedding_is_found_out(self, tmp_path: Path) -> None:
        """Nothing in its signature tells; the comparison of both ways does."""
        setup = tiny_setup("bert", tmp_path)
        bench = Workbench(setup)
        carrier = bench.carrier("mean")
        first, last = carrier.model.encoder.layer[0], carrier.model.encoder.layer[2]
        seen: list[torch.Tensor] = []
        first.attention.self.query.register_forward_hook(lambda module, args, output: seen.insert(0, output.std()))

        def reads(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            changed = output * (1 + seen[0]) if seen else output
            seen.clear()
            return changed

        last.attention.self.query.register_forward_hook(reads)
        fit = fit_of(setup, CPU, carrier, bench.modules("mean"), 2)
        assert fit.reason == "the blocks of this model depend on more than the hidden states below them"


def outcome_of(setup: WorkSetup, job: Train) -> Outcome:
    outcome = Workbench(setup).run(job)
    assert outcome.status == "ok", outcome.detail
    return outcome


def numbers(outcome: Outcome) -> tuple[object, ...]:
    return outcome.sha256, outcome.loss, outcome.losses, outcome.metrics


class TestTrials:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("name", HEADS)
    def test_a_trial_is_the_same_trial(self, name: str, precision: str, tmp_path: Path) -> None:
        setup = tiny_setup(name, tmp_path, precision=precision)
        job = train_job(Workbench(setup), HEADS[name][1], 1)
        whole = outcome_of(replace(setup, cache_bytes=0), replace(job, trial="whole", folder="trials/whole"))
        filled, read = outcome_of(setup, job), outcome_of(setup, job)
        assert whole.values["states"] == {
            "blocks": 0, "off": "switched off", "read": 0, "filled": 0, "fill_seconds": 0.0,
        }  # fmt: skip
        assert (filled.values["states"]["blocks"], filled.values["states"]["filled"]) == (1, 100)
        assert (read.values["states"]["read"], read.values["states"]["filled"]) == (160, 0)
        assert numbers(filled) == numbers(read)
        tolerance = 1e-6 if precision == "float32" else 2e-2
        assert whole.loss == pytest.approx(filled.loss, rel=tolerance)
        for key, values in read_arrays(setup.path / str(whole.outputs)).items():
            np.testing.assert_allclose(
                read_arrays(setup.path / str(filled.outputs))[key], values, rtol=10 * tolerance, atol=10 * tolerance
            )

    def test_whatever_lies_on_the_disk_the_numbers_are_the_same(self, tmp_path: Path) -> None:
        setup = tiny_setup("bert", tmp_path)
        job = train_job(Workbench(setup), "mean", 2)
        first = outcome_of(setup, job)
        (train,) = states_folder(tmp_path).rglob("train-2-*.states")
        content = bytearray(train.read_bytes())
        content[9000:9100] = bytes(100)
        train.write_bytes(content)
        damaged = outcome_of(setup, job)
        assert 0 < damaged.values["states"]["filled"] < 60
        assert outcome_of(setup, job).values["states"]["filled"] == 0
        train.write_bytes(content[:5000])
        shortened = outcome_of(setup, job)
        assert shortened.values["states"]["filled"] == 60
        (tmp_path / "elsewhere").mkdir()
        # The rows fit, the file system's pages do not: some rows are computed whenever they are needed.
        tokens = sum(len(setup.data.splits[name].input_ids) for name in ("train", "validation"))
        tight = replace(setup, folder=str(tmp_path / "elsewhere"), cache_bytes=tokens * 32 * 4)
        blocked = tmp_path / "blocked"
        blocked.mkdir()
        (blocked / "states").write_text("a file where the folder should be")
        lone = outcome_of(replace(setup, folder=str(blocked)), job)
        assert lone.values["states"]["filled"] >= 160
        assert numbers(first) == numbers(damaged) == numbers(shortened) == numbers(lone)
        assert numbers(outcome_of(tight, job)) == numbers(first)
        partly = outcome_of(tight, job)
        assert 0 < partly.values["states"]["filled"] < 100
        assert numbers(partly) == numbers(first)

    def test_a_trial_goes_on_from_its_checkpoint_with_and_without_files(self, tmp_path: Path) -> None:
        setup = tiny_setup("bert", tmp_path)
        bench = Workbench(setup)
        first = train_job(bench, "mean", 2)
        done = bench.run(first)
        second = replace(first, rows_from=done.rows, rows_to=240, rung=1)
        resident = bench.run(second)
        for path in states_folder(tmp_path).rglob("*.states"):
            path.unlink()
        assert numbers(outcome_of(setup, second)) == numbers(resident)

    def test_pieces_and_recomputed_blocks(self, tmp_path: Path) -> None:
        setup = tiny_setup("llama", tmp_path)
        job = replace(train_job(Workbench(setup), "lm", 2, "t", "lora", "serial"), final=False)
        plain = outcome_of(setup, job)
        for way in (Execution(4), Execution(None, checkpointing=True), Execution(2, checkpointing=True)):
            other = outcome_of(setup, replace(job, execution=way))
            assert other.values["states"]["blocks"] == 2
            assert other.loss == pytest.approx(plain.loss, rel=1e-3)

    @pytest.mark.slow
    def test_two_processes_fill_at_once(self, tmp_path: Path) -> None:
        setup = tiny_setup("bert", tmp_path)
        script = (
            "import sys; from dataclasses import replace; from pathlib import Path\n"
            "from test_frozen import tiny_setup, train_job\n"
            "from autopeft.trial.workbench import Workbench\n"
            "setup = tiny_setup('bert', Path(sys.argv[1])); bench = Workbench(setup)\n"
            "bench.carrier('mean'); job = train_job(bench, 'mean', 2, sys.argv[2]); input()\n"
            "out = bench.run(job); print(out.sha256, out.loss, out.values['states']['blocks'])\n"
        )
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(tmp_path), trial],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
                env=os.environ | {"PYTHONPATH": str(Path(autopeft.__file__).parents[1])},
            )
            for trial in ("a", "b")
        ]  # fmt: skip
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        one, other = (worker.communicate(timeout=400)[0].split()[-3:] for worker in workers)
        third = outcome_of(setup, train_job(Workbench(setup), "mean", 2, "c"))
        assert one == other == [third.sha256, str(third.loss), "2"]
        assert third.values["states"]["filled"] == 0
        assert len([*states_folder(tmp_path).rglob("*")]) == 3


class TestWhenItIsOff:
    def reason(self, setup: WorkSetup, job: Train) -> str | None:
        bench = Workbench(setup)
        carrier, modules = bench.carrier(job.head), bench.modules(job.head)
        model = adapt(carrier, job.configuration, modules, seed=0)
        return FrozenStates(setup, CPU).prefix(job, model, modules).use.off

    def test_reasons(self, tmp_path: Path) -> None:
        setup = tiny_setup("bert", tmp_path)
        bench = Workbench(setup)
        job = train_job(bench, "mean", 2)
        assert self.reason(setup, job) is None
        assert self.reason(replace(setup, cache_bytes=0), job) == "switched off"
        assert self.reason(setup, train_job(bench, "mean", 0)) == "nothing is frozen below what is trained"
        short = self.reason(replace(setup, cache_bytes=100_000), job)
        assert short is not None
        assert "above the limit of 100,000" in short
        lean = replace(job, execution=Execution(2))
        assert self.reason(setup, lean) is None
        assert "pieces smaller" in str(self.reason(replace(setup, limited_memory=True), lean))

    def test_the_limit_of_a_machine_is_a_share_of_it(self, tmp_path: Path) -> None:
        assert 2**26 < default_cache_bytes(tmp_path / "not" / "yet") < 2**50


@pytest.mark.parametrize("way", [PLAIN, Execution(8), Execution(checkpointing=True)])
def test_memory_stays_below_what_whole_passes_were_predicted_to_take(way: Execution, tmp_path: Path) -> None:
    setup = replace(tiny_setup("bert", tmp_path), limited_memory=True, memory_of_all=True)
    bench = Workbench(setup)
    for layer in (1, 2):
        job = train_job(bench, "mean", layer, f"t{layer}")
        configuration = replace(job.configuration, training=replace(job.configuration.training, batch_size=16))
        job = replace(job, configuration=configuration, execution=way)
        outcome = bench.run(job)
        assert outcome.values["states"]["blocks"] == layer
        carrier = lambda: meta_carrier(setup.base.config, kind=setup.kind, head="mean", labels=3)  # noqa: E731
        length = longest_batch(setup.data.splits["train"], 16)[1]
        memory = MemoryModel(carrier, bench.modules("mean"), length=length, dtype="float32")
        predicted = memory.predict(configuration, execution=way).bytes
        assert outcome.peak_bytes is not None
        assert 0.8 * predicted < outcome.peak_bytes <= 1.001 * predicted


class TestFiles:
    sizes = np.full(8, 65_536)

    def test_rows_come_back(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path / "s", 1 << 30)
        file = folder.open("a", {"of": 1}, self.sizes)
        assert file is not None
        content = np.random.default_rng(0).integers(0, 255, 65_536).astype(np.uint8)
        assert file.read(3) is None
        assert file.write(3, content)
        again = folder.open("a", {"of": 1}, self.sizes)
        assert again is not None
        np.testing.assert_array_equal(again.read(3), content)
        assert again.read(2) is None
        assert file.holds(3)
        assert not file.holds(2)

    def test_another_content_or_length_is_replaced(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path, 1 << 30)
        for about, sizes in (({"of": 1}, self.sizes), ({"of": 2}, self.sizes), ({"of": 2}, self.sizes[:4])):
            file = folder.open("a", about, sizes)
            assert file is not None
            assert file.read(1) is None
            assert file.write(1, np.ones(65_536, np.uint8))
            file.close()

    def test_room_is_made_of_files_that_nobody_uses_the_oldest_first(self, tmp_path: Path) -> None:
        folder = StateFolder(tmp_path, 3 * 65_536 + 8 * 4096)
        files = {}
        for age, name in ((30, "old"), (20, "older use"), (10, "new")):
            file = folder.open(name, {}, self.sizes)
            assert file is not None
            assert folder.room(65_536)
            assert file.write(0, np.ones(65_536, np.uint8))
            os.utime(file.path, (1e9 - age, 1e9 - age))
            files[name] = file
        assert not folder.room(2 * 65_536)
        files["older use"].close()
        files["new"].close()
        assert folder.room(65_536)
        assert {path.stem for path in tmp_path.iterdir()} == {"old", "new"}
        held = files["old"].read(0)
        assert held is not None
        assert held.all()
        assert folder.used() <= 3 * 65_536 + 8 * 4096


def test_the_time_of_what_is_looked_up_is_learned() -> None:
    from space_models import bert

    modules = bert()
    costs = StepCosts(modules)
    costs.observe(from_block(modules, 0, "lora"), 1000, 10.0)
    top = from_block(modules, modules.blocks - 1, "lora")
    whole = costs.predict(top, 1000)
    costs.observe(top, 1000, 1.5, looked_up=modules.blocks - 1)
    assert costs.predict(top, 1000) == pytest.approx(1.5, rel=0.4)
    assert costs.predict(top, 1000) < 0.7 * whole
    assert costs.predict(from_block(modules, 0, "lora"), 1000) == pytest.approx(10, rel=0.3)
    costs.observe(top, 1000, whole, looked_up=0)
    assert costs.predict(top, 1000) > 0.7 * whole


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_minilm(precision: str, minilm: Path, tiny_reviews: Path, tmp_path: Path) -> None:
    base = load_base(minilm, kind="sequence_classification", dtype=precision)  # type: ignore[arg-type]
    setup = replace(make_setup(minilm, tiny_reviews, tmp_path), base=base, precision=precision)
    same_on_a_real_model(setup, "mean", 3, 48, 1e-6 if precision == "float32" else 1e-2)


@pytest.mark.slow
def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    """A llama of 135 M parameters, with grouped keys and rotary positions."""
    base = load_base(smollm2, kind="causal_lm", dtype="float32")
    setup = replace(tiny_setup("llama", tmp_path), base=base)
    same_on_a_real_model(setup, "lm", 25, 16, 1e-6)


def same_on_a_real_model(setup: WorkSetup, head: str, lowest: int, rows: int, tolerance: float) -> None:
    job = replace(train_job(Workbench(setup), head, lowest), rows_to=rows, evaluate_rows=rows)
    whole = outcome_of(replace(setup, cache_bytes=0), job)
    expected = read_arrays(setup.path / str(whole.outputs))
    filled, read = outcome_of(setup, job), outcome_of(setup, job)
    assert (filled.values["states"]["blocks"], read.values["states"]["filled"]) == (lowest, 0)
    assert numbers(filled) == numbers(read)
    assert filled.loss == pytest.approx(whole.loss, rel=tolerance)
    found = read_arrays(setup.path / str(read.outputs))
    np.testing.assert_allclose(
        found["log_likelihood"], expected["log_likelihood"], rtol=10 * tolerance, atol=10 * tolerance
    )
