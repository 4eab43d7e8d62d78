from __future__ import annotations

import random

import pytest
from space_models import MODELS, bert

from autopeft import catalogue
from autopeft.errors import NothingFeasible
from autopeft.space import BoundSpace, Choice, bind, resolve


def bound(model: str = "bert", **limits: object) -> BoundSpace:
    space = resolve(catalogue.read("spaces", "autopeft"))
    return bind(space, MODELS[model], **{"kind": "sequence_classification", **limits})  # type: ignore[arg-type]


def anywhere(space: BoundSpace, generator: random.Random) -> dict[str, object]:
    return {
        d.name: generator.choice(d.options) if isinstance(d, Choice) else generator.uniform(d.low, d.high)
        for d in space.dimensions
    }  # fmt: skip


def test_the_published_sizes_at_the_published_width():
    space = bind(resolve(catalogue.read("spaces", "autopeft")), bert(12, 768, 3072), kind="sequence_classification")
    options = {d.name: d.options for d in space.dimensions if isinstance(d, Choice)}
    published = (0, 1, 3, 6, 12, 24, 48, 96, 192, 384, 768)
    assert options["serial_size"] == options["parallel_size"] == options["prefix_size"] == published
    assert sum(name.startswith("block_") for name in options) == 12


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [None, 0.02, 0.001, 0.0001])
def test_every_point_fits(model: str, share: float | None):
    modules, generator = MODELS[model], random.Random(model)
    limit = None if share is None else int(share * modules.base_params)
    space = bound(model, param_limit=limit)
    for index in range(25):
        for values in (space.draw(index, 0), anywhere(space, generator)):
            found = space.decode(values)
            assert 0 < found.adapter_params(modules) <= space.largest_params
            assert limit is None or found.adapter_params(modules) <= limit
            assert found.hash == space.decode(values).hash
            assert len({part.size for _, part in found.parts() if part.method == "serial"}) <= 1


def test_a_point_within_the_limit_is_taken_as_it_stands():
    space = bound()
    point = {**space.draw(0, 0), "serial_size": 24, "parallel_size": 0, "prefix_size": 3}
    point.update({f"block_{block}": block in (1, 4) for block in range(6)})
    found = space.decode(point)
    assert found.methods == ("prefix", "serial")
    assert {MODELS["bert"][name].block for name, _ in found.parts()} == {1, 4}
    assert {(part.method, part.size) for _, part in found.parts()} == {("serial", 24), ("prefix", 3)}


def test_nothing_switched_on_is_the_smallest():
    space = bound()
    off = {**space.draw(0, 0), **{f"block_{block}": False for block in range(6)}}
    params = MODELS["bert"]
    assert space.decode(off).adapter_params(params) == space.smallest().adapter_params(params)
    least = space.smallest().adapter_params(params)
    assert bound(param_limit=least).decode(off).adapter_params(params) == least
    with pytest.raises(NothingFeasible) as caught:
        bound(param_limit=least - 1)
    assert caught.value.smallest["max_adapter_params"] == least


def test_all_methods_and_depths_are_drawn():
    space = bound(param_limit=200_000)
    found = [space.decode(space.draw(index, 0)) for index in range(60)]
    assert {method for configuration in found for method in configuration.methods} == {"serial", "parallel", "prefix"}
    counts = {len({MODELS["bert"][name].block for name, _ in configuration.parts()}) for configuration in found}
    assert counts == {1, 2, 3, 4, 5, 6}


def test_prefix_falls_away_without_the_attention_interface():
    space = bound("deberta")
    assert space.methods == ("serial", "parallel")
    assert "prefix" in space.left_out


def test_faithful_fixes_the_rate():
    space = resolve(catalogue.read("spaces", "autopeft"), [("space.faithful", True)])
    fixed = bind(space, MODELS["bert"], kind="regression")
    assert {rate for _, rate in fixed.decode(fixed.draw(3, 0)).training.rates} == {1e-4}
    assert not any(dimension.name == "rate" for dimension in fixed.dimensions)
    assert fixed.size() < 2 * (8**4) * 64
