"""Structure searches: sizes for blocks, modules or fixed groups of blocks."""

from __future__ import annotations

import random

import pytest
from space_models import MODELS

from autopeft import catalogue
from autopeft.errors import InputError, NothingFeasible
from autopeft.methods import METHODS
from autopeft.space import BoundSpace, Choice, bind, resolve
from autopeft.space.structure import spindle

PRESETS = ("s4", "s3pet", "shears")


def bound(name: str, model: str = "bert", **limits: object) -> BoundSpace:
    values = resolve(catalogue.read("spaces", name))
    return bind(values, MODELS[model], **{"kind": "sequence_classification", **limits})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [None, 0.01, 0.0005])
def test_every_point_fits(name: str, model: str, share: float | None) -> None:
    modules, generator = MODELS[model], random.Random(model)
    limit = None if share is None else int(share * modules.base_params)
    try:
        space = bound(name, model, param_limit=limit)
    except NothingFeasible as error:
        needed = int(error.smallest["max_adapter_params"])
        assert limit is not None
        assert needed > limit
        return
    # Drawing for 80 blocks takes a tenth of a second.
    for index in range(3 if model == "large" else 15):
        for values in (
            space.draw(index, 0),
            {
                d.name: generator.choice(d.options) if isinstance(d, Choice) else generator.uniform(d.low, d.high)
                for d in space.dimensions
            },
        ):
            found = space.decode(values)
            assert 0 < found.adapter_params(modules) <= space.largest_params
            assert limit is None or found.adapter_params(modules) <= limit
            assert set(found.methods) <= set(space.methods)
            assert found.hash == space.decode(values).hash
    assert space.smallest().adapter_params(modules) <= space.largest_params
    assert space.size() > 1


def test_a_point_within_the_limit_is_taken_as_it_stands() -> None:
    space = bound("shears")
    point = {**space.draw(0, 0), **{f"lora_{block}": size for block, size in enumerate((0, 16, 24, 32, 0, 0))}}
    ranks = {MODELS["bert"][name].block: part.size for name, part in space.decode(point).parts()}
    assert ranks == {1: 16, 2: 24, 3: 32}


def test_modules_are_chosen_one_by_one() -> None:
    space = bound("s3pet")
    names = [d.name for d in space.dimensions]
    assert sum(name.startswith("lora ") for name in names) == len(
        MODELS["bert"].select(["query", "key", "value", "output", "up", "down"])
    )
    off = {d.name: 0 for d in space.dimensions if isinstance(d, Choice) and 0 in d.options and " " in d.name}
    one = "layernorm encoder.layer.2.output.LayerNorm"
    found = space.decode({**space.draw(0, 0), **off, one: 1})
    assert [(name, part.method) for name, part in found.parts()] == [("encoder.layer.2.output.LayerNorm", "layernorm")]
    assert space.decode({**space.draw(0, 0), **off}) == space.decode({**space.draw(0, 0), **off})


def test_groups_keep_their_methods() -> None:
    assert [len(part) for part in spindle(12, 4)] == [2, 4, 4, 2]
    assert sum(len(part) for part in spindle(5, 4)) == 5
    assert [len(part) for part in spindle(7, 2)] == [4, 3]
    modules = MODELS["bert"]
    found = bound("s4").decode(bound("s4").draw(3, 0))
    by_block: dict[int, set[str]] = {}
    for name, part in found.parts():
        by_block.setdefault(modules[name].block, set()).add(part.method)
    assert by_block[0] == {"lora", "serial"}
    assert by_block[5] == {"lora", "prefix", "bias"}
    assert by_block[1] == {"serial", "prefix"}


@pytest.mark.parametrize("name", PRESETS)
def test_plain_peft_gets_one_method(name: str) -> None:
    try:
        space = bound(name, target="peft")
    except NothingFeasible:
        pytest.fail("each of them has LoRA")
    for index in range(30):
        found = space.decode(space.draw(index, 0))
        assert len(found.methods) == 1
        assert "peft" in METHODS[found.methods[0]].targets


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"encoding": "structure", "unit": "group", "methods": ["lora"]}, "groups"),
        (
            {"encoding": "structure", "unit": "group", "methods": ["lora"], "groups": [["serial"]]},
            "exactly the methods",
        ),
        ({"encoding": "recipe", "methods": ["lora"], "groups": [["lora"]]}, "goes with"),
        ({"encoding": "structure", "unit": "layer", "methods": ["lora"]}, "unit"),
        ({"encoding": "structure", "methods": ["lora", "dora"]}, "cannot share a module"),
        ({"encoding": "structure", "methods": ["shira", "hra"]}, "cannot share a module"),
    ],
)
def test_what_does_not_go_together(values: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        resolve({"name": "x", **values})
