"""Whether it pays to train trials together on this machine: the same steps in packs of several sizes, measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from autopeft.compose.adapt import adapt
from autopeft.compose.base import Carrier
from autopeft.cost.step import build_optimizer
from autopeft.space.configuration import Configuration
from autopeft.space.modules import ModuleMap
from autopeft.strategy.jobs import Train
from autopeft.trial import train
from autopeft.trial.clock import JobClock
from autopeft.trial.packs import Member, train_together
from autopeft.trial.setup import WorkSetup
from autopeft.trial.started import Started

__all__ = ["LARGEST", "about_packs", "best_size", "pack_gain", "pack_speeds"]

LARGEST = 8
"""Members of a pack that is chosen automatically, at most."""
STEPS = 4
"""Steps of every member in a round."""
LEAST_GAIN = 1.15
"""A pack must be so many times faster than its members alone: what it costs beside its steps is to be earned too."""


def pack_speeds(
    carrier: Carrier,
    modules: ModuleMap,
    configurations: Sequence[Configuration],
    setup: WorkSetup,
    device: torch.device,
    *,
    sizes: Sequence[int],
    seconds: float,
    clock: JobClock | None = None,
) -> dict[int, float]:
    """Seconds of a row's training in packs of several sizes; 1 is training alone.

    The sizes take turns, so that whatever else the machine does meets all of them, and the fastest of each one's rounds
    counts. Every size gets at least two rounds.

    Args:
        carrier: The frozen base.
        modules: Its module map.
        configurations: What is trained, over again where a pack has more members.
        setup: Data, kind and precision.
        device: Where to compute.
        sizes: Sizes of packs.
        seconds: How long to measure, about.
        clock: The job's clock.

    Raises:
        TrialFailure: ``timeout`` past the clock's limit.
    """
    members = [_member(carrier, modules, configurations[n % len(configurations)], n, device) for n in range(max(sizes))]
    best = dict.fromkeys(sizes, float("inf"))
    began, rounds = time.monotonic(), 0
    while rounds < 3 or time.monotonic() - began < seconds:
        for size in sizes:
            rows, taken = _round(members[:size], setup, device, rounds, clock)
            # The first round warms up.
            best[size] = min(best[size], taken / rows) if rounds else best[size]
        rounds += 1
    return best


def best_size(speeds: Mapping[int, float], most: int) -> int:
    """The size of pack that trains a row in the least time, 1 where no larger one is clearly faster.

    Args:
        speeds: What `pack_speeds` found.
        most: Largest size to take.
    """
    faster = {n: s for n, s in speeds.items() if 1 < n <= most and s * LEAST_GAIN <= speeds[1]}
    return min(faster, key=lambda size: faster[size], default=1)


def about_packs(speeds: Mapping[int, float], wanted: int | str) -> str:
    """A sentence about what was measured and what follows from it.

    Args:
        speeds: What `pack_speeds` found.
        wanted: ``auto``, or the size that was asked for.
    """
    gains = ", ".join(f"{size} at a time {pack_gain(speeds, size):.2f} times" for size in sorted(speeds) if size > 1)
    size = best_size(speeds, LARGEST) if wanted == "auto" else int(wanted)
    follows = f"while exploring, a worker trains {size} at a time" if size > 1 else "each is trained alone"
    return f"Trials trained together were so many times as fast as one after the other: {gains}; {follows}."


def pack_gain(speeds: Mapping[int, float], members: int) -> float:
    """How many times faster a row is trained in a pack of so many: that of the next smaller size that was measured.

    Args:
        speeds: Size -> seconds per row; empty where nothing was measured.
        members: Size of the pack.
    """
    below = [size for size in speeds if size <= members]
    return speeds[1] / speeds[max(below)] if below and 1 in speeds else 1.0


def _member(
    carrier: Carrier, modules: ModuleMap, configuration: Configuration, seed: int, device: torch.device
) -> Started:
    model = adapt(carrier, configuration, modules, seed=seed).to(device)
    job = Train(f"pack{seed}", configuration, seed, 0, 0, 1, 0, 0, "", carrier.head)
    return Started(job, model, build_optimizer(model.groups(), configuration.training), None)


def _round(
    started: Sequence[Started], setup: WorkSetup, device: torch.device, number: int, clock: JobClock | None
) -> tuple[int, float]:
    """Some steps of each: rows trained and seconds taken."""
    jobs = [one.at(number * STEPS, (number + 1) * STEPS) for one in started]
    if len(jobs) == 1:
        done = [train.run(jobs[0].model, jobs[0].optimizer, jobs[0].job, setup, device, clock)]
    else:
        members = [Member(one) for one in jobs]
        train_together(members, setup, device, clock)
        done = [member.result for member in members]
    return sum(result.rows for result in done), sum(result.seconds for result in done)
