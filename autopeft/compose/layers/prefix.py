"""Prefix tuning (Li and Liang, arXiv 2101.00190) with a length of its own in every layer.

A part on the module that makes the keys holds the prefix. An attention function registered with transformers'
interface puts it before the keys and values, after position encoding and cache: positions and caches stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autopeft.compose.layers.part import OwnPart, Place

__all__ = ["PrefixPart", "kernel_of", "prefixed"]

Kernel = Callable[..., Any]
INIT_STD = 0.02


class PrefixPart(OwnPart):
    """Trained keys and values, `length` of each: P_theta of the paper, without its reparametrising network."""

    def __init__(self, place: Place, knobs: Mapping[str, Any], dropout: float) -> None:
        super().__init__(place, knobs, dropout)
        shape = (int(knobs["length"]), place.kv_features)
        self.key = nn.Parameter(torch.empty(shape))
        self.value = nn.Parameter(torch.empty(shape))
        for parameter in (self.key, self.value):
            nn.init.normal_(parameter, std=INIT_STD)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The projection itself is left alone: the prefix enters in the attention."""
        return y

    def heads(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values for a batch.

        Args:
            like: The layer's keys, `[batch, key heads, tokens, head width]`.

        Returns:
            Two tensors `[batch, key heads, length, head width]` of the type of `like`.
        """
        batch, heads, _, width = like.shape

        def split(parameter: torch.Tensor) -> torch.Tensor:
            by_head = parameter.view(-1, heads, width).transpose(0, 1).to(like.dtype)
            return by_head.unsqueeze(0).expand(batch, -1, -1, -1)

        return split(self.key), split(self.value)

    def log_gate(self) -> torch.Tensor | None:
        """Log of the share, in (0, 1], of each token's attention to the prefix that is let through.

        Returns:
            `[batch, 1, tokens, 1]`, or None where all of it is.
        """
        return None


def kernel_of(family: str, module: nn.Module) -> Kernel:
    """The plain attention function underneath.

    Args:
        family: ``sdpa``, or ``eager``: that of the module's own architecture.
        module: An attention module.

    Raises:
        NotImplementedError: Its model defines none.
    """
    if family == "sdpa":
        return sdpa_attention_forward  # type: ignore[no-any-return, unused-ignore]
    for kind in type(module).__mro__:
        kernel = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if kernel is not None:
            return kernel  # type: ignore[no-any-return]
    raise NotImplementedError(f"{type(module).__name__} has no eager attention function of its own")


def prefixed(family: str, prefixes: Callable[[nn.Module], Iterable[PrefixPart]]) -> Kernel:
    """An attention function for transformers' interface that adds the active prefixes of a module.

    Args:
        family: ``eager`` or ``sdpa``: the kernel underneath, the same that the base used.
        prefixes: Finds the active prefixes inside an attention module.
    """

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        kernel = kernel_of(family, module)
        for prefix in prefixes(module):
            if attention_mask is None and family == "sdpa":
                attention_mask = _causal(module, query, key, kwargs)
            keys, values = prefix.heads(key)
            length = keys.shape[2]
            key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
            gate = prefix.log_gate()
            if gate is not None:
                attention_mask = _weighed(gate, length, attention_mask, query, key)
            elif attention_mask is not None:
                # Every token may attend to the prefix: True in a boolean mask, 0 in an additive one.
                attention_mask = functional.pad(attention_mask, (length, 0), value=attention_mask.dtype == torch.bool)
            if kwargs.get("position_bias") is not None:
                kwargs["position_bias"] = functional.pad(kwargs["position_bias"], (length, 0))
        return kernel(module, query, key, value, attention_mask, **kwargs)

    return attention


def _weighed(
    gate: torch.Tensor, length: int, mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """An additive mask over prefix and tokens: `gate` for the prefix, the former mask for the tokens.

    Args:
        gate: `[batch, 1, queries, 1]`.
        length: Of the prefix.
        mask: Boolean or additive, `[batch or 1, heads or 1, queries, tokens]`, or None.
        query: `[batch, heads, queries, width]`.
        key: With the prefix, `[batch, key heads, length + tokens, width]`.
    """
    tokens = key.shape[2] - length
    if mask is None:
        additive = query.new_zeros((1, 1, query.shape[2], tokens))
    elif mask.dtype == torch.bool:
        additive = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
    else:
        additive = mask
    gate = gate.to(additive.dtype).expand(-1, additive.shape[1], -1, length)
    additive = additive.expand(gate.shape[0], -1, gate.shape[2], -1)
    return torch.cat([gate, additive], dim=-1)


def _causal(module: nn.Module, query: torch.Tensor, key: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The mask that the fused kernel would have implied, spelled out; None when everything may be seen."""
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not causal or query.shape[2] <= 1:
        return None
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()[None, None]
