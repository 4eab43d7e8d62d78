"""How soon a search has what others find in some minutes: autopeft beside Optuna and Ray Tune around the Trainer.

    python benchmarks/search.py [--data-root DIR --tasks sst2 subj] [--seeds 1 2 3] [--seconds 240] [--minutes N]

Every peer (`peer_search.py`) searches plain LoRA for so many seconds, its start included. Then the question is when
autopeft's search, as it is typed (`autopeft search --space lora`), first had an exploring trial at or above the peer's
best score, on the same validation rows: rungs that were evaluated on fewer rows do not count, nor does what is trained
after exploring. autopeft gets a time limit under which exploring lasts about as long as the peers searched, and the
head that the peers have. Where it never gets there, the table says so, and the ratio is an upper bound: the peer's
seconds over all that autopeft had.

The ratio is of the seconds after which the peer itself had its best score, not of all that it was given: a peer that
was lucky early counts as fast. More trials also mean more luck on the same validation rows, for everybody alike.

Runs are one JSON line each in ``runs/bench/search.jsonl``; runs on record are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
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

PEERS = ("optuna documented", "optuna tuned", "tune documented", "tune tuned")
WORKERS = 2
GRACE = 120.0
"""Seconds that a peer may take to end after its time is up."""
EXPLORING = 0.55
"""Share of the time limit that explores (`autopeft.search.division`)."""
START = 20.0
"""Seconds before exploring begins, about."""


def best(events: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any] | None:
    """The first event with the best score of those in time, or None."""
    timely = [event for event in events if event["at"] <= seconds]
    return max(timely, key=lambda event: (event["score"], -event["at"]), default=None)


def reached(events: Sequence[dict[str, Any]], score: float) -> float | None:
    """Seconds until a score was there, or None."""
    return min((event["at"] for event in events if event["score"] >= score - 1e-9), default=None)


def ratio(peer: dict[str, Any], events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The peer's seconds over ours.

    Args:
        peer: Its best event.
        events: Ours.

    Returns:
        ``value``, and ``bound``: whether ours never got there, so that the value is at most that.
    """
    ours = reached(events, peer["score"])
    last = max((event["at"] for event in events), default=math.inf)
    return {"value": peer["at"] / (last if ours is None else ours), "bound": ours is None, "seconds": ours}


def typical(ratios: Sequence[float], seed: int = 0) -> measured.Ratio:
    """The geometric mean and an interval from resampling the runs."""
    logs = [math.log(max(value, 1e-9)) for value in ratios]
    found: measured.Ratio = {"value": math.exp(statistics.fmean(logs)), "low": None, "high": None, "runs": len(logs)}
    if len(logs) > 2:
        rng = random.Random(seed)
        drawn = sorted(statistics.fmean(rng.choices(logs, k=len(logs))) for _ in range(measured.RESAMPLES))
        found["low"], found["high"] = (math.exp(drawn[int(p * (len(drawn) - 1))]) for p in (0.025, 0.975))
    return found


def our_events(folder: Path) -> list[dict[str, Any]]:
    """What a search's journal says: every exploring rung that was evaluated on all validation rows."""
    from autopeft.journal import SearchLog, read_journal

    log = SearchLog.fold(read_journal(folder))
    rows = log.header["task"]["rows"]["validation"]
    if not log.plan:
        return []
    last = len(log.plan["rungs"]) - 1
    found = []
    for trial in log.trials.values():
        if trial.purpose != "explore":
            continue
        for rung in trial.rungs:
            evaluated = log.plan["final_evaluated" if rung.rung == last else "rung_evaluated"]
            if evaluated >= rows:
                about = {"trial": trial.id, "rung": rung.rung, "rows": rung.rows}
                found.append({"at": rung.used, "score": rung.metrics[log.rung_metric], **about})
    return sorted(found, key=lambda event: event["at"])


def run_peer(who: str, data: Path, folder: Path, seed: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One peer's search; its evaluations."""
    from autopeft.trial.computing import precision_here

    kind, _, style = who.partition(" ")
    place = folder / f"{who.replace(' ', '-')}-{seed}"
    place.mkdir()
    processes = 2 if who == "optuna tuned" else 1
    threads = (os.cpu_count() or 1) if who == "optuna documented" else 1
    began = time.time()
    children = []
    for worker in range(processes):
        block = {
            "model": measured.model_folder(),
            "data": str(data),
            "cache": str(folder / f"cache-{style}"),
            "out": str(place / "out"),
            "style": style,
            "epochs": given.epochs,
            "bf16": precision_here(False) == "bfloat16",
            "seed": seed,
            "seconds": given.seconds,
            "began": began,
            "workers": WORKERS,
            "worker": worker,
        }
        path = place / f"block-{worker}.json"
        path.write_text(json.dumps(block))
        script = str(measured.HERE / "peer_search.py")
        command = [sys.executable, script, kind, str(path), str(place / "events.jsonl")]
        with (place / f"log-{worker}").open("w") as log:
            own = measured.environment(threads)
            child = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)
            children.append(child)
    for child in children:
        try:
            child.wait(max(1.0, began + given.seconds + GRACE - time.time()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if any(child.returncode not in (0, -signal.SIGKILL) for child in children):
        raise SystemExit(f"{who} failed:\n{(place / 'log-0').read_text()[-3000:]}")
    events = place / "events.jsonl"
    if not events.exists():
        return []
    return [json.loads(line) for line in events.read_text().splitlines()]


def run_ours(data: Path, folder: Path, seed: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Our search, interrupted when the peers' time is up; its exploring evaluations."""
    out = folder / f"ours-{seed}"
    limit = round(given.seconds / EXPLORING + START)
    command = [sys.executable, "-m", "autopeft", "search", "--model", measured.model_folder(), "--data", str(data)]
    command += ["--space", "lora", "--max-params", "1%", "--max-time", f"{limit}s", "--workers", str(WORKERS)]
    command += ["--seed", str(seed), "--out", str(out), "--tracking-uri", "none", "--head", given.head]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    log_file = folder / f"ours-{seed}.log"
    with log_file.open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            child.wait(given.seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            child.wait(GRACE)
    if not (out / "journal.jsonl").exists():
        raise SystemExit(f"autopeft's search failed:\n{log_file.read_text()[-3000:]}")
    return our_events(out)


def summary(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """What the runs on record say."""
    found: dict[str, Any] = {"settings": settings, "runs": [], "ratios": {}, "never": {}}
    ours = {(row["task"], row["seed"]): row["events"] for row in rows if row["contestant"] == "autopeft"}
    for row in rows:
        key = (row["task"], row["seed"])
        peer = None if row["contestant"] == "autopeft" else best(row["events"], settings["seconds"])
        if key not in ours or row["contestant"] == "autopeft":
            continue
        about = {"task": row["task"], "seed": row["seed"], "peer": row["contestant"], "trials": len(row["events"])}
        if peer is None:
            found["runs"].append({**about, "score": None})
            continue
        top = best(ours[key], settings["seconds"])
        told = {"score": peer["score"], "at": peer["at"], "ours_best": None if top is None else top["score"]}
        found["runs"].append({**about, **told, **ratio(peer, ours[key])})
    for who in PEERS:
        mine = [run for run in found["runs"] if run["peer"] == who and run["score"] is not None]
        if mine:
            found["ratios"][f"autopeft / {who}"] = typical([run["value"] for run in mine])
            found["never"][who] = sum(run["bound"] for run in mine)
    found["curves"] = [
        {"task": row["task"], "seed": row["seed"], "contestant": row["contestant"], "points": rising(row["events"])}
        for row in rows
    ]
    return found


def rising(events: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Seconds and the best score so far, where it rose."""
    points: list[tuple[float, float]] = []
    for event in sorted(events, key=lambda one: one["at"]):
        if not points or event["score"] > points[-1][1]:
            points.append((round(event["at"], 2), event["score"]))
    return points


def table(found: dict[str, Any]) -> str:
    """The result as markdown: by peer, then run by run."""
    rows = [
        (
            name.partition(" / ")[2],
            measured.shown(value),
            str(value["runs"]),
            str(found["never"][name.partition(" / ")[2]]),
        )
        for name, value in found["ratios"].items()
    ]
    first = measured.markdown(("peer", "autopeft is there sooner by", "searches", "of these, never there"), rows)
    runs = []
    for run in found["runs"]:
        if run["score"] is None:
            runs.append((run["task"], str(run["seed"]), run["peer"], "nothing in time", "", "", ""))
            continue
        ours = "never" if run["seconds"] is None else f"{run['seconds']:.0f} s"
        score = "none" if run["ours_best"] is None else f"{run['ours_best']:.4f}"
        cells = (run["task"], str(run["seed"]), run["peer"], f"{run['score']:.4f}", f"{run['at']:.0f} s", ours, score)
        runs.append(cells)
    head = ("task", "seed", "peer", "its best", "there after", "autopeft there after", "autopeft's best")
    return f"{first}\n\n{measured.markdown(head, runs)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write the result, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "subj"], help="folders in --data-root")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=240.0, help="that every contestant searches")
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--evaluated", type=int, default=500, help="validation rows")
    parser.add_argument("--epochs", type=int, default=1, help="of a peer's trial")
    parser.add_argument("--head", default="stock", help="of autopeft's search; the peers have transformers' own")
    parser.add_argument("--only", nargs="+", choices=(*PEERS, "autopeft"), default=[*PEERS, "autopeft"])
    parser.add_argument("--minutes", type=float, help="begin no further search after so long")
    parser.add_argument("--out", type=Path, default=measured.RESULTS, help="folder of the result")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    given = parser.parse_args(arguments)
    if given.table:
        stored = measured.read_result("search", given.out)
        print(table(stored) if stored else measured.NOTHING)
        return
    settings = {name: getattr(given, name) for name in ("seconds", "rows", "evaluated", "epochs", "head")}
    record = measured.Record(measured.records(given.out) / "search.jsonl", settings)
    patience = measured.Patience(given.minutes)
    tasks = given.tasks if given.data_root else ["movie reviews"]
    for task in tasks:
        source = measured.data_folder(given.data_root, task)
        for number, seed in enumerate(given.seeds):
            order = [*given.only[number % len(given.only) :], *given.only[: number % len(given.only)]]
            for who in order:
                if record.find(task=task, seed=seed, contestant=who) or patience.over():
                    continue
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    data = measured.write_rows(
                        source, folder / "data", train=given.rows, validation=given.evaluated, seed=seed
                    )
                    run = run_ours(data, folder, seed, given) if who == "autopeft" else None
                    events = run_peer(who, data, folder, seed, given) if run is None else run
                    record.add({"task": task, "seed": seed, "contestant": who, "events": events})
                print(f"{task}, seed {seed}, {who}: {len(events)} evaluations", file=sys.stderr, flush=True)
    found = summary(record.rows, settings)
    measured.write_result("search", found, sys.argv[1:] if arguments is None else arguments, given.out)
    drawn.save("search", found, given.out)
    print(table(found))


if __name__ == "__main__":
    main()
