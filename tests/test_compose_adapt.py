"""Adapted models: the promised parameters, identity at the start, training, and a base that never changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from compose_models import (
    arbitrary,
    base_logits,
    build,
    carrier_of,
    gradients_reach,
    logits_of,
    loss_of,
    rows,
    train_steps,
    training,
    uniform,
)

from autopeft.compose.adapt import AdaptedModel, adapt, reseed
from autopeft.compose.base import Carrier, checksum
from autopeft.errors import TrialFailure
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part

KINDS = {"bert": "sequence_classification", "llama": "causal_lm", "gpt2": "causal_lm"}


def copies(adapted: AdaptedModel) -> dict[str, torch.Tensor]:
    """The trained tensors as they are now."""
    return {name: parameter.detach().clone() for name, parameter in adapted.trained().items()}


def any_carrier(folders: dict[str, Path], name: str, attention: str = "eager") -> Carrier:
    return carrier_of(folders[name], KINDS[name], "mean" if name == "bert" else "lm", attention=attention)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_random_configurations(folders: dict[str, Path], name: str, seed: int) -> None:
    carrier = any_carrier(folders, name, "sdpa" if seed % 2 else "eager")
    modules = carrier.modules
    configuration = arbitrary(modules, seed, dropout=0.1 * (seed % 3))
    before = checksum(carrier)
    adapted = build(carrier, configuration)
    built = {id(p): p for group, ps in adapted.groups().items() if group != "head" for p in ps}
    assert sum(p.numel() for p in built.values()) == configuration.adapter_params(modules) == adapted.adapter_params
    assert set(adapted.groups()) - {"head"} == set(configuration.methods)
    assert {id(p) for p in adapted.parameters() if p.requires_grad} == {id(p) for p in adapted.trained().values()}
    if all(METHODS[method].identity for method in configuration.methods):
        torch.testing.assert_close(logits_of(adapted), base_logits(carrier, adapted), atol=2e-5, rtol=1e-5)
    start, reached = copies(adapted), gradients_reach(adapted)
    train_steps(adapted)
    end = copies(adapted)
    assert [key for key in reached if torch.equal(start[key], end[key])] == []
    assert len(reached) >= 0.8 * len(start)
    assert checksum(carrier) == before


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.hosted and row.tier == 1])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_method_starts_as_the_table_says_and_switches_off(
    folders: dict[str, Path], method: str, name: str, attention: str
) -> None:
    carrier = any_carrier(folders, name, attention)
    modules = carrier.modules
    configuration = uniform(modules, method)
    if not configuration.sites:
        pytest.skip(f"{method} has no place in {name}")
    adapted = build(carrier, configuration)
    reference = base_logits(carrier, adapted)
    same = torch.allclose(logits_of(adapted), reference, atol=2e-5)
    assert same == METHODS[method].identity
    train_steps(adapted)
    assert not torch.allclose(logits_of(adapted), reference, atol=1e-4)
    with adapted.model.disable_adapter(), torch.no_grad():
        inputs = dict(zip(("input_ids", "attention_mask"), rows(), strict=True))
        output = adapted.model(**inputs)
        bare = carrier.model(**inputs)
        assert torch.equal(output[0], bare[0])


@pytest.mark.parametrize("head", ["stock", "cls", "mean"])
def test_heads(folders: dict[str, Path], head: str) -> None:
    carrier = carrier_of(folders["bert"], "sequence_classification", head)
    modules = carrier.modules
    one, two = (adapt(carrier, uniform(modules, name), modules, seed=7) for name in ("lora", "serial"))
    other = adapt(carrier, uniform(modules, "lora"), modules, seed=8)
    assert one.head_params == 32 * 3 + 3
    heads = [torch.cat([p.flatten() for p in model.groups()["head"]]) for model in (one, two, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    logits = logits_of(one)
    assert logits.shape == (4, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, logits_of(two))


def test_padding_changes_nothing(bert: Carrier) -> None:
    adapted = build(bert, uniform(bert.modules, "prefix", "lora", "parallel"))
    train_steps(adapted)
    ids, mask = rows()
    with torch.no_grad():
        alone = adapted(ids[1:2, :4], mask[1:2, :4])
        torch.testing.assert_close(adapted(ids, mask)[1:2], alone, atol=1e-6, rtol=1e-5)


def test_head_only(bert: Carrier) -> None:
    adapted = build(bert, Configuration.of({}, training()))
    assert adapted.adapter_params == 0
    assert set(adapted.groups()) == {"head"}
    assert torch.equal(logits_of(adapted), base_logits(bert, adapted))
    train_steps(adapted)


def test_the_seed_fixes_everything_and_leaves_the_global_generator_alone(bert: Carrier) -> None:
    configuration = arbitrary(bert.modules, 3, dropout=0.2)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    results = []
    for seed in (4, 4, 5):
        adapted = build(bert, configuration, seed)
        results.append(copies(adapted))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    assert any(not torch.equal(results[0][key], results[2][key]) for key in results[0])


@pytest.mark.parametrize("methods", [("lora",), ("dora",), ("serial",), ("parallel",), ("lora", "serial", "parallel")])
def test_dropout_has_a_stream_of_its_own(bert: Carrier, methods: tuple[str, ...]) -> None:
    configuration = uniform(bert.modules, *methods, dropout=0.3)
    trained = []
    for noise in range(3):
        adapted = build(bert, configuration, seed=2)
        torch.manual_seed(noise)
        if noise == 2:
            reseed(adapted, 99)
        train_steps(adapted)
        trained.append(copies(adapted))
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    assert any(not torch.equal(trained[0][key], trained[2][key]) for key in trained[0])


def test_the_base_has_no_dropout_in_training(folders: dict[str, Path], bert: Carrier) -> None:
    assert bert.model.config.hidden_dropout_prob > 0
    adapted = build(bert, uniform(bert.modules, "lora"))
    train_steps(adapted)
    evaluated = logits_of(adapted)
    adapted.train()
    assert adapted.training
    assert torch.equal(logits_of(adapted), evaluated)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_recomputing_blocks_gives_the_same_gradients(folders: dict[str, Path], name: str) -> None:
    carrier = any_carrier(folders, name)
    configuration = uniform(carrier.modules, "bias", "lora", "serial", "parallel", "prefix", dropout=0.2)
    gradients = []
    for recompute in (False, True):
        adapted = build(carrier, configuration)
        if recompute:
            adapted.checkpoint_blocks()
        adapted.train()
        train_steps(adapted, steps=1)
        adapted.train()
        adapted.zero_grad()
        loss_of(adapted).backward()
        gradients.append({key: p.grad.clone() for key, p in adapted.trained().items()})
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


@pytest.mark.parametrize("head", ["stock", "mean"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_base_trains_float32_parts(folders: dict[str, Path], head: str, autocast: bool) -> None:
    carrier = carrier_of(folders["bert"], "sequence_classification", head, dtype="bfloat16")
    modules = carrier.modules
    before = checksum(carrier)
    for methods in (("bias", "lora", "serial", "parallel", "prefix"), ("ia3", "dora", "layernorm")):
        adapted = build(carrier, uniform(modules, *methods))
        assert {p.dtype for p in adapted.trained().values()} == {torch.float32}
        start = copies(adapted)
        train_steps(adapted, autocast=autocast)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = logits_of(adapted)
        assert logits.dtype == torch.float32
        assert [key for key, value in copies(adapted).items() if torch.equal(value, start[key])] == []
        assert checksum(carrier) == before


@pytest.mark.parametrize("head", ["stock", "mean"])
def test_regression_may_start_at_the_mean_of_its_targets(folders: dict[str, Path], head: str) -> None:
    carrier = carrier_of(folders["bert"], "regression", head)
    adapted = build(carrier, uniform(carrier.modules, "lora"))
    before = logits_of(adapted)
    assert before.shape == (4, 1)
    adapted.set_output_bias(2.5)
    torch.testing.assert_close(logits_of(adapted), before + 2.5)


def test_deep_copies_are_independent(bert: Carrier) -> None:
    adapted = build(bert, uniform(bert.modules, "parallel", "prefix", dropout=0.1))
    train_steps(adapted)
    expected = logits_of(adapted)
    twin = copy.deepcopy(adapted)
    assert torch.equal(logits_of(twin), expected)
    train_steps(twin)
    assert torch.equal(logits_of(adapted), expected)
    assert not torch.equal(logits_of(twin), expected)


def test_generation_with_and_without_cache_agrees(llama: Carrier) -> None:
    for attention_methods in (("prefix",), ("prefix", "lora", "serial", "parallel")):
        adapted = build(llama, uniform(llama.modules, *attention_methods))
        train_steps(adapted, rate=0.1)
        ids = rows()[0][:2, :4].clamp_min(3)
        kwargs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
        cached = adapted.generate(input_ids=ids, use_cache=True, **kwargs)
        assert torch.equal(cached, adapted.generate(input_ids=ids, use_cache=False, **kwargs))
        with adapted.model.disable_adapter():
            bare = adapted.generate(input_ids=ids, use_cache=True, **kwargs)
        assert torch.equal(bare, llama.model.generate(input_ids=ids, use_cache=True, **kwargs))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_prefix_gives_the_same_with_both_kernels(folders: dict[str, Path], name: str) -> None:
    logits = []
    for attention in ("eager", "sdpa"):
        carrier = any_carrier(folders, name, attention)
        adapted = build(carrier, uniform(carrier.modules, "prefix"))
        for parameter in adapted.groups()["prefix"]:
            parameter.data.mul_(50)
        logits.append(logits_of(adapted)[rows()[1].bool()] if name == "llama" else logits_of(adapted))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


def test_prefix_on_a_causal_model_without_a_mask(llama: Carrier, folders: dict[str, Path]) -> None:
    fused = any_carrier(folders, "llama", "sdpa")
    ids = rows()[0].clamp_min(3)
    results = []
    for carrier in (llama, fused):
        adapted = build(carrier, uniform(carrier.modules, "prefix"))
        with torch.no_grad():
            results.append(adapted.model(input_ids=ids, use_cache=False).logits)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_parallel_reads_the_input_of_the_block(bert: Carrier) -> None:
    modules = bert.modules
    adapted = build(bert, uniform(modules, "parallel"))
    seen = {}
    for site in modules.select(["down"]):
        layer = adapted.model.base_model.model.get_submodule(site.name)
        part = layer.parallel_part["default"]
        assert part.down.in_features == site.read_features == 32
        reader = adapted.model.base_model.model.get_submodule(site.reads)
        reader.register_forward_pre_hook(lambda m, a, key=site.name: seen.update({key: a[0]}))
        part.down.register_forward_pre_hook(lambda m, a, key=site.name: seen.update({key + "/part": a[0]}))
    logits_of(adapted)
    for site in modules.select(["down"]):
        assert torch.equal(seen[site.name], seen[site.name + "/part"])
    assert all(p.read is None for p in adapted.modules() if hasattr(p, "reads"))


def test_what_cannot_be_built_is_a_failure_of_the_configuration(bert: Carrier) -> None:
    modules = bert.modules
    name = modules.select(["query"])[0].name
    lora = Part.of("lora", {"r": 2, "scale": 1.0})
    dora = Part.of("dora", {"r": 2, "scale": 1.0})
    cases = {
        "no place": {"encoder.layer.9.nothing": [lora]},
        "tensors have the same names": {name: [lora, dora]},
        "twice": {name: [lora, lora]},
        "no prefix": {name: [Part.of("prefix", {"length": 2})]},
        "innermost": {
            modules.select(["norm"])[0].name: [Part.of("bias", {}), Part.of("layernorm", {})],
        },
        "activation": {
            modules.select(["down"])[0].name: [Part.of("serial", {"size": 2, "scale": 1.0, "activation": "sine"})]
        },
    }
    for text, sites in cases.items():
        with pytest.raises(TrialFailure, match=text) as caught:
            build(bert, Configuration.of(sites, training()))
        assert caught.value.infeasible


def test_wrong_promise_is_caught(bert: Carrier) -> None:
    modules = bert.modules
    lying = modules.from_dict({**modules.to_dict()})
    wide = [{**site, "in_features": 64} for site in modules.to_dict()["sites"]]
    lying = modules.from_dict({**modules.to_dict(), "sites": wide})
    with pytest.raises(TrialFailure, match="coverage") as caught:
        adapt(bert, uniform(modules, "lora"), lying, seed=0)
    assert caught.value.infeasible
