"""Live tensor bytes as PyTorch reserves them on a GPU.

The allocator takes memory in segments and keeps what is free in them, and the matrix libraries take workspaces. With
expandable segments a trial whose batches have many lengths reserves little more than its live bytes; without them up to
twice as much. So workers on GPUs are started with them (`allocator_settings`), and what these reserve is predicted by
two figures, which `benchmarks/memory_gpu.py` measures on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["allocator_settings", "reserved_bytes"]

WORKSPACES = 110 << 20
"""The workspaces of cuBLAS for the forward and the backward thread, and the last segments, half empty."""
GROWTH = 1.06
"""Reserved for one live byte where batches of changing lengths leave pieces that do not fit together."""
CONTEXT_BYTES = 600 << 20
"""What a process takes on a GPU beside PyTorch's reserve: the driver's context and the kernels that were loaded."""
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where PyTorch finds its allocator's settings, the current name first."""
EXPANDABLE = "expandable_segments:True"


def reserved_bytes(live: int) -> int:
    """What PyTorch is expected to reserve on a GPU for a trial.

    Args:
        live: The highest count of live tensor bytes at the longest batch.
    """
    return int(GROWTH * live) + WORKSPACES


def allocator_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a process that computes on a GPU; none where the user chose settings."""
    return {} if any(name in environment for name in VARIABLES) else {VARIABLES[0]: EXPANDABLE}
