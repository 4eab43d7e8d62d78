"""The command line: the verbs of the product in a terminal, with no logic of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from autopeft.cli.output import Boundary, stdout_reserved

__all__ = ["main", "process_started"]

_FIRST_READING = time.monotonic()
_LONGEST_START = 30.0

_VERBS = {
    "search": "autopeft.cli.search:search",
    "plan": "autopeft.cli.search:plan",
    "ls": "autopeft.cli.catalogue:ls",
    "cat": "autopeft.cli.catalogue:cat",
    "cp": "autopeft.cli.catalogue:cp",
    "validate": "autopeft.cli.catalogue:validate",
    "report": "autopeft.cli.results:report",
    "predict": "autopeft.cli.results:predict",
    "track": "autopeft.cli.results:track",
    "ui": "autopeft.cli.machine:ui",
    "doctor": "autopeft.cli.machine:doctor",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; None takes those of this process.

    Returns:
        The exit code: 0 found or done, 2 something given cannot be used, 3 nothing fits the limits, 4 interrupted,
        1 a fault of ours.
    """
    # With arguments of its own, a call is made by a program that has run for however long.
    started = process_started() if argv is None else time.monotonic()
    argv = list(sys.argv[1:] if argv is None else argv)
    # Known before the arguments are parsed, because errors in the arguments must be JSON too.
    as_json = "--json" in argv
    with stdout_reserved(as_json) as stdout:
        boundary = Boundary(as_json=as_json, stdout=stdout)
        with boundary:
            from autopeft.cli.parser import build_parser, parse

            args = parse(argv)
            args.started = started
            if args.version:
                import autopeft

                print(autopeft.__version__, file=stdout)
            elif args.verb is None:
                build_parser().print_help(stdout)
            else:
                module, _, name = _VERBS[args.verb].partition(":")
                verb: Callable[..., int] = getattr(import_module(module), name)
                boundary.code = verb(args, boundary, stdout)
        return boundary.code


def process_started() -> float:
    """The reading of `time.monotonic` at which this process began: a limit on time counts Python's own start as well.

    Where the system does not say it, or says more than half a minute ago, it is the first reading in this package: a
    shell that gives its place to a command (``exec``) hands down its age, which is no part of the command.
    """
    now = time.monotonic()
    age = _age()
    if age is None or not 0 <= age - (now - _FIRST_READING) <= _LONGEST_START:
        return _FIRST_READING
    return now - age


def _age() -> float | None:
    """Seconds since this process began, or None."""
    try:
        # Field 22, in ticks since the machine began; the name before it may hold spaces and brackets.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        pass
    try:
        began = import_module("psutil").Process().create_time()
    except ImportError:
        return None
    return time.time() - float(began)
