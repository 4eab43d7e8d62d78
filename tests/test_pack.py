"""A pack trains each of its members as it would be trained alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compose_models import SomeData, alone, arbitrary, build, carrier_of, uniform

from autopeft.compose.adapt import adapt, reseed
from autopeft.compose.base import Carrier, checksum
from autopeft.compose.pack import PackedModel, packable
from autopeft.cost.pack import packed_step
from autopeft.cost.step import StepTensors, build_optimizer, step_tensors, train_step
from autopeft.data.encoded import Batch
from autopeft.errors import TrialFailure
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration

KINDS = {"bert": "sequence_classification", "llama": "causal_lm", "gpt2": "causal_lm"}
EPSILON = 1e-4
PACKABLE = [name for name, row in METHODS.items() if row.packable and row.unsearchable is None]
SOME = [name if METHODS[name].tier == 1 else pytest.param(name, marks=pytest.mark.slow) for name in PACKABLE]


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

    def __init__(
        self, base: Carrier, configuration: Configuration, seed: int, rows: int, lengths: Sequence[int]
    ) -> None:
        self.kind, self.configuration = base.kind, configuration
        models = []
        for _ in range(2):
            data = SomeData(base.model, seed)
            models.append(adapt(base, configuration, base.modules, seed=seed, data=data))
            reseed(models[-1], seed)
        self.packed, self.twin = models
        self.optimizers = [build_optimizer(m.groups(), configuration.training) for m in models]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                # A key's bias has gradients of rounding alone, which Adam would divide by themselves.
                group["eps"] = EPSILON
        self.batches = [batch(self.kind, rows, length, 100 * seed + i) for i, length in enumerate(lengths)]
        self.losses: list[float | None] = []

    def check(self) -> None:
        """Train the twin alone, and compare losses and weights."""
        self.twin.train()
        made = len(self.losses)
        alone = [train_step(self.twin, b, self.optimizers[1], self.kind, None) for b in self.batches[:made]]
        assert self.losses == pytest.approx(alone, abs=2e-6, rel=2e-6)
        for (name, one), two in zip(self.packed.trained().items(), self.twin.trained().values(), strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def steps(members: Sequence[Alone], count: int) -> None:
    """Some steps of a pack that is made for them; a member's own step number is how many it has made."""
    packed = PackedModel([member.packed for member in members])
    packed.train()
    for _ in range(count):
        batches = [member.batches[len(member.losses)] for member in members]
        found = packed_step(packed, batches, [m.optimizers[0] for m in members], members[0].kind, None)
        for member, loss in zip(members, found, strict=True):
            member.losses.append(loss)


def changed(configuration: Configuration, rows: int, dropout: float, faster: float) -> Configuration:
    training = configuration.training
    rates = tuple((name, faster * rate) for name, rate in training.rates)
    values = replace(training, rates=rates, head_rate=faster * training.head_rate, batch_size=rows, dropout=dropout)
    return replace(configuration, training=values)


def ends(configuration: Configuration) -> Configuration:
    """Parts in the first and the last block only: the ones between run once for all."""
    kept = tuple((name, parts) for name, parts in configuration.sites if ".1." not in name)
    return replace(configuration, sites=kept)


@pytest.mark.parametrize("name", ["bert", *[pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt2")]])
@pytest.mark.parametrize("method", SOME)
def test_every_method_trains_in_a_pack_as_alone(folders: dict[str, Path], method: str, name: str) -> None:
    base = carrier(folders, name)
    modules = base.modules
    configuration = ends(uniform(modules, method))
    if not configuration.sites:
        pytest.skip(f"{method} has no place in {name}")
    before = checksum(base)
    members = [
        Alone(base, changed(configuration, 4, 0.1, 1.0), 1, 4, (16, 8, 24)),
        Alone(base, changed(ends(uniform(modules, "lora")), 2, 0.2, 0.5), 2, 2, (16, 16, 8)),
        Alone(base, changed(configuration, 3, 0.0, 0.3), 3, 3, (8, 16, 16)),
    ]
    steps(members, 3)
    for member in members:
        member.check()
    assert checksum(base) == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_mixtures_leave_and_join(folders: dict[str, Path], name: str, attention: str, seed: int) -> None:
    base = carrier(folders, name, attention)
    modules = base.modules
    lengths = (16, 8, 24, 16, 16, 8, 16)
    members = [
        Alone(base, changed(arbitrary(modules, 10 * seed + i), 2 + i, 0.1 * i, 1 / (1 + i)), i + 1, 2 + i, lengths[i:])
        for i in range(3)
    ]
    steps(members, 2)
    steps(members[:2], 1)
    steps([members[0], members[2]], 2)
    assert [len(member.losses) for member in members] == [5, 3, 4]
    for member in members:
        member.check()


@pytest.mark.parametrize("head", ["stock", "cls"])
def test_every_member_has_its_own_head(folders: dict[str, Path], head: str) -> None:
    base = carrier(folders, "bert", head=head)
    modules = base.modules
    members = [
        Alone(base, changed(ends(uniform(modules, method)), 3, 0.0, 1.0), i, 3, (8, 16, 16))
        for i, method in enumerate(("lora", "prefix", "serial"))
    ]
    steps(members, 3)
    for member in members:
        member.check()


def test_a_member_that_breaks_harms_nobody(folders: dict[str, Path]) -> None:
    base = carrier(folders, "bert")
    modules = base.modules
    members = [Alone(base, changed(ends(uniform(modules, "lora")), 3, 0.1, 1.0), i, 3, (16, 8, 16)) for i in range(3)]
    steps(members, 1)
    with torch.no_grad():
        next(iter(members[1].packed.trained().values())).fill_(float("nan"))
    steps(members, 2)
    assert members[1].losses[1:] == [None, None]
    for member in (members[0], members[2]):
        member.check()


def test_what_cannot_be_packed(folders: dict[str, Path]) -> None:
    base = carrier(folders, "bert")
    modules = base.modules
    whole = alone(modules, "vera")
    assert not packable(whole)
    assert packable(uniform(modules, "lora"))
    assert {name for name, row in METHODS.items() if not row.packable} >= {"vera", "prompt_tuning", "prefix_tuning"}
    lora, other = build(base, uniform(modules, "lora")), carrier(folders, "bert")
    with pytest.raises(TrialFailure, match="whole model"):
        PackedModel([lora, build(base, whole)])
    with pytest.raises(TrialFailure, match="carriers"):
        PackedModel([lora, build(other, uniform(modules, "lora"))])


def test_the_frozen_module_runs_once_for_all(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base = carrier(folders, "bert")
    modules = base.modules
    members = [build(base, uniform(modules, method)) for method in ("lora", "dora", "lora")]
    packed = PackedModel(members).eval()
    calls: list[int] = []
    plain = torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if any(weight is parameter for parameter in base.model.parameters()):
            calls.append(len(x))
        return plain(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    ids = torch.randint(3, 100, (6, 8))
    packed.lay([(1, 8), (2, 8), (3, 8)])
    packed(ids, torch.ones_like(ids))
    linear = [site for site in modules.sites if METHODS["lora"].fits(site)]
    assert calls.count(6) >= len(linear)
    assert len([rows for rows in calls if rows in (1, 3)]) == 0
