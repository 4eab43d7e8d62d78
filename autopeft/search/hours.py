"""What a search costs in time: how fast a device trains, measured or by arithmetic, and the hours of the whole."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autopeft.compose.base import DTYPES
from autopeft.cost.flops import ACHIEVED, DECODING, expert_weights, matmul_rate, row_flops
from autopeft.errors import AutopeftError
from autopeft.search.beside import NOTHING_BESIDE, Beside, full_seconds
from autopeft.search.division import DEFAULT_TRIALS, FINISH_SECONDS, Division, Speed
from autopeft.search.drops import drops_seconds
from autopeft.search.prepared import Prepared
from autopeft.spec import Budget
from autopeft.spec.amounts import format_seconds
from autopeft.strategy.jobs import Probe
from autopeft.trial.setup import WorkSetup
from autopeft.trial.workbench import Workbench, speed_configuration

TERA = 1e12
HOUR = 3600.0


def measured_speed(prepared: Prepared, head: str) -> tuple[Speed, dict[str, Any]]:
    """Seconds per row of a throw-away LoRA that is trained here for about two seconds.

    Args:
        prepared: The search.
        head: The head on top.

    Raises:
        AutopeftError: It broke.
    """
    threads = torch.get_num_threads()
    # As many as a worker of a search has.
    torch.set_num_threads(prepared.computing.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            setup = prepared.setup(Path(folder))
            # Answers are generated in batches of 24, so that half of the rows take half of the time.
            half = replace(setup, generate_rows=setup.generate_rows // 2)
            bench = Workbench(half)
            outcome = bench.run(Probe("speed", (head,)))
            bench.release()
    finally:
        torch.set_num_threads(threads)
    if outcome.status != "ok":
        raise AutopeftError(f"the speed probe ended {outcome.status} ({outcome.reason}): {outcome.detail}")
    found = outcome.values
    generate = found.get("generate_seconds", 0.0)
    if min(setup.generate_rows, prepared.data.splits["validation"].rows) > half.generate_rows:
        generate *= 2
    speed = Speed(found["train_seconds_per_row"], found["evaluate_seconds_per_row"], generate)
    return speed, {"source": "measured", "how": "a LoRA of rank 8 on every linear layer, trained here and thrown away"}


def estimated_speed(prepared: Prepared, head: str, device_tflops: float | None) -> tuple[Speed, dict[str, Any]]:
    """Seconds per row by arithmetic, and what they were computed from.

    Args:
        prepared: The search; its base needs no weights.
        head: The head on top.
        device_tflops: What the device achieves in training; None measures matrix products here.
    """
    split, modules = prepared.data.splits["train"], prepared.modules(head)
    model = prepared.meta(head).model
    vocabulary = model.get_output_embeddings().weight.shape[0] if head == "lm" else 0
    flops = row_flops(
        modules,
        [split.padded(int(length)) for length in split.lengths],
        adapter_params=speed_configuration(modules, prepared.raw.kind).adapter_params(modules),
        vocabulary=vocabulary,
        answers=0.0 if split.answer_from is None else float((split.lengths - split.answer_from).mean()),
        experts=expert_weights(model),
    )
    if device_tflops is not None:
        rate = device_tflops * TERA
        how = f"arithmetic, on the assumption that a device achieves {device_tflops:g} TFLOP/s (--device-tflops)"
    else:
        place = "cuda" if prepared.gpu and torch.cuda.is_available() else "cpu"
        product = matmul_rate(modules.hidden_size, DTYPES[prepared.precision], place)
        rate = ACHIEVED * product
        here = "this GPU" if place == "cuda" else "one core of this machine"
        how = (
            f"arithmetic: matrix products ran at {product / TERA:.3g} TFLOP/s on {here}, of which training is taken "
            f"to reach {ACHIEVED:.0%}; --device-tflops plans for another device"
        )
    rows = min(WorkSetup.generate_rows, prepared.data.splits["validation"].rows) if head == "lm" else 0
    speed = Speed(flops.train / rate, flops.forward / rate, rows * flops.forward / (DECODING * rate))
    about = {
        "source": "estimated",
        "how": how,
        "achieved_tflops": rate / TERA,
        "tflop_per_row_trained": flops.train / TERA,
        "tflop_per_row_evaluated": flops.forward / TERA,
    }
    return speed, about


def trials_seconds(division: Division, trials: int, eta: float) -> float:
    """Device-seconds that so many trials and the finalists take, if each rung passes on a share of 1/eta.

    Args:
        division: The budget, divided.
        trials: Trials that start.
        eta: Ratio of rows between neighbouring rungs.
    """
    speed, total, before = division.speed, 0.0, 0
    for level, rows in enumerate(division.rungs):
        final = level == len(division.rungs) - 1
        evaluated = division.final_evaluated if final else division.rung_evaluated
        each = (rows - before) * speed.train + evaluated * speed.evaluate + (speed.generate if final else 0.0)
        total += max(1.0, trials / eta**level) * each
        before = rows
    return total + division.finalists * len(division.seeds) * full_seconds(division)


def device_hours(division: Division, budget: Budget, eta: float, more: Beside = NOTHING_BESIDE) -> dict[str, Any]:
    """What the whole search costs: the tightest of what its limits allow.

    Args:
        division: The budget, divided.
        budget: The limits.
        eta: Ratio of rows between neighbouring rungs.
        more: What is done beside trials and finalists.

    Returns:
        ``device_hours`` (workers x wall hours), ``device_hours_by`` (the limit that says so, or ``trials`` for an
        estimate), ``device_hours_of_a_full_training``, and for an estimate ``trials_counted``.
    """
    known: dict[str, float] = {}
    if budget.max_time is not None:
        known["max_time"] = division.workers * budget.max_time
    if budget.max_compute is not None:
        known["max_compute"] = budget.max_compute
    if budget.max_trials is not None or not known:
        trials = division.max_trials or budget.max_trials or DEFAULT_TRIALS
        known["trials"] = (
            trials_seconds(division, trials, eta) + more.seconds(division, trials) + division.workers * FINISH_SECONDS
        )
    by = min(known, key=lambda name: known[name])
    values: dict[str, Any] = {
        "device_hours": known[by] / HOUR,
        "device_hours_by": by,
        "device_hours_of_a_full_training": full_seconds(division) / HOUR,
    }
    return values if by != "trials" else {**values, "trials_counted": division.max_trials}


def time_section(
    division: Division,
    train_rows: int,
    budget: Budget,
    eta: float,
    about_speed: dict[str, Any],
    more: Beside = NOTHING_BESIDE,
) -> dict[str, Any]:
    """The plan's values about time.

    Args:
        division: The budget, divided.
        train_rows: Rows of the training split.
        budget: The limits.
        eta: Ratio of rows between neighbouring rungs.
        about_speed: Where the speed comes from.
        more: What is done beside trials and finalists.
    """
    speed, full = division.speed, full_seconds(division)
    explore, confirm, deadline = division.explore_until, division.confirm_until, division.deadline
    each = full + (more.latency if more.limited else 0.0)
    simplify = drops_seconds(each, more.drops, division.workers)
    return {
        **device_hours(division, budget, eta, more),
        "workers": division.workers,
        "speed": about_speed,
        "train_seconds_per_1000_rows": 1000 * speed.train,
        "evaluate_seconds_per_1000_rows": 1000 * speed.evaluate,
        "rungs_rows": list(division.rungs),
        "epochs_of_a_full_training": division.final_rows / train_rows,
        "seconds_of_a_full_training": full,
        "latency_seconds_of_a_measurement": more.latency,
        "latency_measured_of": "every configuration" if more.limited else "each finalist, once",
        "seeds_per_finalist": len(division.seeds),
        "baseline_share": division.baseline_share,
        "explore_seconds": explore,
        "of_these_simplify_seconds_at_most": None if explore is None else simplify,
        "simplify_runs_at_most": more.runs,
        "confirm_seconds": _between(explore, confirm),
        "reserve_seconds": _between(confirm, deadline),
        "full_trainings_that_exploration_affords": None
        if explore is None
        else (explore - simplify) * division.workers / each,
        "max_trials": division.max_trials,
    }


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin


def unaffordable(division: Division, more: Beside = NOTHING_BESIDE) -> list[str]:
    """What to tell where the time does not pay for the finalists' runs.

    Args:
        division: The budget, divided.
        more: What is done beside trials and finalists.
    """
    if division.explore_until is None or division.confirm_until is None:
        return []
    runs = division.finalists * len(division.seeds)
    measured = division.finalists * more.finalists
    needed = (runs * full_seconds(division) + measured * more.latency) / division.workers
    left = division.confirm_until - division.explore_until
    if needed <= left:
        return []
    return [
        f"The time is too short: even {runs} runs of {division.final_rows:,} rows for the finalists take "
        f"{format_seconds(needed)} where {format_seconds(left)} are left for them. Give more time, a faster device or "
        "fewer tokens (--max-length)."
    ]
