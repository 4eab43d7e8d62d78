from __future__ import annotations

import pytest

from autopeft.errors import InputError
from autopeft.methods import METHODS
from autopeft.space import resolve, validate
from autopeft.space.predicate import select

BASE = {"name": "own", "methods": ["lora", "serial"]}


def test_resolved_form_is_a_fixed_point():
    space = resolve({**BASE, "batch": [32, 8], "split": "natural", "rates": {"lora": [1e-4, 1e-3, 2e-3]}, "tilt": 0})
    assert space.batch == (8, 32)
    assert space.rate("lora").default == 1e-3
    assert space.rate("serial") == METHODS["serial"].rate
    again = resolve(space.to_dict())
    assert again == space
    assert again.fingerprint == space.fingerprint


def test_every_change_of_meaning_changes_the_fingerprint():
    prints = {resolve(BASE, [("space." + key, value)]).fingerprint for key, value in [
        ("batch", [8]), ("tilt", [-1, 1]), ("methods", ["lora"]), ("uniform", True), ("rates.lora", [1e-4, 1e-3, 2e-3]),
        ("sizes.lora", [4, 8]), ("start", 0.5), ("max_share", 0.01), ("encoding", "recipe"),
    ]}  # fmt: skip
    assert len(prints) == 9
    assert resolve(BASE).fingerprint in prints


def test_a_strategy_beside_the_space_is_no_part_of_it():
    assert resolve({**BASE, "strategy": "tpe"}) == resolve(BASE)


def test_overrides_of_other_tables_are_left_alone():
    assert resolve(BASE, [("strategy.eta", 4), ("budget.max_time", 1)]) == resolve(BASE)


def test_everything_that_is_wrong_is_said_at_once():
    found = {
        problem.field
        for problem in validate(
            {
                "nme": "x",
                "methods": ["lora", "lorra"],
                "share": [0.9, 0.1],
                "start": [0, 2],
                "rate_offset": "nan",
                "batch": [],
                "dropout": [1.5],
                "scale": [0],
                "prefix": [-1],
                "split": [0, 1],
                "attention_sites": ["q"],
                "encoding": "graph",
                "rates": {"lora": [1e-3, 1e-4, 1e-2], "lorra": [1, 2, 3]},
                "sizes": {"lora": [0]},
                "uniform": "yes",
                "ceiling": 0,
                "batches": [8],
            },
            field="space",
        )
    }
    assert found == {f"space.{name}" for name in (
        "nme", "batches", "name", "methods", "share", "start", "rate_offset", "batch", "dropout", "scale", "prefix",
        "split", "attention_sites", "encoding", "rates.lora", "rates.lorra", "sizes.lora", "uniform", "ceiling",
    )}  # fmt: skip


@pytest.mark.parametrize("values", [None, [], "hybrid", 3])
def test_what_is_no_mapping_is_a_problem(values):
    assert [problem.field for problem in validate(values, field="file")] == ["file"]


def test_empty_space_and_layers_with_attention_methods_are_refused():
    assert "is required" in str(validate({"name": "x"})[0])
    assert validate({"name": "x", "methods": []})
    assert [p.field for p in validate({"name": "x", "methods": ["lora"], "encoding": "layers"})] == ["space.methods"]
    assert [p.field for p in validate({**BASE, "faithful": True})] == ["space.faithful"]
    with pytest.raises(InputError, match=r"space\.methods"):
        resolve({"name": "x", "methods": "tier > 9"})


def test_predicates_follow_the_table():
    assert select("hosted and mergeable", METHODS) == tuple(n for n, m in METHODS.items() if m.mergeable and m.hosted)
    assert select('"prefix" in slots and not mergeable', METHODS) == ("prefix", "gated_prefix")
    assert select('tier == 1 and (name == "lora" or family == "selective")', METHODS) == ("lora", "bias", "layernorm")
    assert select("1 <= tier <= 1", METHODS) == tuple(n for n, m in METHODS.items() if m.tier == 1)
    assert select('name in ["ia3", "dora"]', METHODS) == ("dora", "ia3")


@pytest.mark.parametrize(
    "predicate",
    ["", "hosted and", "__import__('os')", "name.upper()", "merge", "tier + 1 > 1", "lambda: 1", "tier < 'a'",
     "slots[0] == 'x'", "hosted or merge", "(" * 300 + ")" * 300, "a" * 600, "{1: 2}", "f'{name}'", "tier is 1"],
)  # fmt: skip
def test_predicates_are_not_python(predicate):
    with pytest.raises(ValueError, match=r"must|may|asks|compares"):
        select(predicate, METHODS)
