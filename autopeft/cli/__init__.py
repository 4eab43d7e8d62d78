"""The command line: the verbs of the product in a terminal, with no logic of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from autopeft.cli.output import Boundary, stdout_reserved

__all__ = ["main"]

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
    argv = list(sys.argv[1:] if argv is None else argv)
    # Known before the arguments are parsed, because errors in the arguments must be JSON too.
    as_json = "--json" in argv
    with stdout_reserved(as_json) as stdout:
        boundary = Boundary(as_json=as_json, stdout=stdout)
        with boundary:
            from autopeft.cli.parser import build_parser, parse

            args = parse(argv)
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
