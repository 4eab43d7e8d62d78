"""What a language model could do before and after, and the loss curves that trials keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compose_models import save_tiny, shake

from autopeft.compose.base import load_base
from autopeft.compose.store import load_adapter, save_adapter
from autopeft.data.encoded import EncodedData, EncodedSplit
from autopeft.errors import TrialFailure
from autopeft.evidence.signatures import forgetting
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.strategy.jobs import Evaluate, Train
from autopeft.testing.executors import lora_job
from autopeft.trial import workbench
from autopeft.trial.ability import LEAST_ROWS, ability, prompts_of
from autopeft.trial.setup import WorkSetup
from autopeft.trial.train import CURVE_POINTS, TrainResult
from autopeft.trial.workbench import Workbench


class Words:
    """Reads every token as a word."""

    def batch_decode(self, rows: torch.Tensor, *, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in rows]


def texts(rows: int, seed: int) -> EncodedSplit:
    """Rows of a few tokens, of which the last two are the answer."""
    chance = np.random.default_rng(seed)
    lengths = chance.integers(6, 12, size=rows)
    return EncodedSplit(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        input_ids=chance.integers(3, 90, size=int(lengths.sum())).astype(np.int32),
        answer_from=(lengths - 2).astype(np.int32),
        references=tuple("none" for _ in range(rows)),
    )


@pytest.fixture
def setup(tmp_path: Path) -> WorkSetup:
    splits = {name: texts(rows, seed) for seed, (name, rows) in enumerate(
        (("train", 60), ("validation", 80), ("test", 20))
    )}  # fmt: skip
    data = EncodedData(splits, "causal_lm", (), 0, 12, dict.fromkeys(splits, "0" * 64))
    base = load_base(save_tiny("llama", tmp_path / "model"), kind="causal_lm", dtype="float32")
    return WorkSetup(
        base=base, data=data, kind="causal_lm", metric="log_likelihood", labels=0, folder=str(tmp_path),
        precision="float32", attention="eager", tokenizer=Words(), generate_tokens=2,
    )  # fmt: skip


def liked(model: torch.nn.Module, split: EncodedSplit) -> EncodedSplit:
    """The same rows, but every token after the first is the one that the model finds likeliest."""
    ids = split.input_ids.copy()
    for start, end in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        for place in range(start + 1, end):
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(ids[None, start:place].astype(np.int64))).logits
            ids[place] = int(logits[0, -1].argmax())
    return replace(split, input_ids=ids)


def trained(setup: WorkSetup, rows: int) -> Workbench:
    bench = Workbench(setup)
    sites = {site.name: [Part.of("lora", {"r": 4, "scale": 1.0})] for site in bench.modules("lm").select(("query",))}
    made = Configuration.of(sites, Training((("lora", 1e-2),), 1e-3, 8))
    outcome = bench.run(Train("t", made, 1, 0, rows, 8, 0, 0, "trials/t", "lm"))
    assert outcome.status == "ok", outcome.detail
    assert outcome.adapter == "trials/t/rung-0/adapter"
    return bench


def test_prompts_are_cut_out_whole() -> None:
    split = EncodedSplit(
        offsets=np.array([0, 5, 7, 11]),
        input_ids=np.arange(10, 21, dtype=np.int32),
        answer_from=np.array([3, 1, 2], dtype=np.int32),
    )
    prompts = prompts_of(split)
    assert prompts.rows == 2
    assert prompts.input_ids.tolist() == [10, 11, 12, 17, 18]
    assert prompts.offsets.tolist() == [0, 3, 5]
    assert prompts.answer_from is not None
    assert prompts.answer_from.tolist() == [1, 1]
    with pytest.raises(ValueError, match="prompts"):
        prompts_of(replace(split, answer_from=None))


def test_the_test_phase_measures_what_the_base_could_do(setup: WorkSetup) -> None:
    bench = trained(setup, 64)
    job = Evaluate("challenger", "trials/t/rung-0/adapter", "test", "test/challenger.safetensors")
    found = bench.run(job).values["ability"]
    assert found["rows"] == 64
    # By hand, for every prompt alone, without padding.
    prompts = prompts_of(setup.data.splits["validation"])
    model = bench.carrier("lm").model
    chosen = np.sort(np.random.default_rng(20240319).choice(80, size=64, replace=False))
    means = []
    for row in chosen:
        ids = torch.from_numpy(prompts.input_ids[prompts.offsets[row] : prompts.offsets[row + 1]].astype(np.int64))
        with torch.no_grad():
            logp = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        means.append(float(logp.gather(-1, ids[1:, None]).mean()))
    assert found["before"] == pytest.approx(np.mean(means), abs=1e-4)
    assert found["low"] < found["after"] - found["before"] < found["high"]
    assert "ability" not in bench.run(replace(job, split="validation")).values


def test_ruined_weights_are_called_forgetting_and_untouched_ones_are_not(setup: WorkSetup) -> None:
    bench = trained(setup, 8)
    carrier, device = bench.carrier("lm"), torch.device("cpu")
    bare, split = bench._bare(carrier), liked(carrier.model, setup.data.splits["validation"])
    same = ability(bare, bare, split, setup, device)
    assert same is not None
    assert same["before"] == same["after"]
    assert forgetting("winner", "causal_lm", same).found is False
    folder = setup.path / "trials/t/rung-0/adapter"
    model = load_adapter(carrier, folder, trainable=True)
    shake(model.model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(30)
    save_adapter(model, setup.path / "ruined", meta={})
    ruined = ability(load_adapter(carrier, setup.path / "ruined"), bare, split, setup, device)
    assert ruined is not None
    assert ruined["after"] < ruined["before"]
    called = forgetting("winner", "causal_lm", ruined)
    assert called.found is True
    assert f"{ruined['after']:.3f} after" in called.words
    few = replace(split, offsets=split.offsets[:LEAST_ROWS], answer_from=split.answer_from[: LEAST_ROWS - 1])  # type: ignore[index]
    assert ability(bare, bare, few, setup, device) is None


def test_no_time_for_it_costs_no_test_score(setup: WorkSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = trained(setup, 8)

    def late(*arguments: object) -> None:
        raise TrialFailure("timeout", "no time is left")

    monkeypatch.setattr(workbench, "ability", late)
    outcome = bench.run(Evaluate("challenger", "trials/t/rung-0/adapter", "test", "test/challenger.safetensors"))
    assert outcome.status == "ok", outcome.detail
    assert outcome.values["ability"] is None
    assert forgetting("winner", "causal_lm", None).words == "Not measured: it was not reached."
    assert "own task" in forgetting("winner", "regression", None).words


def test_a_curve_has_the_mean_of_all_losses_and_ends_at_the_last_row() -> None:
    for steps, size in ((3, 32), (16, 32), (17, 8), (100, 16), (1000, 1)):
        losses = [(size, float(index)) for index in range(steps)]
        result = TrainResult(rows=steps * size, losses=losses)
        curve = result.curve(500)
        assert len(curve) == min(steps, CURVE_POINTS)
        assert curve[-1][0] == 500 + steps * size
        ends = [500, *(rows for rows, _ in curve)]
        weights = np.diff(ends)
        assert (weights > 0).all()
        assert np.average([loss for _, loss in curve], weights=weights) == pytest.approx((steps - 1) / 2)
    assert TrainResult().curve(0) == []


def test_a_trial_keeps_its_curve_from_rung_to_rung(prepared: WorkSetup, tmp_path: Path) -> None:
    setup = replace(prepared, folder=str(tmp_path))
    bench, job = Workbench(setup), lora_job(setup, "t", rows=160)
    first = bench.run(job)
    second = bench.run(replace(job, rows_from=first.rows, rows_to=320, rung=1))
    assert [len(outcome.losses) for outcome in (first, second)] == [10, 10]
    assert first.losses[-1][0] == 160
    assert [rows for rows, _ in second.losses] == list(range(176, 336, 16))
    assert second.losses[-1][1] < first.losses[0][1]
