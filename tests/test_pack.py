"""A pack trains each of its members as it would be trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compose_models import arbitrary, carrier_of, save_tiny, uniform, SomeData

from autopeft.compose.adapt import AdaptedModel, adapt, reseed
from autopeft.compose.base import Carrier, checksum
from autopeft.compose.pack import PackedModel, packable
from autopeft.cost.pack import packed_step
from autopeft.cost.step import StepTensors, build_optimizer, step_tensors, train_step
from autopeft.data.encoded import Batch
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration

KINDS = {"bert": "sequence_classification", "llama": "causal_lm", "gpt2": "causal_lm"}
PACKABLE = [name for name, row in METHODS.items() if row.packable and row.unsearchable is None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(name, root / name) for name in KINDS}


def carrier(folders: dict[str, Path], name: str, attention: str = "eager", head: str = "mean") -> Carrier:
    return carrier_of(folders[name], KINDS[name], head if name == "bert" else "lm", attention=attention)


def batch(kind: str, rows: int, length: int, seed: int) -> StepTensors:
    """A batch whose rows have different lengths, padded."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 100, (rows, length))
    mask = np.arange(length) < rng.integers(2, length + 1, rows)[:, None]
    mask[0] = True
    ids[~mask] = 0
    labels = rng.integers(0, 3, rows)
    if kind == "causal_lm":
        labels = np.where(mask & (np.arange(length) > 0), ids, -100)
    return step_tensors(Batch(np.arange(rows), ids, mask.astype(np.int64), None, labels), kind)


class Alone:
    """A member, and its twin that is trained alone on the same batches."""

    def __init__(self, base: Carrier, configuration: Configuration, seed: int, rows: int, lengths: Sequence[int]) -> None:
        self.kind, self.configuration = base.kind, configuration
        models = []
        for _ in range(2):
            data = SomeData(base.model, seed)
            models.append(adapt(base, configuration, module_map(base.model), seed=seed, data=data))
            reseed(models[-1], seed)
        self.packed, self.twin = models
        self.optimizers = [build_optimizer(m.groups(), configuration.training) for m in models]
        self.batches = [batch(self.kind, rows, length, 100 * seed + i) for i, length in enumerate(lengths)]
        self.losses: list[float | None] = []

    def check(self, steps: int) -> None:
        self.twin.train()
        alone = [train_step(self.twin, b, self.optimizers[1], self.kind, None) for b in self.batches[:steps]]
        assert self.losses == pytest.approx(alone, abs=2e-6, rel=2e-6)
        for (name, one), two in zip(self.packed.trained().items(), self.twin.trained().values(), strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def steps(members: Sequence[Alone], first: int, last: int) -> None:
    """Some steps of a pack; a member's own step number is how many it has made."""
    packed = PackedModel([member.packed for member in members])
    packed.train()
    for _ in range(first, last):
        batches = [member.batches[len(member.losses)] for member in members]
        found = packed_step(packed, batches, [m.optimizers[0] for m in members], members[0].kind, None)
        for member, loss in zip(members, found, strict=True):
            member.losses.append(loss)


def changed(configuration: Configuration, rows: int, dropout: float, faster: float) -> Configuration:
    training = configuration.training
    rates = tuple((name, faster * rate) for name, rate in training.rates)
    values = replace(training, rates=rates, head_rate=faster * training.head_rate, batch_size=rows, dropout=dropout)
    return replace(configuration, training=values)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", PACKABLE)
def test_every_method_trains_in_a_pack_as_alone(
    folders: dict[str, Path], method: str, name: str, attention: str
) -> None:
    base = carrier(folders, name, attention)
    modules = module_map(base.model)
    configuration = uniform(modules, method)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in {name}")
    before = checksum(base)
    members = [
        Alone(base, changed(configuration, 4, 0.1, 1.0), 1, 4, (16, 8, 24, 16, 16)),
        Alone(base, changed(uniform(modules, "lora"), 2, 0.2, 0.5), 2, 2, (16, 16, 8, 16, 24)),
        Alone(base, changed(configuration, 3, 0.0, 0.3), 3, 3, (8, 16, 16, 24, 16)),
    ]
    steps(members, 0, 5)
    for member in members:
        member.check(5)
    assert checksum(base) == before
