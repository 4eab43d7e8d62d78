"""Which blocks of a model a configuration leaves as they are below everything that it trains."""

from __future__ import annotations

from autopeft.space.configuration import Configuration
from autopeft.space.modules import ModuleMap

__all__ = ["frozen_blocks"]


def frozen_blocks(configuration: Configuration, modules: ModuleMap) -> int:
    """Blocks from the input on whose hidden states no step of its training changes.

    Args:
        configuration: What is trained.
        modules: The module map of the model.

    Returns:
        From 0 (the first block or the embedding is adapted, or the whole model is) to ``modules.blocks`` (only the head
        is trained).
    """
    if configuration.whole is not None:
        return 0
    blocks = {site.name: site.block for site in modules.sites}
    return min((blocks.get(name, 0) for name, _ in configuration.sites), default=modules.blocks)
