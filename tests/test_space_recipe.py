"""Properties that hold for every point of every recipe space on every model under every limit."""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from space_models import MODELS, bert, llama

from autopeft import catalogue
from autopeft.errors import InputError, NothingFeasible
from autopeft.methods import METHODS
from autopeft.space import BoundSpace, Choice, Real, bind, resolve
from autopeft.space.configuration import Configuration
from autopeft.space.values import SpaceValues
from autopeft.spec.budget import TARGETS

RECIPES = [name for name in catalogue.names("spaces") if resolve(catalogue.read("spaces", name)).encoding == "recipe"]

BESIDE = (("bias", "lora"), ("bias", "dora"))
"""What plain peft loads in one config though it is two methods."""


@cache
def published(name: str) -> SpaceValues:
    return resolve(catalogue.read("spaces", name))


def bound(name: str = "hybrid", model: str = "bert", *changes: tuple[str, object], **limits: object) -> BoundSpace:
    space = resolve(catalogue.read("spaces", name), changes) if changes else published(name)
    return bind(space, MODELS[model], **{"kind": "causal_lm", **limits})  # type: ignore[arg-type]


def anywhere(space: BoundSpace, generator: random.Random) -> dict[str, object]:
    """A point of the box, not of the prior: what a sampler may come up with."""
    values: dict[str, object] = {}
    for dimension in space.dimensions:
        if isinstance(dimension, Choice):
            values[dimension.name] = generator.choice(dimension.options)
        else:
            ends = [dimension.low, dimension.high, generator.uniform(dimension.low, dimension.high)]
            values[dimension.name] = generator.choice(ends)
    return values


def try_bind(name: str, model: str, **limits: object) -> BoundSpace | None:
    try:
        return bound(name, model, **limits)
    except NothingFeasible:
        return None


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_every_point_fits_every_limit(name: str, model: str):
    modules, generator = MODELS[model], random.Random(f"{name}{model}")
    checked = 0
    for target in TARGETS:
        for share in (None, 0.05, 0.01, 0.001, 0.0002, 0.00005):
            limit = None if share is None else int(share * modules.base_params)
            space = try_bind(name, model, target=target, param_limit=limit)
            if space is None:
                continue
            drawn, others = (1, 2) if model == "large" else (4, 6)
            points = [space.draw(index, 3) for index in range(drawn)]
            points += [anywhere(space, generator) for _ in range(others)]
            for values in points:
                found = space.decode(values)
                checked += 1
                check(found, space, limit, target)
    assert checked >= (12 if model == "large" else 40)


def check(found: Configuration, space: BoundSpace, limit: int | None, target: str) -> None:
    params = found.adapter_params(space.modules)
    assert 0 < params <= space.largest_params
    if limit is not None:
        assert params <= limit
    by_name = {site.name: site for site in space.modules.sites}
    for name, part in found.parts():
        assert METHODS[part.method].fits(by_name[name])
    assert set(found.methods) <= set(space.methods)
    assert [method for method, _ in found.training.rates] == list(found.methods)
    for method, rate in found.training.rates:
        assert METHODS[method].rate.low <= rate <= METHODS[method].rate.high
    assert 1e-3 <= found.training.head_rate <= 3e-2
    if target == "peft":
        assert found.methods in BESIDE or len(found.methods) == 1
        assert "peft" in METHODS[found.methods[-1]].targets
    if target == "vllm":
        assert found.plain_lora
        assert max(int(part["r"]) for _, part in found.parts()) <= 512
    if target == "merged":
        assert all(METHODS[method].mergeable for method in found.methods)
    assert Configuration.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("share", [0.02, 0.002, 0.0003, 0.00008])
@pytest.mark.parametrize("model", ["bert", "llama", "gpt2"])
def test_every_method_that_fits_is_drawn(model: str, share: float):
    space = bound("hybrid", model, param_limit=int(share * MODELS[model].base_params))
    assert set(space.methods) | set(space.left_out) == {name for name, row in METHODS.items() if row.tier == 1}
    assert not set(space.methods) & set(space.left_out)
    drawn: Counter[str] = Counter()
    for index in range(400):
        drawn.update(space.decode(space.draw(index, 0)).methods)
    assert set(drawn) == set(space.methods)


def test_few_draws_reach_every_method_at_an_ordinary_limit():
    space = bound("hybrid", "bert", param_limit=225_000)
    drawn = {method for index in range(24) for method in space.decode(space.draw(index, 0)).methods}
    assert drawn == {name for name, row in METHODS.items() if row.tier == 1}


def test_draws_are_spread_over_the_log_of_the_parameters():
    space = bound("lora", "bert", ("space.uniform", False), param_limit=400_000)
    shares = [float(space.draw(index, 5)["share"]) for index in range(32)]
    assert min(shares) < 0.1
    # Rank 1 in all linear layers takes a tenth of this limit; from there on each eighth of the log range is hit.
    edges = [0.11 * 9.09 ** (step / 8) for step in range(9)]
    for start, end in pairwise(edges):
        assert any(start <= share < end for share in shares)


def test_draw_and_decode_are_functions_of_their_arguments():
    first, second = bound(param_limit=100_000), bound(param_limit=100_000)
    points = [first.draw(index, 7) for index in range(20)]
    assert points == [second.draw(index, 7) for index in reversed(range(20))][::-1]
    assert [first.decode(p).hash for p in points] == [second.decode(p).hash for p in reversed(points)][::-1]
    assert points != [first.draw(index, 8) for index in range(20)]


def test_points_that_mean_the_same_are_the_same_configuration():
    space = bound(param_limit=100_000)
    point = {**space.draw(0, 0), "attention": "none", "block": "lora", "extra": "none", "prefix": 0, "share": 1.0}
    same = [
        {**point, "attention_sites": sites, "split": split, "share": share}
        for sites in ("qv", "all") for split in (0.1, 0.9) for share in (1.0, 0.99999)
    ]  # fmt: skip
    assert len({space.decode(values).hash for values in same}) == 1
    fixed = {**point, "block": "ia3"}
    same = [
        {**fixed, "share": share, "dropout": p, "scale": s, "tilt": -p}
        for share, p, s in [(0.1, 0.0, 1.0), (1.0, 0.1, 4.0)]
    ]
    assert len({space.decode(values).hash for values in same}) == 1


@pytest.mark.parametrize("tilt", [-2.0, -0.7, 0.0, 1.3])
@pytest.mark.parametrize("attention", ["lora", "dora", "none"])
@pytest.mark.parametrize("model", ["bert", "llama", "large"])
def test_a_full_share_is_spent(model: str, attention: str, tilt: float):
    space = bound("hybrid", model, param_limit=int(0.01 * MODELS[model].base_params))
    point = {**space.draw(0, 0), "attention": attention, "attention_sites": "all", "block": "serial", "extra": "none"}
    point.update(prefix=0, share=1.0, start=0.0, tilt=tilt, split=0.5)
    params = space.decode(point).adapter_params(space.modules)
    assert 0.95 * space.limit <= params <= space.limit


def test_twice_the_share_shrinks_no_size():
    space = bound("hybrid", "llama", param_limit=500_000)
    point = {**space.draw(0, 0), "attention": "lora", "block": "lora", "extra": "none", "prefix": 0, "start": 0.0}
    before: dict[str, int] = {}
    for share in (0.05, 0.1, 0.2, 0.4, 0.8):
        found = space.decode({**point, "share": share})
        sizes = {name: part.size or 0 for name, part in found.parts()}
        assert all(sizes[name] >= size for name, size in before.items())
        before = sizes


def test_tilt_and_split_move_sizes_where_they_say():
    space = bound("hybrid", "bert", param_limit=200_000)
    point = {**space.draw(0, 0), "attention": "lora", "attention_sites": "all", "block": "lora", "extra": "none"}
    point.update(prefix=0, share=1.0, start=0.0, tilt=2.0, split=0.9)

    def ranks(values: dict[str, object]) -> dict[str, int]:
        return {name: part.size or 0 for name, part in space.decode(values).parts()}

    top = ranks(point)
    queries = [top[f"encoder.layer.{block}.attention.self.query"] for block in range(6)]
    assert queries == sorted(queries)
    assert queries[0] < queries[-1]
    bottom = ranks({**point, "tilt": -2.0})
    queries = [bottom[f"encoder.layer.{block}.attention.self.query"] for block in range(6)]
    assert queries == sorted(queries, reverse=True)
    level = ranks({**point, "tilt": 0.0, "split": 0.9})
    other = ranks({**point, "tilt": 0.0, "split": 0.1})
    query, up = "encoder.layer.3.attention.self.query", "encoder.layer.3.intermediate.dense"
    assert level[query] > level[up]
    assert other[query] < other[up]


def test_start_leaves_the_lower_blocks_alone():
    space = bound("hybrid", "bert")
    point = {**space.draw(0, 0), "attention": "lora", "block": "parallel", "extra": "bias", "prefix": 4, "start": 0.5}
    blocks = {site.block for name, _ in space.decode(point).parts() for site in [MODELS["bert"][name]]}
    assert blocks == {3, 4, 5}


def test_parts_of_one_site_lie_from_the_weights_outwards():
    space = bound("hybrid", "bert")
    point = {
        **space.draw(0, 0),
        "attention": "lora",
        "attention_sites": "all",
        "block": "serial+attention",
        "extra": "bias",
    }
    point.update(prefix=8, start=0.0, share=1.0)
    sites = dict(space.decode(point).sites)
    assert [p.method for p in sites["encoder.layer.0.attention.output.dense"]] == ["lora", "bias", "serial"]
    assert [p.method for p in sites["encoder.layer.0.attention.self.key"]] == ["lora", "bias", "prefix"]
    assert [p.method for p in sites["encoder.layer.0.output.dense"]] == ["bias", "serial"]
    point["block"] = "serial"
    assert "serial" not in [p.method for p in dict(space.decode(point).sites)["encoder.layer.0.attention.output.dense"]]
    point["block"] = "parallel"
    parallel = dict(space.decode(point).sites)["encoder.layer.0.output.dense"][-1]
    assert parallel["reads"] == "encoder.layer.0.intermediate.dense"


def test_plain_lora_has_one_rank_and_every_placement():
    space = bound("lora", "bert", param_limit=300_000)
    assert space.is_plain_lora
    placements, shapes = set(), set()
    for index in range(60):
        found = space.decode(space.draw(index, 0))
        assert found.plain_lora
        assert len({part.size for _, part in found.parts()}) == 1
        placements.add(frozenset(MODELS["bert"][name].role for name, _ in found.parts()))
        shapes.add(next(part.size for _, part in found.parts()))
    for roles in ({"query", "value"}, {"query", "key", "value", "output"}, {"up", "down"},
                  {"query", "key", "value", "output", "up", "down"}):  # fmt: skip
        assert frozenset(roles) in placements
    assert len(shapes) >= 6


def test_a_recipe_has_one_kind_of_prefix():
    space = bound("hybrid", "bert", ("space.methods", ["lora", "prefix", "gated_prefix"]))
    assert set(space.methods) == {"lora", "prefix"}
    assert "one kind of prefix" in space.left_out["gated_prefix"]
    gated = bound(
        "hybrid", "bert", ("space.methods", ["lora", "gated_prefix"]), ("space.sizes", {"gated_prefix": [3, 7]})
    )
    generator = random.Random(2)
    found = [gated.decode(anywhere(gated, generator)) for _ in range(200)]
    used = {part for configuration in found for _, parts in configuration.sites for part in parts}
    assert {part["length"] for part in used if part.method == "gated_prefix"} == {3, 7}


def test_what_the_model_lacks_is_left_out_with_its_reason():
    assert "transformers' interface" in bound("hybrid", "deberta").left_out["prefix"]
    assert "no biases" in bound("hybrid", "llama").left_out["bias"]
    assert not any(d.name == "prefix" for d in bound("hybrid", "deberta").dimensions)
    peft = bound("hybrid", "bert", target="peft")
    assert set(peft.methods) == {"lora", "dora", "ia3", "layernorm", "bias"}
    assert "target peft" in bound("hybrid", "bert", ("space.exclusive", True), target="peft").left_out["bias"]
    assert "without the target peft" in bound("stock", "bert").left_out["bias"]
    assert "target peft" in peft.left_out["serial"]
    tight = bound("hybrid", "bert", param_limit=3000)
    assert "the limit is 3,000" in tight.left_out["bias"]


def test_unconditional_choices_fall_back_to_one_method_for_peft():
    space = bound("hybrid", "bert", target="peft")
    point = space.draw(0, 0)
    mixed = space.decode({**point, "attention": "lora", "block": "dora", "extra": "layernorm"})
    assert mixed.methods == ("lora",)
    roles = {MODELS["bert"][name].role for name, _ in mixed.parts()}
    assert {"query", "up"} <= roles
    biased = space.decode({**point, "attention": "lora", "block": "dora", "extra": "bias"})
    assert biased.methods == ("bias", "lora")
    assert {"query", "up"} <= {MODELS["bert"][name].role for name, part in biased.parts() if part.method == "lora"}
    assert space.decode({**point, "attention": "ia3", "block": "lora", "extra": "bias"}).methods == ("ia3",)
    assert "bias" not in space.decode({**point, "attention": "none", "block": "none", "extra": "bias"}).methods


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_the_smallest_is_feasible_at_its_own_size_and_nothing_is_below(name: str, model: str):
    smallest = bound(name, model).smallest().adapter_params(MODELS[model])
    exact = bound(name, model, param_limit=smallest)
    assert exact.smallest().adapter_params(MODELS[model]) == smallest
    generator = random.Random(0)
    for _ in range(5):
        assert exact.decode(anywhere(exact, generator)).adapter_params(MODELS[model]) == smallest
    with pytest.raises(NothingFeasible) as caught:
        bound(name, model, param_limit=smallest - 1)
    assert caught.value.binds == "max_adapter_params"
    assert caught.value.smallest["max_adapter_params"] == smallest


def test_bytes_bind_like_parameters():
    space = bound("lora", "bert", max_bytes=1_000_000, param_limit=10**9)
    assert space.limit is not None
    for index in range(20):
        assert 4 * space.decode(space.draw(index, 0)).adapter_params(MODELS["bert"]) + 64 * 1024 <= 1_000_000
    with pytest.raises(NothingFeasible) as caught:
        bound("lora", "bert", max_bytes=1000)
    assert caught.value.binds == "max_adapter_size"
    assert bound("lora", "bert", max_bytes=int(caught.value.smallest["max_adapter_size"]))


def test_the_space_has_a_limit_of_its_own():
    space = bound("minimal", "bert", param_limit=10**9)
    assert space.limit == MODELS["bert"].base_params // 1000
    free = bound("hybrid", "bert")
    assert free.limit is None
    assert free.largest_params == pytest.approx(0.02 * MODELS["bert"].base_params, abs=1)


def test_a_target_without_a_method_says_so():
    with pytest.raises(NothingFeasible) as caught:
        bound("adapters", "bert", target="peft")
    assert caught.value.binds == "target"
    with pytest.raises(InputError, match="vLLM"):
        bound("lora", "bert", target="vllm", kind="regression")
    with pytest.raises(ValueError, match="no such"):
        bound("lora", "bert", target="tgi")


def test_points_that_are_not_of_the_space():
    space = bound("hybrid", "bert", param_limit=100_000)
    point = dict(space.draw(0, 0))
    assert space.decode({**point, "share": 99.0}) == space.decode({**point, "share": 1.0})
    with pytest.raises(ValueError, match="batch"):
        space.decode({**point, "batch": 7})
    with pytest.raises(ValueError, match="no value for rate"):
        space.decode({name: value for name, value in point.items() if name != "rate"})
    with pytest.raises(ValueError, match="not a number"):
        space.decode({**point, "tilt": float("nan")})


def test_draws_are_points_of_the_space():
    for name in RECIPES:
        space = bound(name, "llama", param_limit=200_000)
        for index in range(30):
            values = space.draw(index, 1)
            assert set(values) == {dimension.name for dimension in space.dimensions}
            for dimension in space.dimensions:
                if isinstance(dimension, Real):
                    assert dimension.low <= values[dimension.name] <= dimension.high
                else:
                    assert values[dimension.name] in dimension.options


def test_rates_are_searched_unless_faithful():
    space = resolve({"name": "x", "methods": ["lora"], "faithful": True, "published_rate": 2e-4})
    fixed = bind(space, bert(), kind="regression")
    assert not any(dimension.name == "rate" for dimension in fixed.dimensions)
    assert fixed.decode(fixed.draw(0, 0)).training.rate("lora") == 2e-4
    searched = bound("lora", "bert")
    rates = {searched.decode(searched.draw(index, 0)).training.rate("lora") for index in range(20)}
    assert min(rates) < 1e-3 < 4e-3 < max(rates)


def test_own_sizes_replace_the_table():
    space = resolve({"name": "x", "methods": ["lora"], "sizes": {"lora": [5, 10]}, "ceiling": 0.5})
    on_model = bind(space, llama(), kind="causal_lm")
    sizes = {part.size for index in range(20) for _, part in on_model.decode(on_model.draw(index, 0)).parts()}
    assert sizes == {5, 10}


def test_the_feasible_share_falls_with_the_limit():
    shares = [bound("hybrid", "bert", param_limit=limit).feasible_share(60) for limit in (10**7, 100_000, 4000)]
    assert shares[0] == 1.0
    assert shares[0] > shares[1] > shares[2]
    assert bound("hybrid", "bert").feasible_share() == 1.0


def test_size_counts_exactly_where_everything_is_discrete():
    changes = [("space.methods", ["ia3"]), ("space.batch", [8, 16]), ("space.start", [0.0, 0.9])]
    space = bound("hybrid", "bert", *changes)
    generator = random.Random(0)
    seen = {space.decode(anywhere(space, generator) | {"rate": 0.0}).hash for _ in range(3000)}
    assert space.size() == len(seen) == 3 * 6 * 2
    assert bound("hybrid", "bert", param_limit=20_000).size() < bound("hybrid", "bert", param_limit=200_000).size()


def test_draw_and_decode_are_quick_on_80_blocks(capsys):
    space = bound("hybrid", "large", param_limit=10**8)
    begin = time.perf_counter()
    parts = sum(len(space.decode(space.draw(index, 0)).sites) for index in range(50))
    spent = (time.perf_counter() - begin) / 50
    with capsys.disabled():
        print(f"\n80 blocks: {1e3 * spent:.2f} ms per draw and decode")
    assert parts > 50
