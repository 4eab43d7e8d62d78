"""Methods about the whole model, built by peft's own tuners: state shared between layers, or a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import CPTEmbedding, PeftConfig, PeftModel, PromptEncoder
from torch import nn

from autopeft.compose.base import Carrier
from autopeft.compose.host import TASK_TYPES, stock_config
from autopeft.methods import METHODS
from autopeft.methods.whole import adapted_sites
from autopeft.space.configuration import Part
from autopeft.space.modules import ModuleMap

__all__ = ["exact_prompt", "intended_modules", "taken_positions", "virtual_tokens", "whole_config"]

LENGTHENING = ("PROMPT_TUNING", "P_TUNING", "CPT")
"""Prompts that stand before the row's own tokens; a prefix of keys and values does not lengthen what comes out."""


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


class ExactPrompt(PromptEncoder):
    """p-tuning's encoder in float32 also under autocast: the prompt that is stored is the one that was used."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """`[rows, tokens]` -> `[rows, tokens, width]`."""
        with torch.autocast(indices.device.type, enabled=False):
            return super().forward(indices)


class ExactExamples(CPTEmbedding):
    """CPT's prompt, kept within its bound by a projection that does not move what lies within or on the bound.

    peft's scales again at every pass, and rounding moves the prompt each time.
    """

    def get_projection(self) -> torch.Tensor:
        """The bounded change of the prompt, `[tokens, width]`."""
        with torch.no_grad():
            change = self.delta_embedding.weight
            bound = self.get_epsilon().to(change.device)
            norm = change.norm(dim=1)
            factor = torch.where(norm > bound * (1 + 1e-5), bound / norm, 1.0)
            return change * factor.unsqueeze(1)


EXACT: dict[type, type] = {PromptEncoder: ExactPrompt, CPTEmbedding: ExactExamples}


def exact_prompt(model: PeftModel, adapter: str) -> None:
    """Make a model's prompt, where peft's own class for it would not compute the same twice, an exact one."""
    encoder = getattr(model, "prompt_encoder", {})
    if adapter in encoder and type(encoder[adapter]) in EXACT:
        encoder[adapter].__class__ = EXACT[type(encoder[adapter])]


def virtual_tokens(model: PeftModel, adapter: str) -> int:
    """How many positions a prompt puts before the rows' own."""
    config = model.peft_config[adapter]
    return int(config.num_virtual_tokens) if str(config.peft_type.value) in LENGTHENING else 0


def taken_positions(model: nn.Module) -> int:
    """How many of the model's positions a prompt or a prefix of keys and values takes from the rows."""
    configs = getattr(model, "peft_config", {})
    return max((getattr(config, "num_virtual_tokens", 0) or 0 for config in configs.values()), default=0)
