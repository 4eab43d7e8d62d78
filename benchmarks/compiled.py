"""Whether `torch.compile` pays for a trial: what compiling takes, what a row costs after it, and when that has paid.

    python benchmarks/compiled.py [--rows 640] [--rounds 4]

LoRA of rank 8 on query and value of MiniLM, batch 16, rows as long as movie sentences, one thread, in the precision
that a base has here. Plain and compiled passes take turns over the same batches; lengths vary, so that shapes are
compiled as symbols. Every configuration adapts other modules and is another graph, which is compiled anew: the first
pass over the rows, less a later one, is what each trial would pay.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import frozen_prefix
import measured
import torch

from autopeft.compose.adapt import adapt
from autopeft.compose.host import spare_casts
from autopeft.cost.step import build_optimizer, step_tensors, train_step
from autopeft.data.batches import TrainStream, pad
from autopeft.trial.computing import precision_here
from autopeft.trial.workbench import Workbench


def timed(rows: int, rounds: int) -> dict[str, float]:
    """Seconds per 1,000 rows both ways, and seconds of compiling."""
    precision = precision_here(gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        setup = frozen_prefix.setup_of(folder, rows, precision)
        bench = Workbench(setup)
        configuration = frozen_prefix.configuration_of(bench, 0)
        split = setup.data.splits["train"]
        batches = [
            step_tensors(pad(split, each, setup.data.pad_token), setup.kind)
            for each in TrainStream(split, frozen_prefix.BATCH, 0).epoch(0)
        ]
        cast = torch.bfloat16 if precision == "bfloat16" else None
        ways: dict[str, tuple[torch.nn.Module, torch.optim.AdamW]] = {}
        for way in ("plain", "compiled"):
            model = adapt(bench.carrier("mean"), configuration, bench.modules("mean"), seed=0).train()
            spare_casts(model)
            optimizer = build_optimizer(model.groups(), configuration.training)
            ways[way] = (model if way == "plain" else torch.compile(model, dynamic=True), optimizer)

        def epoch(way: str) -> float:
            model, optimizer = ways[way]
            began = time.monotonic()
            for batch in batches:
                train_step(model, batch, optimizer, setup.kind, cast)
            return time.monotonic() - began

        first = {way: epoch(way) for way in ways}
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds):
            for way in ways if turn % 2 == 0 else reversed(list(ways)):
                taken[way].append(epoch(way))
    seconds = {way: statistics.median(values) for way, values in taken.items()}
    compiling, saved = first["compiled"] - seconds["compiled"], (seconds["plain"] - seconds["compiled"]) / rows
    return {
        "plain_seconds": 1000 * seconds["plain"] / rows,
        "compiled_seconds": 1000 * seconds["compiled"] / rows,
        "ratio": seconds["plain"] / seconds["compiled"],
        "compiling_seconds": compiling,
        "rows_to_pay": compiling / saved if saved > 0 else float("nan"),
    }


def table(found: dict[str, float]) -> str:
    """The result as markdown."""
    head = ("plain, s per 1,000 rows", "compiled", "plain / compiled", "compiling, s", "rows until it has paid")
    names = ("plain_seconds", "compiled_seconds", "ratio", "compiling_seconds", "rows_to_pay")
    return measured.markdown(head, [tuple(f"{found[name]:,.2f}" for name in names)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = timed(given.rows, given.rounds)
    measured.write_result("compiled", {"compiled": found}, sys.argv[1:] if arguments is None else arguments)
    print(table(found))


if __name__ == "__main__":
    main()
