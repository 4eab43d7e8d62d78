"""Binding a space to a model, a target and limits."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.errors import InputError
from autopeft.space.bound import BoundSpace, Limits
from autopeft.space.layers import LayersSpace
from autopeft.space.modules import ModuleMap
from autopeft.space.recipe import RecipeSpace
from autopeft.space.structure import StructureSpace
from autopeft.space.values import SpaceValues
from autopeft.space.whole import WholeSpace
from autopeft.spec.budget import TARGETS
from autopeft.spec.task import KINDS

__all__ = ["bind"]


def bind(
    space: SpaceValues,
    modules: ModuleMap,
    *,
    kind: str,
    target: str = "any",
    param_limit: int | None = None,
    max_bytes: int | None = None,
) -> BoundSpace:
    """A space on one model under one set of limits.

    Args:
        space: The space (`autopeft.space.values.resolve`).
        modules: The model.
        kind: The task kind; it decides with `target`.
        target: What must load the winner: ``any``, ``peft``, ``merged`` or ``vllm``.
        param_limit: Limit on adapter parameters, or None.
        max_bytes: Limit on the adapter's bytes on disk without the head, or None.

    Raises:
        NothingFeasible: When nothing of the space fits; it names the limit that binds and the smallest value that
            would admit one configuration.
        InputError: When the target cannot serve the task kind.
        ValueError: For an unknown kind or target.
    """
    if kind not in KINDS or target not in TARGETS:
        raise ValueError(f"no such kind or target: {kind}, {target}")
    if target == "vllm" and kind != "causal_lm":
        # Its LoRA loader refuses adapters that bring a trained head along.
        raise InputError.one(
            "budget.target", target, f"cannot serve {kind}: vLLM loads no trained head", "Use peft or merged."
        )
    own = None if space.max_share is None else int(space.max_share * modules.base_params)
    limits = Limits(param_limit, max_bytes, own, len(modules.sites))
    kinds: dict[str, Callable[[SpaceValues, ModuleMap, Limits, str], BoundSpace]] = {
        "recipe": RecipeSpace,
        "layers": LayersSpace,
        "structure": StructureSpace,
        "whole": WholeSpace,
    }
    return kinds[space.encoding](space, modules, limits, target)
