"""CPU seconds per 1,000 rows with the frozen blocks run and with their hidden states looked up, on MiniLM.

    python benchmarks/frozen_prefix.py [--starts 0 1 3 5] [--rows 640] [--rounds 3] [--precision bfloat16]

LoRA of rank 8 on query and value from block 0, 1, ... 5 on (at 0 nothing is frozen: what the bookkeeping costs), batch
16, rows as long as movie sentences (25 tokens at the mean), one thread, eager attention. Both ways are measured in
turns within one process, in CPU seconds of the process, of training (rows that are all kept) and of evaluation; a
column says what computing and keeping the states costs, once per row for all trials, and after how many visits of each
row it has paid. Writes ``results/frozen_prefix.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopeft.compose.adapt import adapt
from autopeft.compose.base import load_base
from autopeft.cost.step import build_optimizer
from autopeft.data.encoded import EncodedData, EncodedSplit
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.strategy.jobs import Train
from autopeft.testing.real import minilm_folder
from autopeft.trial import train
from autopeft.trial.computing import precision_here
from autopeft.trial.evaluate import outputs
from autopeft.trial.frozen import FrozenPrefix, FrozenStates
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import Workbench

RESULTS = Path(__file__).parent / "results" / "frozen_prefix.json"
BATCH = 16
CPU = torch.device("cpu")


def rows_of(count: int, seed: int) -> EncodedSplit:
    """Random tokens in rows whose lengths are spread like those of movie sentences: 25 at the mean, 4 to 60."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(4.0, 6.25, count).astype(np.int64), 4, 60)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    ids = rng.integers(1000, 30_000, int(offsets[-1])).astype(np.int32)
    return EncodedSplit(offsets, ids, labels=rng.integers(0, 2, count))


def setup_of(folder: str, rows: int, precision: Any) -> WorkSetup:
    """The task: as many validation rows as training rows."""
    splits = {"train": rows_of(rows, 1), "validation": rows_of(rows, 2), "test": rows_of(8, 3)}
    kind = "sequence_classification"
    hashes = {name: f"{name} {rows}" for name in splits}
    data = EncodedData(splits, kind, ("negative", "positive"), 0, 64, hashes)
    base = load_base(minilm_folder(), kind=kind, dtype=precision)
    return WorkSetup(base, data, kind, "accuracy", 2, folder, precision, "eager")


def configuration_of(bench: Workbench, start: int) -> Configuration:
    """LoRA of rank 8 on query and value of the blocks from `start` on."""
    sites = [site for site in bench.modules("mean").select(("query", "value")) if site.block >= start]
    parts = {site.name: [Part.of("lora", {"r": 8, "scale": 1.0})] for site in sites}
    return Configuration.of(parts, Training((("lora", 1e-3),), 1e-3, BATCH))


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process in a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measured(bench: Workbench, start: int, rounds: int) -> dict[str, float]:
    """Seconds per 1,000 rows of both ways, medians over the rounds, and the cost of filling."""
    setup = bench.setup
    rows = setup.data.splits["train"].rows
    configuration = configuration_of(bench, start)
    job = Train("bench", configuration, 1, 0, rows, 0, 0, 0, "trials/bench", "mean")
    carrier, modules = bench.carrier("mean"), bench.modules("mean")
    every = np.arange(rows)

    def pair(off: bool) -> tuple[float, float, FrozenPrefix]:
        model = adapt(carrier, configuration, modules, seed=0)
        optimizer = build_optimizer(model.groups(), configuration.training)
        states = FrozenStates(replace(setup, cache_bytes=0) if off else setup, CPU)
        with contextlib.closing(states.prefix(job, model, modules)) as prefix:
            trained = cpu_seconds(lambda: train.run(model, optimizer, job, setup, CPU, prefix=prefix))
            entry = prefix.entry("validation", every)
            evaluated = cpu_seconds(
                lambda: outputs(model, setup.data.splits["validation"], setup, CPU, rows=every, entry=entry)
            )
        return trained * 1000 / rows, evaluated * 1000 / rows, prefix

    pair(True)
    filling = pair(False)
    found: dict[str, list[float]] = {name: [] for name in ("train whole", "train", "evaluate whole", "evaluate")}
    for _ in range(rounds):
        for name, off in ((" whole", True), ("", False)):
            trained, evaluated, prefix = pair(off)
            found[f"train{name}"].append(trained)
            found[f"evaluate{name}"].append(evaluated)
            if prefix.use.filled:
                raise RuntimeError("the states of all rows should have been kept")
    seconds = {name: statistics.median(values) for name, values in found.items()}
    filled = filling[0] + filling[1] - seconds["train"] - seconds["evaluate"]
    saved = seconds["train whole"] - seconds["train"]
    return {
        "start": start,
        "train_seconds_whole": seconds["train whole"],
        "train_seconds": seconds["train"],
        "train_ratio": seconds["train whole"] / seconds["train"],
        "evaluate_seconds_whole": seconds["evaluate whole"],
        "evaluate_seconds": seconds["evaluate"],
        "evaluate_ratio": seconds["evaluate whole"] / seconds["evaluate"],
        # Training and validation rows were both filled.
        "fill_seconds": filled / 2 if start else 0.0,
        "visits_to_pay": filled / 2 / saved if start and saved > 0 else float("nan"),
    }


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    precision = given.precision or precision_here(gpu=False)
    print("| start | train whole | looked up | ratio | evaluate whole | looked up | ratio | fill | visits to pay |")
    print("|---|---|---|---|---|---|---|---|---|")
    table = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(setup_of(folder, given.rows, precision))
        for start in given.starts:
            row = measured(bench, start, given.rounds)
            table.append(row)
            print(
                f"| {start} | {row['train_seconds_whole']:.2f} | {row['train_seconds']:.2f} | {row['train_ratio']:.2f} "
                f"| {row['evaluate_seconds_whole']:.2f} | {row['evaluate_seconds']:.2f} | {row['evaluate_ratio']:.2f} "
                f"| {row['fill_seconds']:.2f} | {row['visits_to_pay']:.1f} |",
                flush=True,
            )
    values = {"precision": precision, "rows": given.rows, "rounds": given.rounds, "per_1000_rows": table}
    RESULTS.write_text(json.dumps(values, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
