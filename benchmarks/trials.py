"""Trials in an hour: the same configurations, data, epochs and evaluation, by autopeft and by what people do today.

    python benchmarks/trials.py [--data-root DIR --task sst2] [--configurations 24] [--rows 1000] [--minutes 25]

Five contestants take turns in blocks of a few configurations, in an order that moves on by one with every block, so
that a drift of the machine hits all of them alike; each uses two processes of one thread:

* ``trainer``: transformers' Trainer on a peft model, one process per trial (`peer_trainer.py`), documented and tuned;
* ``tune``: the same inside of Ray Tune function trainables (`peer_tune.py`), as documented and tuned;
* ``autopeft``: its own workers, on exactly these configurations (`ours.py`).

Ratios are of seconds. What is started and ended once for all trials (Ray, resident models) is counted once: the mean of
the blocks is spread over them; the ratio with all of it in every block is given as well. The Trainer starts in every
process, and its start counts every time. Blocks that are done are not repeated: their record is
``runs/bench/trials.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
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

CONTESTANTS = ("autopeft", "trainer documented", "trainer tuned", "tune documented", "tune tuned")
WORKERS = 2
SEED = 11
KEPT = ("score", "seconds", "train_seconds", "evaluate_seconds", "cpu_seconds")


def turns(blocks: int, contestants: Sequence[str]) -> list[tuple[int, str]]:
    """Who runs which block when: all contestants in every block, the order rotated by one each time."""
    return [
        (block, contestants[(block + place) % len(contestants)])
        for block in range(blocks)
        for place in range(len(contestants))
    ]


def block_seconds(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds of each block, the mean start and end of all of them, once, in place of its own."""
    own = [row["start"] + row["end"] for row in rows]
    return [row["wall"] - once + statistics.fmean(own) / len(rows) for row, once in zip(rows, own, strict=True)]


def within_noise(theirs: Sequence[float], ours: Sequence[float], again: Sequence[float]) -> dict[str, Any]:
    """Whether two lists of final scores differ by more than seeds do.

    Args:
        theirs: Scores of the configurations, one seed each.
        ours: Ours of the same.
        again: Ours with another seed.

    Returns:
        The mean difference and its 95 % interval (normal, over configurations), the standard deviation of a score
        between seeds, and the share of configurations whose difference is within 1.96 of that of two seeds.
    """
    noise = math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(ours, again, strict=True)) / 2)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    half = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    near = [abs(d) <= 1.96 * math.sqrt(2) * noise + 1e-9 for d in differences]
    return {
        "difference": mean,
        "low": mean - half if math.isfinite(half) else None,
        "high": mean + half if math.isfinite(half) else None,
        "seed_deviation": noise,
        "share_within": sum(near) / len(near),
        "largest": max(differences, key=abs),
    }


class Contest:
    """Runs blocks of configurations with contestants.

    Args:
        folder: Of temporary files.
        data: The task's folder.
        settings: `epochs`, `rows`; and the list of `configurations.entries`.
        entries: The configurations.
    """

    def __init__(self, folder: Path, data: Path, settings: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        self.folder, self.data, self.settings, self.entries = folder, data, settings, entries
        self.model = measured.model_folder()
        from autopeft.trial.computing import precision_here

        self.bf16 = precision_here(False) == "bfloat16"

    def block(self, number: int) -> list[dict[str, Any]]:
        """The configurations of a block."""
        size = self.settings["block"]
        return self.entries[number * size : (number + 1) * size]

    def run(self, contestant: str, number: int, seed: int = SEED) -> dict[str, Any]:
        """One block by one contestant: wall seconds, of these its start and its end, busy seconds, and its trials."""
        place = self.folder / f"{contestant.replace(' ', '-')}-{number}-{seed}"
        place.mkdir()
        busy, began = measured.busy_seconds(), time.time()
        kind, _, style = contestant.partition(" ")
        if kind == "trainer":
            start, end, trials = 0.0, 0.0, self._processes(style, number, seed, place)
        else:
            block = self._described(kind, style, number, seed, place)
            found = self._script("ours.py" if kind == "autopeft" else "peer_tune.py", block, place)
            start, end, trials = found["first"] - began, time.time() - found["last"], found["trials"]
        wall = time.time() - began
        shutil.rmtree(place)
        row = {"contestant": contestant, "block": number, "seed": seed, "wall": wall, "start": start, "end": end}
        indices = [entry["index"] for entry in self.block(number)]
        kept = [
            {"index": i, **{name: t[name] for name in KEPT if name in t}} for i, t in zip(indices, trials, strict=True)
        ]
        return {**row, "busy": measured.busy_seconds() - busy, "trials": kept}

    def _described(self, kind: str, style: str, number: int, seed: int, place: Path) -> dict[str, Any]:
        rows = self.settings["rows"] * self.settings["epochs"]
        common = {"model": self.model, "data": str(self.data), "out": str(place / "out"), "workers": WORKERS}
        if kind == "autopeft":
            jobs = [{**entry, "rows_to": rows, "seed": seed} for entry in self.block(number)]
            return {**common, "metric": "accuracy", "jobs": jobs}
        return {**common, "style": style, "jobs": [self._job(e, style, seed, place) for e in self.block(number)]}

    def _job(self, entry: dict[str, Any], style: str, seed: int, place: Path) -> dict[str, Any]:
        kept = {name: entry[name] for name in ("index", "rate", "batch", "peft")}
        return {
            **kept,
            "style": style,
            "seed": seed,
            "epochs": self.settings["epochs"],
            "threads": 1,
            "bf16": self.bf16,
            "model": self.model,
            "data": str(self.data),
            "cache": str(self.folder / f"cache-{style}"),
            "out": str(place / f"trainer-{entry['index']}"),
        }

    def _script(self, name: str, block: dict[str, Any], place: Path) -> dict[str, Any]:
        given, answer = place / "block.json", place / "answer.json"
        given.write_text(json.dumps(block))
        command = [sys.executable, str(measured.HERE / name), str(given), str(answer)]
        with (place / "log").open("w") as log:
            done = subprocess.run(command, env=measured.environment(), stdout=log, stderr=log, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{(place / 'log').read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def _processes(self, style: str, number: int, seed: int, place: Path) -> list[dict[str, Any]]:
        """One process per trial, two at a time; what a process takes from its start to its end counts."""
        waiting = [self._job(entry, style, seed, place) for entry in self.block(number)]
        running: dict[int, tuple[dict[str, Any], float]] = {}
        found: dict[int, dict[str, Any]] = {}
        while waiting or running:
            while waiting and len(running) < WORKERS:
                job = waiting.pop(0)
                given, answer = place / f"{job['index']}.json", place / f"{job['index']}.out"
                given.write_text(json.dumps(job))
                command = [sys.executable, str(measured.HERE / "peer_trainer.py"), str(given), str(answer)]
                with (place / f"{job['index']}.log").open("w") as log:
                    child = subprocess.Popen(command, env=measured.environment(), stdout=log, stderr=log)
                running[child.pid] = (job, time.time())
            pid, status, usage = os.wait4(-1, 0)
            job, began = running.pop(pid)
            if status != 0:
                log_text = (place / f"{job['index']}.log").read_text()
                raise SystemExit(f"the Trainer of configuration {job['index']} failed:\n{log_text[-3000:]}")
            answer = json.loads((place / f"{job['index']}.out").read_text())
            spent = {"seconds": time.time() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
            found[job["index"]] = {**answer, **spent}
        return [found[entry["index"]] for entry in self.block(number)]


def summary(record: measured.Record, settings: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What the runs on record say, over the blocks that every contestant did."""
    by = {
        who: {r["block"]: r for r in record.rows if (r["contestant"], r["seed"]) == (who, SEED)}
        for who in settings["contestants"]
    }
    blocks = sorted(set.intersection(*(set(rows) for rows in by.values())))
    again = {r["block"]: r for r in record.rows if r["seed"] != SEED}
    found: dict[str, Any] = {"settings": settings, "blocks": len(blocks), "contestants": {}, "ratios": {}}
    if not blocks:
        return found
    rows = {who: [by[who][block] for block in blocks] for who in by}
    seconds = {who: block_seconds(mine) for who, mine in rows.items()}
    count = sum(len(row["trials"]) for row in rows["autopeft"])
    for who, mine in rows.items():
        found["contestants"][who] = {
            "trials": count,
            "trials_per_hour": 3600 * count / sum(seconds[who]),
            "seconds": sum(row["wall"] for row in mine),
            "start_seconds": statistics.fmean(row["start"] for row in mine),
            "end_seconds": statistics.fmean(row["end"] for row in mine),
            "busy_seconds_per_trial": sum(row["busy"] for row in mine) / count,
        }
        if who != "autopeft":
            theirs, ours = ([row["wall"] for row in rows[name]] for name in (who, "autopeft"))
            found["ratios"][f"autopeft / {who}"] = measured.ratio_of_sums(seconds[who], seconds["autopeft"])
            found["ratios"][f"autopeft / {who}, a start in every block"] = measured.ratio_of_sums(theirs, ours)
    noisy = [block for block in blocks if block in again]
    if noisy:
        scores = {who: [t["score"] for block in noisy for t in by[who][block]["trials"]] for who in by}
        second = [t["score"] for block in noisy for t in again[block]["trials"]]
        peers = [who for who in by if who != "autopeft"]
        found["scores"] = {who: within_noise(scores[who], scores["autopeft"], second) for who in peers}
    found["configurations"] = [
        {
            **{name: entry[name] for name in ("index", "method", "parameters", "rate", "batch")},
            **{who: t for who in by for row in rows[who] for t in row["trials"] if t["index"] == entry["index"]},
        }
        for entry in entries[:count]
    ]
    return found


def table(found: dict[str, Any]) -> str:
    """The result as markdown."""
    head = (
        "contestant",
        "trials an hour",
        "busy CPU s a trial",
        "autopeft is faster by",
        "score: autopeft minus this (95 %)",
    )
    rows = []
    for who, values in found["contestants"].items():
        ratio, scores = found["ratios"].get(f"autopeft / {who}"), found.get("scores", {}).get(who)
        told = (
            ""
            if scores is None or scores["low"] is None
            else (
                f"{scores['difference']:+.4f} ({scores['low']:+.4f} to {scores['high']:+.4f}); "
                f"{scores['share_within']:.0%} within seed noise"
            )
        )
        speed = f"{values['trials_per_hour']:.0f}", f"{values['busy_seconds_per_trial']:.1f}"
        rows.append((who, *speed, "" if ratio is None else measured.shown(ratio), told))
    return measured.markdown(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write the result, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--task", default="sst2", help="folder in --data-root")
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--block", type=int, default=4, help="configurations of a turn")
    parser.add_argument("--rows", type=int, default=1000, help="training rows")
    parser.add_argument("--evaluated", type=int, default=400, help="validation rows")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--minutes", type=float, help="begin no further block after so long")
    parser.add_argument("--out", type=Path, default=measured.RESULTS, help="folder of the result")
    parser.add_argument("--table", action="store_true", help="only print the table")
    given = parser.parse_args(arguments)
    if given.table:
        stored = measured.read_result("trials", given.out)
        print(table(stored) if stored else measured.NOTHING)
        return
    names = ("configurations", "block", "rows", "evaluated", "epochs", "contestants")
    settings = {"task": given.task if given.data_root else "movie reviews", **{n: getattr(given, n) for n in names}}
    record = measured.Record(measured.records(given.out) / "trials.jsonl", settings)
    patience = measured.Patience(given.minutes)
    blocks = -(-given.configurations // given.block)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = measured.data_folder(given.data_root, given.task)
        data = measured.write_rows(source, folder / "data", train=given.rows, validation=given.evaluated)
        entries = listed(given.configurations)
        contest = Contest(folder, data, settings, entries)
        wanted = [(block, who, SEED) for block, who in turns(blocks, given.contestants)]
        # The second seed measures noise, not speed, so it comes last.
        wanted += [(block, "autopeft", SEED + 1) for block in range(blocks)]
        for block, who, seed in wanted:
            if record.find(contestant=who, block=block, seed=seed) is None and not patience.over():
                row = record.add(contest.run(who, block, seed))
                print(f"{who}: block {block + 1} of {blocks}, {row['wall']:.0f} s", file=sys.stderr, flush=True)
    found = summary(record, settings, entries)
    measured.write_result("trials", found, sys.argv[1:] if arguments is None else arguments, given.out)
    drawn.save("trials", found, given.out)
    print(table(found))


def listed(count: int) -> list[dict[str, Any]]:
    """The list of configurations on MiniLM with two labels."""
    from configurations import entries

    from autopeft.compose.base import meta_carrier

    return entries(meta_carrier(measured.model_folder(), kind="sequence_classification", head="stock", labels=2), count)


if __name__ == "__main__":
    main()
