"""How exact is the predicted memory of training on a GPU?

What a limit is about there is what PyTorch reserves on the device: its allocator takes memory in segments and keeps
them. Random mixes of methods on models of three sizes, whose weights are random, are trained on the GPU twice from an
empty cache: steps at the longest batch, and steps of changing lengths as a trial has them.

    python benchmarks/memory_gpu.py measure [--configurations 60] [--model minilm] ... [--minutes 10]
    python benchmarks/memory_gpu.py show

``measure`` adds a line per configuration to ``results/memory_gpu.jsonl`` and goes on where it was stopped. It measures
with the allocator's settings of a search's workers, or those of its environment (``PYTORCH_ALLOC_CONF``), and writes
down which these were. ``show`` needs no GPU: it predicts each configuration from the model's config alone, prints a
table of the errors, and puts them into ``results/memory_gpu.json``.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory_prediction import ATTENTIONS, PRECISIONS, random_configuration
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig, PretrainedConfig

from autopeft.compose.adapt import AdaptedModel, adapt
from autopeft.compose.base import Carrier, DType, SharedBase, attach, load_base, meta_carrier
from autopeft.compose.host import spare_casts
from autopeft.cost.live import measure
from autopeft.cost.memory import MemoryModel
from autopeft.cost.reserved import VARIABLES, allocator_settings, reserved_bytes
from autopeft.cost.step import StepTensors, build_optimizer, micro_batches, train_step
from autopeft.data.encoded import Batch
from autopeft.inspect import module_map
from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN, Execution, executions

RESULTS = Path(__file__).parent / "results" / "memory_gpu.jsonl"
CLASSES = {"kind": "sequence_classification", "head": "mean", "labels": 150}
CAUSAL = {"kind": "causal_lm", "head": "lm", "labels": 0}


def minilm() -> PretrainedConfig:
    """The shape of MiniLM-L6: 22 million parameters."""
    return BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def llama(hidden: int, blocks: int, heads: int, keys: int, inner: int, words: int) -> PretrainedConfig:
    """A Llama whose embeddings are tied."""
    return LlamaConfig(
        vocab_size=words, hidden_size=hidden, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=keys, intermediate_size=inner, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip


MODELS: dict[str, tuple[PretrainedConfig, dict[str, Any], tuple[tuple[int, int], ...]]] = {
    "minilm": (minilm(), CLASSES, ((32, 64), (16, 256), (64, 128))),
    "smollm2": (llama(576, 30, 9, 3, 1536, 49152), CAUSAL, ((8, 128), (4, 512), (16, 256))),
    "llama-1b": (llama(2048, 16, 32, 8, 8192, 128256), CAUSAL, ((4, 128), (2, 512), (8, 256))),
}


def setting(name: str, number: int) -> tuple[tuple[int, int], Any, Any]:
    """Batch, attention and dtype of a configuration, by its number."""
    ways = list(itertools.product(MODELS[name][2], ATTENTIONS, PRECISIONS))
    return ways[number % len(ways)]


def base_of(name: str, dtype: DType, folder: Path) -> SharedBase:
    """The model with random weights."""
    config, task, _ = MODELS[name]
    if not (folder / name).exists():
        torch.manual_seed(0)
        make = AutoModelForCausalLM if task["kind"] == "causal_lm" else AutoModel
        make.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / name)
    return load_base(str(folder / name), kind=task["kind"], dtype=dtype)


@cache
def memory_model(name: str, attention: Any, dtype: Any, length: int) -> MemoryModel:
    """What predicts."""
    config, task, _ = MODELS[name]

    def plan() -> Carrier:
        return meta_carrier(config.to_dict(), **task, attention=attention)

    model = MemoryModel(plan, module_map(plan().model), length=length, dtype=dtype, gpu=True)
    model.carrier()
    return model


def batch(carrier: Carrier, rows: int, length: int, rng: np.random.Generator) -> Batch:
    """Random rows, one of them padded."""
    ids = rng.integers(1000, 20000, (rows, length))
    mask = np.ones_like(ids)
    mask[0, length // 2 :] = 0
    if carrier.kind == "causal_lm":
        return Batch(np.arange(rows), ids, mask, None, np.where(np.arange(length) > 0, ids, -100))
    return Batch(np.arange(rows), ids, mask, np.zeros_like(ids), np.arange(rows) % carrier.labels)


class Trial:
    """A configuration that trains on the GPU."""

    def __init__(self, carrier: Carrier, configuration: Configuration, dtype: str, way: Execution) -> None:
        self.carrier, self.configuration, self.way = carrier, configuration, way
        self.model: AdaptedModel = adapt(carrier, configuration, module_map(carrier.model), seed=0)
        if way.checkpointing:
            self.model.checkpoint_blocks()
        self.model.train()
        if dtype == "bfloat16":
            spare_casts(self.model)
        self.optimizer = build_optimizer(self.model.groups(), configuration.training)
        self.autocast = torch.bfloat16 if dtype == "bfloat16" else None
        self.rng = np.random.default_rng(0)

    def pieces(self, length: int) -> list[StepTensors]:
        """A batch of a length, on the device."""
        rows = self.configuration.training.batch_size
        made = micro_batches(batch(self.carrier, rows, length, self.rng), self.carrier.kind, self.way.rows(rows))
        return [piece.to(torch.device("cuda")) for piece in made]

    def step(self, pieces: list[StepTensors]) -> None:
        """One step of training."""
        train_step(self.model, pieces, self.optimizer, self.carrier.kind, self.autocast)


def empty() -> int:
    """Give back what the allocator keeps; bytes that are still allocated."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def taken() -> dict[str, int]:
    """The highest points since the cache was emptied."""
    torch.cuda.synchronize()
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def live(trial: Trial, length: int) -> int:
    """Bytes of live tensors at the highest point of a step."""
    pieces = trial.pieces(length)
    held = [*trial.model.parameters(), *trial.model.buffers(), *(tensor for piece in pieces for tensor in piece.all())]
    return measure(lambda counter: trial.step(pieces), held, scratch=False).bytes


def measured(carrier: Carrier, configuration: Configuration, length: int, dtype: str, way: Execution) -> dict[str, Any]:
    """What one configuration takes."""
    before = empty()
    line: dict[str, Any] = {"before": before, "reserved_before": torch.cuda.memory_reserved()}
    trial = Trial(carrier, configuration, dtype, way)
    for _ in range(3):
        trial.step(trial.pieces(length))
    line["longest"] = taken()
    line["live"] = live(trial, length)
    del trial
    line["left"] = empty() - before
    trial = Trial(carrier, configuration, dtype, way)
    rng = random.Random(0)
    for index in range(12):
        trial.step(trial.pieces(length if index == 6 else 8 * rng.randint(1, length // 8)))
    line["changing"] = taken()
    del trial
    return line


def run(name: str, dtypes: Sequence[DType], configurations: int, out: Path, until: float) -> None:
    """Measure what is not known yet."""
    settings = next((os.environ[variable] for variable in VARIABLES if variable in os.environ), "")
    place = {"settings": settings, "device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    have = {(line["model"], line["number"]) for line in known(out) if all(line[key] == place[key] for key in place)}
    wanted = [number for number in range(configurations) if (name, number) not in have]
    with tempfile.TemporaryDirectory() as folder:
        bases: dict[str, SharedBase] = {}
        for dtype in dtypes:
            for number in track([n for n in wanted if setting(name, n)[2] == dtype], f"{name} {dtype}"):
                (rows, length), attention, _ = setting(name, number)
                if time.monotonic() > until:
                    return
                if dtype not in bases:
                    bases = {dtype: base_of(name, dtype, Path(folder))}
                task = {"head": MODELS[name][1]["head"], "labels": MODELS[name][1]["labels"], "attention": attention}
                carrier = attach(bases[dtype], **task)
                carrier.model.to("cuda")
                rng = random.Random(f"{name} {number}")
                configuration = random_configuration(module_map(carrier.model), rng, rows)
                model = memory_model(name, attention, dtype, length)
                ways = [*executions(rows, checkpoints=model.checkpoints(configuration))]
                way = PLAIN if rng.random() < 0.6 else rng.choice(ways[1:])
                line = {
                    **place, "model": name, "number": number, "attention": attention, "dtype": dtype,
                    "batch": [rows, length], "configuration": configuration.to_dict(), **way.to_dict(),
                }  # fmt: skip
                try:
                    line |= measured(carrier, configuration, length, dtype, way)
                except torch.OutOfMemoryError as error:
                    line["failed"] = str(error).splitlines()[0]
                del carrier
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def known(out: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def predicted(line: dict[str, Any]) -> int:
    """Bytes that a configuration is predicted to reserve."""
    model = memory_model(line["model"], line["attention"], line["dtype"], line["batch"][1])
    way = Execution(line["micro_batch"], line["checkpointing"])
    return model.predict(Configuration.from_dict(line["configuration"]), execution=way).bytes


def show(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Errors by device, model and dtype: of live bytes, and of reserved ones over both kinds of trial."""
    groups: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    measurements = [line for line in lines if "failed" not in line]
    for line in track(measurements, "predicting"):
        count, settings = predicted(line), line["settings"] or "none"
        reserved = max(line["longest"]["reserved"], line["changing"]["reserved"])
        errors = abs(count / reserved_bytes(line["live"]) - 1), count / reserved - 1
        for key in (
            (settings, line["device"], line["model"], line["dtype"]),
            (settings, line["device"], "all", "both"),
        ):
            groups.setdefault(key, []).append(errors)
    table = Table(
        "allocator", "device", "model", "base", "configurations", "live bytes", "reserved bytes", "too low by"
    )
    found = []
    for (settings, device, model, dtype), rows in sorted(groups.items()):
        live = sorted(error for error, _ in rows)
        kept = sorted(abs(error) for _, error in rows)
        too_low = max(0.0, *(-error for _, error in rows))
        row = {
            "settings": settings, "device": device, "model": model, "dtype": dtype, "configurations": len(rows),
            "live": {"median": statistics.median(live), "p95": live[int(0.95 * len(live))]},
            "reserved": {"median": statistics.median(kept), "p95": kept[int(0.95 * len(kept))], "too_low": too_low},
        }  # fmt: skip
        found.append(row)
        errors_shown = [
            f"median {statistics.median(values):.1%}, 95 % {values[int(0.95 * len(values))]:.1%}"
            for values in (live, kept)
        ]
        table.add_row(settings, device, model, dtype, str(len(rows)), *errors_shown, f"{too_low:.1%}")
    Console(width=140).print(table)
    return {"torch": sorted({line["torch"] for line in measurements}), "errors": found}


def main() -> None:
    """Measure or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("measure", "show"))
    parser.add_argument("--configurations", type=int, default=60, help="of each model")
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--dtype", action="append", choices=PRECISIONS)
    parser.add_argument("--minutes", type=float, default=10.0, help="of measuring")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.verb == "measure":
        if not torch.cuda.is_available():
            print("torch sees no GPU here; nothing was measured.")
            return
        os.environ.update(allocator_settings())
        until = time.monotonic() + 60 * asked.minutes
        for name in asked.model or list(MODELS):
            run(name, asked.dtype or PRECISIONS, asked.configurations, asked.out, until)
    else:
        found = show(known(asked.out))
        asked.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
