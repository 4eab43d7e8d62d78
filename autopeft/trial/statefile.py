"""Hidden states of the rows of a split in one sparse, memory-mapped file that all workers of a node share.

A row's tensor is written with its checksum and is there once the checksum fits: workers need no lock, a torn or
damaged row is computed again, and whoever writes a row twice writes the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["StateFile", "StateFolder"]

MAGIC = b"autopeft hidden states 1\n"
PAGE = 4096
ENDING = ".states"
SPARE_BYTES = 1 << 30
"""Of the disk, left to checkpoints and to others."""
Bytes = npt.NDArray[np.uint8]


class StateFile:
    """A page that says what it holds, a mark for each row, the rows' bytes. Made by `StateFolder.open`; final.

    Attributes:
        path: Where it lies.

    Args:
        path: Of a complete file.
        offsets: int64 `[rows + 1]`: first byte of each row, counted from the first row's.
    """

    def __init__(self, path: Path, offsets: npt.NDArray[np.int64]) -> None:
        self.path = path
        self._offsets = offsets
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        # Held while in use, so that nobody makes room by removing it.
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self._map = np.memmap(path, dtype=np.uint8, mode="r")
        rows = len(offsets) - 1
        self._marks = self._map[PAGE : PAGE + 4 * rows].view(np.uint32)
        self._begin = _begin(rows)
        self._trusted = np.zeros(rows, dtype=bool)

    def holds(self, row: int) -> bool:
        """Whether a row has been written by somebody, well or not."""
        return bool(self._marks[row])

    def read(self, row: int) -> Bytes | None:
        """The bytes of a row, uint8, in the shared memory; None where they are missing or damaged."""
        mark = int(self._marks[row])
        if not mark:
            return None
        first, last = self._offsets[row : row + 2] + self._begin
        content = self._map[first:last]
        if not self._trusted[row]:
            if _mark(content) != mark:
                return None
            self._trusted[row] = True
        return content

    def write(self, row: int, content: Bytes) -> bool:
        """Keep the bytes of a row; False where the disk has no room for them."""
        try:
            # Not through the map: a full disk would end the process there.
            os.pwrite(self._fd, content.data, int(self._offsets[row]) + self._begin)
            os.pwrite(self._fd, np.uint32(_mark(content)).tobytes(), PAGE + 4 * row)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        # Views of the map may live on; the descriptor and its lock may not.
        os.close(self._fd)


class StateFolder:
    """The files of one node, held together below a limit on their bytes. Final.

    Args:
        path: The folder; made where missing.
        limit: Most bytes of all files together.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit

    def open(self, name: str, about: Mapping[str, Any], sizes: npt.NDArray[np.int64]) -> StateFile | None:
        """A file, made where it is missing or another one's; None where the disk does not allow it.

        Args:
            name: Without an ending.
            about: What it holds, as plain values: a file that says otherwise is replaced.
            sizes: int64 `[rows]`: bytes of each row.
        """
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        head = MAGIC + json.dumps(dict(about), sort_keys=True).encode()
        path = self._path / f"{name}{ENDING}"
        if len(head) >= PAGE:
            raise ValueError(f"what a file holds is to be said in {PAGE} bytes")
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _fits(path, head, int(offsets[-1]) + _begin(len(sizes))):
                self._make(path, head, int(offsets[-1]) + _begin(len(sizes)))
            os.utime(path)
            return StateFile(path, offsets)
        except OSError:
            return None

    def room(self, count: int) -> bool:
        """Whether so many more bytes stay within the limit, after files that nobody uses were removed for them."""
        while self.used() + count > self._limit or shutil.disk_usage(self._path).free < SPARE_BYTES + count:
            if not self._remove_oldest():
                return False
        return True

    def used(self) -> int:
        """Bytes that the files take on disk."""
        return sum(_taken(path) for path in self._path.glob(f"*{ENDING}"))

    def _make(self, path: Path, head: bytes, size: int) -> None:
        """A complete empty file under its name at once, whoever comes first; a wrong one is replaced."""
        working = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with working.open("xb") as handle:
                handle.write(head.ljust(PAGE, b"\0"))
                handle.truncate(size)
            try:
                os.link(working, path)
            except FileExistsError:
                if not _fits(path, head, size):
                    os.replace(working, path)
        finally:
            working.unlink(missing_ok=True)

    def _remove_oldest(self) -> bool:
        """Remove the file that was opened longest ago of those that no worker uses."""
        for path in sorted(self._path.glob(f"*{ENDING}"), key=_opened):
            with contextlib.suppress(OSError), path.open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                return True
        return False


def _begin(rows: int) -> int:
    """Place of the first row's bytes."""
    return PAGE + -(-4 * rows // PAGE) * PAGE


def _mark(content: Bytes) -> int:
    # 0 is what a row that was never written has.
    return zlib.crc32(content.data) or 1


def _fits(path: Path, head: bytes, size: int) -> bool:
    try:
        with path.open("rb") as handle:
            return os.fstat(handle.fileno()).st_size == size and handle.read(PAGE) == head.ljust(PAGE, b"\0")
    except FileNotFoundError:
        return False


def _taken(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _opened(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
