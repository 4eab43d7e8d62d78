"""Every published space: what comes out of it is built on four families of models, and one of each trains."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from compose_models import loss_of
from transformers import BertConfig, LlamaConfig, PretrainedConfig, T5Config, ViTConfig

from autopeft import catalogue
from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import Carrier, meta_carrier
from autopeft.errors import NothingFeasible
from autopeft.methods import METHODS
from autopeft.space import BoundSpace, bind, resolve
from autopeft.space.configuration import Configuration
from autopeft.space.values import SpaceValues

SPACES = catalogue.names("spaces")
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**WIDTHS, vocab_size=100, max_position_embeddings=64),
    "llama": LlamaConfig(**WIDTHS, vocab_size=100, num_key_value_heads=2, pad_token_id=0),
    "vit": ViTConfig(**WIDTHS, image_size=32, patch_size=16),
    "t5": T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100),
}
NOTHING = {("vllm", "bert"), ("vllm", "vit"), ("vllm", "t5")}
"""`(space, model)` without any configuration: vLLM serves language models only."""


@cache
def planned(model: str) -> Carrier:
    """A model without weights; nobody writes to it."""
    kind, head, labels = ("causal_lm", "lm", 0) if model == "llama" else ("sequence_classification", "mean", 3)
    values = CONFIGS[model].to_dict() | {"model_type": CONFIGS[model].model_type}
    return meta_carrier(values, kind=kind, head=head, labels=labels)


def values_of(space: str) -> SpaceValues:
    # A share of the base model that some spaces keep to is less than one part of these tiny ones.
    values = {key: value for key, value in catalogue.read("spaces", space).items() if key != "max_share"}
    return resolve(values)


def bound(space: str, carrier: Carrier) -> BoundSpace:
    target = "vllm" if space == "vllm" else "any"
    return bind(values_of(space), carrier.modules, kind=carrier.kind, target=target)


@pytest.mark.parametrize("draws", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("space", SPACES)
def test_what_is_drawn_is_built(space: str, model: str, draws: int) -> None:
    if (space, model) in NOTHING:
        pytest.skip("vLLM serves language models only")
    carrier = planned(model)
    found = bound(space, carrier)
    assert found.methods
    seen = set()
    for index in range(draws):
        configuration = found.decode(found.draw(index, 0))
        if configuration.hash not in seen:
            seen.add(configuration.hash)
            # It counts what was built against the formulas, and looks at which modules are adapted.
            if all(METHODS[method].builds_on_meta for method in configuration.methods):
                with torch.device("meta"):
                    adapt(carrier, configuration, found.modules, seed=0)
            else:
                adapt(with_weights(model), configuration, found.modules, seed=0)
    assert len(seen) > draws // 4


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("space", SPACES)
def test_one_of_each_trains(space: str, model: str) -> None:
    if (space, model) in NOTHING:
        pytest.skip("vLLM serves language models only")
    carrier = with_weights(model)
    found = bound(space, carrier)
    adapted = adapt(carrier, found.decode(found.draw(1, 0)), found.modules, seed=0)
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        return image_loss(adapted, pixels) if model == "vit" else loss_of(adapted)

    before = float(loss())
    # Without the head, which could lower the loss alone.
    parts = [p for name, group in adapted.groups().items() if name != "head" for p in group]
    optimizer = torch.optim.AdamW(parts, lr=1e-2, weight_decay=0.0)
    adapted.train()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    adapted.eval()
    assert float(loss()) < before


@cache
def with_weights(model: str) -> Carrier:
    """The same model with random weights; nobody writes to it."""
    carrier = planned(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        real = type(carrier.model)(carrier.model.config).eval().requires_grad_(False)
    return Carrier(real, carrier.kind, carrier.head, carrier.labels, carrier.head_modules, carrier.attention, None)


def test_an_encoder_with_relative_positions_takes_prefixes_and_adapters() -> None:
    assert {"lora", "serial", "parallel", "prefix", "layernorm"} <= set(bound("hybrid", planned("t5")).methods)


def image_loss(adapted: AdaptedModel, pixels: torch.Tensor) -> torch.Tensor:
    hidden = adapted.model(pixel_values=pixels).last_hidden_state
    logits = adapted.classify(hidden.float().mean(1))
    return torch.nn.functional.cross_entropy(logits, torch.arange(4) % 3)


def test_a_limit_below_everything_is_told_for_every_space() -> None:
    for space in SPACES:
        model = "llama" if space == "vllm" else "bert"
        carrier = planned(model)
        modules = carrier.modules
        values, target = values_of(space), "vllm" if space == "vllm" else "any"
        with pytest.raises(NothingFeasible) as caught:
            bind(values, modules, kind=carrier.kind, target=target, param_limit=1)
        needed = int(caught.value.smallest["max_adapter_params"])
        fitting = bind(values, modules, kind=carrier.kind, target=target, param_limit=needed)
        smallest: Configuration = fitting.smallest()
        assert smallest.adapter_params(modules) == needed
