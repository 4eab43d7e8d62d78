"""How exact is the predicted memory of one training step?

Random mixes of methods are predicted from the model's config alone and then trained for two real steps, of which the
second is measured, by the live bytes of all tensors (what the limit is about) and by the allocator's own events (which
know the scratch memory inside of kernels too). Half of them are computed as a whole, the others in pieces
(gradient accumulation), with recomputed blocks (checkpointing), or both.

    python benchmarks/memory_prediction.py [--configurations 120] [--model minilm] [--model smollm2]

It goes on where it was stopped: one line for each configuration in ``results/memory_prediction.jsonl``. At its end it
prints a table of the errors.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from autopeft.compose.adapt import adapt
from autopeft.compose.base import Attention, Carrier, DType, SharedBase, attach, load_base, meta_carrier
from autopeft.compose.host import spare_casts
from autopeft.cost.live import measure
from autopeft.cost.memory import MemoryModel
from autopeft.cost.step import build_optimizer, micro_batches, train_step
from autopeft.data.encoded import Batch
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import WHOLE, Configuration, Part, Training
from autopeft.space.execution import PLAIN, Execution, executions
from autopeft.space.modules import ModuleMap
from autopeft.testing.real import minilm_folder, smollm2_gguf

RESULTS = Path(__file__).parent / "results" / "memory_prediction.jsonl"
PRECISIONS: tuple[DType, ...] = ("float32", "bfloat16")
ATTENTIONS: tuple[Attention, ...] = ("eager", "sdpa")
MODELS: dict[str, tuple[Callable[[], Path], dict[str, Any], tuple[tuple[int, int], ...]]] = {
    "minilm": (
        minilm_folder,
        {"kind": "sequence_classification", "head": "mean", "labels": 150},
        ((16, 32), (8, 128)),
    ),
    "smollm2": (smollm2_gguf, {"kind": "causal_lm", "head": "lm", "labels": 0}, ((4, 32), (2, 96))),
}
EXACT = [row for row in METHODS.values() if row.unsearchable is None and row.predictable and row.builds_on_meta]
"""Those whose step runs on tensors without values; of the others a bound is predicted."""


def random_configuration(modules: ModuleMap, rng: random.Random, rows: int) -> Configuration:
    """A method about the whole model, or a mix: for attention, block, extra and prefix, from a random depth upwards."""
    dropout = rng.choice([0.0, 0.1])
    if rng.random() < 0.15:
        fitting = [row for row in EXACT if row.whole and not row.chooses and row.allows(modules) and row.sizes(modules)]
        row = rng.choice(fitting)
        part = Part.of(row.name, row.knobs(modules, rng.choice(row.sizes(modules)[:4])))
        return Configuration.of({WHOLE: [part]}, Training(((row.name, 1e-3),), 1e-3, rows, dropout))
    sites: dict[str, list[Part]] = {}
    for slot in ("attention", "block", "extra", "prefix"):
        offered = [row for row in EXACT if row.hosted and slot in row.slots and not row.chooses]
        if rng.random() < 0.4:
            continue
        row, start, limit = rng.choice(offered), rng.randrange(modules.blocks), rng.choice([2, 8, 32, 64])
        for site in modules.sites:
            parts = sites.get(site.name, [])
            if site.block < start or not row.fits(site) or any(row.clashes(METHODS[p.method]) for p in parts):
                continue
            legal = [size for size in row.sizes(site) if size <= limit] or row.sizes(site)[:1]
            part = Part.of(row.name, row.knobs(site, rng.choice(legal) if legal else None))
            sites[site.name] = [part, *parts] if row.innermost else [*parts, part]
    methods = sorted({part.method for parts in sites.values() for part in parts})
    if not methods:
        return random_configuration(modules, rng, rows)
    return Configuration.of(sites, Training(tuple((m, 1e-3) for m in methods), 1e-3, rows, dropout))


def measured(
    carrier: Carrier, configuration: Configuration, modules: ModuleMap, length: int, dtype: str, way: Execution
) -> tuple[int, int]:
    """Bytes at the highest point of the second of two real optimizer steps: live tensors, and by allocator events.

    One row of the batch is padded.
    """
    rows = configuration.training.batch_size
    adapted = adapt(carrier, configuration, modules, seed=0)
    if way.checkpointing:
        adapted.checkpoint_blocks()
    adapted.train()
    if dtype == "bfloat16":
        spare_casts(adapted)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (rows, length))
    mask = np.ones_like(ids)
    mask[0, length // 2 :] = 0
    if carrier.kind == "causal_lm":
        types, labels = None, np.where(np.arange(length) > 0, ids, -100)
    else:
        types, labels = np.zeros_like(ids), np.arange(rows) % carrier.labels
    pieces = micro_batches(Batch(np.arange(rows), ids, mask, types, labels), carrier.kind, way.rows(rows))
    optimizer = build_optimizer(adapted.groups(), configuration.training)
    autocast = torch.bfloat16 if dtype == "bfloat16" else None
    train_step(adapted, pieces, optimizer, carrier.kind, autocast)
    moments = [value for state in optimizer.state.values() for value in state.values()]
    inputs = [tensor for piece in pieces for tensor in piece.all()]
    held = [*adapted.parameters(), *adapted.buffers(), *moments, *inputs]

    def step() -> None:
        train_step(adapted, pieces, optimizer, carrier.kind, autocast)

    peak = measure(lambda counter: step(), held)
    return peak.bytes, peak.held + allocated(step)


def allocated(step: Callable[[], None]) -> int:
    """The highest sum of what the processor's allocator gave out and got back during a computation."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    sums = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    return max(sums, default=0)


class Bench:
    """One model's configurations. Final."""

    def __init__(self, name: str) -> None:
        find, self._task, self._batches = MODELS[name]
        self._name, self._folder = name, find()
        self._bases: dict[str, SharedBase] = {}
        self._models: dict[tuple[str, str, int], MemoryModel] = {}

    def line(self, number: int) -> dict[str, Any]:
        """Predict and measure one configuration, fixed by its number."""
        settings = list(itertools.product(self._batches, ATTENTIONS, PRECISIONS))
        (rows, length), attention, dtype = settings[number % len(settings)]
        rng = random.Random(f"{self._name} {number}")
        if dtype not in self._bases:
            self._bases[dtype] = load_base(str(self._folder), kind=self._task["kind"], dtype=dtype)
        task = {"head": self._task["head"], "labels": self._task["labels"], "attention": attention}
        carrier = attach(self._bases[dtype], **task)
        modules = module_map(carrier.model)
        configuration = random_configuration(modules, rng, rows)
        model = self._model(attention, dtype, length, modules)
        ways = [*executions(rows, checkpoints=model.checkpoints(configuration))]
        way = PLAIN if number // len(settings) % 2 == 0 else rng.choice(ways[1:])
        began = time.perf_counter()
        predicted = model.predict(configuration, execution=way).bytes
        seconds = time.perf_counter() - began
        real, given = measured(carrier, configuration, modules, length, dtype, way)
        return {
            "model": self._name,
            "number": number,
            "attention": attention,
            "dtype": dtype,
            "batch": [rows, length],
            "methods": list(configuration.methods),
            **way.to_dict(),
            "predicted": predicted,
            "measured": real,
            "allocated": given,
            "seconds": round(seconds, 3),
        }

    def _model(self, attention: Attention, dtype: DType, length: int, modules: ModuleMap) -> MemoryModel:
        key = (attention, dtype, length)
        if key not in self._models:
            config = next(iter(self._bases.values())).config
            self._models[key] = MemoryModel(
                lambda: meta_carrier(config, **self._task, attention=attention), modules, length=length, dtype=dtype
            )
            self._models[key].carrier()
        return self._models[key]


def known() -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def show(lines: Iterable[dict[str, Any]]) -> None:
    """Errors by model, dtype and way of computing."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        pieces = "pieces" if line["micro_batch"] else "whole"
        way = f"{pieces}, recomputed" if line["checkpointing"] else pieces
        groups.setdefault((line["model"], line["dtype"], way), []).append(line)
    table = Table(
        "model", "base", "batches", "configurations", "median error", "largest error", "by allocator", "seconds each"
    )
    worst = events = 0.0
    for key, members in sorted(groups.items()):
        errors = [abs(line["predicted"] / line["measured"] - 1) for line in members]
        worst = max(worst, *errors)
        by_events = max(abs(line["predicted"] / line["allocated"] - 1) for line in members)
        events = max(events, by_events)
        seconds = statistics.median(line["seconds"] for line in members)
        largest = f"{max(errors):.3%}", f"{by_events:.3%}"
        shown = str(len(members)), f"{statistics.median(errors):.3%}", *largest, f"{seconds:.2f}"
        table.add_row(*key, *shown)
    Console(width=120).print(table)
    print(
        f"{sum(map(len, groups.values()))} configurations, largest error {worst:.3%}, by allocator events {events:.3%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=120, help="of each model")
    parser.add_argument("--model", action="append", choices=list(MODELS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Token type ids")
    for name in asked.model or list(MODELS):
        done = {line["number"] for line in known() if line["model"] == name}
        bench = Bench(name)
        for number in track([n for n in range(asked.configurations) if n not in done], name):
            line = bench.line(number)
            with RESULTS.open("a") as file:
                file.write(json.dumps(line) + "\n")
    show(known())


if __name__ == "__main__":
    main()
