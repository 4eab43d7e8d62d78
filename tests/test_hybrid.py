"""The hybrid tuner through peft's own interface, without the rest of autopeft."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import SomeData, config_for, shake
from fresh import run_script
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ViTConfig,
)

from autopeft.compose.host import hosted_parts
from autopeft.hybrid import HybridConfig, choose, register

MERGEABLE = ("bias", "lora", "ia3")
MIXED = ("bias", "lora", "serial", "parallel", "prefix")


def bare(name: str, folder: Path) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if name == "vit":
            config = ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                image_size=32,
                patch_size=16,
                num_labels=3,
            )
            return AutoModelForImageClassification.from_config(config).eval()
        auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
        return auto.from_pretrained(folder).eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(3, 100, (2, 7), generator=generator)}


def logits(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(name)).logits


@pytest.fixture(scope="module")
def folders(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {**folders, "vit": tmp_path_factory.mktemp("none")}


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_peft_saves_and_loads_it_exactly(folders: dict[str, Path], name: str, low_memory: bool, tmp_path: Path) -> None:
    model = get_peft_model(bare(name, folders[name]), config_for(bare(name, folders[name]), *MIXED))
    shake(model)
    expected = logits(model, name)
    model.save_pretrained(tmp_path)
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), HybridConfig)
    again = PeftModel.from_pretrained(bare(name, folders[name]), str(tmp_path), low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(again, name), expected)
    with again.disable_adapter():
        assert torch.equal(logits(again, name), logits(bare(name, folders[name]), name))
    assert torch.equal(logits(again, name), expected)
    trainable = PeftModel.from_pretrained(bare(name, folders[name]), str(tmp_path), is_trainable=True)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in trainable.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_two_adapters_of_different_shape_in_one_model(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    expected = []
    for number, methods in enumerate((("lora", "serial", "prefix"), ("serial", "lora", "bias", "parallel"))):
        model = get_peft_model(bare(name, folders[name]), config_for(bare(name, folders[name]), *methods, size=number))
        shake(model, number)
        expected.append(logits(model, name))
        model.save_pretrained(tmp_path / str(number))
    both = PeftModel.from_pretrained(bare(name, folders[name]), str(tmp_path / "0"), adapter_name="first")
    both.load_adapter(str(tmp_path / "1"), adapter_name="second")
    for adapter, logit in (("first", expected[0]), ("second", expected[1]), ("first", expected[0])):
        both.set_adapter(adapter)
        assert torch.equal(logits(both, name), logit)
    both.delete_adapter("first")
    both.set_adapter("second")
    assert torch.equal(logits(both, name), expected[1])


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_copies_and_pickles(folders: dict[str, Path], name: str) -> None:
    model = get_peft_model(bare(name, folders[name]), config_for(bare(name, folders[name]), *MIXED))
    shake(model)
    expected = logits(model, name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(logits(twin, name), expected)
        shake(twin)
        assert not torch.equal(logits(twin, name), expected)
    assert torch.equal(logits(model, name), expected)


def test_a_fresh_process_unpickles_it(folders: dict[str, Path], tmp_path: Path) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), *MIXED, "ia3"))
    shake(model)
    torch.save(model, tmp_path / "model.pt")
    torch.save((inputs("bert"), logits(model, "bert")), tmp_path / "expected.pt")
    script = """
import sys, torch, autopeft.hybrid
model = torch.load(sys.argv[1] + "/model.pt", weights_only=False)
inputs, expected = torch.load(sys.argv[1] + "/expected.pt", weights_only=False)
with torch.no_grad():
    print(float((model(**inputs).logits - expected).abs().max()))
"""
    assert float(run_script(script, tmp_path)) == 0.0


def test_merging_in_place_is_refused_before_anything_changes(folders: dict[str, Path]) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), "lora", "ssf"))
    shake(model)
    expected = logits(model, "bert")
    with pytest.raises(NotImplementedError, match="merge_and_unload"):
        model.merge_adapter()
    assert torch.equal(logits(model, "bert"), expected)


@pytest.mark.parametrize("other", ["layer", "query", "part", "default_2", "lora"])
def test_another_adapter_may_have_any_name(folders: dict[str, Path], other: str, tmp_path: Path) -> None:
    expected = []
    for number, methods in enumerate((MIXED, ("ia3", "ssf", "psoft"))):
        model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), *methods))
        shake(model, number)
        expected.append(logits(model, "bert"))
        model.save_pretrained(tmp_path / str(number))
    both = PeftModel.from_pretrained(bare("bert", folders["bert"]), tmp_path / "0").eval()
    both.load_adapter(tmp_path / "1", adapter_name=other)
    for name, wanted in (("default", expected[0]), (other, expected[1])):
        both.set_adapter(name)
        assert torch.equal(logits(both, "bert"), wanted)


@pytest.mark.parametrize("method", ["fishmask", "trainable_tokens"])
def test_places_that_nobody_chose_are_not_trained(folders: dict[str, Path], method: str) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), method))
    logits(model.eval(), "bert")
    with pytest.raises(ValueError, match=r"were not chosen: call autopeft\.hybrid\.choose"):
        model.train()(**inputs("bert"))
    # Neither by reading something else,
    model.load_state_dict({}, strict=False)
    with pytest.raises(ValueError, match="were not chosen"):
        model.eval()(**inputs("bert"))
    choose(model, None)
    model(**inputs("bert"))


@pytest.mark.parametrize("method", ["fishmask", "trainable_tokens", "pafi"])
def test_places_are_chosen_once_and_for_one_adapter(folders: dict[str, Path], method: str) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), method))
    shake(model, 1)
    before = logits(model, "bert")
    model.add_adapter("two", config_for(bare("bert", folders["bert"]), method))
    choose(model, SomeData(model.get_base_model(), 2), "two")
    choose(model, SomeData(model.get_base_model(), 3))
    model.set_adapter("default")
    assert torch.equal(logits(model, "bert"), before)
    parts = {name: [part for _, _, part, _ in hosted_parts(model, name)] for name in ("default", "two")}
    assert all(part.settled for held in parts.values() for part in held)
    if method != "pafi":
        assert any(not torch.equal(a.positions, b.positions) for a, b in zip(*parts.values(), strict=True))
    with pytest.raises(ValueError, match="trained cannot be chosen again"):
        parts["default"][0].settle(parts["default"][0].positions)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_merging(folders: dict[str, Path], name: str) -> None:
    model = get_peft_model(bare(name, folders[name]), config_for(bare(name, folders[name]), *MERGEABLE))
    shake(model)
    expected = logits(model, name)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, name), expected, atol=2e-5, rtol=1e-4)
    plain = dict(bare(name, folders[name]).named_modules())
    assert {n: type(m) for n, m in merged.named_modules()} == {n: type(m) for n, m in plain.items()}


def test_a_part_that_cannot_be_merged_is_named_before_anything_changes(folders: dict[str, Path]) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), "lora", "serial"))
    shake(model)
    expected = logits(model, "bert")
    with pytest.raises(ValueError, match=r"serial on bert\.encoder\.layer\.0"):
        model.merge_and_unload()
    assert torch.equal(logits(model, "bert"), expected)


def test_unloading_gives_the_base_back(folders: dict[str, Path]) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), *MIXED))
    shake(model)
    base = model.unload()
    assert torch.equal(logits(base, "bert"), logits(bare("bert", folders["bert"]), "bert"))
    assert not any(module._forward_pre_hooks for module in base.modules())
    # It needs nothing of autopeft any more.
    assert base.config._attn_implementation == "sdpa"


def test_loading_through_transformers_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """There it would load wrong numbers without a word."""
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), *MIXED))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"AUTOPEFT_HYBRID.*Do: import autopeft.hybrid; peft.PeftModel"):
        bare("bert", folders["bert"]).load_adapter(str(tmp_path))


def test_without_the_import_peft_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    model = get_peft_model(bare("bert", folders["bert"]), config_for(bare("bert", folders["bert"]), *MIXED))
    model.save_pretrained(tmp_path)
    script = """
import sys
from peft import PeftConfig
try:
    PeftConfig.from_pretrained(sys.argv[1])
except KeyError as error:
    print(error)
"""
    assert "AUTOPEFT_HYBRID" in run_script(script, tmp_path)


@pytest.mark.parametrize(
    ("sites", "text"),
    [
        ({"bert.encoder.layer.7.output.dense": [{"method": "bias"}]}, "no module of this model"),
        ({"bert.encoder.layer.0.output.dense": [{"method": "magic"}]}, "unknown method magic"),
        ({"bert.encoder.layer.0.output.dense": [{"method": "bias"}, {"method": "bias"}]}, "bias twice"),
    ],
)
def test_what_does_not_fit_is_named(folders: dict[str, Path], sites: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        get_peft_model(bare("bert", folders["bert"]), HybridConfig(sites=sites))


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema 2"):
        HybridConfig(schema=2)


def test_prefix_refuses_attention_that_it_cannot_enter(folders: dict[str, Path]) -> None:
    model = bare("bert", folders["bert"])
    config = config_for(model, "prefix")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="eager or sdpa"):
        get_peft_model(model, config)


def test_registering_twice_changes_nothing() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    before = dict(PEFT_TYPE_TO_CONFIG_MAPPING), dict(PEFT_TYPE_TO_TUNER_MAPPING)
    register()
    assert (dict(PEFT_TYPE_TO_CONFIG_MAPPING), dict(PEFT_TYPE_TO_TUNER_MAPPING)) == before


def test_transformers_own_checkpointing_gives_the_same_gradients(folders: dict[str, Path]) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        base = bare("llama", folders["llama"])
        config = config_for(base, *MIXED)
        config.dropout = 0.2
        model = get_peft_model(base, config)
        shake(model)
        if recompute:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(1)
        model(**inputs("llama"), use_cache=False).logits.square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_features_of_a_bare_backbone(folders: dict[str, Path]) -> None:
    base = AutoModel.from_pretrained(folders["bert"]).eval()
    model = get_peft_model(base, config_for(base, "lora"))
    shake(model)
    assert model(**inputs("bert")).last_hidden_state.shape == (2, 7, 32)
