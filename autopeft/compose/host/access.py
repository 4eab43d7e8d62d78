"""Reading adapters in built models: their parts, parameters and copies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft.tuners.frod.layer import FrodLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from autopeft.compose.host.config import ADAPTER
from autopeft.compose.host.layer import HostedLayer
from autopeft.compose.layers import OwnPart

__all__ = [
    "adapted_modules",
    "asks_for_training",
    "freeze_constants",
    "hosted_parts",
    "kept_modules",
    "part_parameters",
    "recompute_constants",
]


def hosted_parts(model: nn.Module, adapter: str = ADAPTER) -> Iterator[tuple[str, str, OwnPart, nn.Module]]:
    """`(module name, method, part, frozen module)` for every own part of an adapter, in the order of the modules."""
    for path, layer in model.named_modules():
        if isinstance(layer, HostedLayer) and adapter in layer.part:
            name = path.removeprefix("base_model.model.").split(".base_layer")[0]
            yield name, layer.autopeft_methods[adapter], layer.part[adapter], layer.get_base_layer()


def part_parameters(model: nn.Module, adapter: str = ADAPTER) -> Iterator[tuple[str, str, nn.Parameter]]:
    """`(method, full parameter name, parameter)` for every parameter of an adapter's parts."""
    whole = getattr(model, "autopeft_whole", None)
    if whole is not None:
        kept = {id(p) for module in kept_modules(model, adapter).values() for p in module.parameters()}
        yield from ((whole, name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in kept)
        return
    for name, layer in model.named_modules():
        method = getattr(layer, "autopeft_methods", {}).get(adapter)
        if method is None:
            continue
        # DoRA lists its magnitudes twice.
        for container_name in dict.fromkeys(layer.adapter_layer_names):
            container = getattr(layer, container_name)
            if adapter not in container:
                continue
            held = container[adapter]
            path = f"{name}.{container_name}.{adapter}"
            if isinstance(held, nn.Parameter):
                yield method, path, held
            else:
                for inner, parameter in held.named_parameters():
                    yield method, f"{path}.{inner}", parameter


def freeze_constants(model: nn.Module, adapter: str = ADAPTER) -> None:
    """Freeze what an adapter's layers hold as parameters and never train; peft thaws it when it changes their type."""
    for layer in model.modules():
        for name in getattr(layer, "other_param_names", ()):
            container = getattr(layer, name, None)
            if isinstance(container, nn.ParameterDict) and adapter in container:
                container[adapter].requires_grad_(False)


def kept_modules(model: nn.Module, adapter: str = ADAPTER) -> dict[str, nn.Module]:
    """Trained copies of task layers (peft's modules to save), by full name."""
    return {
        f"{name}.modules_to_save.{adapter}": module.modules_to_save[adapter]
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save
    }


def asks_for_training(module: nn.Module) -> bool:
    """Whether a module is an adapter's layer that has to know whether it is being trained.

    DoRA asks its own layer whether to expect dropout, PVeRA whether to draw. LoHa and LoKr would draw a number in every
    pass for a dropout that is not in use.
    """
    return isinstance(module, BaseTunerLayer) and not hasattr(module, "rank_dropout")


def adapted_modules(model: nn.Module) -> set[str]:
    """Names of the modules that peft says it has adapted."""
    return set(getattr(model.base_model, "targeted_module_names", ()))


@torch.no_grad()
def recompute_constants(model: nn.Module, adapter: str = ADAPTER) -> None:
    """After stored tensors were read: what an adapter's layers compute from them and do not store.

    FRoD keeps a basis and divides the frozen weight by it; peft does so only when a layer is made, with a basis of this
    machine's decomposition, whose signs may be others than those of the stored one.
    """
    for layer in model.modules():
        if isinstance(layer, FrodLayer) and adapter in layer.frod_U:
            frozen = layer.get_base_layer().weight
            weight = frozen.T if layer.fan_in_fan_out else frozen
            basis = layer.frod_V[adapter].to(dtype=frozen.dtype, device="cpu")
            quotient, _ = layer._calculate_frod_u_and_lambda(basis, weight)
            layer.frod_U[adapter] = quotient.to(layer.frod_U[adapter])
