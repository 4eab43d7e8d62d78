"""Every method alone, at half a per cent of the model, with the same small sweep of learning rates.

    python benchmarks/methods.py --data-root DIR [--tasks sst2 clinc150] [--methods lora ...] [--share 0.005] [--table]

Each method sits on every module that it fits, at the largest size that the share admits (fewer modules where even the
smallest size is too much), and is trained at a third, once and three times its default rate, within its range: 4,000
rows seen, batch 16, one seed, mean pooling and one linear layer. One JSON line per run is appended to
``results/methods.jsonl``; runs that are there already are not repeated, so it can be stopped and started at will, and
``--part 0/2`` and ``--part 1/2`` share the work between two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from autopeft.compose.base import load_base, load_tokenizer, model_positions
from autopeft.data.encode import encode
from autopeft.data.read import read
from autopeft.inspect import module_map
from autopeft.methods import METHODS, Method
from autopeft.space.configuration import WHOLE, Configuration, Part, Training
from autopeft.space.modules import ModuleMap
from autopeft.spec import Task
from autopeft.strategy.jobs import Train
from autopeft.trial.computing import precision_here
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import Workbench

RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
ROWS, BATCH, SEED = 4000, 16, 1
SHARE = 0.005
SWEEP = (1 / 3, 1.0, 3.0)


def sites_of(method: Method, modules: ModuleMap, limit: int) -> dict[str, list[Part]]:
    """The method on all modules that it fits, at the largest size within the limit; empty where nothing fits."""
    if method.whole:
        if not method.allows(modules):
            return {}
        fitting = [
            (method.count(modules, knobs), knobs)
            for size in method.sizes(modules)
            if method.count(modules, knobs := method.knobs(modules, size)) <= limit
        ]
        return {WHOLE: [Part.of(method.name, max(fitting, key=lambda pair: pair[0])[1])]} if fitting else {}
    everywhere = [site for site in modules.sites if method.fits(site)]
    for start in range(modules.blocks):
        sites = [site for site in everywhere if site.block >= start]
        if not sites:
            continue
        shared = set(method.sizes(sites[0])).intersection(*(method.sizes(site) for site in sites))
        for size in sorted(shared, reverse=True) if method.size else (None,):
            parts = {site.name: [Part.of(method.name, method.knobs(site, size))] for site in sites}
            count = sum(method.count(site, method.knobs(site, size)) for site in sites)
            if count <= limit:
                return parts
    return {}


def rates_of(method: Method) -> list[float]:
    """The sweep, within the method's range."""
    rate = method.rate
    return sorted({float(f"{min(max(rate.default * factor, rate.low), rate.high):.3g}") for factor in SWEEP})


def known() -> list[dict[str, Any]]:
    """The runs that are on record."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_task(name: str, data_root: Path, methods: list[str], share: float, part: tuple[int, int]) -> None:
    """All runs of a task that are missing."""
    command = [sys.executable, "-m", "autopeft.testing.real", "minilm"]
    model = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    task = Task(model, str(data_root / name))
    raw = read(task, seed=0)
    precision = precision_here(False)
    base = load_base(model, kind=raw.kind, dtype=precision)
    data, _ = encode(raw, load_tokenizer(model), max_length=None, model_max=model_positions(base.config))
    with tempfile.TemporaryDirectory() as folder:
        setup = WorkSetup(
            base=base,
            data=data,
            kind=raw.kind,
            metric=raw.metric,
            labels=len(data.label_names),
            folder=folder,
            precision=precision,
            attention="eager",
        )
        bench = Workbench(setup)
        modules = module_map(bench.carrier("mean").model)
        limit = int(share * modules.base_params)
        done = {(row["task"], row["method"], row["rate"]) for row in known() if row["share"] == share}
        wanted = [(method, rate) for method in methods for rate in rates_of(METHODS[method])]
        for number, (method, rate) in enumerate(wanted):
            if number % part[1] != part[0] or (name, method, rate) in done:
                continue
            row = {"task": name, "metric": raw.metric, "method": method, "rate": rate, "share": share}
            sites = sites_of(METHODS[method], modules, limit)
            row |= run(bench, sites, method, rate, f"{method}-{rate:g}") if sites else {"status": "does not fit"}
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)


def run(bench: Workbench, sites: dict[str, list[Part]], method: str, rate: float, trial: str) -> dict[str, Any]:
    """One training; its scores and costs."""
    head_rate = max(rate, 1e-3) if rate <= 1e-2 else 1e-2
    configuration = Configuration.of(sites, Training(((method, rate),), head_rate, BATCH))
    job = Train(trial, configuration, SEED, 0, ROWS, ROWS // 15, int(0.7 * ROWS), 0, f"trials/{trial}", "mean")
    start = time.process_time()
    outcome = bench.run(job)
    used = time.process_time() - start
    found = {"status": outcome.status, "adapter_params": outcome.values.get("adapter_params"), "rows": outcome.rows}
    if outcome.status != "ok":
        return {**found, "reason": outcome.reason, "detail": outcome.detail}
    folder = bench.setup.path / str(outcome.adapter)
    size = sum(path.stat().st_size for path in folder.iterdir())
    trained = used * outcome.train_seconds / (outcome.train_seconds + outcome.evaluate_seconds)
    score = outcome.metrics[bench.setup.metric]
    return {**found, "score": score, "folder_bytes": size, "train_cpu_seconds": round(trained, 2)}


PAGE = """# Every method alone

Made by `make docs` from `benchmarks/results/methods.jsonl`; do not edit it here. Run it again with

    python benchmarks/methods.py --data-root DIR

where DIR holds the folders `sst2` and `clinc150` of train, validation and test files.

all-MiniLM-L6 (22.7 M parameters), bfloat16 with float32 adapters, mean pooling and one linear layer, one thread of
a CPU without GPU. Each method sits on everything that it fits, at the largest size within 0.5 % of the model
(113,566 parameters), and is trained on 4,000 rows in batches of 16 at three rates: a third, once and three times
its default rate in the table (at most the ends of its range). The score is accuracy on the validation rows: 872 of
sst2, 3,100 of clinc150.

How to read it: one seed each, and the rates were chosen on the rows that are scored. By the rows alone a score of
sst2 is known to about 2.4 points and one of clinc150 to about 1 (95 %), so most neighbours in this table are ties:
it says what works at its default rates and what it costs, not which method is best. 4,000 rows are few for the 150
classes of clinc150, and there a high rate wins for most methods. CPU seconds are those of training, in the
cheapest of a method's runs; other jobs ran on the machine.

"""


def page() -> str:
    """The table with what has to be known to read it."""
    return f"{PAGE}{table()}\n"


def table() -> str:
    """All that was measured, as markdown: the best rate of each method, and how the rates differ."""
    rows = [row for row in known() if row["share"] == SHARE]
    tasks = sorted({row["task"] for row in rows})
    head = (
        "| method | adapter parameters | "
        + " | ".join(f"{t}: best (at each rate)" for t in tasks)
        + " | CPU s per 1,000 rows |"
    )
    lines = [head, "|---" * (len(tasks) + 3) + "|"]

    def best(method: str) -> float:
        return sum(
            max((r.get("score", 0.0) for r in rows if r["method"] == method and r["task"] == t), default=0.0)
            for t in tasks
        )

    for method in sorted({row["method"] for row in rows}, key=lambda name: (-best(name), name)):
        mine = [row for row in rows if row["method"] == method]
        if not any("score" in row for row in mine):
            continue
        counts = {int(row["adapter_params"]) for row in mine if row.get("adapter_params") is not None}
        cells = [method, f"{max(counts):,}" if counts else "-"]
        for task in tasks:
            of_task = sorted((row for row in mine if row["task"] == task), key=lambda row: row["rate"])
            each = ", ".join(
                f"{row['rate']:g}: {row['score']:.3f}" if "score" in row else f"{row['rate']:g}: {row['status']}"
                for row in of_task
            )
            top = max((row["score"] for row in of_task if "score" in row), default=None)
            cells.append(f"**{top:.3f}** ({each})" if top is not None else each or "not run")
        costs = [1000 * row["train_cpu_seconds"] / row["rows"] for row in mine if "train_cpu_seconds" in row]
        cells.append(f"{min(costs):.1f}" if costs else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    searchable = [name for name, method in METHODS.items() if method.unsearchable is None]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "clinc150"])
    parser.add_argument("--methods", nargs="+", choices=searchable, default=searchable)
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--part", default="0/1", help="K/N: every Nth run, from the Kth on")
    parser.add_argument("--table", action="store_true", help="only print the page with the table")
    arguments = parser.parse_args()
    if arguments.data_root is not None and not arguments.table:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(1)
        first, of = (int(number) for number in arguments.part.split("/"))
        for task in arguments.tasks:
            run_task(task, arguments.data_root.resolve(), arguments.methods, arguments.share, (first, of))
    print(page(), end="")


if __name__ == "__main__":
    main()
