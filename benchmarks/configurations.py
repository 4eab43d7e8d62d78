"""A fixed list of configurations that autopeft and plain peft express alike: what the contestants of `trials.py` train.

Drawn from a seed, so that nobody picked them: LoRA by rank, placement, rate, batch and dropout, and between them other
methods that peft ships. Every entry carries the peft config that says the same.
"""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any

from autopeft.compose.base import Carrier
from autopeft.compose.lower import lower
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.modules import ModuleMap

SEED = 5
PLACES: dict[str, tuple[str, ...]] = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value", "output"),
    "feed-forward": ("up", "down"),
    "all": ("query", "key", "value", "output", "up", "down"),
}
RANKS = (2, 4, 8, 16)
BATCHES = (16, 32)
DROPOUTS = (0.0, 0.0, 0.1)
OFFSETS = (-1.2, 0.4)
"""Logarithms of what the default rate of a method is multiplied with, at least and at most."""
OTHERS: tuple[tuple[str, str, int | None], ...] = (
    ("dora", "qv", 8),
    ("ia3", "all", None),
    ("oft", "qv", 16),
    ("layernorm", "norms", None),
    ("loha", "qv", 4),
    ("hra", "qv", 4),
)
"""Method, placement, size: each third configuration is one of these, in turn."""


def fixed(modules: ModuleMap, count: int, seed: int = SEED) -> list[Configuration]:
    """The first `count` configurations of the list.

    Args:
        modules: The module map of the model under its stock head.
        count: How many.
        seed: Which list.
    """
    rng = random.Random(seed)
    return [_one(modules, index, rng) for index in range(count)]


def _one(modules: ModuleMap, index: int, rng: random.Random) -> Configuration:
    # Everything is drawn for every entry, so that the list is the same however many of it are used.
    place, rank = rng.choice(list(PLACES)), rng.choice(RANKS)
    batch, dropout, offset = rng.choice(BATCHES), rng.choice(DROPOUTS), rng.uniform(*OFFSETS)
    method: str = "lora"
    size: int | None = rank
    if index % 3 == 2:
        method, place, size = OTHERS[index // 3 % len(OTHERS)]
        dropout = 0.0
    row = METHODS[method]
    roles = ("norm",) if place == "norms" else PLACES[place]
    sites = [site for site in modules.select(roles) if row.fits(site)]
    parts = {site.name: [Part.of(method, row.knobs(site, size if row.size else None))] for site in sites}
    rate = float(f"{row.rate.default * math.exp(offset):.3g}")
    return Configuration.of(parts, Training(((method, rate),), rate, batch, dropout))


def as_peft(configuration: Configuration, carrier: Carrier) -> dict[str, Any]:
    """The peft config that says the same, as plain values: what differs from its defaults.

    Args:
        configuration: One of `fixed`.
        carrier: The base under its stock head.

    Raises:
        ValueError: peft has no such config.
    """
    lowered = lower(configuration, carrier)
    if lowered is None:
        raise ValueError(f"{'+'.join(configuration.methods)} is no config of plain peft")
    kind, config = lowered
    usual = type(config)()
    kept = {f.name: getattr(config, f.name) for f in fields(config) if f.init}
    changed = {name: _plain(value) for name, value in kept.items() if value != getattr(usual, name)}
    return {**changed, "peft_type": kind, "task_type": "SEQ_CLS"}


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return getattr(value, "value", value)


def entries(carrier: Carrier, count: int, seed: int = SEED) -> list[dict[str, Any]]:
    """The list as plain values, for every contestant: `configuration` for autopeft, `peft` for the others.

    Args:
        carrier: The base under its stock head.
        count: How many.
        seed: Which list.
    """
    modules = module_map(carrier.model)
    found = []
    for index, configuration in enumerate(fixed(modules, count, seed)):
        (method,) = configuration.methods
        training = configuration.training
        found.append(
            {
                "index": index,
                "method": method,
                "parameters": configuration.adapter_params(modules),
                "rate": training.head_rate,
                "batch": training.batch_size,
                "peft": as_peft(configuration, carrier),
                "configuration": configuration.to_dict(),
            }
        )
    return found
