"""The hidden states below a trial's lowest adapted block: computed once for each row, kept, and read by every trial.

A row's states are a function of the row, the base and the block alone: they are computed with rows of the same padded
length in batches of one fixed shape, whoever needs them first. Kept or not, full disk or new folder, a trial sees the
same numbers; only its time differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from autopeft.compose.adapt import AdaptedModel
from autopeft.compose.base import Carrier
from autopeft.compose.lookup import Entry, frozen_part
from autopeft.data.encoded import Array
from autopeft.space.frozen import frozen_blocks
from autopeft.space.modules import ModuleMap
from autopeft.strategy.jobs import Train
from autopeft.trial.fit import Fit, fit_of
from autopeft.trial.setup import WorkSetup
from autopeft.trial.statefile import StateFolder
from autopeft.trial.states import FILL_TOKENS, PrefixUse, SplitStates, states_of

__all__ = ["FrozenPrefix", "FrozenStates", "PrefixUse", "default_cache_bytes", "states_folder"]

KEPT = ("train", "validation")
"""Splits whose rows are seen again and again; the test rows are read once."""

SHARE = 0.25
"""Of all memory and of the whole disk, whichever is less: what kept states may take where no limit is given. What is
free changes from hour to hour, and would decide otherwise when a search is resumed."""


def states_folder(run_folder: Path) -> Path:
    """Where a search's kept states lie; each node has a folder of its own in it."""
    return run_folder / "states"


def default_cache_bytes(run_folder: Path) -> int:
    """What kept states may take on this machine where no limit is given."""
    there = next(folder for folder in (run_folder, *run_folder.absolute().parents) if folder.is_dir())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(SHARE * min(shutil.disk_usage(there).total, memory))


class FrozenStates:
    """What a worker knows of kept states. Final.

    Args:
        setup: Data, precision and limit.
        device: Where the base is.
    """

    def __init__(self, setup: WorkSetup, device: torch.device) -> None:
        self._setup, self._device = setup, device
        self._limit = default_cache_bytes(setup.path) if setup.cache_bytes is None else setup.cache_bytes
        self._fits: dict[tuple[str, int], Fit] = {}

    def prefix(self, job: Train, model: AdaptedModel, modules: ModuleMap) -> FrozenPrefix:
        """The states for a job; its `use` says why there are none.

        What decides is the job, the model and the setup, never what has been kept before.

        Args:
            job: What is trained.
            model: Its model.
            modules: The module map of its base.
        """
        began = time.monotonic()
        layer = frozen_blocks(job.configuration, modules)
        reason = self._reason(job, layer)
        if reason is not None:
            return FrozenPrefix(off=reason)
        key = (job.head, layer)
        if key not in self._fits:
            self._fits[key] = fit_of(self._setup, self._device, model.carrier, modules, layer)
        fit = self._fits[key]
        if fit.reason is not None:
            return FrozenPrefix(off=fit.reason)
        needed = sum(len(self._setup.data.splits[name].input_ids) for name in KEPT) * fit.width * fit.dtype.itemsize
        if needed > self._limit:
            return FrozenPrefix(off=f"all rows' states would take {needed:,} bytes, above the limit of {self._limit:,}")
        blocks = frozen_part(model, fit.stack, layer)
        if blocks is None:
            return FrozenPrefix(off="something in or below the lowest blocks is not the base's own")
        made = FrozenPrefix(_Source(self._setup, self._device, self._limit, model.carrier, fit, layer), blocks)
        made.use.fill_seconds = time.monotonic() - began
        return made

    def _reason(self, job: Train, layer: int) -> str | None:
        """Why no states are kept for a job, as far as its configuration tells."""
        if self._limit == 0:
            return "switched off"
        if layer < 1:
            return "nothing is frozen below what is trained"
        longest = self._setup.data.splits["train"].longest
        at_once = job.execution.rows(job.configuration.training.batch_size)
        if self._setup.limited_memory and at_once * longest < max(FILL_TOKENS, longest):
            # What was predicted for the step has to hold for the pass that computes the states, too.
            return "batches are computed in pieces smaller than those that states are computed in"
        return None


class FrozenPrefix:
    """The states of one job's rows, or none. Final; made by `FrozenStates.prefix`.

    Attributes:
        use: What was read and computed.
    """

    def __init__(
        self, source: _Source | None = None, blocks: Sequence[nn.Module] = (), *, off: str | None = None
    ) -> None:
        self._source, self._blocks = source, blocks
        self._splits: dict[str, SplitStates] = {}
        self.use = PrefixUse(len(blocks), off)

    def entry(self, split: str, expected: Array) -> Callable[[Array, int], Entry] | None:
        """Row numbers and their padded length -> where their forward pass begins; None for whole passes.

        Args:
            split: ``train`` or ``validation``.
            expected: int64 `[n]`: rows that the job is going to use, in this order, as far as it is known.
        """
        if self._source is None:
            return None
        states = self._open(split)
        states.expect(expected)
        device = self._source.device
        return lambda rows, length: Entry(self._blocks, lambda: states.load(rows, length).to(device))

    def warm(self, split: str, rows: Array) -> None:
        """See to it that the states of some rows are kept."""
        if self._source is not None:
            of = self._source.setup.data.splits[split]
            self._open(split).load(rows, of.padded(int(of.lengths[rows].max())))

    def close(self) -> None:
        """Let go of the files."""
        for states in self._splits.values():
            states.close()
        self._splits.clear()

    def _open(self, split: str) -> SplitStates:
        if split not in self._splits:
            if self._source is None:
                raise ValueError("this job has no states")
            self._splits[split] = self._source.open(split, self.use)
        return self._splits[split]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where states come from: a base, how many of its blocks, and the folder for what they give."""

    setup: WorkSetup
    device: torch.device
    limit: int
    carrier: Carrier
    fit: Fit
    layer: int

    def open(self, name: str, use: PrefixUse) -> SplitStates:
        """The states of a split."""
        setup, fit = self.setup, self.fit
        split = setup.data.splits[name]
        about = {
            "base": None if self.carrier.identity is None else self.carrier.identity.content_hash,
            "class": type(self.carrier.model).__name__,
            "rows": setup.data.hashes[name],
            "pad_token": setup.data.pad_token,
            "pad_multiple": split.pad_multiple,
            "precision": setup.precision,
            "attention": self.carrier.attention,
            "blocks": self.layer,
            "width": fit.width,
            "dtype": str(fit.dtype),
            "batch_tokens": FILL_TOKENS,
            **_arithmetic(self.device),
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        # Nodes may share the run folder, but not the memory that a file is mapped into.
        node = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
        folder = StateFolder(states_folder(setup.path) / node, self.limit)
        file = folder.open(f"{name}-{self.layer}-{key}", about, split.lengths * (fit.width * fit.dtype.itemsize))
        compute = partial(states_of, setup, self.device, self.carrier, fit.stack, self.layer, split)
        return SplitStates(split, folder, file, compute, fit.width, fit.dtype, use)


def _arithmetic(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside model and data."""
    cpu = device.type == "cpu"
    return {
        "device": torch.backends.cpu.get_cpu_capability() if cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads() if cpu else 0,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
