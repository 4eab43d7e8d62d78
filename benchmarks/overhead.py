"""What the controller costs: per trial and in memory as a search grows, at resume, and in real searches.

    python benchmarks/overhead.py [--trials 100000] [--workers 1000] [--profile] [RUN ...]

* ``scale``: one search of so many trials in a simulated world, whose clock is a virtual one, so that all time is the
  controller's own. At 1e2, 1e3, 1e4 and 1e5 trials: milliseconds per trial of each kind of work over the trials since
  the mark before, milliseconds of a question to the sampler, journal bytes, and the memory of the process.
* ``resume``: seconds from that journal on the disk to a controller that gives out its next job, and to a report's fold.
* ``RUN``: run folders of real searches: what share of their time went into each kind (the journal's ``overhead``).

The journal is written with fsync to a folder in memory where there is one (``--folder`` names another). Results go to
``results/overhead.json``, part by part, so that parts may be run apart.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.executors.simulated import VirtualClock
from autopeft.journal import Journal, SearchLog, read_journal
from autopeft.search.controller import Controller
from autopeft.search.division import Speed
from autopeft.search.ledger import Ledger
from autopeft.search.resume import take_up
from autopeft.search.state import Field, Rules
from autopeft.space.modules import ModuleMap
from autopeft.spec import Budget
from autopeft.strategy.jobs import Job, Outcome, Train
from autopeft.testing.searches import TEST_ROWS, TRAIN_ROWS, field_of, simulated_search
from autopeft.testing.worlds import SyntheticWorld, by_method

RESULTS = Path(__file__).parent / "results" / "overhead.json"
MARKS = (100, 1000, 10_000, 100_000)
QUALITIES = {"lora": 0.85, "dora": 0.86, "parallel": 0.87, "ia3": 0.8}


class Marks:
    """Takes down where the controller's costs stand whenever the number of trials passes a mark."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._ledger: Ledger | None = None
        self._before: tuple[int, Mapping[str, float], Mapping[str, int]] = (0, {}, {})

    def __call__(self, ledger: Ledger) -> None:
        """See `simulated_search`: `watch`."""
        self._ledger = ledger

    def check(self) -> None:
        """Called with every job."""
        trials = 0 if self._ledger is None else self._ledger.log.index.started["explore"]
        if self._ledger is not None and len(self.rows) < len(MARKS) and trials >= MARKS[len(self.rows)]:
            self.take(self._ledger, trials)

    def take(self, ledger: Ledger, trials: int) -> None:
        """One row of the table."""
        seconds, calls = dict(ledger.meter.seconds()), dict(ledger.meter.calls)
        began, before, counted = self._before
        spent = {kind: seconds[kind] - before.get(kind, 0.0) for kind in seconds}
        asks = calls["ask"] - counted.get("ask", 0)
        new = trials - began
        self.rows.append(
            {
                "trials": trials,
                "ms_per_trial": {kind: round(1000 * value / new, 4) for kind, value in spent.items()},
                "ms_per_trial_all": round(1000 * sum(spent.values()) / new, 4),
                "ms_per_ask": round(1000 * spent["ask"] / max(1, asks), 4),
                "records": len(ledger.journal.records),
                "journal_bytes": (ledger.journal.folder / "journal.jsonl").stat().st_size,
                "resident_bytes": resident(),
                "virtual_seconds": round(ledger.used, 1),
            }
        )
        self._before = (trials, seconds, calls)
        print(row_text(self.rows[-1]), flush=True)


@dataclass
class LightWorld:
    """Learning curves without the files of every rung: only a full training leaves per-example outputs."""

    marks: Marks
    rows: int = 200
    inner: SyntheticWorld = field(default_factory=lambda: SyntheticWorld(by_method(QUALITIES), rows=200))

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        """See `autopeft.executors.simulated.World`."""
        # A thousand trials are handed out before the first event.
        self.marks.check()
        if not isinstance(job, Train) or job.final:
            made = self.inner.outcome(job, folder)
            self.inner.jobs.clear()
            return made
        made_of = int(job.configuration.hash[:12], 16)
        chance = np.random.default_rng([job.seed, made_of, job.rung])
        reached = 0.5 + (self.inner.quality(job.configuration) - 0.5) * (1 - np.exp(-job.rows_to / 1500))
        rows = job.rows_to - job.rows_from
        seconds = rows * self.inner.seconds_per_row * (0.5 + made_of % 1000 / 1000)
        return Outcome(
            job,
            metrics={"accuracy": float(reached + 0.004 * chance.standard_normal())},
            loss=float(1 - reached),
            seconds=seconds + 0.5,
            train_seconds=seconds,
            evaluate_seconds=0.5,
            rows=rows,
            peak_bytes=10**8,
            adapter=f"{job.folder}/rung-{job.rung}/adapter",
            sha256=job.configuration.hash,
            values={"adapter_params": 1, "head_params": 770},
        )


def resident() -> int:
    """Bytes of this process in memory now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row_text(row: Mapping[str, Any]) -> str:
    """A row of the table, for reading."""
    kinds = " ".join(f"{kind} {value:.3f}" for kind, value in row["ms_per_trial"].items() if value)
    return (
        f"{row['trials']:>7,} trials: {row['ms_per_trial_all']:.2f} ms a trial ({kinds}); {row['ms_per_ask']:.2f} ms a "
        f"question; {row['records']:,} records in {row['journal_bytes'] / 2**20:.0f} MiB; "
        f"{row['resident_bytes'] / 2**20:.0f} MiB in memory"
    )


def bert_map() -> ModuleMap:
    """The module map of a model like MiniLM-L6."""
    import torch
    from transformers import BertConfig, BertModel

    from autopeft.inspect import module_map

    with torch.device("meta"):
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, vocab_size=30522
        )
        return module_map(BertModel(config))


def scale(folder: Path, modules: ModuleMap, trials: int, workers: int) -> list[dict[str, Any]]:
    """A search of so many trials; its journal stays in the folder."""
    marks = Marks()
    began = time.perf_counter()
    simulated_search(
        folder,
        LightWorld(marks),
        Budget(max_trials=trials),
        modules=modules,
        slots=workers,
        watch=marks,
        space="hybrid",
    )
    print(f"{time.perf_counter() - began:.1f} s in all")
    return marks.rows


def resume(folder: Path, modules: ModuleMap, trials: int, workers: int) -> dict[str, Any]:
    """Seconds to take up a search whose exploration is almost over, and to read it as a report does."""
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    kept = next((n for n, line in enumerate(lines) if b'"type":"finalists"' in line), len(lines))
    # A hundred records before the end of the exploration: trials are running and others are paused.
    (folder / "journal.jsonl").write_bytes(b"".join(lines[: max(1, kept - 1000)]))
    del lines
    budget = Budget(max_trials=trials)
    began = time.perf_counter()
    fold = SearchLog.fold(read_journal(folder))
    folded = time.perf_counter() - began
    started = len(fold.trials)
    del fold
    began = time.perf_counter()
    with Journal.resume(folder, clock=VirtualClock()) as journal:
        ledger = Ledger(journal)
        take_up(ledger, budget, workers)

        def bound(head: str, speed: Speed) -> Field:
            return field_of(modules, budget, speed)

        rules = Rules(budget, "standard", False, ("mean",), TRAIN_ROWS, 200, TEST_ROWS, "hash", incumbent=None, seed=0)
        controller = Controller(ledger, rules, bound, slots=workers)
        first = controller.next(0)
        taken = time.perf_counter() - began
    found = {"trials": started, "read_and_fold_seconds": round(folded, 2), "resume_seconds": round(taken, 2)}
    print(f"resume of {started:,} trials: {taken:.1f} s to the next job ({type(first).__name__}); fold {folded:.1f} s")
    return found


def of_run(folder: Path) -> dict[str, Any]:
    """What share of a real search's time its own work took.

    Raises:
        SystemExit: Its journal says nothing about it.
    """
    log = SearchLog.fold(read_journal(folder))
    if not log.overhead:
        raise SystemExit(f"{folder}: the journal holds no overhead; the search is older, or has not ended")
    shares = {kind: round(seconds / log.used, 6) for kind, seconds in log.overhead.items()}
    found = {"run": folder.name, "wall_seconds": log.used, "trials": len(log.trials), "shares": shares}
    total = sum(shares.values())
    kinds = ", ".join(f"{kind} {share:.2%}" for kind, share in shares.items())
    print(f"{folder.name}: {total:.2%} of {log.used:.0f} s ({kinds})")
    return {**found, "share": round(total, 6)}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the journal is written")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and store nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.runs:
        results["runs"] = [of_run(folder) for folder in arguments.runs]
    else:
        memory = Path("/dev/shm")
        place = arguments.folder or (memory if memory.is_dir() else None)
        folder = Path(tempfile.mkdtemp(dir=place))
        try:
            modules, profiler = bert_map(), cProfile.Profile()
            if arguments.profile:
                profiler.enable()
            rows = scale(folder / "run", modules, arguments.trials, arguments.workers)
            if arguments.profile:
                profiler.disable()
                pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)
                pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
                return
            results["scale"] = {"workers": arguments.workers, "marks": rows}
            results["resume"] = resume(folder / "run", modules, arguments.trials, arguments.workers)
        finally:
            shutil.rmtree(folder)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
