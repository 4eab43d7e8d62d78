"""What is left out of a job changes nothing: casts under autocast, and most of the base's checksum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import carrier_of, save_tiny

from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import FOLD, Carrier, checksum
from autopeft.compose.host import spare_casts
from autopeft.cost.step import StepTensors, build_optimizer, train_step
from autopeft.space.configuration import Configuration, Part, Training


@pytest.fixture
def carrier(tmp_path: Path) -> Carrier:
    return carrier_of(save_tiny("bert", tmp_path / "model"), "sequence_classification", "mean", dtype="bfloat16")


def built(carrier: Carrier, method: str, *, dropout: float = 0.0, scale: float = 2.0) -> AdaptedModel:
    modules = carrier.modules
    sites = modules.select(("query", "value", "down"))
    parts = {site.name: [Part.of(method, {"r": 4, "scale": scale})] for site in sites}
    training = Training(((method, 1e-2),), 1e-2, 4, dropout)
    return adapt(carrier, Configuration.of(parts, training), modules, seed=3)


def trained(model: AdaptedModel) -> tuple[list[float], dict[str, torch.Tensor]]:
    optimizer = build_optimizer(model.groups(), model.configuration.training)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 100, (4, 8), generator=generator)
    batch = StepTensors(ids, torch.ones_like(ids), None, torch.tensor([0, 1, 2, 1]))
    model.train()
    losses = [train_step(model, batch, optimizer, "sequence_classification", torch.bfloat16) for _ in range(6)]
    return losses, {name: p.detach().clone() for name, p in model.trained().items()}


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.25, 1.5])
def test_lora_is_trained_to_the_same_bits_without_the_casts(carrier: Carrier, scale: float) -> None:
    plain, spared = (built(carrier, "lora", scale=scale) for _ in range(2))
    assert spare_casts(spared) == 9
    expected, found = trained(plain), trained(spared)
    assert found[0] == expected[0]
    assert expected[0][-1] < expected[0][0]
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


@pytest.mark.parametrize(("method", "dropout"), [("dora", 0.0), ("lora", 0.1)])
def test_what_computes_with_its_input_keeps_its_casts(carrier: Carrier, method: str, dropout: float) -> None:
    assert spare_casts(built(carrier, method, dropout=dropout)) == 0


def changed(tensor: torch.Tensor, change: Any) -> None:
    with torch.no_grad():
        change(tensor)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight[3, 5].add_(0.5),
        lambda weight: weight.neg_(),
        lambda weight: weight.copy_(weight.flip(0)),
        lambda weight: weight[-1, -1].add_(0.5),
        lambda weight: weight.zero_(),
    ],
    ids=["one number", "signs", "order of rows", "last number", "nothing left"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checksum_sees_every_kind_of_change(carrier: Carrier, change: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    # Folded several times over, with a rest that fills no word.
    weight = torch.randn(257, 8 * FOLD // 64 + 3, generator=generator).to(dtype)
    name, owner = "encoder.layer.0.attention.self.query", carrier.model
    owner.get_submodule(name).weight = torch.nn.Parameter(weight, requires_grad=False)
    before = checksum(carrier)
    assert checksum(carrier) == before
    changed(owner.get_submodule(name).weight, change)
    assert checksum(carrier) != before


def test_a_checksum_reads_tensors_that_begin_inside_of_a_word(carrier: Carrier) -> None:
    owner = carrier.model.get_submodule("encoder.layer.0.attention.self.query")
    whole = torch.randn(1 + 257 * FOLD, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    owner.weight = torch.nn.Parameter(whole[1:].view(257, FOLD), requires_grad=False)
    before = checksum(carrier)
    owner.weight = torch.nn.Parameter(whole[1:].clone().view(257, FOLD), requires_grad=False)
    assert checksum(carrier) == before
