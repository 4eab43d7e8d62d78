"""From one worker to two, and what a trial costs as rows, length, adapted layers and trials grow.

    python benchmarks/scaling.py [--data-root DIR --task sst2] [--rounds 3] [--table]

The Ray executor of a search trains lists of equal LoRA jobs (`ours.py`). Workers: the same list by one and by two of
them, in turns; the ratio is of the seconds from the moment at which the workers are ready to the last outcome. What the
machine itself gives is measured beside it: the matrix products that two processes of one thread do over those of one,
for cores share memory, caches and often arithmetic. Costs:
seconds of a job on one worker against the rows trained, the length of the rows, the blocks that are adapted from the
top, and its place in a long list; a straight line through them says what a trial costs whatever it does, and each
further one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawn
import measured
import ours

AXES = {"rows": "rows trained", "length": "tokens of a row", "blocks": "adapted blocks", "trials": "trials before it"}
BATCH = 16
PRODUCT_SECONDS = 5.0
PRODUCT_SHAPE = (800, 384, 1536)
"""Rows, and width before and after: of a batch in the feed-forward part of MiniLM."""


def equal_jobs(blocks: int | None, rows: Sequence[int]) -> list[Any]:
    """LoRA of rank 8 on all linear layers of the topmost blocks, one job for each number of rows."""
    from autopeft.compose.base import meta_carrier
    from autopeft.inspect import module_map
    from autopeft.space.configuration import Configuration, Part, Training

    model = measured.model_folder()
    modules = module_map(meta_carrier(model, kind="sequence_classification", head="mean", labels=2).model)
    first = 0 if blocks is None else modules.blocks - blocks
    linear = modules.select(("query", "key", "value", "output", "up", "down"))
    parts = {site.name: [Part.of("lora", {"r": 8, "scale": 1.0})] for site in linear if site.block >= first}
    entry = {"configuration": Configuration.of(parts, Training((("lora", 1e-3),), 1e-3, BATCH)).to_dict()}
    # Each with a seed of its own, so that no job is another one's again.
    return [ours.train_job(entry, n, seed=i, trial=f"s{i:04d}", head="mean") for i, n in enumerate(rows)]


def run(data: Path, folder: Path, jobs: Sequence[Any], workers: int) -> dict[str, Any]:
    """A list of jobs; seconds of all and of each."""
    task = {"model": measured.model_folder(), "data": str(data), "head": "mean"}
    controller = ours.run_list(task, jobs, workers=workers, out=str(folder))
    if controller.first is None or controller.last is None:
        raise SystemExit("no job was run")
    return {
        "seconds": controller.last - controller.first,
        "jobs": [controller.outcomes[job.trial].seconds for job in jobs],
        "tokens": mean_tokens(task),
    }


def mean_tokens(task: dict[str, Any]) -> float:
    """Padded length of the average training row."""
    from autopeft.search.prepare import prepare
    from autopeft.spec.parse import parse_search

    split = prepare(parse_search({"task": task, "tracking_uri": "none"})).data.splits["train"]
    return statistics.fmean(split.padded(int(length)) for length in split.lengths)


def apart(request: dict[str, Any]) -> dict[str, Any]:
    """`run` in a process of its own, so that no list finds anything that another one left.

    Args:
        request: ``data``, ``folder``, ``blocks``, ``rows`` and ``workers``.
    """
    with tempfile.TemporaryDirectory() as temporary:
        given, answer, log = (Path(temporary) / name for name in ("request.json", "answer.json", "log"))
        given.write_text(json.dumps(request))
        command = [sys.executable, __file__, "--request", str(given), "--answer", str(answer)]
        with log.open("w") as file:
            done = subprocess.run(command, env=measured.environment(), stdout=file, stderr=file, check=False)
        if done.returncode:
            raise SystemExit(f"a list of jobs failed:\n{log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


def workers_ratio(data: Path, folder: Path, *, rounds: int, jobs: int, rows: int) -> dict[str, Any]:
    """Seconds of one worker over those of two on the same list, in turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for workers in (1, 2) if turn % 2 == 0 else (2, 1):
            place = str(folder / f"workers-{turn}-{workers}")
            request = {"data": str(data), "folder": place, "blocks": None, "rows": [rows] * jobs, "workers": workers}
            seconds[workers].append(apart(request)["seconds"])
            print(f"{workers} workers: {seconds[workers][-1]:.1f} s", file=sys.stderr, flush=True)
    return {"seconds": seconds, "ratio": measured.ratio_of_sums(seconds[1], seconds[2])}


def products(seconds: float) -> int:
    """Matrix products that one thread does in so many seconds, in the precision that a base has here."""
    import torch

    from autopeft.compose.base import DTYPES
    from autopeft.trial.computing import precision_here

    torch.set_num_threads(1)
    rows, before, after = PRODUCT_SHAPE
    dtype = DTYPES[precision_here(False)]
    states, weight = torch.randn(rows, before).to(dtype), torch.randn(after, before).to(dtype)
    for _ in range(20):
        torch.nn.functional.linear(states, weight)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        torch.nn.functional.linear(states, weight)
        count += 1
    return count


def machine_ratio(rounds: int) -> dict[str, Any]:
    """Matrix products of two processes at once over those of one, in turns."""
    counts: dict[int, list[float]] = {1: [], 2: []}
    command = [sys.executable, __file__, "--products", str(PRODUCT_SECONDS)]
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            own = {"env": measured.environment(), "stdout": subprocess.PIPE, "text": True}
            children = [subprocess.Popen(command, **own) for _ in range(processes)]  # type: ignore[call-overload]
            counts[processes].append(float(sum(int(child.communicate()[0]) for child in children)))
    return {"products": counts, "ratio": measured.ratio_of_sums(counts[2], counts[1])}


def costs(
    source: Path, folder: Path, *, rows: int, trials: int, evaluated: int
) -> dict[str, list[tuple[float, float]]]:
    """Axis -> `(place, seconds of a job)`; the median of three jobs each, the first job of a list left out."""

    def listed(name: str, data: Path, blocks: int | None, each: Sequence[int]) -> dict[str, Any]:
        print(f"costs: {name}", file=sys.stderr, flush=True)
        place = str(folder / f"costs-{name}")
        return apart({"data": str(data), "folder": place, "blocks": blocks, "rows": list(each), "workers": 1})

    data = measured.write_rows(source, folder / "data-costs", train=4 * rows, validation=evaluated)
    found: dict[str, list[tuple[float, float]]] = {axis: [] for axis in AXES}
    for times in (1, 2, 4):
        taken = listed(f"rows-{times}", data, None, [rows] + [times * rows] * 3)
        found["rows"].append((times * rows, statistics.median(taken["jobs"][1:])))
    for repeat in (1, 2, 4):
        long = measured.write_rows(
            source, folder / f"data-{repeat}", train=4 * rows, validation=evaluated, repeat=repeat
        )
        taken = listed(f"length-{repeat}", long, None, [rows] * 4)
        found["length"].append((taken["tokens"], statistics.median(taken["jobs"][1:])))
    for blocks in (1, 2, 4, 6):
        taken = listed(f"blocks-{blocks}", data, blocks, [rows] * 4)
        found["blocks"].append((blocks, statistics.median(taken["jobs"][1:])))
    taken = listed("trials", data, None, [rows // 4] * trials)
    found["trials"] = [(float(place), seconds) for place, seconds in enumerate(taken["jobs"])][1:]
    return found


def lines(points: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Straight lines: ``fixed`` seconds, and ``each`` further one on the axis."""
    found = {}
    for axis, places in points.items():
        fixed, each = measured.slope([x for x, _ in places], [y for _, y in places])
        found[axis] = {"fixed": fixed, "each": each}
    return found


def table(found: dict[str, Any]) -> str:
    """The result as markdown."""
    worked, given = (found["ratios"][name] for name in ("two workers / one", "two processes / one, products alone"))
    told = (
        f"Two workers against one: {measured.shown(worked)}. Two processes against one, matrix products alone: "
        f"{measured.shown(given)}. So the workers reach {worked['value'] / given['value']:.0%} of what the machine "
        "gives."
    )
    rows = [
        (
            AXES[axis],
            ", ".join(
                f"{x:.0f}: {y:.2f}" for x, y in found["points"][axis][:: max(1, len(found["points"][axis]) // 6)]
            ),
            f"{line['fixed']:.2f}",
            f"{line['each']:.5f}",
        )
        for axis, line in found["lines"].items()
    ]
    head = ("axis", "seconds of a trial at", "whatever it does", "each further one")
    return f"{told}\n\n{measured.markdown(head, rows)}" if rows else told


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--task", default="sst2", help="folder in --data-root")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8, help="of the list for one and two workers")
    parser.add_argument("--rows", type=int, default=1000, help="of a job")
    parser.add_argument("--evaluated", type=int, default=200, help="validation rows")
    parser.add_argument("--trials", type=int, default=40, help="of the long list; each trains a quarter of the rows")
    parser.add_argument("--skip-costs", action="store_true", help="only one worker against two")
    parser.add_argument("--out", type=Path, default=measured.RESULTS, help="folder of the result")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--request", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--products", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.products is not None:
        print(products(given.products))
        return
    if given.request is not None:
        asked = json.loads(given.request.read_text())
        jobs = equal_jobs(asked["blocks"], asked["rows"])
        done = run(Path(asked["data"]), Path(asked["folder"]), jobs, asked["workers"])
        given.answer.write_text(json.dumps(done))
        return
    if given.table:
        stored = measured.read_result("scaling", given.out)
        print(table(stored) if stored else measured.NOTHING)
        return
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("one worker against two needs two cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = measured.data_folder(given.data_root, given.task)
        data = measured.write_rows(source, folder / "data", train=given.rows, validation=given.evaluated)
        alone = machine_ratio(given.rounds)
        two = workers_ratio(data, folder, rounds=given.rounds, jobs=given.jobs, rows=given.rows)
        points = {}
        if not given.skip_costs:
            points = costs(source, folder, rows=given.rows, trials=given.trials, evaluated=given.evaluated)
    ratios = {"two workers / one": two["ratio"], "two processes / one, products alone": alone["ratio"]}
    found = {"ratios": ratios, "workers": two["seconds"], "products": alone["products"], "points": points}
    found["lines"] = lines(points)
    measured.write_result("scaling", found, sys.argv[1:] if arguments is None else arguments, given.out)
    drawn.save("scaling", found, given.out)
    print(table(found))


if __name__ == "__main__":
    main()
