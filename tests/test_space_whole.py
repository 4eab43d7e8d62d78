"""Methods about the whole model: one at a time, always within the limits."""

from __future__ import annotations

import pytest
from space_models import MODELS

from autopeft import catalogue
from autopeft.errors import InputError, NothingFeasible
from autopeft.methods import METHODS
from autopeft.space import bind, resolve
from autopeft.space.bound import BoundSpace
from autopeft.space.configuration import WHOLE, Configuration

WHOLE_METHODS = {name for name, row in METHODS.items() if row.whole}


def bound(model: str, limit: int | None = None, target: str = "any") -> BoundSpace:
    values = resolve(catalogue.read("spaces", "whole"))
    return bind(values, MODELS[model], kind="sequence_classification", param_limit=limit, target=target)


@pytest.mark.parametrize("limit", [None, 200_000, 20_000, 1_000])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_every_point_is_one_method_within_the_limit(model: str, limit: int | None) -> None:
    space = bound(model, limit)
    drawn = set()
    for index in range(200):
        found = space.decode(space.draw(index, 1))
        assert [name for name, _ in found.sites] == [WHOLE]
        assert found.whole is not None
        params = found.adapter_params(space.modules)
        assert 0 < params <= space.largest_params
        assert limit is None or params <= limit
        assert Configuration.from_dict(found.to_dict()) == found
        drawn.add(found.whole.method)
    assert drawn == set(space.methods)
    assert set(space.methods) | set(space.left_out) == WHOLE_METHODS
    assert space.smallest().adapter_params(space.modules) <= min(
        space.decode(space.draw(index, 0)).adapter_params(space.modules) for index in range(50)
    )
    assert space.size() > len(space.methods)


def test_places_and_sizes_are_all_reached() -> None:
    space = bound("bert", 50_000)
    seen = {space.decode(space.draw(index, 2)).whole for index in range(400)}
    assert {dict(part.knobs)["where"] for part in seen if part.method == "vera"} == {"qv", "attention", "all"}
    assert len({part.size for part in seen if part.method == "unilora"}) >= 4


def test_what_cannot_be_used_is_left_out_or_refused() -> None:
    assert "prefix_tuning" in bound("deberta").left_out
    assert "merged" in bound("bert", target="merged").left_out["prompt_tuning"]
    with pytest.raises(NothingFeasible) as caught:
        bound("bert", 5)
    assert bound("bert", int(caught.value.smallest["max_adapter_params"])).methods


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"encoding": "recipe", "methods": ["lora", "vera"]}, "about the whole model"),
        ({"encoding": "whole", "methods": ["lora", "vera"]}, "on single modules"),
        ({"encoding": "recipe", "methods": ["lora", "poly"]}, "not searched"),
    ],
)
def test_they_are_never_mixed(values: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        resolve({"name": "x", **values})


@pytest.mark.parametrize("name", ["stock", "llm-adapters"])
def test_an_exclusive_space_mixes_nothing(name: str) -> None:
    space = bind(resolve(catalogue.read("spaces", name)), MODELS["bert"], kind="sequence_classification")
    found = [space.decode(space.draw(index, 0)) for index in range(120)]
    assert all(len(configuration.methods) == 1 for configuration in found)
    assert {configuration.methods[0] for configuration in found} == set(space.methods)
