"""The verbs and their arguments. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from autopeft.cli.flags import add_flags
from autopeft.errors import InputError, Problem

CATALOGUES = ("spaces", "strategies")

_DESCRIPTION = "Search for the best parameter-efficient fine-tuning configuration under a budget."
_EPILOGUE = """\
exit codes:
  0 found   2 something given cannot be used   3 nothing fits the limits   4 interrupted   1 a fault of ours

example:
  autopeft search --model MODEL_DIR --data DATA_DIR --max-params 1% --max-time 10m --out runs/first
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`, so that they are reported like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        raise InputError.one("command line", message, "must be as the help says", f"See `{self.prog} --help`.")


AddVerb = Callable[..., Parser]


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="autopeft",
        description=_DESCRIPTION,
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, told: str, *, json: bool = False) -> Parser:
        made: Parser = verbs.add_parser(
            name, help=told, description=told[0].upper() + told[1:] + ".", allow_abbrev=False
        )
        if json:
            made.add_argument("--json", action="store_true", help="one JSON document on stdout")
        return made

    add_flags(verb("search", "find the best adapter for a model and data"))
    plan = verb("plan", "what a search would do, at no cost")
    add_flags(plan)
    plan.add_argument(
        "--device-tflops",
        metavar="TFLOPS",
        help="plan for a device that achieves so many TFLOP/s in training (150), instead of for this machine",
    )
    _add_catalogue(verb)
    _add_results(verb)
    ui = verb("ui", "open the searches in MLflow")
    ui.add_argument("folder", nargs="?", metavar="RUN_DIR", help="the search whose store is shown")
    ui.add_argument("--tracking-uri", metavar="URI", help="MLflow store (that of RUN_DIR, or runs/mlflow.db)")
    ui.add_argument("--port", type=int, default=5000, metavar="PORT", help="port on 127.0.0.1 (5000)")
    doctor = verb("doctor", "what works on this machine and what does not", json=True)
    doctor.add_argument("--quick", action="store_true", help="do not start Ray")
    doctor.add_argument("--gpu-check", action="store_true", help="run the checks that need a GPU instead")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command line.

    Raises:
        InputError: Unknown flags (all at once, with the nearest known one), or missing arguments.
    """
    parser = build_parser()
    args, left = parser.parse_known_args(argv)
    if left:
        known = _known_flags(parser, args.verb)
        # What follows an unknown flag is most likely its value: one problem, not two.
        items = [item for before, item in zip(["", *left], left, strict=False) if item[:1] == "-" or before[:1] != "-"]
        raise InputError([_unknown(item, known, args.verb) for item in items])
    return args


def _add_catalogue(verb: AddVerb) -> None:
    ls = verb("ls", "list spaces, strategies or methods", json=True)
    ls.add_argument("what", choices=(*CATALOGUES, "methods"))
    cat = verb("cat", "print a space or a strategy", json=True)
    cat.add_argument("what", choices=CATALOGUES)
    cat.add_argument("name", metavar="NAME_OR_FILE")
    cat.add_argument("--resolved", action="store_true", help="with everything filled in that the file leaves out")
    cp = verb("cp", "copy a space or a strategy to a file of your own")
    cp.add_argument("what", choices=CATALOGUES)
    cp.add_argument("name", metavar="NAME_OR_FILE")
    cp.add_argument("to", metavar="FILE")
    validate = verb("validate", "check spaces or strategies", json=True)
    validate.add_argument("what", choices=CATALOGUES)
    validate.add_argument("names", nargs="+", metavar="NAME_OR_FILE")


def _add_results(verb: AddVerb) -> None:
    report = verb("report", "what a search found (also a running one); writes report.html", json=True)
    report.add_argument("folder", metavar="RUN_DIR")
    predict = verb("predict", "apply the winner to new rows")
    predict.add_argument("folder", metavar="RUN_DIR")
    predict.add_argument(
        "--input", required=True, metavar="FILE", help="csv, tsv, jsonl or parquet; - for JSON lines on stdin"
    )
    predict.add_argument("--output", metavar="FILE", help="jsonl or csv; JSON lines on stdout without it")
    predict.add_argument("--model", metavar="ID_OR_DIR", help="the base model, where it has moved")
    predict.add_argument("--adapter", default="winner", help="another adapter of the run, e.g. front/1 (winner)")
    track = verb("track", "send a search to MLflow again, from its journal")
    track.add_argument("folder", metavar="RUN_DIR")
    track.add_argument("--tracking-uri", metavar="URI", help="MLflow store (the one that the search was tracked in)")


def _known_flags(parser: Parser, verb: str | None) -> list[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and verb in action.choices:
            return list(action.choices[verb]._option_string_actions)
    return list(parser._option_string_actions)


def _unknown(item: str, known: list[str], verb: str | None) -> Problem:
    name = item.split("=", 1)[0]
    near = get_close_matches(name, known, n=1)
    step = f"Did you mean {near[0]}?" if near else f"See `autopeft{f' {verb}' if verb else ''} --help`."
    rule = "is not a flag of this verb" if item.startswith("-") else "is one argument too many"
    return Problem("command line", item, rule, step)
