"""``autopeft ls``, ``cat``, ``cp`` and ``validate``: the presets and the table of methods."""

from __future__ import annotations

import argparse
import re
from typing import IO, Any

from autopeft.cli.output import Boundary, write_json
from autopeft.errors import InputError, Problem
from autopeft.methods import METHODS, Method
from autopeft.space.example import parameters

_KEY = re.compile(r"[A-Z][a-z]+:")


def ls(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """List spaces, strategies or methods."""
    if args.what == "methods":
        return _ls_methods(args.json, stdout)
    from autopeft import catalogue

    entries = [
        {
            "name": name,
            "purpose": purpose(catalogue.text(args.what, name)),
            "file": str(catalogue.find(args.what, name)),
        }
        for name in catalogue.names(args.what)
    ]
    if args.json:
        write_json(entries, stdout)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("purpose", overflow="fold")
    for entry in entries:
        table.add_row(entry["name"], entry["purpose"])
    Console(file=stdout).print(table)
    return 0


def cat(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Print a space or a strategy: its file, or the values with everything filled in."""
    from autopeft import catalogue

    if not args.resolved and not args.json:
        stdout.write(catalogue.text(args.what, args.name))
        return 0
    values = _resolved(args.what, args.name) if args.resolved else catalogue.read(args.what, args.name)
    if args.json:
        write_json(values, stdout)
    else:
        import yaml

        yaml.safe_dump(values, stdout, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return 0


def cp(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Copy a space or a strategy to a file that the user can change."""
    from autopeft import catalogue

    print(catalogue.copy(args.what, args.name, args.to), file=stdout)
    return 0


def validate(args: argparse.Namespace, boundary: Boundary, stdout: IO[str]) -> int:
    """Check spaces or strategies; the problems of all of them are told at once."""
    problems: list[Problem] = []
    for name in args.names:
        try:
            _resolved(args.what, name)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    if args.json:
        write_json({"status": "valid", "names": args.names}, stdout)
    else:
        print(f"{', '.join(args.names)}: valid", file=stdout)
    return 0


def purpose(text: str) -> str:
    """The purpose that the head comment of a preset states, on one line; empty where it states none."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    for index, line in enumerate(lines):
        if line.lower().startswith("purpose:"):
            told = [line.partition(":")[2].strip()]
            for following in lines[index + 1 :]:
                if not following or _KEY.match(following):
                    break
                told.append(following)
            return " ".join(told)
    return lines[0] if lines else ""


def _resolved(what: str, name: str) -> dict[str, Any]:
    from autopeft import catalogue

    values = catalogue.read(what, name)
    if what == "spaces":
        from autopeft.space import resolve

        return resolve(values).to_dict()
    from autopeft.strategy import validate as validate_strategy

    problems = validate_strategy(values)
    if problems:
        raise InputError(problems)
    return values


def _ls_methods(as_json: bool, stdout: IO[str]) -> int:
    if as_json:
        entries = [
            {
                "name": method.name,
                "family": method.family,
                "paper": {"title": method.paper.title, "link": method.paper.link},
                "slots": list(method.slots),
                "whole_model": method.whole,
                "searchable": method.unsearchable is None,
                "reason": method.unsearchable,
                "roles": sorted(method.roles),
                "size": method.size,
                "parameters_on_bert_base": {
                    "any" if size is None else str(size): count for size, count in parameters(method).items()
                },
                "knobs": {knob: list(values) for knob, values in method.values.items()},
                "defaults": dict(method.defaults),
                "rate": {"low": method.rate.low, "default": method.rate.default, "high": method.rate.high},
                "mergeable": method.mergeable,
                "targets": sorted(method.targets),
                "beside": sorted(method.beside),
                "base": method.base,
                "quantised": method.quantised,
                "identity": method.identity,
                "peft_type": method.peft_type,
                "innermost": method.innermost,
                "lowers": method.lowers and method.peft_type is not None,
                "chooses": method.chooses,
                "tier": method.tier,
            }
            for method in METHODS.values()
        ]
        write_json(entries, stdout)
        return 0
    from rich.console import Console
    from rich.table import Table

    # Narrow enough, together, for a terminal of 80 columns.
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("name", "family", "on", "size", "rate", "targets", "tier"):
        # Targets may go on in a second line; what else is shown stays whole.
        table.add_column(name, no_wrap=name != "targets", style="bold" if name == "name" else "")
    for method in METHODS.values():
        if method.unsearchable is None:
            table.add_row(
                method.name,
                method.family,
                seat(method),
                method.size or "-",
                f"{_short(method.rate.low)}-{_short(method.rate.high)}",
                " ".join(target for target in ("peft", "merged", "vllm") if target in method.targets) or "-",
                str(method.tier),
            )
    left = ", ".join(method.name for method in METHODS.values() if method.unsearchable is not None)
    console = Console(file=stdout)
    console.print(table)
    console.print(f"Not searched: {left}.", style="dim", highlight=False)
    console.print("Papers, knobs, reasons: ls methods --json, docs/methods.md", style="dim", highlight=False)
    return 0


def seat(method: Method) -> str:
    """Where a method sits, in a word."""
    if method.whole:
        return "model"
    return "linear" if "attention" in method.slots else str(method.slots[0])


def _short(rate: float) -> str:
    """A rate with two significant digits: ``1.5e-3``."""
    digits, _, exponent = f"{rate:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
