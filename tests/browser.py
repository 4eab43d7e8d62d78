"""Chromium without a window, for tests of pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NONE = "there is no Chromium on this machine"


def browse(profile: Path, url: str, *more: str, milliseconds: int = 20_000) -> str:
    """The page's document after its scripts have run."""
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--virtual-time-budget={milliseconds}",
        "--window-size=2200,900",
        *more,
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
