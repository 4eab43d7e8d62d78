"""All tables of the benchmarks of speed, as markdown for the README: what is on record, nothing is run.

python benchmarks/speed_tables.py [trials search limit scaling]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import measured

TITLES = {
    "trials": "Trials in an hour",
    "search": "Until it has what others find",
    "limit": "Share of the processor's limit",
    "scaling": "As it grows",
}


def page(names: Sequence[str], folder: Path = measured.RESULTS) -> str:
    """The tables of those that are on record, each with its chart, machine and command.

    Args:
        names: Of the benchmarks.
        folder: Where their results are.
    """
    parts = []
    for name in names:
        found = measured.read_result(name, folder)
        if found is None:
            continue
        machine = found["machine"]
        about = f"`{found['command']}`, {found['measured']}, {machine['cores']} cores ({machine['processor']})"
        chart = f"\n\n![{TITLES[name]}](benchmarks/results/{name}.svg)" if (folder / f"{name}.svg").exists() else ""
        parts.append(f"### {TITLES[name]}{chart}\n\n{importlib.import_module(name).table(found)}\n\n{about}")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; the exit code is 1 where there are none."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=[], metavar="benchmark", help=", ".join(TITLES))
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(TITLES)
    if unknown:
        parser.error(f"there is no benchmark {sorted(unknown)[0]}")
    text = page(given.names or list(TITLES))
    print(text or measured.NOTHING)
    return 0 if text else 1


if __name__ == "__main__":
    sys.exit(main())
