"""Places that are chosen when a trial begins, on MiniLM's first blocks: the right ones, stored and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compose_models import alone, carrier_of, save_tiny
from safetensors.torch import load_file

from autopeft.compose.adapt import adapt
from autopeft.cost.step import compute_loss, step_tensors
from autopeft.data.batches import pad
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.strategy.jobs import Train
from autopeft.trial.choosing import FISHER_ROWS, FromTraining
from autopeft.trial.clock import JobClock
from autopeft.trial.evaluate import subset
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import Workbench

SITE, TOKENS = "encoder.layer.1.attention.self.query", "embeddings.word_embeddings"


def job_of(method: str, site: str, **knobs: int) -> Train:
    training = Training(((method, 3e-3),), 3e-3, 16)
    configuration = Configuration.of({site: [Part.of(method, knobs)]}, training)
    return Train("t", configuration, 1, 0, 64, 16, 0, 0, "trials/t", "mean")


def stored(setup: WorkSetup, rung: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places and values in a trial's adapter."""
    tensors = load_file(setup.path / "trials" / "t" / f"rung-{rung}" / "adapter" / "adapter_model.safetensors")
    (places,) = (tensor for key, tensor in tensors.items() if key.endswith("positions"))
    (values,) = (tensor for key, tensor in tensors.items() if key.endswith("values"))
    return places, values


def run(bench: Workbench, job: Train) -> None:
    outcome = bench.run(job)
    assert outcome.status == "ok", outcome.detail


def test_pafi_trains_the_weights_of_the_smallest_magnitude(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    run(bench, job_of("pafi", SITE, r=2))
    places, values = stored(setup, 0)
    weight = bench.carrier("mean").model.get_submodule(SITE).weight.detach().abs().flatten().numpy()
    assert sorted(places.tolist()) == sorted(np.argsort(weight, kind="stable")[: 2 * 2 * 384].tolist())
    assert int((values != 0).sum()) == len(values)


def test_fishmask_trains_the_weights_of_the_highest_fisher_information(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    run(bench, job_of("fishmask", SITE, r=2))
    places, _ = stored(setup, 0)
    model, split = bench._bare(bench.carrier("mean")).eval(), setup.data.splits["train"]
    weight = model.model.get_submodule(SITE).weight
    fisher = torch.zeros_like(weight)
    for row in subset(split, FISHER_ROWS):
        weight.requires_grad_(True)
        batch = step_tensors(pad(split, np.array([row]), setup.data.pad_token), setup.kind, torch.device("cpu"))
        compute_loss(model, batch, setup.kind, None).backward()
        assert weight.grad is not None
        fisher += weight.grad**2
        weight.grad = None
        weight.requires_grad_(False)
    least = fisher.flatten()[places.long()].min()
    assert least > 0
    # No weight that was left out informs more than one that was taken.
    assert int((fisher > least).sum()) < len(places) == 2 * 2 * 384
    assert not torch.equal(places, torch.arange(len(places), dtype=places.dtype))


def test_trainable_tokens_are_the_most_frequent(setup: WorkSetup) -> None:
    bench = Workbench(setup)
    run(bench, job_of("trainable_tokens", TOKENS, count=8))
    places, values = stored(setup, 0)
    counts = Counter(setup.data.splits["train"].input_ids.tolist())
    assert min(counts[token] for token in places.tolist()) >= sorted(counts.values())[-8]
    assert values.shape == (8, 384)
    assert bool((values != 0).any(dim=1).all())


@pytest.mark.parametrize(
    ("method", "site", "knobs"), [("fishmask", SITE, {"r": 2}), ("trainable_tokens", TOKENS, {"count": 8})]
)
def test_a_trial_goes_on_with_the_places_it_had(
    setup: WorkSetup, method: str, site: str, knobs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job_of(method, site, **knobs)
    run(Workbench(setup), first)

    def asked(*arguments: object) -> None:
        raise AssertionError("the places were chosen again")

    monkeypatch.setattr(FromTraining, "fisher", asked)
    monkeypatch.setattr(FromTraining, "frequent_tokens", asked)
    # Another worker, which has only the checkpoint.
    run(Workbench(setup), replace(first, rows_from=64, rows_to=128, rung=1))
    (before, early), (after, late) = stored(setup, 0), stored(setup, 1)
    assert torch.equal(before, after)
    assert not torch.equal(early, late)


class Examples:
    """Answers with fixed tokens."""

    def fisher(self, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        raise AssertionError

    def frequent_tokens(self, count: int) -> torch.Tensor:
        raise AssertionError

    def examples(self, count: int) -> torch.Tensor:
        return torch.arange(7, 7 + count)


def test_cpt_begins_as_examples(tmp_path: Path) -> None:
    carrier = carrier_of(save_tiny("llama", tmp_path), "causal_lm", "lm")
    modules = carrier.modules
    configuration = alone(modules, "cpt")
    adapted = adapt(carrier, configuration, modules, seed=1, data=Examples())
    count = int(configuration.sites[0][1][0]["tokens"])
    begun = adapted.model.prompt_encoder["default"].embedding.weight
    assert torch.equal(begun, carrier.model.get_input_embeddings().weight[7 : 7 + count])


def test_examples_are_whole_rows_and_begin_again_where_they_run_out(setup: WorkSetup) -> None:
    data = FromTraining(setup, lambda: pytest.fail("no model is needed"), torch.device("cpu"), JobClock(None))
    split = setup.data.splits["train"]
    rows = {tuple(split.input_ids[split.offsets[row] : split.offsets[row + 1]].tolist()) for row in range(split.rows)}
    found, begin = data.examples(60).tolist(), 0
    for end in range(1, len(found)):
        if tuple(found[begin:end]) in rows:
            begin = end
    assert begin > 60 - 32
    everything = data.examples(3 * len(split.input_ids))
    assert torch.equal(everything[: len(split.input_ids)], everything[len(split.input_ids) : 2 * len(split.input_ids)])
