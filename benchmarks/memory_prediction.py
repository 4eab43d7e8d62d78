"""How exact is the predicted memory of one training step?

Random mixes of methods are predicted from MiniLM's config alone and then trained for two real steps, of which the
second is measured. Prints one line per configuration and the largest and median error.

    python benchmarks/memory_prediction.py [--configurations 32] [--labels 150]
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from autopeft.compose.adapt import adapt
from autopeft.compose.base import Carrier, SharedBase, attach, load_base, meta_carrier
from autopeft.cost.live import Peak, measure
from autopeft.cost.memory import MemoryModel
from autopeft.cost.step import StepTensors, build_optimizer, train_step
from autopeft.inspect import module_map
from autopeft.methods import METHODS
from autopeft.space.configuration import Configuration, Part, Training
from autopeft.space.modules import ModuleMap
from autopeft.testing.real import minilm_folder

KIND = "sequence_classification"
BATCHES = ((16, 32), (8, 128))
PRECISIONS = ("float32", "bfloat16")
ATTENTIONS = ("eager", "sdpa")


def random_configuration(modules: ModuleMap, rng: random.Random, rows: int) -> Configuration:
    """One method or none for attention, feed-forward, extra and prefix, from a random depth upwards."""
    chosen = [
        (rng.choice(["", "lora", "dora", "ia3"]), {"query", "key", "value", "output"}),
        (rng.choice(["", "bias", "layernorm"]), {"query", "value", "up", "down", "norm"}),
        (rng.choice(["", "lora", "dora", "ia3", "serial", "parallel"]), {"up", "down"}),
        (rng.choice(["", "", "prefix"]), {"key"}),
    ]
    sites: dict[str, list[Part]] = {}
    for method, roles in chosen:
        start, limit = rng.randrange(modules.blocks), rng.choice([2, 8, 32, 64])
        for site in modules.select(roles):
            if method and site.block >= start and METHODS[method].fits(site):
                legal = [size for size in METHODS[method].sizes(site) if size <= limit]
                part = Part.of(method, METHODS[method].knobs(site, rng.choice(legal) if legal else None))
                sites.setdefault(site.name, []).append(part)
    methods = sorted({part.method for parts in sites.values() for part in parts})
    dropout = rng.choice([0.0, 0.1])
    return Configuration.of(sites, Training(tuple((m, 1e-3) for m in methods), 1e-3, rows, dropout))


def measured(carrier: Carrier, configuration: Configuration, modules: ModuleMap, length: int, dtype: str) -> Peak:
    """The second of two real optimizer steps; one row of the batch is padded."""
    rows = configuration.training.batch_size
    adapted = adapt(carrier, configuration, modules, seed=0)
    adapted.train()
    ids = torch.randint(1000, 20000, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    batch = StepTensors(ids, mask, torch.zeros_like(ids), torch.arange(rows) % carrier.labels)
    optimizer = build_optimizer(adapted.groups(), configuration.training)
    autocast = torch.bfloat16 if dtype == "bfloat16" else None
    train_step(adapted, batch, optimizer, KIND, autocast)
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return measure(
        lambda counter: train_step(adapted, batch, optimizer, KIND, autocast, mark=counter.mark),
        [*adapted.parameters(), *adapted.buffers(), *moments, *batch.all()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=32)
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--head", default="mean")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder, rng = minilm_folder(), random.Random(0)
    bases: dict[str, SharedBase] = {dtype: load_base(str(folder), kind=KIND, dtype=dtype) for dtype in PRECISIONS}
    settings = list(itertools.product(ATTENTIONS, PRECISIONS, BATCHES))
    table = Table("attention", "dtype", "batch", "methods", "predicted MiB", "measured MiB", "error", "seconds")
    errors, seconds = [], []
    models: dict[tuple[str, str, int], MemoryModel] = {}
    for number in range(asked.configurations):
        attention, dtype, (rows, length) = settings[number % len(settings)]
        carrier = attach(bases[dtype], head=asked.head, labels=asked.labels, attention=attention)
        modules = module_map(carrier.model)
        configuration = random_configuration(modules, rng, rows)

        def plan(attention: str = attention) -> Carrier:
            return meta_carrier(str(folder), kind=KIND, head=asked.head, labels=asked.labels, attention=attention)

        key = (attention, dtype, length)
        if key not in models:
            models[key] = MemoryModel(plan, modules, length=length, dtype=dtype)
            models[key].carrier()
        began = time.perf_counter()
        predicted = models[key].predict(configuration)
        seconds.append(time.perf_counter() - began)
        real = measured(carrier, configuration, modules, length, dtype)
        errors.append(predicted.bytes / real.bytes - 1)
        names = " ".join(configuration.methods) or "head only"
        shown = f"{predicted.bytes / 2**20:.1f}", f"{real.bytes / 2**20:.1f}", f"{errors[-1]:+.3%}"
        table.add_row(attention, dtype, f"{rows} x {length}", names, *shown, f"{seconds[-1]:.2f}")
    Console(width=140).print(table)
    worst, median = max(map(abs, errors)), statistics.median(map(abs, errors))
    print(f"{len(errors)} configurations: largest error {worst:.3%}, median {median:.3%}")
    print(f"seconds per prediction: median {statistics.median(seconds):.2f}, largest {max(seconds):.2f}")


if __name__ == "__main__":
    main()
