"""A frozen module with parts of our own around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from autopeft.compose.layers import OwnPart

__all__ = ["HostedLayer", "innermost", "shape_of"]


class HostedLayer(nn.Module, BaseTunerLayer):
    """A frozen module with one own part per adapter around it, all of one kind.

    Args:
        base_layer: The frozen module, or the layer of the part inside of this one.
        key: The kind of part, a key of `LAYERS`.
    """

    def __init__(self, base_layer: nn.Module, key: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.key = key
        # The kind is part of the tensors' names, so that two parts of one module never share a name.
        self.adapter_layer_names = (f"{key}_part",)
        setattr(self, f"{key}_part", nn.ModuleDict())
        self.merged_adapters: list[str] = []

    @property
    def part(self) -> nn.ModuleDict:
        """Adapter name -> part."""
        return getattr(self, f"{self.key}_part")

    def add(self, adapter: str, part: OwnPart) -> None:
        """Install an adapter's part and move it to the frozen module's device."""
        weight = self.get_base_layer().weight
        if not any(parameter.is_meta for parameter in part.parameters()):
            part.to(weight.device)
        self.part[adapter] = part.train(False)
        self.set_adapter(self.active_adapters if len(self.part) > 1 else [adapter])

    def is_active(self, adapter: str) -> bool:
        """Whether an adapter's part takes part in the forward pass."""
        return not self.disable_adapters and not self.merged and adapter in self.active_adapters

    def active_parts(self) -> Iterator[OwnPart]:
        """The parts that take part in the forward pass."""
        for name in self.active_adapters:
            if name in self.part and self.is_active(name):
                yield self.part[name]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The frozen module's output, changed by the active parts."""
        y = self.base_layer(x, *args, **kwargs)
        for part in self.active_parts():
            y = part(x, y)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the active parts into the frozen module, which gets new storage.

        Raises:
            ValueError: A part cannot be merged.
        """
        names = [name for name in (adapter_names or self.active_adapters) if name in self.part]
        for name in names:
            if not self.part[name].mergeable:
                raise ValueError(f"{type(self.part[name]).__name__} cannot be merged")
        for name in names:
            self.part[name].merge_into(self.get_base_layer())
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Not offered: merging is for export only."""
        raise NotImplementedError("a merged hybrid part cannot be taken out again: build the model anew")


def innermost(module: nn.Module) -> nn.Module:
    """The frozen module itself."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def shape_of(module: nn.Module) -> tuple[int, int]:
    """Widths of what a frozen module reads and makes; rows and width of an embedding."""
    if isinstance(module, nn.Linear):
        # A quantised layer's weight is packed.
        return module.in_features, module.out_features
    weight = module.weight
    if weight.ndim == 1:
        return weight.shape[0], weight.shape[0]
    return tuple(weight.shape) if isinstance(module, Conv1D | nn.Embedding) else (weight.shape[1], weight.shape[0])
