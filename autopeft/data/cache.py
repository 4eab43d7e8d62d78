"""A folder of answers that other processes may use again: measurements of the machine, tokenised rows.

Nothing depends on what lies in it. An entry is one file, named by a hash of all that it depends on; it appears whole or
not at all; one that cannot be read is made anew; and the oldest go when a sort of entry takes more than its bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as unpack_arrays
from safetensors.numpy import save as pack_arrays

from autopeft.data.encoded import Array

MOST_BYTES = 1 << 30
"""What entries of one sort may take together."""
_SUM = 32


def cache_folder() -> Path | None:
    """The user's cache of this package; None where there shall be none.

    ``AUTOPEFT_CACHE`` (``none`` for none), or else ``autopeft`` in ``XDG_CACHE_HOME``, or else in ``~/.cache``.
    """
    own = os.environ.get("AUTOPEFT_CACHE")
    if own == "none":
        return None
    if own:
        return Path(own).expanduser()
    # The standard says that a relative path is to be ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "autopeft"


def key_of(parts: Mapping[str, Any]) -> str:
    """The name of an entry: a hash of all that it depends on, as plain values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Shelf:
    """Entries of one sort. Final.

    Reading gives None where there is no entry, and where there is one that is torn, changed or of another shape; what
    cannot be written is not kept, and nothing is said of it: a cache may always be empty.

    Args:
        sort: The folder under the cache's.
        most_bytes: What they may take together; the least recently used go first.
    """

    def __init__(self, sort: str, most_bytes: int = MOST_BYTES) -> None:
        folder = cache_folder()
        self._folder = None if folder is None else folder / sort
        self._most = most_bytes

    def names(self) -> list[str]:
        """The names of all entries, the latest used first."""
        found: list[tuple[float, str]] = []
        if self._folder is not None:
            with contextlib.suppress(OSError):
                for path in self._folder.iterdir():
                    with contextlib.suppress(OSError):
                        found.append((-path.stat().st_mtime, path.name))
        return [name for _, name in sorted(found) if not name.startswith(".")]

    def values(self, key: str) -> dict[str, Any] | None:
        """An entry of plain values."""
        content = self._read(key)
        if content is None:
            return None
        try:
            found = json.loads(content)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def put_values(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep plain values."""
        self._write(key, json.dumps(values, sort_keys=True, allow_nan=False).encode())

    def arrays(self, key: str) -> dict[str, Array] | None:
        """An entry of arrays."""
        content = self._read(key)
        if content is None:
            return None
        try:
            return dict(unpack_arrays(content))
        except (SafetensorError, ValueError, KeyError):
            return None

    def put_arrays(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keep arrays."""
        self._write(key, pack_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()}))

    def _read(self, key: str) -> bytes | None:
        """What stands behind the checksum; a file whose content does not fit it is as good as none."""
        if self._folder is None:
            return None
        path = self._folder / key
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body = content[_SUM:]
        if hashlib.blake2b(body, digest_size=_SUM).digest() != content[:_SUM]:
            return None
        with contextlib.suppress(OSError):
            # Its age is that of its last use.
            os.utime(path)
        return body

    def _write(self, key: str, body: bytes) -> None:
        folder = self._folder
        if folder is None or len(body) > self._most // 2:
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".", dir=folder)
        except OSError:
            return
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.blake2b(body, digest_size=_SUM).digest())
                file.write(body)
            # Of two writers the later one stands, whole.
            os.replace(name, folder / key)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
        self._trim(folder)

    def _trim(self, folder: Path) -> None:
        entries: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                with contextlib.suppress(OSError):
                    state = path.stat()
                    entries.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self._most:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
