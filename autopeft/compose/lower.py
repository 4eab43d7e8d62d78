"""Lowering: what fits one of peft's own configs exactly is saved as that, and loads without autopeft."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from peft import PeftConfig

from autopeft.compose.base import Carrier
from autopeft.compose.biases import say_biases
from autopeft.compose.host import TASK_TYPES, stock_config
from autopeft.compose.whole import whole_config
from autopeft.methods import METHODS
from autopeft.space.beside import without_biases, writes_base_biases
from autopeft.space.configuration import Configuration, Part

__all__ = ["lower"]

FEED_FORWARD = "feedforward"


def lower(configuration: Configuration, carrier: Carrier, *, target: str = "any") -> tuple[str, PeftConfig] | None:
    """The stock peft config that says the same, or None where only the hybrid type can.

    A method about the whole model; or one method of peft's alone, with equal values everywhere or with values that its
    config can hold for single modules (ranks and scales of LoRA, for example). Names are full module names; peft
    matches names by suffix as well, so a name that ends another one is not lowered.

    Args:
        configuration: What was trained.
        carrier: What it was trained on.
        target: What must load it. For ``peft``, LoRA or DoRA with trained biases is lowered too, to a config that
            overwrites biases of the base (`autopeft.space.beside`).

    Returns:
        The peft type and its config, without base model and revision.
    """
    if configuration.whole is not None:
        config = whole_config(configuration.whole, carrier.modules, carrier, dropout=configuration.training.dropout)
        return str(config.peft_type.value), config
    if writes_base_biases(configuration, target):
        rest = without_biases(configuration)
        lowered = None if rest is None else lower(rest, carrier)
        if lowered is not None:
            say_biases(lowered[1], configuration)
        return lowered
    if len(configuration.methods) != 1 or any(len(parts) != 1 for _, parts in configuration.sites):
        return None
    parts = {name: part for name, (part,) in configuration.sites}
    (method,) = configuration.methods
    if METHODS[method].peft_type is None or not METHODS[method].lowers or _ambiguous(parts, carrier):
        return None
    return _alone(method, parts, configuration.training.dropout, carrier)


def _alone(method: str, parts: dict[str, Part], dropout: float, carrier: Carrier) -> tuple[str, PeftConfig] | None:
    row, names = METHODS[method], sorted(parts)
    values = {name: row.stock(dict(parts[name].knobs)) for name in names}
    own: dict[str, Any] = {
        "task_type": TASK_TYPES[carrier.head],
        "modules_to_save": list(carrier.head_modules) or None,
    }
    for key in values[names[0]]:
        usual = Counter(values[name][key] for name in names).most_common(1)[0][0]
        others = {re.escape(name): values[name][key] for name in names if values[name][key] != usual}
        if key in row.patterns:
            own |= {key: usual, row.patterns[key]: others}
        elif others and key != FEED_FORWARD:
            return None
    module = carrier.model.get_submodule(names[0])
    config = stock_config(method, dict(parts[names[0]].knobs), names, dropout=dropout, module=module, **own)
    if FEED_FORWARD in values[names[0]]:
        # (IA)^3 says by a list of names what it scales the input of.
        config.feedforward_modules = {name for name in names if values[name][FEED_FORWARD]}
    return str(config.peft_type.value), config


def _ambiguous(parts: dict[str, Part], carrier: Carrier) -> bool:
    names = [name for name, _ in carrier.model.named_modules()]
    return any(other != name and other.endswith(name) for name in parts for other in names)
