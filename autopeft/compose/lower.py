"""Lowering: what fits one of peft's own configs exactly is saved as that, and loads without autopeft."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from peft import PeftConfig

from autopeft.compose.base import Carrier
from autopeft.compose.host import stock_config
from autopeft.space.configuration import Configuration, Part

__all__ = ["lower"]

TASK_TYPES = {"stock": "SEQ_CLS", "lm": "CAUSAL_LM"}
FEATURES = "FEATURE_EXTRACTION"


def lower(configuration: Configuration, carrier: Carrier) -> tuple[str, PeftConfig] | None:
    """The stock peft config that says the same, or None where only the hybrid type can.

    LoRA with any ranks and scales, DoRA likewise, (IA)^3, and layer-norm tuning, each alone. Names are full module
    names; peft matches names by suffix as well, so a name that ends another one is not lowered.

    Args:
        configuration: What was trained.
        carrier: What it was trained on.

    Returns:
        The peft type and its config, without base model and revision.
    """
    if len(configuration.methods) != 1 or any(len(parts) != 1 for _, parts in configuration.sites):
        return None
    parts = {name: part for name, (part,) in configuration.sites}
    if "" in parts or _ambiguous(parts, carrier):
        return None
    method = configuration.methods[0]
    extra: dict[str, Any] = {
        "task_type": TASK_TYPES.get(carrier.head, FEATURES),
        "modules_to_save": list(carrier.head_modules) or None,
    }
    if method in ("lora", "dora"):
        config = _low_rank(method, parts, configuration.training.dropout, carrier, extra)
    elif method == "ia3":
        config = _ia3(parts, carrier, extra)
    elif method == "layernorm":
        config = stock_config(method, {}, sorted(parts), **extra)
    else:
        return None
    return str(config.peft_type.value), config


def _low_rank(
    method: str, parts: dict[str, Part], dropout: float, carrier: Carrier, extra: dict[str, Any]
) -> PeftConfig:
    names = sorted(parts)
    ranks = {name: int(parts[name]["r"]) for name in names}
    # The product that the hosted layer computes as well, so that peft's alpha / r is the same number.
    alphas = {name: _whole(float(parts[name]["scale"]) * ranks[name]) for name in names}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return stock_config(
        method,
        {"r": rank, "scale": 1.0},
        names,
        dropout=dropout,
        module=carrier.model.get_submodule(names[0]),
        lora_alpha=alpha,
        rank_pattern={re.escape(name): value for name, value in ranks.items() if value != rank},
        alpha_pattern={re.escape(name): value for name, value in alphas.items() if value != alpha},
        **extra,
    )


def _ia3(parts: dict[str, Part], carrier: Carrier, extra: dict[str, Any]) -> PeftConfig:
    names = sorted(parts)
    config = stock_config("ia3", {"feedforward": False}, names, module=carrier.model.get_submodule(names[0]), **extra)
    config.feedforward_modules = {name for name in names if parts[name]["feedforward"]}
    return config


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _ambiguous(parts: dict[str, Part], carrier: Carrier) -> bool:
    names = [name for name, _ in carrier.model.named_modules()]
    return any(other != name and other.endswith(name) for name in parts for other in names)
