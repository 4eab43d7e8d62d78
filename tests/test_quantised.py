"""What the table says about quantised bases, tried on bitsandbytes' 4-bit and 8-bit layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compose_models import rows
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from autopeft.compose.base import Carrier
from autopeft.compose.choose import choose
from autopeft.compose.host import HybridConfig, exact_prompt, register
from autopeft.compose.whole import whole_config
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Part

pytestmark = pytest.mark.slow

SEARCHABLE = [name for name, row in METHODS.items() if row.unsearchable is None]
BITS = (4, 8)
register()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Blocks of 64 numbers are quantised together. With biases, so that every method has a place.
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=128,
        attention_bias=True,
        mlp_bias=True,
        pad_token_id=0,
        attention_dropout=0.0,
    )
    path = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def quantised(folder: Path, bits: int) -> PreTrainedModel:
    how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, device_map={"": "cpu"}, attn_implementation="eager"
    )
    return steady(model).requires_grad_(False)


def steady(model: torch.nn.Module) -> Any:
    """Nothing random; but 4-bit layers in evaluation pack their weights for some CPUs, and cannot be trained then."""
    for module in model.eval().modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.train()
    return model


def config_of(folder: Path, method: str) -> PeftConfig:
    """The method on everything that it fits, at a middle size; sites are found on the model before it is quantised."""
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    modules, row = module_map(plain), METHODS[method]
    if row.whole:
        sizes = row.sizes(modules)
        part = Part.of(method, row.knobs(modules, sizes[len(sizes) // 2]))
        return whole_config(part, modules, Carrier(plain, "causal_lm", "lm", 0, (), "eager", None))
    sites = {}
    for site in modules.sites:
        if row.fits(site):
            size = row.sizes(site)[min(5, len(row.sizes(site)) - 1)] if row.size else None
            sites[site.name] = [{"method": method, **row.knobs(site, size)}]
    kv = {s.name: s.kv_features for s in modules.sites if s.kv_features is not None}
    return HybridConfig(sites=sites, kv_features=kv if "prefix" in row.slots else {})


def logits(model: PeftModel) -> torch.Tensor:
    ids, mask = rows()
    # Behind a prompt, the rows' own positions are the last ones.
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -ids.shape[1] :]


def keeps_the_contract(method: str, base: Callable[[], PreTrainedModel], config: PeftConfig, scratch: Path) -> str:
    """Why it does not hold; empty where it is built, starts as the table says, trains, and is read back exactly."""
    row = METHODS[method]
    try:
        bare = base()
        ids, mask = rows()
        with torch.no_grad():
            expected = bare(input_ids=ids, attention_mask=mask, use_cache=False).logits
        model = get_peft_model(bare, config)
        exact_prompt(model, "default")
        choose(model, None)
        steady(model)
        with torch.no_grad():
            gap = (logits(model) - expected).abs().max().item()
            if row.identity and gap > 1e-3:
                return f"it starts {gap:.2g} away from the base"
        trained = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        for _ in range(3):
            optimizer.zero_grad()
            logits(model).float().square().mean().backward()
            optimizer.step()
        still = sum(torch.equal(old, new) for old, new in zip(before, trained, strict=True))
        if still > 0.2 * len(trained):
            return f"{still} of {len(trained)} tensors do not move"
        with torch.no_grad():
            after = logits(model)
        if not torch.isfinite(after).all():
            return "its output is not finite"
        model.save_pretrained(scratch)
        again = steady(PeftModel.from_pretrained(base(), str(scratch)))
        with torch.no_grad():
            gap = (logits(again) - after).abs().max().item()
        return f"read back, it is {gap:.2g} away" if gap else ""
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        NotImplementedError,
        AssertionError,
        KeyError,
    ) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", SEARCHABLE)
def test_the_table_says_whether_it_works_on_quantised_bases(method: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    found = {
        bits: keeps_the_contract(
            method, lambda bits=bits: quantised(folder, bits), config_of(folder, method), tmp_path / str(bits)
        )
        for bits in BITS
    }
    assert METHODS[method].quantised == (not any(found.values())), found
