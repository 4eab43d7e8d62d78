"""The checksums beside an adapter's files: what was written is what is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from autopeft.errors import DamagedFile, InputError, Problem

__all__ = ["MANIFEST", "check_manifest", "damaged", "read_json", "sha256", "write_manifest"]

MANIFEST = "manifest.json"
SCHEMA = 1


def write_manifest(folder: Path) -> dict[str, str]:
    """Write the sha256 of every file of a folder beside them; returned by name."""
    held = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    files = {path.name: sha256(path) for path in held}
    text = json.dumps({"schema": SCHEMA, "files": files}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return files


def check_manifest(folder: Path) -> dict[str, str]:
    """The sha256 of every file by name, after comparing them all.

    Raises:
        DamagedFile: A file is missing or is not what was written.
        InputError: There is no manifest.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError.one("adapter", str(folder), f"has no {MANIFEST}", "Give a folder written by autopeft.")
    files = read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise damaged(folder / MANIFEST, "is not a manifest")
    problems = []
    for name, expected in files.items():
        file = folder / name
        # A manifest must not lead out of its folder.
        if Path(name).name != name or not file.is_file():
            problems.append(Problem("adapter", str(file), "is missing", "Copy the folder again."))
        elif sha256(file) != expected:
            problems.append(
                Problem("adapter", str(file), "is damaged (its checksum differs)", "Copy the folder again.")
            )
    if problems:
        raise DamagedFile(problems)
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DamagedFile: It is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, "cannot be read as JSON") from error
    if not isinstance(values, dict):
        raise damaged(path, "is not a JSON object")
    return values


def damaged(path: Path, rule: str) -> DamagedFile:
    """The error for a file that is not what was written."""
    return DamagedFile([Problem("adapter", str(path), rule, "Copy the folder again, or train it again.")])


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
