"""Size of a saved adapter, known before it is trained."""

from __future__ import annotations

from typing import Any

from autopeft.methods import METHODS
from autopeft.methods.whole import adapted_sites
from autopeft.space.configuration import WHOLE, Configuration, Part
from autopeft.space.modules import ModuleMap

__all__ = ["adapter_bytes"]

FLOAT_BYTES = 4

PART_BYTES = 1200
"""Largest cost of one part beside its numbers: four tensor headers of a safetensors file, and its lines in the two JSON
files that describe the adapter."""

FOLDER_BYTES = 8 * 1024
"""What every folder has: the fixed keys of the JSON files, the manifest with its checksums, the head's headers."""


def adapter_bytes(configuration: Configuration, modules: ModuleMap, head_params: int) -> int:
    """An upper bound of the bytes of an adapter folder: safetensors and JSON.

    It exceeds what is written by at most the larger of 5 % and 64 KiB for up to about 60 parts; every further part can
    add its share of slack.

    Args:
        configuration: What is saved.
        modules: The module map of the base.
        head_params: Parameters of the head that is saved with it; 0 for none.

    Raises:
        ValueError: The count is negative.
    """
    if head_params < 0:
        raise ValueError("counts cannot be negative")
    by_name: dict[str, Any] = {WHOLE: modules, **{site.name: site for site in modules.sites}}
    parts = list(configuration.parts())
    numbers = FLOAT_BYTES * configuration.adapter_params(modules)
    numbers += sum(METHODS[part.method].extra_bytes(by_name[name], dict(part.knobs)) for name, part in parts)
    places = sum(_places(part, modules) if name == WHOLE else 1 for name, part in parts)
    return numbers + FLOAT_BYTES * head_params + PART_BYTES * places + FOLDER_BYTES


def _places(part: Part, modules: ModuleMap) -> int:
    """How many modules a method about the whole model writes tensors for."""
    knobs = dict(part.knobs)
    return max(1, len(adapted_sites(modules, knobs))) if "where" in knobs else 1
