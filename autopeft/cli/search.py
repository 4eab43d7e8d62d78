"""``autopeft search`` and ``autopeft plan``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from autopeft.cli.flags import parse_flags, with_flag_names
from autopeft.cli.output import Boundary, quiet_libraries, write_json
from autopeft.errors import InputError
from autopeft.spec.amounts import format_bytes, format_seconds


def search(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Run a search, show it on stderr while it runs, and print what it found on stdout."""
    spec = parse_flags(args)
    quiet_libraries()
    if spec.out is not None:
        boundary.folder = Path(spec.out)

    from rich.console import Console

    from autopeft.cli.live import Progress
    from autopeft.search import run

    try:
        with Progress(Console(stderr=True)) as progress:
            result = run(spec, on_event=progress.on_event, started=args.started)
    except InputError as error:
        # The model, the data and the space are looked at only now; their problems have flags too.
        raise with_flag_names(error, args) from error
    if args.json:
        write_json(result.to_dict(), stdout)
    else:
        from autopeft.report import summary

        Console(file=stdout).print(summary(result.folder))
    return int(result.exit_code)


def plan(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Print what a search would do, without doing it."""
    spec = parse_flags(args)
    quiet_libraries()

    from autopeft.search import make_plan

    try:
        document = make_plan(spec).to_dict()
    except InputError as error:
        raise with_flag_names(error, args) from error
    if args.json:
        write_json(document, stdout)
    else:
        from rich.console import Console

        Console(file=stdout).print(_table(document))
    return 0


def _table(document: Mapping[str, Any], unit: str = "") -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in document.items():
        if value is None or value in ((), [], {}, ""):
            continue
        unit_here = _unit(key) or unit
        shown = _table(value, unit_here) if isinstance(value, Mapping) else _text(value, unit_here)
        table.add_row(key.replace("_", " "), shown)
    return table


def _unit(key: str) -> str:
    if "bytes" in key or key in ("max_memory", "max_adapter_size"):
        return "bytes"
    return "seconds" if "seconds" in key or key in ("max_time", "max_compute") else ""


def _text(value: Any, unit: str) -> str:
    if isinstance(value, list | tuple):
        separator = "\n" if any(isinstance(item, str) and " " in item for item in value) else ", "
        return separator.join(_text(item, unit) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item, unit)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and unit:
        return format_bytes(value) if unit == "bytes" else format_seconds(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
