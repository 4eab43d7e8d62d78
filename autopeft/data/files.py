"""Data files: CSV, TSV, JSON lines and Parquet, read as hostile input.

Nothing here executes what a file says: no pickle, no archive is opened, and a Parquet file whose schema carries Arrow
extension types is refused before Arrow sees that schema (a process that has imported another library may have
registered extension types that unpickle their metadata: CVE-2026-41486).
"""

from __future__ import annotations

import base64
import codecs
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from autopeft.data.frames import MAX_TABLE_BYTES, Frame, usable
from autopeft.data.jsonlines import read_json
from autopeft.errors import InputError, Problem

MAX_LINE_BYTES = 4 << 20
"""Longest line of a text file, in bytes."""
MAX_FILE_BYTES = 4 << 30
"""Largest file, in bytes."""
FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
"""Extensions that can be read."""
_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z", ".rar")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".npy", ".npz")
_MAGIC = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80", "a pickle or another binary file"),
)
_SHOWN_ROWS = 5
_MAX_FOOTER_BYTES = 64 << 20
EXTENSION_KEY = b"ARROW:extension:name"
"""The key that marks a column of an Arrow extension type."""


def _marks(key: bytes) -> tuple[bytes, ...]:
    """The key itself, and the characters that it always leaves in Base64, for each of the three places it can start."""
    # Characters that also encode bits of neighbouring bytes are left out.
    encoded = [base64.b64encode(b"\0" * shift + key + b"\0" * (-(shift + len(key)) % 3)) for shift in range(3)]
    ends = [(8 * shift + 5) // 6 for shift in range(3)]
    stops = [8 * (shift + len(key)) // 6 for shift in range(3)]
    return (key, *(text[start:stop] for text, start, stop in zip(encoded, ends, stops, strict=True)))


_EXTENSION_MARKS = _marks(EXTENSION_KEY)


def refusal(path: Path, field: str) -> Problem | None:
    """Why a file cannot be read, judged by its name alone; None when its format is known."""
    suffix = path.suffix.lower()
    if suffix in FORMATS:
        return None
    if suffix in _ARCHIVES:
        return Problem(field, path.name, "archives are not opened", "Unpack it and give the files in it")
    if suffix in _PICKLES:
        return Problem(
            field, path.name, "pickled data is never loaded: it can run code", "Save it as CSV, JSON lines or Parquet"
        )
    return Problem(
        field, path.name, f"the format {suffix or 'without extension'!r} is unknown", f"Use one of {', '.join(FORMATS)}"
    )


def read_file(path: Path, field: str) -> Frame:
    """Read one data file.

    Args:
        path: The file; its extension says the format.
        field: What to call it in problems, e.g. ``data.train``.

    Raises:
        InputError: When it is missing, empty, too large, malformed, or of a format that is not read; with the row,
            line, byte or column where there is one.
    """
    problem = refusal(path, field)
    if problem is not None:
        raise InputError([problem])
    if not path.is_file():
        raise InputError.one(field, path.name, "there is no such file", "Check the path")
    size = path.stat().st_size
    if size == 0:
        raise InputError.one(field, path.name, "the file is empty", "Write at least a header and some rows")
    if size > MAX_FILE_BYTES:
        raise InputError.one(
            field, path.name, f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read", "Give a sample of it"
        )
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, field)
    _check_text(path, field)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, field, "\t" if suffix == ".tsv" else ",")
    return _refuse_duplicate_columns(read_json(path, field), field)


def _check_text(path: Path, field: str) -> None:
    """Refuse what is not UTF-8 or has an endless line, in constant memory."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    done, line, line_bytes = 0, 1, 0
    with path.open("rb") as handle:
        start = handle.peek(8)
        for magic, name in _MAGIC:
            if start.startswith(magic):
                raise InputError.one(field, path.name, f"this is {name}, not text", "Give a plain text file")
        while chunk := handle.read(1 << 20):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += chunk[: max(0, error.start - held)].count(b"\n")
                raise InputError.one(
                    field,
                    path.name,
                    f"line {line}, byte {done - held + error.start} of the file is not UTF-8 ({error.reason})",
                    "Save the file as UTF-8",
                ) from error
            for index, part in enumerate(chunk.split(b"\n")):
                line, line_bytes = (line, line_bytes + len(part)) if index == 0 else (line + 1, len(part))
                if line_bytes > MAX_LINE_BYTES:
                    raise InputError.one(
                        field,
                        path.name,
                        f"line {line} is longer than {MAX_LINE_BYTES:,} bytes",
                        "Split or shorten it; is the file one single line?",
                    )
            done += len(chunk)
        if decoder.getstate()[0]:
            raise InputError.one(
                field, path.name, f"line {line}: the file ends inside a UTF-8 character", "Write the file again"
            )


def _read_csv(path: Path, field: str, delimiter: str) -> Frame:
    ragged: list[Any] = []

    def keep_going(row: Any) -> str:
        ragged.append(row)
        return "skip"

    reading = pyarrow.csv.ReadOptions(use_threads=False, block_size=MAX_LINE_BYTES)
    parsing = pyarrow.csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep_going, quote_char='"'
    )
    try:
        with pyarrow.csv.open_csv(path, read_options=reading, parse_options=parsing) as reader:
            names = reader.schema.names
        _refuse_duplicates(names, path.name, field)
        ragged.clear()
        # Types are left alone here: Arrow would turn a column of digits into numbers and "NA" among them into nothing.
        converting = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
        )
        table = pyarrow.csv.read_csv(path, read_options=reading, parse_options=parsing, convert_options=converting)
    except pa.ArrowInvalid as error:
        rule = f"it is not valid CSV: {error}"
        if "straddling" in str(error):
            rule = f"a row is larger than {MAX_LINE_BYTES:,} bytes (is a quotation mark left open?)"
        raise InputError.one(field, path.name, rule, "Correct the file") from error
    if ragged:
        raise InputError(
            [
                Problem(
                    f"{field}[{row.number - 2}]",
                    row.text,
                    f"record {row.number} of {path.name} has {row.actual_columns} fields, the header has "
                    f"{row.expected_columns}"
                    + (f" ({len(ragged)} such rows in all)" if index == 0 and len(ragged) > 1 else ""),
                    "Quote the fields that contain the delimiter",
                )
                for index, row in enumerate(ragged[:_SHOWN_ROWS])
            ]
        )
    _refuse_open_quote(path, field, table)
    return Frame(table, typed=False, place=path.name)


def _refuse_open_quote(path: Path, field: str, table: pa.Table) -> None:
    # Arrow takes the end of the file for the missing quotation mark and returns the swallowed rows as one value.
    if not table.num_rows or "\n" not in table.column(table.num_columns - 1)[-1].as_py():
        return
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 64))
        if not handle.read().rstrip(b"\r\n").endswith(b'"'):
            raise InputError.one(
                f"{field}[{table.num_rows - 1}]",
                path.name,
                "a quotation mark that opens in this row is never closed",
                "Close it, or double the quotation marks inside fields",
            )


def _refuse_duplicates(names: list[str], place: str, field: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError.one(
            field, place, f"columns occur more than once: {', '.join(map(repr, twice))}", "Rename or drop them"
        )


def _refuse_duplicate_columns(frame: Frame, field: str) -> Frame:
    _refuse_duplicates(frame.table.column_names, frame.place, field)
    return frame


def _read_parquet(path: Path, field: str) -> Frame:
    _refuse_extension_types(path, field)
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        stored = metadata.metadata or {}
        expanded = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        _refuse_expanded(expanded, path, field)
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _refuse_duplicates(schema.names, path.name, field)
            wanted = {name: schema.field(name).type for name in schema.names}
            empty, unusable = usable(schema.empty_table())
            names = [name for name in wanted if name in empty.column_names]
            batches, held = [], 0
            for batch in file.iter_batches(batch_size=4096, columns=names):
                held += batch.nbytes
                _refuse_expanded(held, path, field)
                batches.append(batch)
            read_schema = batches[0].schema if batches else empty.schema
            table, _ = usable(pa.Table.from_batches(batches, schema=read_schema))
    except (pa.ArrowException, OSError) as error:
        raise InputError.one(field, path.name, f"it is not valid Parquet: {error}", "Write the file again") from error
    return Frame(table, unusable=unusable, class_names=_stored_class_names(stored), place=path.name)


def _refuse_expanded(size: int, path: Path, field: str) -> None:
    if size > MAX_TABLE_BYTES:
        raise InputError.one(
            field, path.name, f"it expands to more than {MAX_TABLE_BYTES:,} bytes", "Give a sample of it"
        )


def _refuse_extension_types(path: Path, field: str) -> None:
    """Look for extension types in the raw bytes of the footer: even `read_metadata` parses the Arrow schema there."""
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 8))
        end = handle.read()
        length = int.from_bytes(end[:4], "little") + 8
        if end[4:] != b"PAR1" or length > size:
            raise InputError.one(
                field, path.name, "it is not valid Parquet: the end of the file is wrong", "Write the file again"
            )
        if length > _MAX_FOOTER_BYTES:
            raise InputError.one(field, path.name, "its footer is too large", "Write it with fewer columns")
        handle.seek(size - length)
        footer = handle.read()
    if any(mark in footer for mark in _EXTENSION_MARKS):
        raise InputError.one(
            field,
            path.name,
            "a column has an Arrow extension type, whose metadata can run code in other libraries",
            "Write the file with plain columns (text, numbers)",
        )


def _stored_class_names(stored: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Class names in the metadata that Hugging Face `datasets` writes; anything malformed there is ignored."""
    try:
        features = json.loads(stored.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
