"""A forward pass that begins above the frozen blocks: the lower blocks pass on, the last of them looks its output up.

The model itself stays whole: it makes its masks, positions and rotary tables as ever, and the blocks are what they
were as soon as the forward pass is over. Saving, generating and measuring never meet a changed block.
"""

from __future__ import annotations

import inspect as pyinspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.base import Carrier
from autopeft.space.modules import ModuleMap

__all__ = ["Entry", "block_stack", "frozen_part", "passing", "run_base", "states_after"]

WRAPPED = "base_model.model."
"""What peft puts before the names of the model that it wraps."""


class Entry:
    """Where one forward pass begins, with which hidden states. Final.

    Args:
        blocks: The blocks to pass over, from the input on.
        load: Makes the output of the last of them for the batch: `[batch, length, width]` on the model's device, in
            the dtype that the block has. Called in the forward pass, so that nothing is held before it or after it.
    """

    def __init__(self, blocks: Sequence[nn.Module], load: Callable[[], Tensor]) -> None:
        self._blocks, self._load = blocks, load

    def passing(self) -> Any:
        """Context in which one forward pass of the model begins above the blocks."""
        return passing(self._blocks, self._load)


@contextmanager
def passing(blocks: Sequence[nn.Module], load: Callable[[], Tensor]) -> Iterator[None]:
    """Let blocks pass their input on, and the last of them give what `load` makes."""

    def onward(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    def looked_up(*args: Any, **kwargs: Any) -> Any:
        return load()

    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks[:-1]:
            block.forward = onward
        for block in blocks[-1:]:
            block.forward = looked_up
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is not None:
                block.forward = forward
            else:
                block.__dict__.pop("forward", None)


def block_stack(model: nn.Module, modules: ModuleMap) -> str | None:
    """Name of the one list that holds all blocks of a model in their order, or None where there is no such list."""
    found = []
    for name, held in model.named_modules():
        if not isinstance(held, nn.ModuleList) or len(held) != modules.blocks:
            continue
        inside = [site for site in modules.sites if site.role != "embedding"]
        if inside and all(site.name.startswith(f"{name}.{site.block}.") for site in inside):
            found.append(name)
    return found[0] if len(found) == 1 else None


def frozen_part(adapted: AdaptedModel, stack: str, layer: int) -> list[nn.Module] | None:
    """The lowest blocks of an adapted model, if they and all before them are those of the bare base.

    Args:
        adapted: The model.
        stack: Name of the list of blocks in its base (`block_stack`).
        layer: How many blocks.

    Returns:
        The blocks, or None where something in or before them is trained, random or of another kind.
    """
    blocks = _child(adapted.model, stack)
    bare = adapted.carrier.model.get_submodule(stack)
    if blocks is None or adapted.virtual_tokens or not 0 < layer <= len(blocks):
        return None
    lower = list(blocks)[:layer]
    above = {id(parameter) for block in list(blocks)[layer:] for parameter in block.parameters()}
    above |= {id(parameter) for parameter in adapted.groups().get("head", [])}
    if any(id(parameter) not in above for parameter in adapted.trained().values()):
        return None
    for block, own in zip(lower, list(bare), strict=False):
        kinds = [(type(module), module.training) for module in block.modules()]
        if kinds != [(type(module), False) for module in own.modules()]:
            return None
        if {id(tensor) for tensor in block.state_dict(keep_vars=True).values()} != {
            id(tensor) for tensor in own.state_dict(keep_vars=True).values()
        }:
            return None
    return lower


class _Reached(Exception):
    """The forward pass has come as far as it is needed."""


def states_after(carrier: Carrier, stack: str, layer: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """The hidden states that leave the lowest blocks of the bare base; the blocks above are not run.

    Args:
        carrier: The base.
        stack: Name of the list of its blocks.
        layer: How many blocks, from 1 on.
        inputs: What `AdaptedModel.forward` takes: ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``.

    Returns:
        `[batch, length, width]`.

    Raises:
        TypeError: The block gives more than hidden states to the next one.
    """
    kept: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output)
        raise _Reached

    handle = carrier.model.get_submodule(f"{stack}.{layer - 1}").register_forward_hook(keep)
    try:
        run_base(carrier, inputs)
    except _Reached:
        pass
    finally:
        handle.remove()
    if len(kept) != 1 or not isinstance(kept[0], Tensor) or kept[0].ndim != 3:
        raise TypeError("the blocks pass more than hidden states up")
    return kept[0]


def run_base(carrier: Carrier, inputs: Mapping[str, Tensor]) -> Any:
    """The last hidden states of the base without a task's layers: `[batch, length, width]`."""
    backbone = carrier.model.base_model
    accepted = pyinspect.signature(backbone.forward).parameters
    given: dict[str, Any] = {name: value for name, value in inputs.items() if name in accepted}
    if "use_cache" in accepted:
        given["use_cache"] = False
    return backbone(**given).last_hidden_state


def _child(model: nn.Module, stack: str) -> nn.ModuleList | None:
    for name in (WRAPPED + stack, stack):
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return found
    return None
