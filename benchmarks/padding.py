"""Training on short rows whose batches are padded to multiples of 8 and of 2, on MiniLM on one core.

    python benchmarks/padding.py [--rows 640] [--rounds 6]

LoRA of rank 8 on query and value, rows as long as movie sentences, batches of 16 and 32, in the precision that a base
has here. Both ways take turns in one process; the ratio is of seconds, its interval from resampling the rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace

import frozen_prefix
import measured
import torch

from autopeft.compose.adapt import adapt
from autopeft.cost.step import build_optimizer
from autopeft.data.encoded import PAD_MULTIPLE
from autopeft.strategy.jobs import Train
from autopeft.trial import train
from autopeft.trial.computing import FINE_PADDING, precision_here
from autopeft.trial.workbench import Workbench

BATCHES = (16, 32)


def timed(rows: int, rounds: int, batch: int) -> measured.Ratio:
    """Seconds with the coarse multiple over those with the fine one."""
    with tempfile.TemporaryDirectory() as folder:
        setup = frozen_prefix.setup_of(folder, rows, precision_here(gpu=False))
        bench = Workbench(setup)
        plain = frozen_prefix.configuration_of(bench, 0)
        configuration = replace(plain, training=replace(plain.training, batch_size=batch))
        carrier, modules = bench.carrier("mean"), bench.modules("mean")
        job = Train("bench", configuration, 1, 0, rows, 0, 0, 0, "trials/bench", "mean")

        def seconds(multiple: int) -> float:
            model = adapt(carrier, configuration, modules, seed=0)
            optimizer = build_optimizer(model.groups(), configuration.training)
            padded = replace(setup, data=setup.data.padded_to(multiple))
            return train.run(model, optimizer, job, padded, torch.device("cpu")).seconds

        taken: dict[int, list[float]] = {PAD_MULTIPLE: [], FINE_PADDING: []}
        for turn in range(rounds + 1):
            for multiple in taken if turn % 2 else reversed(list(taken)):
                spent = seconds(multiple)
                # The first round pays for kernels that later ones find ready.
                if turn:
                    taken[multiple].append(spent)
    return measured.ratio_of_sums(taken[PAD_MULTIPLE], taken[FINE_PADDING])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ratios = {f"batches of {batch}": timed(given.rows, given.rounds, batch) for batch in BATCHES}
    measured.write_result("padding", {"ratios": ratios}, sys.argv[1:] if arguments is None else arguments)
    for name, ratio in ratios.items():
        print(f"{name}: {measured.shown(ratio)}")


if __name__ == "__main__":
    main()
