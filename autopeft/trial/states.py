"""Hidden states of a split's rows: read where they are kept, computed and kept where they are not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autopeft.compose.base import Carrier
from autopeft.compose.lookup import states_after
from autopeft.data.batches import pad
from autopeft.data.encoded import Array, EncodedSplit
from autopeft.trial.evaluate import autocast, tensors
from autopeft.trial.setup import WorkSetup
from autopeft.trial.statefile import StateFile, StateFolder

__all__ = ["FILL_TOKENS", "PrefixUse", "SplitStates", "classes_of", "rows_at_once", "states_of"]

FILL_TOKENS = 256
"""Tokens of a batch that computes states: nearly as fast as larger ones on a processor, and fewer than most steps."""


@dataclass(slots=True)
class PrefixUse:
    """What a job did with kept states.

    Attributes:
        blocks: Blocks that were looked up; 0 for none.
        off: Why there are none, or None.
        read: Rows that were read.
        filled: Rows that were computed.
        fill_seconds: Seconds that computing and keeping them took; not among those of training and evaluation.
    """

    blocks: int = 0
    off: str | None = None
    read: int = 0
    filled: int = 0
    fill_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the journal."""
        return asdict(self)


class SplitStates:
    """Reads the states of a split's rows, and computes those that are not there. Final.

    Args:
        split: The rows.
        folder: Where files are kept.
        file: The split's file, or None where none could be made.
        compute: Numbers of rows of one padded length -> their states `[rows, length, width]`.
        width: Of the states.
        dtype: Of the states.
        use: Where reading and computing are counted.
    """

    def __init__(
        self,
        split: EncodedSplit,
        folder: StateFolder,
        file: StateFile | None,
        compute: Callable[[Array], Tensor],
        width: int,
        dtype: torch.dtype,
        use: PrefixUse,
    ) -> None:
        self._split, self._folder, self._file, self._compute = split, folder, file, compute
        self._width, self._dtype, self._use = width, dtype, use
        self._classes = classes_of(split)
        self._keeps = file is not None
        self._expected: dict[int, Iterator[int]] = {}

    def expect(self, rows: Array) -> None:
        """Say which rows are going to be needed, int64 `[n]` in their order: they fill up batches that are not full."""
        classes = self._classes[rows]
        self._expected = {kind: iter(rows[classes == kind].tolist()) for kind in np.unique(classes).tolist()}

    @torch.no_grad()
    def load(self, rows: Array, length: int) -> Tensor:
        """The states of rows `[batch, length, width]` on the processor, 0 where there is padding."""
        self._use.read += len(rows)
        out = torch.zeros(len(rows), length, self._width, dtype=self._dtype)
        content, missing = out.view(torch.uint8).numpy(), []
        for place, row in enumerate(rows.tolist()):
            held = None if self._file is None else self._file.read(row)
            if held is None:
                missing.append(place)
            else:
                tokens = self._split.lengths[row]
                content[place, :tokens] = held.reshape(tokens, -1)
        if missing:
            began = time.monotonic()
            self._fill(rows, np.array(missing), content)
            self._use.fill_seconds += time.monotonic() - began
        return out

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _fill(self, rows: Array, missing: Array, content: Array) -> None:
        """Compute the states of `rows[missing]` into those places of `content`, uint8 `[batch, length, bytes]`."""
        classes = self._classes[rows[missing]]
        for kind in np.unique(classes).tolist():
            places = missing[classes == kind]
            at_once = rows_at_once(kind * self._split.pad_multiple)
            for start in range(0, len(places), at_once):
                into = places[start : start + at_once]
                group = self._filled_up(rows[into], kind, at_once)
                states = self._compute(group).cpu().contiguous().view(torch.uint8).numpy()
                for line, place in enumerate(into.tolist()):
                    tokens = self._split.lengths[rows[place]]
                    content[place, :tokens] = states[line, :tokens]
                self._use.filled += len(group)
                self._keeps = self._keeps and self._keep(group, states)

    def _filled_up(self, rows: Array, kind: int, at_once: int) -> Array:
        """With rows of the same padded length that are needed later: the batch has the same shape anyway."""
        found = rows.tolist()
        if self._file is not None and self._keeps:
            while len(found) < at_once:
                row = next(self._expected.get(kind, iter(())), None)
                if row is None:
                    break
                if not self._file.holds(row) and row not in found:
                    found.append(row)
        return np.array(found, dtype=np.int64)

    def _keep(self, rows: Array, states: Array) -> bool:
        """Write rows while there is room; those that are there are read in any case."""
        lengths = self._split.lengths[rows]
        file = self._file
        if file is None or not self._folder.room(int(lengths.sum()) * states.shape[-1]):
            return False
        flat = (np.ascontiguousarray(states[line, :tokens]).reshape(-1) for line, tokens in enumerate(lengths))
        return all(file.write(row, content) for row, content in zip(rows.tolist(), flat, strict=True))


def rows_at_once(length: int) -> int:
    """Rows of a batch that computes states of rows of a padded length."""
    return max(1, FILL_TOKENS // length)


@torch.inference_mode()
def states_of(
    setup: WorkSetup, device: torch.device, carrier: Carrier, stack: str, layer: int, split: EncodedSplit, rows: Array
) -> Tensor:
    """The states of rows of one padded length, computed in a batch of the one shape that this length has.

    Args:
        setup: Precision and padding.
        device: Where the base is.
        carrier: The base.
        stack: Name of the list of its blocks.
        layer: After how many of them.
        split: The rows' split.
        rows: int64 `[rows]`: their numbers, at most `rows_at_once`.

    Returns:
        `[rows, length, width]` on the device.
    """
    length = split.padded(int(split.lengths[rows].max()))
    batch = pad(split, np.resize(rows, rows_at_once(length)), setup.data.pad_token)
    with autocast(setup, device):
        return states_after(carrier, stack, layer, tensors(batch, device))[: len(rows)]


def classes_of(split: EncodedSplit) -> Array:
    """Padded length of each row, in multiples of what its split pads to: int64 `[rows]`."""
    classes: Array = np.maximum(1, -(-split.lengths // split.pad_multiple))
    return classes
