"""What the benchmarks of speed share: data of some rows, runs that are resumed, ratios with intervals, result files."""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "bench"
REVIEWS = HERE.parent / "data" / "movie_reviews"
PACKAGES = ("torch", "transformers", "peft", "ray", "optuna", "accelerate", "datasets")
RESAMPLES = 4000
NOTHING = "nothing is on record; `make bench` measures"
Ratio = dict[str, Any]


def data_folder(root: Path | None, name: str | None) -> Path:
    """The folder of train, validation and test files that a benchmark reads.

    Args:
        root: Folder of task folders; None takes the reviews of `make demo`.
        name: Task folder inside of it.
    """
    folder = REVIEWS if root is None else root.resolve() / (name or "sst2")
    if not (folder / "train.csv").exists():
        raise SystemExit(f"there is no {folder}/train.csv; `make data/movie_reviews/train.csv` writes the reviews")
    return folder


def write_rows(source: Path, out: Path, *, train: int, validation: int, seed: int = 0, repeat: int = 1) -> Path:
    """A task of some of the rows of another, columns ``text`` and ``label``.

    Args:
        source: Holds train.csv, validation.csv and test.csv.
        out: Folder to write to.
        train: Training rows, or fewer where there are fewer.
        validation: Likewise; the test split gets as many at most.
        seed: Of the choice.
        repeat: Makes rows longer: each text is that of so many rows of its label.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for split, wanted in (("train", train), ("validation", validation), ("test", validation)):
        with (source / f"{split}.csv").open(newline="", encoding="utf-8") as lines:
            rows = [(row["text"], row["label"]) for row in csv.DictReader(lines)]
        rng.shuffle(rows)
        if repeat > 1:
            by_label = {label: [text for text, other in rows if other == label] for _, label in rows}
            rows = [(" ".join(rng.choices(by_label[label], k=repeat)), label) for _, label in rows]
        with (out / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(rows[:wanted])
    return out


def model_folder(name: str = "minilm") -> str:
    """Where a model of the benchmarks lies."""
    command = [sys.executable, "-m", "autopeft.testing.real", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment(threads: int = 1) -> dict[str, str]:
    """Of a contestant's processes: so many threads each, no hub."""
    each = str(threads)
    own = {"OMP_NUM_THREADS": each, "MKL_NUM_THREADS": each, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


def busy_seconds() -> float:
    """Processor seconds that the whole machine has worked; NaN where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system = (int(field) for field in stat.read_text().split(maxsplit=4)[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


class Record:
    """Runs on record, one JSON line each, so that a benchmark can be stopped and started at will.

    Args:
        path: The file.
        settings: What must be equal for runs to belong together; lines of other settings are kept and passed over.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["settings"] == settings]

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Put one more run on record."""
        row = {"settings": self.settings, **row}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The run with these values, or None."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in wanted.items())), None)


class Patience:
    """Whether there is time for one more run. Final.

    Args:
        minutes: From now on; None for no end.
        clock: Seconds.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if minutes is None else clock() + 60 * minutes

    def over(self) -> bool:
        """Whether the time is up."""
        return self._end is not None and self._clock() >= self._end


def ratio_of_sums(theirs: Sequence[float], ours: Sequence[float], seed: int = 0, level: float = 0.95) -> Ratio:
    """How many times as much one side took, in blocks that both did, and an interval from resampling the blocks.

    Args:
        theirs: Seconds of each block.
        ours: Seconds of the same blocks.
        seed: Of the resampling.
        level: Of the interval.

    Returns:
        ``value``, ``low``, ``high`` and ``blocks``; the interval is null with fewer than three blocks.
    """
    if len(theirs) != len(ours) or not ours:
        raise ValueError(f"blocks must come in pairs, not {len(theirs)} and {len(ours)}")
    found: Ratio = {"value": sum(theirs) / sum(ours), "low": None, "high": None, "blocks": len(ours)}
    if len(ours) < 3:
        return found
    rng = random.Random(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.choices(range(len(ours)), k=len(ours))
        drawn.append(sum(theirs[i] for i in chosen) / sum(ours[i] for i in chosen))
    drawn.sort()
    cut = (1 - level) / 2
    found["low"], found["high"] = (drawn[min(len(drawn) - 1, int(share * len(drawn)))] for share in (cut, 1 - cut))
    return found


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Least squares: what y is at x = 0, and by how much it rises with each x."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        raise ValueError("a slope needs two different places")
    rise = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return mean_y - rise * mean_x, rise


def machine() -> dict[str, Any]:
    """Versions and processor, without names or paths."""
    from autopeft import __version__

    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {
        "autopeft": __version__,
        "python": platform.python_version(),
        "processor": processor,
        "cores": os.cpu_count(),
        "packages": packages,
    }


def write_result(name: str, found: dict[str, Any], arguments: Sequence[str], folder: Path = RESULTS) -> Path:
    """Put a result on record with the machine, the versions and the command that made it.

    Args:
        name: Of the benchmark.
        found: What was measured; ``ratios`` is what `check.py` compares.
        arguments: Of the command line. Folders of data are left out.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    command = " ".join(["python", f"benchmarks/{name}.py", *without_folders(arguments)])
    values = {"command": command, "machine": machine(), "measured": time.strftime("%Y-%m-%d"), **found}
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path


def records(out: Path) -> Path:
    """Where runs are recorded whose results go to a folder: those of another folder than the usual stay apart."""
    return RUNS if out == RESULTS else out


def without_folders(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line with the names of folders replaced: a result holds no path of the machine."""
    kept, hidden = [], False
    for argument in arguments:
        flag, separator, _ = argument.partition("=")
        if hidden:
            kept.append("DIR")
        elif flag in ("--data-root", "--out") and separator:
            kept.append(f"{flag}=DIR")
        else:
            kept.append(argument)
        hidden = argument in ("--data-root", "--out")
    return kept


def shown(ratio: Ratio) -> str:
    """A ratio in words, with its interval where there is one."""
    if ratio["low"] is None:
        return f"{ratio['value']:.2f}x"
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """What is on record, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
