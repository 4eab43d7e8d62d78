"""Methods about the whole model, built by peft's own tuners: state shared between layers, or a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig

from autopeft.compose.base import Carrier
from autopeft.compose.host import TASK_TYPES, stock_config
from autopeft.methods import METHODS
from autopeft.methods.whole import adapted_sites
from autopeft.space.configuration import Part
from autopeft.space.modules import ModuleMap

__all__ = ["intended_modules", "whole_config"]


def whole_config(part: Part, modules: ModuleMap, carrier: Carrier, *, dropout: float = 0.0) -> PeftConfig:
    """Peft's config of a whole-model method on a model.

    Modules are named from their block on: by full names Lily would share nothing between blocks.
    """
    knobs = dict(part.knobs)
    extra: dict[str, Any] = {
        "task_type": TASK_TYPES[carrier.head],
        "modules_to_save": list(carrier.head_modules) or None,
    }
    names = intended_modules(part, modules)
    if not names:
        return stock_config(part.method, knobs, None, **extra)
    suffixes = sorted({inside_block(name) for name in names})
    module = carrier.model.get_submodule(names[0])
    return stock_config(part.method, knobs, suffixes, dropout=dropout, module=module, **extra)


def intended_modules(part: Part, modules: ModuleMap) -> list[str]:
    """The modules that a whole-model method adapts; none for prompts."""
    knobs: Mapping[str, Any] = dict(part.knobs)
    if "where" not in METHODS[part.method].defaults:
        return []
    return [str(site.name) for site in adapted_sites(modules, knobs)]  # type: ignore[attr-defined]


def inside_block(name: str) -> str:
    """The name of a module without the way to its block: ``encoder.layer.0.attention.query`` -> ``attention.query``."""
    steps = name.split(".")
    numbers = [place for place, step in enumerate(steps) if step.isdigit()]
    return ".".join(steps[numbers[-1] + 1 :]) if numbers else name
