"""Whether the speed is still what it was: short runs of the benchmarks, held against a stored baseline of ratios.

    python benchmarks/check.py [--data-root DIR --task sst2] [--only trials limit scaling] [--write]

A ratio may be lower than the baseline's by the tolerance of its benchmark: short runs on a machine that does other work
scatter, and what this is for are losses by a third, not by a tenth. Short runs have ratios of their own (starts weigh
more), so the baseline is made by the same short runs: ``--write``, on a quiet machine, after the speed was changed on
purpose. Nothing is taken from earlier runs. The exit code is 1 where a ratio fell or is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import measured

BASELINE = measured.HERE / "baseline.json"
FEW = ("autopeft", "trainer documented", "trainer tuned")
SHORT: dict[str, tuple[str, ...]] = {
    "trials": ("--configurations=8", "--block=4", "--rows=500", "--evaluated=200", "--contestants", *FEW),
    "limit": ("--models", "minilm", "--blocks=3", "--batches", "16"),
    "scaling": ("--rounds=2", "--jobs=8", "--rows=500", "--skip-costs"),
}
TOLERANCE = {"trials": 0.3, "limit": 0.25, "scaling": 0.15}
"""By how much of itself a ratio may fall."""
Ratios = Mapping[str, float]


def compare(baseline: Ratios, now: Ratios, tolerance: float) -> list[tuple[str, str, bool]]:
    """What became of every ratio of the baseline.

    Args:
        baseline: Name -> ratio.
        now: Name -> ratio.
        tolerance: By how much of itself a ratio may fall.

    Returns:
        `(name, what is to be said, whether it holds)`; a ratio that is new holds.
    """
    found = []
    for name, before in baseline.items():
        if name not in now:
            found.append((name, "was not measured", False))
            continue
        after, change = now[name], now[name] / before - 1
        told = f"{after:.3g}, baseline {before:.3g} ({change:+.0%})"
        if change < -tolerance:
            found.append((name, f"{told}: fell by more than {tolerance:.0%}", False))
        else:
            better = "; --write makes it the baseline" if change > tolerance else ""
            found.append((name, f"{told}{better}", True))
    return found + [(name, f"{value:.3g}, new", True) for name, value in now.items() if name not in baseline]


def ratios(name: str, data: Sequence[str]) -> dict[str, float]:
    """The ratios of a short run."""
    with tempfile.TemporaryDirectory() as temporary:
        script = str(measured.HERE / f"{name}.py")
        subprocess.run([sys.executable, script, *SHORT[name], *data, "--out", temporary], check=True)
        found = measured.read_result(name, Path(temporary)) or {"ratios": {}}
    return {key: value["value"] for key, value in found["ratios"].items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, say what fell; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-root")
    parser.add_argument("--task", default="sst2", help="folder in --data-root")
    parser.add_argument("--only", nargs="+", choices=list(SHORT), default=list(SHORT))
    parser.add_argument("--write", action="store_true", help="make what is measured the baseline")
    given = parser.parse_args(arguments)
    data = ("--data-root", given.data_root, "--task", given.task) if given.data_root else ()
    stored = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if not given.write and not stored:
        print(f"there is no {BASELINE.name}: `python benchmarks/check.py --write` on a quiet machine makes one")
        return 1
    holds = True
    for name in given.only:
        now = ratios(name, data)
        for what, told, fine in compare(stored.get(name, {}), now, TOLERANCE[name]):
            print(f"{'ok  ' if fine or given.write else 'FELL'} {name}: {what}: {told}", flush=True)
            holds = holds and (fine or given.write)
        if given.write:
            stored[name] = now
    if given.write:
        stored["machine"] = measured.machine()
        BASELINE.write_text(json.dumps(stored, indent=1) + "\n")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
