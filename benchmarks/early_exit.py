"""Which rule of early exit reaches the best final score in the fewest rows, on recorded learning curves.

    python benchmarks/early_exit.py --record DIR [--only sst2] [--configurations 48]
    python benchmarks/early_exit.py [--orders 400]

DIR holds the folders `sst2` and `clinc150` with train and validation rows, as CSV or parquet. Recording runs
a search of MiniLM whose random configurations of the default space are all trained through eight rungs, and adds a
line per trial to ``results/curves.jsonl``; tasks on record are not recorded again, and a recording that was cut off is
taken up (its run folder is ``runs/early-exit-TASK``).

Comparing replays the curves: two workers, configurations in random orders, each rule on the rungs that it asks for. A
search returns the configuration with the best score at the highest rung that it reached. For each rule, over all
orders: the mean shortfall of what is returned, by its recorded score after full training, from the best on record,
after rows for 2, 4, 8 and 16 full trainings; and the mean over these. Rules are compared in pairs, order by order.
Results go to ``results/early_exit.json``.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from autopeft.journal import SearchLog, read_journal
from autopeft.strategy.base import Halving, TrialView
from autopeft.strategy.curves import Curve
from autopeft.strategy.halving import Asha, Hyperband, Median, NoHalving
from autopeft.strategy.trials import Trials

RESULTS = Path(__file__).parent / "results"
CURVES, OUT = RESULTS / "curves.jsonl", RESULTS / "early_exit.json"
TASKS = ("sst2", "clinc150")
RUNGS, ETA = 8, 1.4
ROWS = {
    "sst2": {"train": 900, "validation": 600, "test": 100},
    "clinc150": {"train": 1800, "validation": 900, "test": 300},
}
"""Three epochs of the training rows are a full training: eight rungs, the first of a tenth of it."""
STRATEGY = f"""name: recording
sampler: random
halving:
  name: median
  eta: {ETA}
  rungs: {RUNGS}
  minimum: 1000
"""
"""Nothing is stopped: the rule waits for more trials than there are."""
BUDGETS = (2, 4, 8, 16)
"""In full trainings."""
RULES: dict[str, tuple[Callable[[], Halving], tuple[int, ...]]] = {
    "none": (NoHalving, (7,)),
    "asha-3": (lambda: Asha(ETA**3), (1, 4, 7)),
    "asha-8": (lambda: Asha(ETA), tuple(range(8))),
    "asha-4": (lambda: Asha(ETA**2), (1, 3, 5, 7)),
    "hyperband": (lambda: Hyperband(ETA**3), (1, 4, 7)),
    "median": (Median, (1, 4, 7)),
    "curve-3": (lambda: Curve(ETA**3), (1, 4, 7)),
    "curve-4": (lambda: Curve(ETA**2), (1, 3, 5, 7)),
    "curve-8": (lambda: Curve(ETA), tuple(range(8))),
}
"""Rule -> how it is made, and the recorded rungs that it uses. ``asha-3`` is the one of ``tpe-asha``, as far as the
recorded rungs allow (a ratio of 2.7 for 3)."""
DEFAULT = "asha-3"


def record(data: Path, task: str, configurations: int) -> None:
    """Run the recording of a task, or what is left of it, and add its curves."""
    folder = Path("runs") / f"early-exit-{task}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        write_data(data / task, folder / "data", ROWS[task])
    (folder / "strategy.yaml").write_text(STRATEGY)
    model = [sys.executable, "-m", "autopeft.testing.real", "minilm"]
    place = subprocess.run(model, check=True, capture_output=True, text=True).stdout.strip()
    command = [sys.executable, "-m", "autopeft", "search", "--model", place, "--data", str(folder / "data")]
    command += ["--strategy", str(folder / "strategy.yaml"), "--max-trials", str(configurations), "--workers", "2"]
    command += ["--max-params", "1%", "--evidence", "quick", "--tracking-uri", "none", "--out", str(folder / "run")]
    command += ["--resume"] if (folder / "run" / "journal.jsonl").exists() else []
    subprocess.run(command, check=True, stdout=sys.stderr)
    lines = [json.dumps({"task": task, **curve}) for curve in curves_of(folder / "run")]
    with CURVES.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))
    print(f"{task}: {len(lines)} curves")


def write_data(source: Path, folder: Path, rows: Mapping[str, int]) -> None:
    """Few rows of a task, drawn with a fixed seed."""
    rng = random.Random(5)
    folder.mkdir()
    pools = {name: read_rows(source, name) for name in ("train", "validation")}
    for pool in pools.values():
        rng.shuffle(pool)
    first = rows["validation"]
    splits = {
        "train": pools["train"][: rows["train"]],
        "validation": pools["validation"][:first],
        "test": pools["validation"][first : first + rows["test"]],
    }
    for name, kept in splits.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(kept[0]))
            writer.writeheader()
            writer.writerows(kept)


def read_rows(source: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a split."""
    if (source / f"{name}.csv").exists():
        with (source / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    rows: list[dict[str, Any]] = parquet.read_table(source / f"{name}.parquet").to_pylist()
    return rows


def curves_of(run: Path) -> list[dict[str, Any]]:
    """The learning curves of a run folder's explored trials that were trained in full."""
    log = SearchLog.fold(read_journal(run))
    rungs = list(log.plan["rungs"])
    return [
        {
            "trial": trial.id,
            "arm": trial.arm,
            "hash": trial.hash,
            # Steps are whole batches, so that trials of other batch sizes saw a few rows more or less.
            "rows": rungs,
            "scores": [rung.metrics[log.rung_metric] for rung in trial.rungs],
        }
        for trial in log.trials.values()
        if trial.purpose == "explore" and len(trial.rungs) == len(rungs)
    ]


def replay(rule: Halving, rungs: Sequence[int], curves: Sequence[dict[str, Any]], workers: int = 2) -> list[float]:
    """The final score of what a search would return after each of the budgets.

    Args:
        rule: Judges and promotes.
        rungs: Which of the recorded rungs it uses.
        curves: In the order in which they are proposed.
        workers: Trials that run at a time; a row takes as long for every trial.
    """
    known, queue, now = Trials(), list[tuple[float, int]](), 0.0
    full = float(curves[0]["rows"][-1])
    marks = [budget * full / workers for budget in BUDGETS]
    found: list[float] = []
    started = 0

    def begin(place: int, rung: int) -> None:
        rows = curves[place]["rows"]
        cost = rows[rungs[rung]] - (rows[rungs[rung - 1]] if rung else 0)
        heapq.heappush(queue, (now + cost, place))

    while len(found) < len(marks):
        while len(queue) < workers:
            name = rule.promote(known, len(rungs))
            if name is not None:
                view = known.named(name)
                known.put(replace(view, status="running"))
                begin(view.index, len(view.scores))
            elif started < len(curves):
                known.put(TrialView(f"t{started}", started, {}, (), "running"))
                begin(started, 0)
                started += 1
            else:
                break
        ahead = queue[0][0] if queue else math.inf
        while len(found) < len(marks) and marks[len(found)] < ahead:
            found.append(returned(known, curves))
        if not queue:
            continue
        now, place = heapq.heappop(queue)
        view = known.named(f"t{place}")
        view = replace(view, scores=(*view.scores, curves[place]["scores"][rungs[len(view.scores)]]))
        known.put(view)
        if len(view.scores) == len(rungs):
            known.put(replace(view, status="completed"))
            continue
        action = rule.judge(view, known, len(rungs)).action
        known.put(replace(view, status={"continue": "running", "pause": "paused", "stop": "stopped"}[action]))
        if action == "continue":
            begin(place, len(view.scores))
    return found


def returned(known: Trials, curves: Sequence[dict[str, Any]]) -> float:
    """The score after full training of the best trial at the highest rung reached; of chance before any."""
    scored = [view for view in known if view.scores]
    if not scored:
        return float(np.mean([curve["scores"][-1] for curve in curves]))
    best = max(scored, key=lambda view: (len(view.scores), view.scores[-1], -view.index))
    return float(curves[best.index]["scores"][-1])


def compare(curves: Sequence[dict[str, Any]], orders: int) -> dict[str, Any]:
    """Mean shortfall of each rule from the best on record, and by how much it differs from the default's."""
    best = max(curve["scores"][-1] for curve in curves)
    short: dict[str, np.ndarray] = {}
    for name, (make, rungs) in RULES.items():
        runs = []
        for seed in range(orders):
            order = list(curves)
            random.Random(seed).shuffle(order)
            runs.append(replay(make(), rungs, order))
        short[name] = best - np.array(runs)
    table = {}
    for name, found in short.items():
        apart = found.mean(axis=1) - short[DEFAULT].mean(axis=1)
        table[name] = {
            "shortfall": [round(float(each), 5) for each in found.mean(axis=0)],
            "mean": round(float(found.mean()), 5),
            "against_default": round(float(apart.mean()), 5),
            "error": round(float(apart.std(ddof=1) / math.sqrt(orders)), 5),
        }
    return {"best": best, "curves": len(curves), "orders": orders, "budgets": list(BUDGETS), "rules": table}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--orders", type=int, default=400)
    arguments = parser.parse_args()
    known = [json.loads(line) for line in CURVES.read_text().splitlines()] if CURVES.exists() else []
    for task in arguments.only if arguments.record else ():
        if not any(curve["task"] == task for curve in known):
            record(arguments.record, task, arguments.configurations)
    if CURVES.exists():
        known = [json.loads(line) for line in CURVES.read_text().splitlines()]
    results = {}
    for task in sorted({curve["task"] for curve in known}):
        results[task] = compare([curve for curve in known if curve["task"] == task], arguments.orders)
        print(f"\n{task}: {results[task]['curves']} curves, best {results[task]['best']:.4f}")
        print(f"{'rule':10s} shortfall after {', '.join(map(str, BUDGETS))} full trainings; mean; against {DEFAULT}")
        for name, row in sorted(results[task]["rules"].items(), key=lambda item: item[1]["mean"]):
            parts = " ".join(f"{each:.4f}" for each in row["shortfall"])
            print(f"{name:10s} {parts}   {row['mean']:.4f}   {row['against_default']:+.4f} +- {row['error']:.4f}")
    if results:
        OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
