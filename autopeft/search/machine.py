"""What this machine has left for the workers of a search."""

from __future__ import annotations

from pathlib import Path

import torch

from autopeft.cost.reserved import CONTEXT_BYTES
from autopeft.spec import SearchSpec

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
USABLE = 0.85
"""Share of the free memory that the workers may have together; the driver, Ray and the page cache need some."""
ALLOCATED = 1.6
"""Bytes that a worker takes from the system for one live byte: batches of many lengths leave pieces that do not fit
together (SmolLM2 at 136 tokens: 13.7 GB taken where 7.6 GB were live)."""
LEAST_BYTES = 256 << 20
"""What a trial may always have beside the base: the figures above are cautious."""
PROCESS_BYTES = 600 << 20
"""What a worker takes before it has computed anything: the interpreter and the libraries."""


def free_bytes() -> int | None:
    """Memory that is free here, within the limit of the control group; None where the system does not say."""
    found = [_available(), _group_left()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def live_bytes_per_worker(workers: int, shared: int = 0) -> int | None:
    """Live tensor bytes that each of so many workers can afford on this machine, or None where nothing is known.

    Args:
        workers: Workers at a time.
        shared: Bytes of the base model: every worker counts them, and they are there once.
    """
    free = free_bytes()
    if free is None:
        return None
    own = ((USABLE * free - shared) / workers - PROCESS_BYTES) / ALLOCATED
    return shared + max(LEAST_BYTES, int(own))


def gpu_share(spec: SearchSpec) -> float:
    """Share of a GPU that each worker of a search has to itself."""
    return min(1.0, spec.gpus_per_trial or 1.0)


def gpu_bytes(share: float) -> int | None:
    """What PyTorch may reserve for a worker on this machine's first GPU; None where there is none.

    Args:
        share: Of the GPU, for one worker.
    """
    if not torch.cuda.is_available():
        return None
    free = torch.cuda.mem_get_info(0)[0] + torch.cuda.memory_reserved(0)
    return max(LEAST_BYTES, int(share * free) - CONTEXT_BYTES)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _group_left() -> int | None:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files that nobody uses are counted as in use, and given up when memory is asked for.
        used = int((CGROUP / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        return int(limit) - used
    except (OSError, ValueError):
        return None
