"""Size of a saved adapter, known before it is trained."""

from __future__ import annotations

__all__ = ["adapter_bytes"]

FLOAT_BYTES = 4

PART_BYTES = 1200
"""Largest cost of one part beside its numbers: four tensor headers of a safetensors file, and its lines in the two JSON
files that describe the adapter."""

FOLDER_BYTES = 8 * 1024
"""What every folder has: the fixed keys of the JSON files, the manifest with its checksums, the head's headers."""


def adapter_bytes(adapter_params: int, head_params: int, parts: int) -> int:
    """An upper bound of the bytes of an adapter folder: float32 safetensors and JSON.

    It exceeds what is written by at most the larger of 5 % and 64 KiB for up to about 60 parts; every further part can
    add its share of slack.

    Args:
        adapter_params: Adapter parameters.
        head_params: Parameters of the head that is saved with them; 0 for none.
        parts: Number of (module, method) parts, i.e. ``len(list(configuration.parts()))``.

    Raises:
        ValueError: A count is negative.
    """
    if min(adapter_params, head_params, parts) < 0:
        raise ValueError("counts cannot be negative")
    return FLOAT_BYTES * (adapter_params + head_params) + PART_BYTES * parts + FOLDER_BYTES
