"""``autopeft search`` and ``autopeft plan``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import IO, TYPE_CHECKING

from autopeft.cli.flags import parse_flags, with_flag_names
from autopeft.cli.output import Boundary, quiet_libraries, write_json
from autopeft.errors import InputError, Problem

if TYPE_CHECKING:
    from autopeft.executors import Starting
    from autopeft.spec import SearchSpec


def search(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Run a search, show it on stderr while it runs, and print what it found on stdout."""
    spec = parse_flags(args)
    quiet_libraries()
    if spec.out is not None:
        boundary.folder = Path(spec.out)

    from rich.console import Console

    from autopeft.cli.live import Progress

    workers = _early(spec)
    try:
        # The libraries of training take seconds to load.
        from autopeft.search import run

        with Progress(Console(stderr=True)) as progress:
            result = run(spec, on_event=progress.on_event, started=args.started, workers=workers)
    except InputError as error:
        # The model, the data and the space are looked at only now; their problems have flags too.
        raise with_flag_names(error, args) from error
    finally:
        if workers is not None:
            workers.drop()
    if args.json:
        write_json(result.to_dict(), stdout)
    else:
        from autopeft.report import summary

        Console(file=stdout).print(summary(result.folder))
    return int(result.exit_code)


def _early(spec: SearchSpec) -> Starting | None:
    """Workers that come up while the libraries are loaded here; None where the search may well not begin."""
    files = [spec.task.model, spec.task.data, *([] if spec.incumbent is None else [spec.incumbent])]
    if spec.executor != "ray" or not all(isinstance(file, str) and Path(file).exists() for file in files):
        return None
    from autopeft.executors import Starting
    from autopeft.journal import check_folder

    if spec.out is not None:
        check_folder(Path(spec.out), resume=spec.resume, overwrite=spec.overwrite)
    return Starting(spec)


def plan(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Print what a search would do, without doing it."""
    tflops, unread = _tflops(args.device_tflops)
    spec = parse_flags(args, unread)
    quiet_libraries()

    from autopeft.search import make_plan

    options = {} if tflops is None else {"device_tflops": tflops}
    try:
        document = make_plan(spec, **options).to_dict()
    except InputError as error:
        raise with_flag_names(error, args) from error
    if args.json:
        write_json(document, stdout)
    else:
        from rich.console import Console

        from autopeft.cli.outline import outline

        console = Console(file=stdout)
        for warning in document.get("warnings", ()):
            console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
        console.print(outline({name: value for name, value in document.items() if name != "warnings"}))
    return 0


def _tflops(text: str | None) -> tuple[float | None, list[Problem]]:
    """The number, or the problem that there is none."""
    try:
        return None if text is None else float(text), []
    except ValueError:
        rule, step = "must be a number of TFLOP/s", "Give what the device achieves in training, for example 150."
        return None, [Problem("--device-tflops", text, rule, step)]
