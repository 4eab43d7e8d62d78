"""By how much the latency of one and the same adapter scatters from measurement to measurement, on MiniLM.

    python benchmarks/latency_noise.py [--repeats 24]

LoRA of rank 8 on query and value, measured again and again as a finalist is (`autopeft.trial.latency`). Besides the
standard deviation of the larger of its two ratios it says how often the median of 2 or 3 measurements lies below that
of as many others by more than what counts as cheaper (`autopeft.spec.costs`), which can only be chance. In a search the
other cores are busy: so they should be here.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence

import frozen_prefix
import measured
import torch

from autopeft.compose.adapt import adapt
from autopeft.spec.costs import COSTS
from autopeft.trial.computing import precision_here
from autopeft.trial.latency import measure_latency
from autopeft.trial.workbench import Workbench

DRAWS = 10_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=24)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device, noise = torch.device("cpu"), COSTS["latency"].noise
    with tempfile.TemporaryDirectory() as folder:
        setup = frozen_prefix.setup_of(folder, 64, precision_here(gpu=False))
        bench = Workbench(setup)
        configuration = frozen_prefix.configuration_of(bench, 0)
        carrier, modules = bench.carrier("mean"), bench.modules("mean")
        model, bare = adapt(carrier, configuration, modules, seed=0), bench._bare(carrier)
        ratios = [max(measure_latency(model, bare, setup, device).values()) for _ in range(given.repeats)]
    rng, found = (
        random.Random(0),
        {"ratios_measured": ratios, "deviation": statistics.stdev(ratios), "counts_from": noise},
    )
    for runs in (2, 3):
        drawn = [[statistics.median(rng.sample(ratios, runs)) for _ in range(2)] for _ in range(DRAWS)]
        found[f"cheaper_by_chance_of_{runs}"] = sum(one < other - noise for one, other in drawn) / DRAWS
    measured.write_result("latency_noise", found, sys.argv[1:] if arguments is None else arguments)
    print(f"{statistics.mean(ratios):.3f} +- {found['deviation']:.3f}; cheaper by chance: ", end="")
    print(", ".join(f"{found[f'cheaper_by_chance_of_{runs}']:.1%} of {runs}" for runs in (2, 3)))


if __name__ == "__main__":
    main()
