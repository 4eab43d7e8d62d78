"""The contract of the table of methods once more, for 250 random mixtures; less for other families."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import (
    arbitrary,
    base_logits,
    build,
    carrier_of,
    gradients_reach,
    logits_of,
    rows,
    shake,
    train_steps,
    training,
)
from fresh import run_script
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from test_methods import READ_ALL, WITH_AUTOPEFT
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM, BartConfig, T5Config, ViTConfig

from autopeft.compose.adapt import AdaptedModel, hybrid_config
from autopeft.compose.base import Carrier, checksum
from autopeft.compose.store import save_adapter
from autopeft.hybrid import HybridConfig
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration

pytestmark = pytest.mark.slow

PART = 50
PARTS = {"bert": range(0, 100, PART), "llama": range(100, 200, PART), "gpt2": range(200, 250, PART)}
CASES = [(name, first) for name, firsts in PARTS.items() for first in firsts]
KINDS = {"bert": ("sequence_classification", "mean"), "llama": ("causal_lm", "lm"), "gpt2": ("causal_lm", "lm")}


def carrier_for(folders: dict[str, Path], name: str, dtype: str = "float32") -> Carrier:
    return carrier_of(folders[name], *KINDS[name], dtype=dtype)


@pytest.mark.parametrize(("name", "first"), CASES)
def test_they_are_what_they_say_and_are_read_in_a_fresh_process(
    folders: dict[str, Path], name: str, first: int, tmp_path: Path
) -> None:
    carrier = carrier_for(folders, name)
    modules = carrier.modules
    before = checksum(carrier)
    ids, mask = rows()
    tensors = {"ids": ids, "mask": mask}
    for seed in range(first, first + PART):
        configuration = arbitrary(modules, seed, dropout=0.1 * (seed % 2))
        adapted = build(carrier, configuration)
        assert adapted.adapter_params == configuration.adapter_params(modules)
        bare = base_logits(carrier, adapted)
        if all(METHODS[method].identity for method in configuration.methods):
            torch.testing.assert_close(logits_of(adapted), bare, atol=2e-5, rtol=1e-5)
        start = {key: p.detach().clone() for key, p in adapted.trained().items()}
        reached = gradients_reach(adapted)
        train_steps(adapted)
        assert [key for key, p in adapted.trained().items() if key in reached and torch.equal(p, start[key])] == []
        with adapted.model.disable_adapter():
            assert torch.equal(logits_of(adapted), base_logits(carrier, adapted))
        save_adapter(adapted, tmp_path / str(seed), meta={})
        tensors[str(seed)] = logits_of(adapted).contiguous()
    assert checksum(carrier) == before
    save_file(tensors, tmp_path / "inputs.safetensors")
    script = READ_ALL.format(first=WITH_AUTOPEFT)
    found = json.loads(run_script(script, folders[name], tmp_path, KINDS[name][0]))
    assert found == {str(seed): 0.0 for seed in range(first, first + PART)}


@pytest.mark.parametrize(("name", "first"), CASES)
def test_they_train_on_a_bfloat16_base(folders: dict[str, Path], name: str, first: int) -> None:
    carrier = carrier_for(folders, name, "bfloat16")
    before = checksum(carrier)
    for seed in range(first, first + PART):
        adapted = build(carrier, arbitrary(carrier.modules, seed))
        start = {key: p.detach().clone() for key, p in adapted.trained().items()}
        train_steps(adapted, autocast=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(logits_of(adapted)).all()
        still = [key for key, p in adapted.trained().items() if torch.equal(p, start[key])]
        # What is added to all keys alike has no effect, and rounding hides what is behind a start of zero.
        assert len(still) <= 0.25 * len(start), (seed, still)
    assert checksum(carrier) == before


@pytest.mark.parametrize(("name", "first"), CASES)
def test_they_merge_exactly_or_say_what_cannot_be_merged(folders: dict[str, Path], name: str, first: int) -> None:
    merged = 0
    for seed in range(first, first + PART):
        # Merging may write into the base.
        carrier = carrier_for(folders, name)
        modules = carrier.modules
        whole = arbitrary(modules, seed)
        if not all(METHODS[method].mergeable for method in whole.methods):
            adapted = build(carrier, whole)
            with pytest.raises(ValueError, match="cannot be merged, and nothing was changed"):
                adapted.model.merge_and_unload()
        # Also what is left of it when only mergeable parts are kept.
        sites = {
            site: [part for part in parts if METHODS[part.method].mergeable]
            for site, parts in whole.sites
            if any(METHODS[part.method].mergeable for part in parts)
        }
        if not sites:
            continue
        adapted = build(carrier, Configuration.of(sites, training()))
        train_steps(adapted)
        expected = logits_of(adapted)
        plain = AdaptedModel(carrier, Configuration((), training()), adapted.model.merge_and_unload(), adapted.head)
        difference = (logits_of(plain) - expected).abs().max() / expected.abs().max()
        assert float(difference) < 1e-5, (seed, sites)
        merged += 1
    assert merged > PART // 2


@pytest.mark.parametrize(("name", "first"), CASES)
def test_two_of_them_in_one_model_switch_exactly(
    folders: dict[str, Path], name: str, first: int, tmp_path: Path
) -> None:
    def fresh() -> Carrier:
        return carrier_for(folders, name)

    def logits(model: PeftModel) -> torch.Tensor:
        ids, mask = rows()
        more = {"use_cache": False} if name != "bert" else {}
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, **more)[0]

    for seed in range(first, first + PART, 2):
        expected = []
        for number in (0, 1):
            carrier = fresh()
            modules = carrier.modules
            model = get_peft_model(carrier.model, hybrid_config(carrier, arbitrary(modules, seed + number), modules))
            shake(model, seed + number)
            model.eval()
            expected.append(logits(model))
            model.save_pretrained(tmp_path / f"{seed}-{number}")
        both = PeftModel.from_pretrained(fresh().model, str(tmp_path / f"{seed}-0"), adapter_name="first").eval()
        both.load_adapter(str(tmp_path / f"{seed}-1"), adapter_name="second")
        for adapter, wanted in (("first", expected[0]), ("second", expected[1]), ("first", expected[0])):
            both.set_adapter(adapter)
            assert torch.equal(logits(both), wanted), (seed, adapter)


T5 = T5Config(
    d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100, decoder_start_token_id=0, pad_token_id=0
)  # fmt: skip
BART = BartConfig(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=100, max_position_embeddings=64, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
)  # fmt: skip
VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=16,
    num_labels=3,
)  # fmt: skip
OTHERS = {
    "t5": (AutoModelForSeq2SeqLM, T5),
    "bart": (AutoModelForSeq2SeqLM, BART),
    "vit": (AutoModelForImageClassification, VIT),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", OTHERS)
def test_encoder_decoders_and_image_models(name: str, attention: str, tmp_path: Path) -> None:
    auto, config = OTHERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bare = auto.from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(7)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if name != "vit":
        # Of different lengths, as they are in use.
        ids = torch.randint(3, 100, (2, 13), generator=generator)
        inputs = {"input_ids": ids[:, :9], "decoder_input_ids": ids[:, 9:]}

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    modules = module_map(bare)
    kv = {site.name: site.kv_features for site in modules.sites if site.kv_features is not None}
    base = logits(bare)
    for seed in range(20):
        sites = {site: [part.to_dict() for part in parts] for site, parts in arbitrary(modules, seed).sites}
        model = get_peft_model(copy.deepcopy(bare), HybridConfig(sites=sites, kv_features=kv))
        shake(model, seed)
        start = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
        model.train()(**inputs).logits.square().mean().backward()
        optimizer.step()
        model.eval()
        still = [key for key, p in model.named_parameters() if key in start and torch.equal(p, start[key])]
        assert len(still) <= 0.25 * len(start), (seed, still)
        after = logits(model)
        model.save_pretrained(tmp_path / str(seed))
        again = PeftModel.from_pretrained(copy.deepcopy(bare), str(tmp_path / str(seed))).eval()
        assert torch.equal(logits(again), after), (seed, sites)
        with model.disable_adapter():
            assert torch.equal(logits(model), base), (seed, sites)
        if name != "vit":
            wanted = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
            more = {"return_dict_in_generate": True, "output_logits": True}
            made = [
                model.generate(input_ids=inputs["input_ids"], use_cache=cached, **wanted, **more).logits
                for cached in (True, False)
            ]
            for one, other in zip(*made, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
