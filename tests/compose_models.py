"""Tiny random base models and random configurations for the tests of compose."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, PretrainedConfig

from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import Carrier, attach, load_base
from autopeft.compose.choose import choose
from autopeft.compose.host import HybridConfig, tensor_prefix
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration, Part, Training
from autopeft.space.modules import ModuleMap

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=64, bos_token_id=1, eos_token_id=2),
}


def save_tiny(name: str, folder: Path) -> Path:
    """A tiny random model in a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        auto = AutoModel if name == "bert" else AutoModelForCausalLM
        model = auto.from_config(CONFIGS[name])
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                # Biases and norms of a fresh model are constants: faults that swap or drop them would not show.
                parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.1))
                assert parameter_name
    model.save_pretrained(folder)
    return folder


def carrier_of(folder: Path, kind: str, head: str, *, dtype: str = "float32", attention: str = "eager") -> Carrier:
    base = load_base(folder, kind=kind, dtype=dtype)  # type: ignore[arg-type]
    labels = {"sequence_classification": 3, "regression": 1, "causal_lm": 0}[kind]
    carrier = attach(base, head=head, labels=labels, attention=attention)  # type: ignore[arg-type]
    # Where a carrier keeps it: finding the modules anew would be half of many a test.
    vars(carrier)["modules"] = map_of(carrier.model)
    return carrier


def map_of(model: Any) -> ModuleMap:
    """The module map of a model without adapters, made once for all that are alike."""
    key = (type(model), model.config._attn_implementation, model.config.to_json_string())
    if key not in _MAPS:
        _MAPS[key] = module_map(model)
    return _MAPS[key]


_MAPS: dict[tuple[type, str, str], ModuleMap] = {}


def training(dropout: float = 0.0) -> Training:
    rates = tuple(sorted((name, method.rate.default) for name, method in METHODS.items()))
    return Training(rates=rates, head_rate=1e-3, batch_size=4, dropout=dropout)


def uniform(modules: ModuleMap, *names: str, dropout: float = 0.0) -> Configuration:
    """Every named method on every site where it fits, from inner to outer in the order given."""
    sites: dict[str, list[Part]] = {}
    for site in modules.sites:
        for name in names:
            method = METHODS[name]
            if method.fits(site):
                size = method.sizes(site)[min(5, len(method.sizes(site)) - 1)] if method.size else None
                sites.setdefault(site.name, []).append(Part.of(name, method.knobs(site, size)))
    return Configuration.of(sites, training(dropout))


def alone(modules: ModuleMap, method: str, dropout: float = 0.0) -> Configuration:
    """A method by itself, on everything that it fits, at a middle size."""
    row = METHODS[method]
    if not row.whole:
        return uniform(modules, method, dropout=dropout)
    if not row.allows(modules):
        return Configuration((), training(dropout))
    sizes = row.sizes(modules)
    part = Part.of(method, row.knobs(modules, sizes[len(sizes) // 2]))
    return Configuration.of({WHOLE: [part]}, training(dropout))


def arbitrary(modules: ModuleMap, seed: int, dropout: float = 0.0) -> Configuration:
    """Random methods, sizes, scales and places, several to a module."""
    rng = random.Random(seed)
    sites: dict[str, list[Part]] = {}
    while not sites:
        for site in modules.sites:
            fitting = [method for method in METHODS.values() if method.fits(site)]
            chosen = rng.sample(fitting, min(len(fitting), rng.choice((0, 0, 1, 1, 2, 3))))
            for method in sorted(chosen, key=lambda method: not method.innermost):
                size = rng.choice(method.sizes(site)) if method.size else None
                knobs = method.knobs(site, size)
                if "scale" in knobs:
                    knobs["scale"] = rng.choice((0.5, 1.0, 2.0, 4.0))
                used = {part.method for part in sites.get(site.name, [])}
                alone = method.innermost and any(METHODS[other].innermost for other in used)
                if not alone and not any(tensor_prefix(method.name) == tensor_prefix(other) for other in used):
                    sites.setdefault(site.name, []).append(Part.of(method.name, knobs))
    return Configuration.of(sites, training(dropout))


def config_for(model: Any, *methods: str, size: int = 3) -> HybridConfig:
    modules = map_of(model)
    sites: dict[str, list[dict[str, Any]]] = {}
    for site in modules.sites:
        for name in methods:
            method = METHODS[name]
            if method.fits(site):
                knobs = method.knobs(
                    site, method.sizes(site)[min(size, len(method.sizes(site)) - 1)] if method.size else None
                )
                sites.setdefault(site.name, []).append({"method": name, **knobs})
    kv = {s.name: s.kv_features for s in modules.sites if s.kv_features is not None}
    return HybridConfig(sites=sites, kv_features=kv if "prefix" in methods else {})


def shake(model: Any, seed: int = 4) -> None:
    """Trained values, for a test that needs none of a training's virtues; at other places for every seed."""
    choose(model, SomeData(model.get_base_model(), seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


class SomeData:
    """Training data by which arbitrary places are chosen, other ones for every seed."""

    def __init__(self, model: Any, seed: int, tokens: int = 100) -> None:
        self.model, self.generator, self.tokens = model, torch.Generator().manual_seed(seed), tokens

    def fisher(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        return {n: torch.rand(self.model.get_submodule(n).weight.shape, generator=self.generator) for n in names}

    def frequent_tokens(self, count: int) -> torch.Tensor:
        return torch.randperm(self.tokens, generator=self.generator)[:count]

    def examples(self, count: int) -> torch.Tensor:
        return torch.randint(3, self.tokens, (count,), generator=self.generator)


def build(carrier: Carrier, configuration: Configuration, seed: int = 3) -> AdaptedModel:
    data = SomeData(carrier.model, seed)
    return adapt(carrier, configuration, carrier.modules, seed=seed, data=data)


def rows(length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask `[4, length]`, one row padded."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 100, (4, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, length // 2 :] = 0
    mask[1, length // 2 :] = 0
    return ids, mask


def base_logits(carrier: Carrier, adapted: AdaptedModel) -> torch.Tensor:
    """What the bare base gives, through the adapted model's own head."""
    ids, mask = rows()
    # As the adapted model is asked: a cache changes the order of sums.
    more = {"use_cache": False} if carrier.head == "lm" else {}
    with torch.no_grad():
        output = carrier.model(input_ids=ids, attention_mask=mask, **more)
        if adapted.head is None:
            return output.logits
        return adapted.classify(adapted.pool(output.last_hidden_state, mask))


def loss_of(adapted: AdaptedModel) -> torch.Tensor:
    ids, mask = rows()
    logits = adapted(ids, mask)
    return (logits.float() - torch.linspace(-1, 1, logits.shape[-1])).square().mean()


def train_steps(adapted: AdaptedModel, steps: int = 3, rate: float = 1e-2, autocast: bool = False) -> None:
    optimizer = torch.optim.AdamW(list(adapted.trained().values()), lr=rate, weight_decay=0.0)
    adapted.train()
    for _ in range(steps):
        optimizer.zero_grad()
        # One context per step: inside one, autocast keeps the first cast of every weight.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(adapted)
        loss.backward()
        optimizer.step()
    adapted.eval()


def gradients_reach(adapted: AdaptedModel) -> set[str]:
    """Tensors that the data reaches: after a few steps their gradient is more than rounding."""
    twin = copy.deepcopy(adapted)
    optimizer = torch.optim.AdamW(list(twin.trained().values()), lr=1e-2)
    found: set[str] = set()
    twin.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(twin).backward()
        found |= {key for key, p in twin.trained().items() if p.grad is not None and float(p.grad.abs().max()) > 1e-10}
        optimizer.step()
    return found


def logits_of(adapted: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        return adapted(*rows())
