"""What peft's own layers need before they can be part of a mixture."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from autopeft.compose.host.config import ADAPTER
from autopeft.compose.layers import AdapterDropout
from autopeft.methods import METHODS

__all__ = ["NEED_BARE", "own_dropout", "own_dropouts", "passing", "store_decompositions"]

NEED_BARE = frozenset({"layernorm", *(name for name, row in METHODS.items() if row.innermost and row.peft_type)})
"""Methods whose layers compute from the frozen module itself, or train a copy of it: nothing can lie between."""
PASSING = "_Passing__"


class _Passing:
    """Mixed into layers of peft: when none of their own adapters is active, they pass on to what lies inside of them.

    Left alone some would take no notice of that, some would fail, some would round.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = [name for name in self.adapter_layer_names if hasattr(self, name)]  # type: ignore[attr-defined]
        held = {adapter for name in names for adapter in getattr(self, name)}
        if held.isdisjoint(self.active_adapters):  # type: ignore[attr-defined]
            return self.base_layer(x, *args, **kwargs)  # type: ignore[attr-defined]
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]


def passing(kind: type) -> type:
    """The passing kind of one of peft's layers, made once and found by name, so that models can be pickled.

    (OSF's cannot: peft hangs a function on them that has no name.)
    """
    if issubclass(kind, _Passing):
        return kind
    name = f"{PASSING}{kind.__module__.replace('.', '__')}__{kind.__name__}"
    if name not in globals():
        globals()[name] = type(name, (_Passing, kind), {"__module__": __name__, "__doc__": kind.__doc__})
    made: type = globals()[name]
    return made


def __getattr__(name: str) -> type:
    # A fresh process that unpickles a model asks for kinds that nothing has made there yet.
    if name.startswith(PASSING):
        module, _, kind = name.removeprefix(PASSING).replace("__", ".").rpartition(".")
        if module.startswith("peft."):
            return passing(getattr(importlib.import_module(module), kind))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def own_dropouts(model: nn.Module, adapter: str = ADAPTER) -> None:
    """Put our own dropout into every layer of an adapter: switched on without the base's, and seeded."""
    for layer in list(model.modules()):
        if isinstance(layer, BaseTunerLayer):
            own_dropout(layer, adapter)


def own_dropout(layer: nn.Module, adapter: str) -> None:
    """The same for one layer."""
    for name, container in layer.named_children():
        held = isinstance(container, nn.ModuleDict) and name.endswith("_dropout") and adapter in container
        if held and isinstance(container[adapter], nn.Dropout):
            container[adapter] = AdapterDropout(container[adapter].p)


def store_decompositions(layer: nn.Module) -> None:
    """PSOFT's factors are stored: computed again on another machine, singular vectors could differ in sign."""
    for name in ("_psoft_A_cache", "_psoft_B_cache"):
        if hasattr(layer, name):
            getattr(layer, name)._non_persistent_buffers_set.clear()
