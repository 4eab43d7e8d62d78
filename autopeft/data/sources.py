"""Where data comes from: folders, files, saved datasets, the hub, objects in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from autopeft.data.files import EXTENSION_KEY, FORMATS, read_file, refusal
from autopeft.data.frames import Frame, usable
from autopeft.errors import InputError, Problem

SPLITS = ("train", "validation", "test")
"""The splits, in order."""
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SHARD = re.compile(r"^(?P<split>[a-z]+)(-\d{5}-of-\d{5}(-[0-9a-f]+)?)?$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?$")
_FIELD = "task.data"


@dataclass(frozen=True, slots=True)
class Source:
    """What a source holds.

    Attributes:
        splits: Split name -> frame; at least ``train``.
        label: A short name for the data, without any path.
        notes: What the user should know about how it was found.
    """

    splits: Mapping[str, Frame]
    label: str
    notes: tuple[str, ...] = ()


def gather(data: Any) -> Source:
    """Read the splits that a source has.

    Args:
        data: A folder, a file, a folder written by ``save_to_disk``, a hub id (``name`` or ``name:configuration``), a
            `datasets.Dataset` or `DatasetDict`, a `pandas.DataFrame`, a `pyarrow.Table`, or a mapping of split names to
            any of the last four.

    Raises:
        InputError: With everything that is wrong with the source.
    """
    if isinstance(data, Mapping):
        return _from_mapping(data)
    if _is_table(data):
        return Source({"train": _from_memory(data, "data")}, "data in memory")
    if not isinstance(data, str | Path):
        raise InputError.one(
            _FIELD,
            type(data).__name__,
            "is not a kind of data that can be read",
            "Give a folder, a file, a hub id, a Dataset, a DataFrame, or a mapping of split names to these",
        )
    name = str(data)
    if not name.strip() or "\0" in name:
        raise InputError.one(_FIELD, name, "is not a path or a hub id", "Give a folder, a file or a hub id")
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _from_saved(path)
        return _from_folder(path)
    if path.is_file():
        return Source({"train": read_file(path, "data.train")}, path.name)
    looks_like_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    if looks_like_path or not _HUB_ID.match(name) or refusal(path, _FIELD) is None:
        raise InputError.one(_FIELD, name, "there is no such file or folder", "Check the path")
    return _from_hub(name)


def one_table(value: Any, field: str) -> Frame:
    """The rows of one labelled set: a file, a table in memory, or a list of mappings.

    Args:
        value: The path or the rows.
        field: What to call it in problems.

    Raises:
        InputError: It cannot be read.
    """
    if isinstance(value, str | Path):
        name = str(value)
        if not name.strip() or "\0" in name:
            raise InputError.one(field, name, "is not a path", "Give a file")
        path = Path(name).expanduser()
        return read_file(path, field)
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        try:
            value = pa.Table.from_pylist([dict(row) for row in value])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError.one(field, "rows", f"a column mixes types: {error}", "Use one type in a column") from error
    if not _is_table(value):
        raise InputError.one(
            field, type(value).__name__, "is not a table", "Give a file, a Dataset, a DataFrame, or a list of mappings"
        )
    return _from_memory(value, field.rpartition(".")[2])


def _from_mapping(data: Mapping[Any, Any]) -> Source:
    problems: list[Problem] = []
    frames: dict[str, Frame] = {}
    hidden: list[str] = []
    for key, value in data.items():
        split = _SPLIT_NAMES.get(str(key).lower())
        if split is None:
            hidden.append(str(key))
        elif split in frames:
            problems.append(Problem(_FIELD, str(key), f"is a second {split} split", "Give one"))
        elif not _is_table(value):
            problems.append(
                Problem(f"data.{split}", type(value).__name__, "is not a table", "Give a Dataset or a DataFrame")
            )
        else:
            try:
                frames[split] = _from_memory(value, split)
            except InputError as error:
                problems.extend(error.problems)
    notes = (f"Splits that are not used: {', '.join(hidden)}.",) if hidden else ()
    return _with_train(frames, problems, "data in memory", notes)


def _with_train(frames: dict[str, Frame], problems: list[Problem], label: str, notes: tuple[str, ...]) -> Source:
    if "train" not in frames and not any(problem.field.startswith("data.train") for problem in problems):
        found = ", ".join(frames) or "none"
        problems.insert(
            0, Problem(_FIELD, label, f"has no train split (found: {found})", "Name a split or file 'train'")
        )
    if problems:
        raise InputError(problems)
    return Source({split: frames[split] for split in SPLITS if split in frames}, label, notes)


def _from_folder(path: Path) -> Source:
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    shards: dict[str, list[Path]] = {}
    for file in files:
        match = _SHARD.match(file.stem.lower())
        split = _SPLIT_NAMES.get(match["split"]) if match else None
        if split is not None:
            shards.setdefault(split, []).append(file)
    readable = [file for file in files if file.suffix.lower() in FORMATS]
    if not shards:
        if len(readable) == 1:
            note = f"{readable[0].name} is the only data file of the folder and is used as the whole data."
            return Source({"train": read_file(readable[0], "data.train")}, path.name, (note,))
        shown = ", ".join(file.name for file in files[:20]) or "no files"
        raise InputError.one(
            _FIELD,
            path.name,
            f"the folder has no train file (it has {shown})",
            f"Name the files train, validation and test with one of {', '.join(FORMATS)}, or give one file",
        )
    problems: list[Problem] = []
    frames: dict[str, Frame] = {}
    for split, found in shards.items():
        if len(found) > 1 and not all("-of-" in file.stem for file in found):
            names = ", ".join(file.name for file in found)
            problems.append(Problem(f"data.{split}", names, "more than one file for one split", "Keep one of them"))
            continue
        try:
            frames[split] = _joined([read_file(file, f"data.{split}") for file in found], split)
        except InputError as error:
            problems.extend(error.problems)
    return _with_train(frames, problems, path.name, ())


def _joined(frames: list[Frame], split: str) -> Frame:
    if len(frames) == 1:
        return frames[0]
    try:
        table = pa.concat_tables([frame.table for frame in frames])
    except pa.ArrowInvalid as error:
        raise InputError.one(
            f"data.{split}", frames[0].place, f"the parts have different columns: {error}", "Write them alike"
        ) from error
    first = frames[0]
    return Frame(table, first.typed, first.unusable, first.class_names, first.place)


def _is_table(value: Any) -> bool:
    return isinstance(value, pa.Table) or _library_of(value) in ("datasets.Dataset", "pandas.DataFrame")


def _library_of(value: Any) -> str:
    """``library.Class`` of an object or its nearest named ancestor, without importing the library."""
    for kind in type(value).__mro__:
        root = kind.__module__.split(".")[0]
        if root in ("datasets", "pandas") and kind.__name__ in ("Dataset", "DataFrame"):
            return f"{root}.{kind.__name__}"
    return ""


def _from_memory(value: Any, split: str) -> Frame:
    if _library_of(value) == "datasets.Dataset":
        return _from_dataset(value, split)
    if isinstance(value, pa.Table):
        table = value
    else:
        _refuse_duplicate_names([str(name) for name in value.columns], split)
        try:
            table = pa.Table.from_pandas(value, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError.one(
                f"data.{split}", "DataFrame", f"a column mixes types: {error}", "Use one type in a column"
            ) from error
    _refuse_duplicate_names(table.column_names, split)
    kept, unusable = usable(table)
    return Frame(kept, unusable=unusable, place=split)


def _refuse_duplicate_names(names: list[str], split: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError.one(f"data.{split}", twice, "columns occur more than once", "Rename or drop them")


def _from_dataset(dataset: Any, place: str) -> Frame:
    class_names = {
        name: tuple(feature.names)
        for name, feature in dataset.features.items()
        if type(feature).__name__ == "ClassLabel" and feature.names
    }
    plain = {name: feature for name, feature in dataset.features.items() if type(feature).__name__ in _PLAIN_FEATURES}
    # Images and sequences are dropped by name before Arrow sees them: decoding them would cost time and prove nothing.
    unusable = {name: type(feature).__name__ for name, feature in dataset.features.items() if name not in plain}
    table = dataset.select_columns(list(plain)).with_format("arrow")[:] if plain else pa.table({})
    kept, more = usable(table)
    return Frame(kept, unusable={**unusable, **more}, class_names=class_names, place=place)


_PLAIN_FEATURES = ("Value", "ClassLabel")


def _from_saved(path: Path) -> Source:
    from datasets import DatasetDict, load_from_disk

    for file in path.rglob("*.arrow"):
        _refuse_arrow_extensions(file, path)
    for state in path.rglob("state.json"):
        _refuse_outside_files(state, path)
    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError.one(
            _FIELD, path.name, f"the saved dataset cannot be read: {error}", "Save it again with save_to_disk"
        ) from error
    source = _from_mapping(loaded) if isinstance(loaded, DatasetDict) else _from_mapping({"train": loaded})
    return Source(source.splits, path.name, source.notes)


def _refuse_outside_files(state: Path, folder: Path) -> None:
    try:
        listed = json.loads(state.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in listed.get("_data_files", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError.one(_FIELD, folder.name, f"{state.name} is damaged: {error}", "Save it again") from error
    for name in names:
        if Path(str(name)).name != name:
            raise InputError.one(_FIELD, name, "a saved dataset may only name files beside it", "Save it again")


def _refuse_arrow_extensions(file: Path, folder: Path) -> None:
    with file.open("rb") as handle:
        # The schema is the first message of the stream; 1 MiB holds it for any table of text.
        if EXTENSION_KEY in handle.read(1 << 20):
            raise InputError.one(
                _FIELD,
                folder.name,
                "a column has an Arrow extension type, whose metadata can run code in other libraries",
                "Save the dataset with plain columns (text, numbers)",
            )


def _from_hub(name: str) -> Source:
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    path, _, configuration = name.partition(":")
    try:
        loaded = load_dataset(path, configuration or None)
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        # datasets derives its own errors from these (offline mode, not found, a loading script that it will not run).
        raise InputError.one(
            _FIELD,
            name,
            f"there is no such local file or folder, and the hub does not give it: {_first_line(error)}",
            "Check the name and the connection, or give a folder with train, validation and test files",
        ) from error
    source = _from_mapping(loaded)
    return Source(source.splits, name, source.notes)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__
