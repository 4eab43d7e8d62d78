"""Whether a run folder is one and the same folder for the driver and for its workers on other nodes."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

SEE_SECONDS = 20.0
"""How long a network file system may take to show a new file."""


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A mark that the driver left in the run folder.

    Attributes:
        folder: The run folder.
        token: What the mark says.
    """

    folder: str
    token: str

    @classmethod
    def mark(cls, folder: str) -> SharedFolder:
        """Leave a mark, and take away those of drivers that were killed: a run folder has one driver at a time."""
        for old in Path(folder).glob(".driver-*"):
            cls(folder, old.name.removeprefix(".driver-")).remove()
        shared = cls(folder, secrets.token_hex(8))
        shared.path.write_text(shared.token)
        return shared

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / f".driver-{self.token}"

    def seen(self, seconds: float = SEE_SECONDS) -> bool:
        """Whether this process finds the mark, and can write beside it.

        Args:
            seconds: How long to wait for it.
        """
        until = time.monotonic() + seconds
        while not self._read():
            if time.monotonic() > until:
                return False
            time.sleep(0.5)
        return os.access(self.folder, os.W_OK)

    def _read(self) -> bool:
        try:
            # Listing it makes a network file system forget that the file was not there.
            os.listdir(self.folder)
            return self.path.read_text() == self.token
        except OSError:
            return False

    def remove(self) -> None:
        """Take the mark away."""
        with contextlib.suppress(OSError):
            self.path.unlink()
