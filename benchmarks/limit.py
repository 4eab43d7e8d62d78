"""How close training comes to the processor's own limit: its share of the rate of bfloat16 matrix products.

    python benchmarks/limit.py [--data-root DIR --task sst2] [--models minilm smollm2] [--blocks 5] [--table]

The limit is the best rate of large matrix products on one thread, in the base's own dtype, measured again in every
block. Training is `autopeft.trial.train.run` on a worker's bench, on the batches of a search; its floating-point
operations are those of the matrix products that were executed, padding included, counted by torch. A share therefore
counts everything that is no matrix product as lost time. Both are timed in processor seconds of one thread, which
other work on the machine disturbs less than a clock on the wall. Where a job's forward pass is partly read from a
cache, fewer operations are executed: rows per second say what came of it.

SmolLM2 is trained to say the label of a review. Where the time goes is told by torch's profiler for one configuration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawn
import measured

SHAPES = ((1024, 1024, 1024), (2048, 1024, 1024), (2048, 2048, 2048), (1024, 4096, 1024), (512, 2048, 2048))
PEAK_SECONDS = 0.4
CONFIGURATIONS = ("query and value", "all linear layers", "all, top half", "all, last layer")
BATCHES = (8, 16, 32)
PROFILED = ("all linear layers", 16)
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("matrix products", ("mm", "linear", "baddbmm", "convolution")),
    ("casts and copies", ("copy", "_to_", "clone", "contiguous", "cat", "fill_", "zero_")),
    ("attention's softmax", ("softmax", "attention")),
    ("activations", ("gelu", "silu", "tanh", "sigmoid")),
    ("norms", ("layer_norm", "rms_norm", "rsqrt", "mean", "pow")),
    ("optimizer and clipping", ("adam", "norm", "clamp", "foreach")),
    ("sums and products", ("add", "mul", "sub", "div", "neg", "where", "sum", "masked")),
    ("embedding", ("embedding", "index", "gather")),
)
"""Kinds of operations, by parts of their names; the first that matches counts."""


def kind_of(operation: str) -> str:
    """The kind of an operation of torch."""
    name = operation.removeprefix("aten::")
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "other operations")


def peak(dtype: Any) -> float:
    """The best rate of large matrix products on this thread, floating-point operations per second."""
    import torch

    best = 0.0
    for rows, inner, columns in SHAPES:
        left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
        torch.nn.functional.linear(left, right)
        end = time.perf_counter() + PEAK_SECONDS / len(SHAPES)
        while True:
            began = time.process_time()
            torch.nn.functional.linear(left, right)
            taken = time.process_time() - began
            best = max(best, 2.0 * rows * inner * columns / taken)
            if time.perf_counter() > end:
                break
    return best


class Case:
    """One configuration with one batch size on a worker's bench.

    Args:
        bench: The bench.
        head: The head on top.
        name: Of `CONFIGURATIONS`.
        batch: Rows of a step.
        rows: Rows of a measured stretch.
    """

    def __init__(self, bench: Any, head: str, name: str, batch: int, rows: int) -> None:
        from autopeft.space.configuration import Configuration, Part, Training
        from autopeft.strategy.jobs import Train

        self.bench, self.name, self.batch = bench, name, batch
        modules = bench.modules(head)
        roles = ("query", "value") if name == "query and value" else LINEAR
        first = {"all, top half": modules.blocks // 2, "all, last layer": modules.blocks - 1}.get(name, 0)
        sites = [site for site in modules.select(roles) if site.block >= first]
        parts = {site.name: [Part.of("lora", {"r": 8, "scale": 1.0})] for site in sites}
        configuration = Configuration.of(parts, Training((("lora", 1e-3),), 1e-3, batch))
        self.job = Train("limit", configuration, 1, 0, rows, rows // 10, 0, 0, "trials/limit", head)
        self._made: Any = None

    def stretch(self) -> tuple[int, float]:
        """Rows trained, and processor seconds: always the same batches, with a fresh adapter."""
        from autopeft.trial import train

        model, optimizer = self._fresh()
        began = time.process_time()
        done = train.run(model, optimizer, self.job, self.bench.setup, self.bench.device)
        return done.rows, time.process_time() - began

    def operations(self) -> float:
        """Floating-point operations of the matrix products of a stretch."""
        from torch.utils.flop_counter import FlopCounterMode

        counter = FlopCounterMode(display=False)
        with counter:
            self.stretch()
        return float(counter.get_total_flops())

    def profile(self) -> dict[str, float]:
        """Shares of a stretch's seconds by kind of operation; what is left is Python's, and building the adapter."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiler

        with profiler(activities=[ProfilerActivity.CPU]) as measured_by:
            began = time.perf_counter()
            self.stretch()
            seconds = time.perf_counter() - began
        found: dict[str, float] = {}
        for event in measured_by.key_averages():
            kind = kind_of(event.key) if event.key.startswith("aten::") else "outside of operations"
            if kind != "outside of operations":
                found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / seconds
        found["outside of operations"] = max(0.0, 1.0 - sum(found.values()))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _fresh(self) -> tuple[Any, Any]:
        from autopeft.compose.adapt import adapt
        from autopeft.cost.step import build_optimizer

        carrier = self.bench.carrier(self.job.head)
        model = adapt(carrier, self.job.configuration, self.bench.modules(self.job.head), seed=1)
        return model, build_optimizer(model.groups(), self.job.configuration.training)


LINEAR = ("query", "key", "value", "qkv", "output", "up", "gate", "down")


def bench_of(model: str, data: Path, folder: Path) -> tuple[Any, str]:
    """A worker's bench for a task, made as a search makes it, and the head in use."""
    from autopeft.search.prepare import prepare
    from autopeft.spec.parse import parse_search
    from autopeft.trial.workbench import Workbench

    task: dict[str, Any] = {"model": measured.model_folder(model), "data": str(data), "head": "mean"}
    if model == "smollm2":
        language = {"kind": "causal_lm", "prompt_column": "text", "response_column": "label"}
        task = {**{k: v for k, v in task.items() if k != "head"}, **language}
    prepared = prepare(parse_search({"task": task, "tracking_uri": "none", "out": str(folder)}))
    return Workbench(prepared.setup(folder)), prepared.heads[0]


def measure(model: str, data: Path, folder: Path, *, rows: int, blocks: int, batches: Sequence[int]) -> dict[str, Any]:
    """All cases of a model, in turns; the limit is measured in every block."""
    import torch

    torch.set_num_threads(1)
    bench, head = bench_of(model, data, folder)
    dtype = torch.bfloat16 if bench.setup.precision == "bfloat16" else torch.float32
    cases = [Case(bench, head, name, batch, rows) for name in CONFIGURATIONS for batch in batches]
    peaks: list[float] = []
    taken: list[list[float]] = [[] for _ in cases]
    operations = [case.operations() for case in cases]
    for block in range(blocks):
        peaks.append(peak(dtype))
        for index, case in enumerate(cases):
            taken[index].append(case.stretch()[1])
        print(f"{model}: block {block + 1} of {blocks}", file=sys.stderr, flush=True)
    limit = max(peaks)
    profiled = next((case for case in cases if (case.name, case.batch) == PROFILED), cases[0])
    found = []
    for case, flops, seconds in zip(cases, operations, taken, strict=True):
        share = measured.ratio_of_sums([flops / limit] * blocks, seconds)
        about = {"configuration": case.name, "batch": case.batch, "rows_per_second": blocks * rows / sum(seconds)}
        found.append({**about, "flops_per_row": flops / rows, "share": share})
    return {
        "precision": bench.setup.precision,
        "attention": bench.setup.attention,
        "limit_flops": limit,
        "limits": peaks,
        "cases": found,
        "profiled": {"configuration": profiled.name, "batch": profiled.batch, "shares": profiled.profile()},
        "after_training": after_training(replace(profiled.job, evaluate_rows=100), bench),
    }


def after_training(job: Any, bench: Any) -> dict[str, float]:
    """Seconds that a job spends on anything but its optimizer steps and its evaluation of 100 rows."""
    from autopeft.compose.base import checksum

    outcome = bench.run(job)
    began = time.process_time()
    checksum(bench.carrier(job.head))
    summed = time.process_time() - began
    rest = outcome.seconds - outcome.train_seconds - outcome.evaluate_seconds
    return {"checksum": summed, "rest": rest - summed, "train": outcome.train_seconds}


def table(found: dict[str, Any]) -> str:
    """The result as markdown."""
    rows = [
        (
            model,
            case["configuration"],
            str(case["batch"]),
            f"{case['rows_per_second']:.0f}",
            f"{case['flops_per_row'] / 1e9:.2f}",
            f"{case['share']['value']:.0%}",
        )
        for model, values in found["models"].items()
        for case in values["cases"]
    ]
    head = ("model", "LoRA of rank 8 on", "batch", "rows a second", "GFLOP a row", "share of the limit")
    kinds = [
        (model, *(f"{kind} {share:.0%}" for kind, share in list(values["profiled"]["shares"].items())[:7]))
        for model, values in found["models"].items()
    ]
    shares = "\n".join(f"{model}: {', '.join(parts)}" for model, *parts in kinds)
    return f"{measured.markdown(head, rows)}\n\n{shares}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--task", default="sst2", help="folder in --data-root")
    parser.add_argument("--models", nargs="+", choices=("minilm", "smollm2"), default=["minilm", "smollm2"])
    parser.add_argument("--rows", type=int, default=640, help="of a stretch on MiniLM; SmolLM2 gets a tenth")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=Path, default=measured.RESULTS, help="folder of the result")
    parser.add_argument("--table", action="store_true", help="only print the table")
    given = parser.parse_args(arguments)
    if given.table:
        stored = measured.read_result("limit", given.out)
        print(table(stored) if stored else measured.NOTHING)
        return
    found: dict[str, Any] = {"models": {}, "ratios": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = measured.data_folder(given.data_root, given.task)
        for model in given.models:
            rows = given.rows if model == "minilm" else given.rows // 10
            data = measured.write_rows(source, folder / f"{model}-data", train=max(rows, 256), validation=128)
            sizes = {"rows": rows, "blocks": given.blocks, "batches": given.batches}
            values = measure(model, data, folder / model, **sizes)
            found["models"][model] = values
            for case in values["cases"]:
                found["ratios"][f"{model}, {case['configuration']}, batches of {case['batch']}"] = case["share"]
    measured.write_result("limit", found, sys.argv[1:] if arguments is None else arguments, given.out)
    drawn.save("limit", found, given.out)
    print(table(found))


if __name__ == "__main__":
    main()
