"""The catalogue of presets: value files for spaces and strategies that ship with the package.

A wheel carries them inside the package; a checkout or an editable install has them beside it. One file is one complete
value; nothing in it is executed, included or inherited.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutopeftError, InputError
from autopeft.spec.fields import suggest
from autopeft.spec.yamlfile import read_yaml_file

__all__ = ["KINDS", "Preset", "copy", "find", "names", "preset", "presets", "read", "text"]

KINDS = {"spaces": "search_spaces", "strategies": "strategies"}
"""What there is -> the folder that holds it."""
_FIELDS = {"spaces": "space", "strategies": "strategy"}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SUFFIXES = (".yaml", ".yml")
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Preset:
    """A published pair.

    Attributes:
        name: Its name, that of the space.
        space: Name of the space.
        strategy: Name of the strategy, or its values.
    """

    name: str
    space: str
    strategy: str | Mapping[str, Any]


def names(what: str) -> tuple[str, ...]:
    """The names of the presets of a kind, sorted.

    Args:
        what: ``spaces`` or ``strategies``.
    """
    return tuple(sorted(path.stem for path in _folder(what).glob("*.yaml")))


def find(what: str, name_or_file: str) -> Path:
    """The file of a preset, or the user's own file.

    Args:
        what: ``spaces`` or ``strategies``.
        name_or_file: A preset's name, or the path of a ``.yaml`` file. A name never looks at the working directory.

    Raises:
        InputError: For a name that is not known and a file that does not exist.
    """
    given = os.fspath(name_or_file) if isinstance(name_or_file, os.PathLike) else name_or_file
    field = _field(what)
    known = names(what)
    if isinstance(given, str) and given in known:
        return _folder(what) / f"{given}.yaml"
    close = suggest(Path(given).stem if isinstance(given, str) else "", known)
    step = f"{close} See autopeft ls {what}, or give a .yaml file."
    if not isinstance(given, str) or not given.strip() or any(ord(character) < 32 for character in given):
        raise InputError.one(field, given, f"is not the name of one of the {what} nor of a file", step)
    if given.endswith(_SUFFIXES):
        path = Path(given).expanduser()
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise InputError.one(field, given, f"is not a file that can be read: {error.strerror}", step) from error
        raise InputError.one(field, given, "is not a file that exists", step)
    if _NAME.fullmatch(given) is None:
        raise InputError.one(field, given, "is not a name (small letters, digits, - and _) nor a .yaml file", step)
    raise InputError.one(field, given, f"is not one of the {what} that ship with autopeft", step)


def read(what: str, name_or_file: str) -> dict[str, Any]:
    """The values of a preset or of a file; a value without a name is named after its file.

    Raises:
        InputError: When it is not there, not valid YAML (with the line), or not a mapping.
    """
    path = find(what, name_or_file)
    values, _ = read_yaml_file(path, _field(what))
    if not isinstance(values, dict):
        raise InputError.one(_field(what), str(path), "must hold fields and values", "Copy a preset: autopeft cp.")
    return {"name": path.stem, **values}


def text(what: str, name_or_file: str) -> str:
    """The file of a preset as it is, comments included.

    Raises:
        InputError: When it is not there or not valid YAML.
    """
    return read_yaml_file(find(what, name_or_file), _field(what))[1]


def copy(what: str, name_or_file: str, to: str | os.PathLike[str]) -> Path:
    """Copies a preset to a place of the user's, never over a file.

    Args:
        what: ``spaces`` or ``strategies``.
        name_or_file: What to copy.
        to: A ``.yaml`` file that does not exist yet, or a folder that does.

    Returns:
        The new file.

    Raises:
        InputError: When it cannot be written there.
    """
    source = find(what, name_or_file)
    content = text(what, name_or_file)
    given = os.fspath(to)
    if not given.strip() or "\0" in given:
        raise InputError.one("to", given, "is not a path", "Give a file or a folder.")
    target = Path(given).expanduser()
    try:
        if target.is_dir():
            target = target / source.name
        if target.suffix not in _SUFFIXES:
            raise InputError.one(
                "to", given, "must end in .yaml, or be a folder", f"Write {target.name or 'own'}.yaml."
            )
        with target.open("x", encoding="utf-8") as stream:
            stream.write(content)
    except FileExistsError as error:
        raise InputError.one("to", str(target), "exists already", "Choose another name or remove it.") from error
    except OSError as error:
        raise InputError.one(
            "to", str(target), f"cannot be written: {error.strerror}", "Choose another place."
        ) from error
    return target


def presets() -> dict[str, Preset]:
    """The published pairs, by name: spaces whose file names the strategy that goes with them."""
    found = {}
    for name in names("spaces"):
        strategy = read("spaces", name).get("strategy")
        if strategy is not None:
            found[name] = Preset(name, name, strategy)
    return found


def preset(name: str) -> Preset:
    """One published pair.

    Raises:
        InputError: When there is none of that name.
    """
    known = presets()
    if name not in known:
        raise InputError.one("preset", name, "is not a published pair of space and strategy", suggest(name, known))
    return known[name]


def _field(what: str) -> str:
    if what not in KINDS:
        raise InputError.one("what", what, f"must be one of {', '.join(KINDS)}", suggest(str(what), KINDS))
    return _FIELDS[what]


def _folder(what: str) -> Path:
    _field(what)
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        folder = root / KINDS[what]
        if folder.is_dir():
            return folder
    raise AutopeftError(f"the value files of {what} are missing from this installation of autopeft")
