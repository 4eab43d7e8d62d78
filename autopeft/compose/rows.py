"""Which rows of a batch belong to whom: the batch of a pack is the members' batches, one below the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

__all__ = ["Layout"]


class Layout:
    """Rows and places of the members of a pack in the batch that runs now. Final.

    A member's rows are computed at the length that they are padded to, whatever the others' lengths are: what its parts
    see, the shape of their dropout included, is what they would see alone.

    Attributes:
        sizes: Rows of each member.
        lengths: Padded length of each member's rows.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.lengths: list[int] = []

    def lay(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Take note of the next batch: `(rows, padded length)` of each member."""
        self.sizes = [rows for rows, _ in shapes]
        self.lengths = [length for _, length in shapes]

    @property
    def rows(self) -> int:
        """Rows of all members."""
        return sum(self.sizes)

    @property
    def length(self) -> int:
        """Places of a row of the batch: the longest member's."""
        return max(self.lengths)

    def rows_of(self, member: int) -> slice:
        """Where a member's rows are."""
        start = sum(self.sizes[:member])
        return slice(start, start + self.sizes[member])

    def places_of(self, member: int) -> slice:
        """Where its rows' own places are."""
        return slice(0, self.lengths[member])

    def split(self, x: torch.Tensor, *, fresh: bool = False) -> list[torch.Tensor]:
        """What goes into a module, for each member.

        Args:
            x: `[rows, length, ...]`, `[rows * length, ...]`, or `[rows, width]`; token numbers are `[rows, length]`.
            fresh: Whether nobody else holds `x`, so that whoever gets a part of it may write into that.

        Returns:
            The same of each member's rows, and of its own places where there are places.

        Raises:
            ValueError: It is no such tensor.
        """
        # peft's layers add to what they are given; torch forbids that for parts unless it is told that it is safe.
        cut = torch.unsafe_split_with_sizes if fresh else torch.split
        if self._flat(x):
            parts = cut(x.unflatten(0, (self.rows, self.length)), self.sizes)
            return [p[:, :length].flatten(0, 1) for p, length in zip(parts, self.lengths, strict=True)]
        if x.shape[0] != self.rows:
            raise ValueError(f"a module got {tuple(x.shape)} where {self.rows} rows were laid out")
        parts = cut(x, self.sizes)
        if not self._has_places(x):
            return list(parts)
        return [p if n == self.length else p[:, :n] for p, n in zip(parts, self.lengths, strict=True)]

    def join(self, parts: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """What comes out of a module, of all members; zeros at places that a member does not have.

        Args:
            parts: Of each member.
            x: What went in: it tells which dimensions are rows and places.
        """
        if self._flat(x):
            rows = [p.unflatten(0, (size, -1)) for p, size in zip(parts, self.sizes, strict=True)]
            return torch.cat([self._filled(p) for p in rows]).flatten(0, 1)
        return torch.cat([self._filled(p) for p in parts] if self._has_places(x) else list(parts))

    def _flat(self, x: torch.Tensor) -> bool:
        return bool(x.ndim == 2 and x.is_floating_point() and x.shape[0] == self.rows * self.length)

    def _has_places(self, x: torch.Tensor) -> bool:
        tokens = x.ndim == 2 and not x.is_floating_point()
        return bool((tokens or x.ndim > 2) and x.shape[1] == self.length)

    def _filled(self, part: torch.Tensor) -> torch.Tensor:
        missing = self.length - part.shape[1]
        return functional.pad(part, (0, 0) * (part.ndim - 2) + (0, missing)) if missing else part
