"""Live bytes: every storage once, for as long as it lives."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from autopeft.cost.live import LiveBytes, measure


def test_views_and_in_place_results_add_nothing() -> None:
    def step(counter: LiveBytes) -> None:
        kept = torch.zeros(1000)
        kept.view(10, 100).add_(1.0).t().mul_(2.0)
        kept[5:10].fill_(3.0)

    assert measure(step).bytes == 4000


def test_a_dead_storage_is_no_longer_counted_but_the_peak_remains() -> None:
    def step(counter: LiveBytes) -> None:
        first = torch.zeros(1000)
        second = torch.zeros(500)
        del first
        third = torch.zeros(100)
        del second, third

    peak = measure(step)
    assert peak.bytes == 6000
    assert peak.end == 0


def test_what_autograd_saves_lives_until_the_backward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)

    def step(counter: LiveBytes) -> None:
        counter.mark("forward")
        value = weight
        for _ in range(5):
            value = value.exp().mul(0.1)
        loss = value.sum()
        del value
        counter.mark("backward")
        loss.backward()

    peak = measure(step, [weight])
    # The weight, the result of each exp (which exp saves), the newest product and the one that it replaces.
    assert peak.held == 4000
    assert peak.phases["forward"] == (1 + 5 + 2) * 4000
    # Weight and gradient remain; the loss went with the step.
    assert peak.end == 2 * 4000


def test_a_tensor_first_met_as_an_input_counts_from_the_start() -> None:
    late = torch.zeros(10_000)

    def step(counter: LiveBytes) -> None:
        counter.mark("early")
        torch.zeros(1000).add_(1.0)
        counter.mark("late")
        late.sum()

    peak = measure(step)
    assert peak.held == 40_000
    assert peak.phases["early"] == 44_000
    named = measure(step, [late])
    assert named == peak


def test_tensors_in_lists_are_seen() -> None:
    def step(counter: LiveBytes) -> None:
        parts = torch._foreach_mul([torch.ones(100), torch.ones(100)], 2.0)
        assert len(parts) == 2

    assert measure(step).bytes == 4 * 400


def test_a_fake_tensor_counts_like_a_real_one() -> None:
    def step(counter: LiveBytes) -> None:
        layer = nn.Linear(64, 32)
        layer(torch.zeros(8, 64)).relu().sum().backward()

    real = measure(step)
    with FakeTensorMode():
        fake = measure(step)
    assert fake.bytes == real.bytes > 4 * (64 * 32 + 8 * 64)


def _encoder() -> nn.Module:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return BertModel(BertConfig(vocab_size=100, **sizes), add_pooling_layer=False).eval()


@pytest.mark.parametrize("autocast", [False, True])
def test_it_agrees_with_the_allocator(autocast: bool) -> None:
    model = _encoder()
    ids = torch.zeros(16, 64, dtype=torch.int64)
    mask = torch.ones_like(ids)

    def step(counter: LiveBytes | None = None) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(ids, attention_mask=mask).last_hidden_state.float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    step()
    gc.collect()
    peak = measure(step, [*model.parameters(), *model.buffers(), ids, mask])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    live = highest = 0
    for event in sorted(trace.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    assert highest > 0
    assert peak.bytes - peak.held == pytest.approx(highest, rel=0.01)
