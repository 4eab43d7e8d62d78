"""Where an adapted model differs from its base, and attention over rows of several adapted models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from autopeft.compose.host.layer import HostedLayer, innermost
from autopeft.compose.host.tuner import active_prefixes
from autopeft.compose.layers.bottleneck import Tap
from autopeft.compose.layers.prefix import PrefixPart, kernel_of, prefixed
from autopeft.compose.rows import Layout
from autopeft.methods import METHODS

__all__ = ["AttentionRoute", "asks_base", "changed_modules", "frozen_of", "inner_model", "route_attention"]

ROUTED = "autopeft_packed_"
ROUTE = "autopeft_route"


def inner_model(model: nn.Module) -> nn.Module:
    """The transformers model inside of a peft model; the model itself where there is no adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def changed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of an adapted model that compute something else than the base's, or are listened to, by full name."""
    found: dict[str, nn.Module] = {}
    for name, module in inner_model(model).named_modules():
        changed = isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)
        tapped = any(isinstance(hook, Tap) for hook in module._forward_pre_hooks.values())
        if (changed or tapped) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def frozen_of(module: nn.Module) -> nn.Module:
    """The frozen module itself, inside of all parts."""
    return innermost(module)


def asks_base(module: nn.Module) -> bool:
    """Whether all parts of a module ask the frozen one inside with the module's own input (`Method.base`)."""
    while isinstance(module, BaseTunerLayer):
        if any(METHODS[method].base == "own" for method in getattr(module, "autopeft_methods", {}).values()):
            return False
        module = module.base_layer
    return not isinstance(module, ModulesToSaveWrapper)


class AttentionRoute:
    """Which rows of an attention layer have prefixes, and whose. Final.

    Args:
        layout: Which rows are whose.
        attentions: For every member its own attention module; None for a member without a prefix in it.
    """

    def __init__(self, layout: Layout, attentions: Sequence[nn.Module | None]) -> None:
        self._layout = layout
        self._attentions = attentions

    def __call__(
        self,
        family: str,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, None]:
        """The attention of all rows, each member's over the places that it has."""
        with_prefix = prefixed(family, active_prefixes)
        kernel = kernel_of(family, module)
        made = []
        for member, attention in enumerate(self._attentions):
            rows, places = self._layout.rows_of(member), self._layout.places_of(member)
            run, who = (kernel, module) if attention is None else (with_prefix, attention)
            own = dict(kwargs)
            if own.get("position_bias") is not None:
                own["position_bias"] = _cut(own["position_bias"], rows, places)
            q, k, v = (tensor[rows, :, places] for tensor in (query, key, value))
            output, _ = run(who, q, k, v, None if mask is None else _cut(mask, rows, places), **own)
            made.append(functional.pad(output, (0, 0, 0, 0, 0, query.shape[2] - output.shape[1])))
        return torch.cat(made), None


def _cut(scores: torch.Tensor, rows: slice, places: slice) -> torch.Tensor:
    """Some rows and places of a mask or bias `[batch or 1, heads or 1, queries, keys]`."""
    return (scores[rows] if scores.shape[0] > 1 else scores)[:, :, places, places]


def route_attention(model: Any, layout: Layout, members: Sequence[nn.Module]) -> None:
    """Give every member's rows the prefixes of its attention layers.

    Args:
        model: The model that runs all rows.
        layout: Which rows are whose.
        members: The adapted models, in the order of the layout.
    """
    routes: dict[str, list[nn.Module | None]] = {}
    for index, member in enumerate(members):
        for name, attention in _prefixed_modules(inner_model(member)):
            routes.setdefault(name, [None] * len(members))[index] = attention
    if not routes:
        return
    for name, attentions in routes.items():
        setattr(model.get_submodule(name), ROUTE, AttentionRoute(layout, attentions))
    family = str(model.config._attn_implementation)
    model.set_attn_implementation(f"{ROUTED}{family.removeprefix('autopeft_')}")


def _prefixed_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The attention modules with prefixes: those whose projection holds one."""
    for name, module in model.named_modules():
        held = isinstance(module, HostedLayer) and any(isinstance(part, PrefixPart) for part in module.part.values())
        if held:
            attention = name.split(".base_layer")[0].rpartition(".")[0]
            yield attention, model.get_submodule(attention)


def _routed(family: str) -> Any:
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        route = getattr(module, ROUTE, None)
        if route is None:
            return kernel_of(family, module)(module, query, key, value, attention_mask, **kwargs)
        return route(family, module, query, key, value, attention_mask, kwargs)

    return attention


for _family in ("eager", "sdpa"):
    AttentionInterface.register(f"{ROUTED}{_family}", _routed(_family))
    AttentionMaskInterface.register(f"{ROUTED}{_family}", ALL_MASK_ATTENTION_FUNCTIONS[_family])
