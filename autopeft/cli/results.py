"""``autopeft report``, ``predict`` and ``track``: what is done with a finished (or running) search."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from autopeft.cli.output import Boundary, quiet_libraries, write_json
from autopeft.errors import InputError, Problem

ROWS_AT_A_TIME = 1024


def report(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Print the answer and write ``report.html`` into the run folder, from its journal."""
    folder = run_folder(args.folder)
    from autopeft.report import report as write_report
    from autopeft.report import summary

    page = str(write_report(folder))
    if args.json:
        result = folder / "result.json"
        document = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {"status": "running"}
        write_json({**document, "report": page}, stdout)
        return 0
    from rich.console import Console

    console = Console(file=stdout)
    console.print(summary(folder))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    return 0


def predict(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Apply the winner of a search to new rows."""
    folder = run_folder(args.folder)
    output = None if args.output is None else Path(args.output)
    if output is not None and output.suffix not in (".jsonl", ".csv"):
        raise InputError.one("--output", args.output, "must end in .jsonl or .csv", "Choose one of the two.")
    if output is not None and not output.parent.is_dir():
        raise InputError.one("--output", args.output, "must lie in a folder that exists", "Make the folder first.")
    if output is not None and output.exists() and args.input != "-" and output.samefile(args.input):
        raise InputError.one("--output", args.output, "is the input itself", "Choose another file.")
    rows = read_rows(args.input)
    quiet_libraries()
    from autopeft.search import load

    predictor = load(folder, model=args.model, adapter=args.adapter)
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        try:
            found.extend(predictor.predict(rows[start : start + ROWS_AT_A_TIME]))
        except InputError as error:
            raise counted_from(start, error) from error
    if output is None:
        write_lines(found, stdout)
        return 0
    # Written beside and renamed, so that an interruption leaves no half of a file behind.
    partial = output.with_name(output.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        write_table(found, stream) if output.suffix == ".csv" else write_lines(found, stream)
    os.replace(partial, output)
    print(f"{len(found):,} rows written to {output}", file=sys.stderr)
    return 0


def track(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Send what MLflow does not have yet of a search, from its journal."""
    folder = run_folder(args.folder)
    from autopeft.tracking import replay

    missing = replay(folder, args.tracking_uri)
    if missing is not None:
        print(f"autopeft: {missing}", file=sys.stderr)
        return 1
    return 0


def run_folder(text: str) -> Path:
    """The run folder that a user named.

    Raises:
        InputError: There is no journal in it.
    """
    folder = Path(text)
    if not (folder / "journal.jsonl").is_file():
        found = "is not a folder" if not folder.is_dir() else "has no journal.jsonl"
        raise InputError.one(
            "RUN_DIR", text, f"must be the folder of a search; it {found}", "Give the folder of --out."
        )
    return folder


def counted_from(start: int, error: InputError) -> InputError:
    """The same error with row numbers of the whole input.

    Args:
        start: Number of the row that the error calls ``rows[0]``.
        error: Problems with some of the rows.
    """
    return type(error)(
        [
            replace(problem, field=re.sub(r"^rows\[(\d+)\]", lambda at: f"rows[{start + int(at[1])}]", problem.field))
            for problem in error.problems
        ]
    )


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a table: csv, tsv, jsonl, parquet, or JSON lines on stdin for ``-``.

    Raises:
        InputError: No such file, an unknown ending, or content that cannot be read.
    """
    if name == "-":
        return _parse_lines(sys.stdin, "stdin")
    path = Path(name)
    if not path.is_file():
        raise InputError.one("--input", name, "must be a file", "Check the path.")
    try:
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as stream:
                return _parse_csv(stream, "," if path.suffix == ".csv" else "\t", name)
        if path.suffix in (".jsonl", ".json"):
            with path.open(encoding="utf-8-sig") as stream:
                return _parse_lines(stream, name)
    except UnicodeDecodeError as error:
        raise InputError.one(
            "--input", name, f"must be UTF-8; {error.reason} at byte {error.start}", "Convert it."
        ) from error
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise InputError.one("--input", name, "must end in .csv, .tsv, .jsonl, .json or .parquet", "Convert it.")


def write_lines(rows: Iterable[Mapping[str, Any]], stream: IO[str]) -> None:
    """Write one JSON object a line."""
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_table(rows: list[dict[str, Any]], stream: IO[str]) -> None:
    """Write csv with the columns of all rows, in order of their first appearance; nested values as JSON."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.writer(stream)
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(column) for column in columns)
        writer.writerow(
            [json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list) else cell for cell in cells]
        )


def _parse_csv(stream: IO[str], delimiter: str, name: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
    rows, problems = [], []
    try:
        for row in reader:
            if None in row or None in row.values():
                problems.append(f"line {reader.line_num}")
            rows.append(row)
    except csv.Error as error:
        raise InputError.one("--input", name, f"line {reader.line_num}: {error}", "Correct the file.") from error
    if problems:
        where = ", ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise InputError.one(
            "--input", name, f"must have the columns of its header in every row; not in {where}", "Correct it."
        )
    return rows


def _parse_lines(stream: IO[str], name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for number, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            problems.append(
                Problem("--input", name, f"line {number} must be a JSON object: {error.msg}", "Correct the line.")
            )
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(Problem("--input", name, f"line {number} must be a JSON object", "Correct the line."))
    if problems:
        raise InputError(problems[:20])
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except pyarrow.ArrowException as error:
        raise InputError.one("--input", str(path), f"must be a Parquet file: {error}", "Write it anew.") from error
