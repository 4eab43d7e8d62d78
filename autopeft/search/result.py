"""`result.json`: what a search found, as one documented value (docs/result.md)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.compose.store import WRITES, describe
from autopeft.evidence.advice import advise
from autopeft.journal import SearchLog, TrialLog, pareto
from autopeft.journal.log import ConfigurationLog
from autopeft.search.division import Division
from autopeft.search.finals import Finals, Role
from autopeft.search.front import confirmed
from autopeft.search.ledger import Ledger
from autopeft.search.rows import FinalRows
from autopeft.space.beside import BIASES_STAY
from autopeft.space.execution import Execution
from autopeft.spec import Budget
from autopeft.strategy.jobs import Arm

SCHEMA = 1
EXIT_CODES = {"found": 0, "infeasible": 3, "cancelled": 4, "failed": 1}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        folder: The run folder.
        values: The content of ``result.json``.
    """

    folder: Path
    values: Mapping[str, Any]

    @property
    def status(self) -> str:
        """``found``, ``infeasible``, ``cancelled`` or ``failed``."""
        return str(self.values["status"])

    @property
    def verdict(self) -> Mapping[str, Any] | None:
        """``name``, ``difference``, ``low``, ``high`` and ``reason``; None before one."""
        found: Mapping[str, Any] | None = self.values["verdict"]
        return found

    @property
    def winner(self) -> Mapping[str, Any] | None:
        """The winner's block, or None."""
        found: Mapping[str, Any] | None = self.values["winner"]
        return found

    @property
    def adapter_folder(self) -> Path | None:
        """Where the winner's trained adapter lies, or None."""
        return None if self.winner is None else self.folder / str(self.winner["adapter_path"])

    @property
    def exit_code(self) -> int:
        """What a command line exits with."""
        return EXIT_CODES[self.status]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return dict(self.values)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> SearchResult:
        """The stored result of a run folder."""
        path = Path(folder)
        return cls(path, json.loads((path / "result.json").read_text(encoding="utf-8")))


def build_result(
    ledger: Ledger,
    *,
    status: str,
    budget: Budget,
    environment: Mapping[str, Any],
    message: str | None = None,
    smallest: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of ``result.json``, from the journal.

    Args:
        ledger: Journal and fold.
        status: How the search ended.
        budget: The limits.
        environment: Versions and machine.
        message: One sentence for a search that found nothing.
        smallest: For an infeasible search, the smallest limits that would do.
    """
    log = ledger.log
    arms: tuple[Arm, ...] = ("baseline", "space")
    blocks: dict[Role, Any] = {"baseline": None, "challenger": None}
    takes, front = None, list[dict[str, Any]]()
    if log.plan:
        finals = Finals(ledger, Division.from_dict(log.plan), arms)
        blocks = {role: _block(role, finals, ledger) for role in blocks}
        takes = _taken(log, finals)
        front = _front(blocks, finals, ledger)
    winner = None
    if takes is not None and blocks[takes] is not None and status in ("found", "cancelled"):
        winner = {**blocks[takes], "adapter_path": "winner", "role": takes}
    counts = log.counts
    rejected = sum(r["constraint"] == "max_memory" for r in log.rejected)
    probes = log.probes
    rows = FinalRows(ledger)
    return {
        "schema": SCHEMA,
        "status": status,
        "message": message,
        "smallest_budget": dict(smallest) if smallest else None,
        "verdict": _verdict(log),
        "winner": winner,
        "baseline": blocks["baseline"],
        "challenger": blocks["challenger"],
        "incumbent": _incumbent(log),
        "reference": _reference(log),
        "flips": rows.flips(),
        "slices": rows.slices(),
        "eval_sets": rows.eval_sets(),
        # Filled where they are written.
        "predictions": {},
        "front": front,
        "simplified": None if log.simplified is None else dict(log.simplified),
        "pareto": pareto(log),
        "trials": {
            "completed": counts["completed"],
            "stopped": counts["stopped"] + counts["paused"],
            "infeasible": counts["infeasible"] + rejected,
            "failed": counts["failed"],
        },
        "budget": _budget(ledger, budget, winner),
        "wall_seconds": ledger.used,
        "overhead": {"seconds": dict(log.overhead), "share": sum(log.overhead.values()) / max(1e-9, ledger.used)},
        "test_reads": len(log.test_opened),
        "test_looks": _looks(log),
        "signatures": [made.to_dict() for made in advise(log)],
        "task": log.header.get("task"),
        "model": log.header.get("model"),
        "head": probes.get("heads", {}).get("head"),
        "environment": dict(environment),
        "fingerprint": log.header.get("fingerprint"),
        "notes": [
            *log.header.get("task", {}).get("notes", []),
            *log.notes,
            *([BIASES_STAY] if winner is not None and winner["writes_base_biases"] else []),
        ],
    }


def _budget(ledger: Ledger, budget: Budget, winner: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was allowed, what was used, and how it was divided."""
    log = ledger.log
    trials = log.trials.values()
    busy = {arm: sum(trial.seconds for trial in trials if trial.arm == arm) for arm in ("baseline", "space")}
    return {
        "limits": {name: getattr(budget, name) for name in budget.__dataclass_fields__},
        "used": {
            "seconds": ledger.used,
            "compute_seconds": log.busy,
            "trials": sum(trial.purpose == "explore" for trial in trials),
            "adapter_params": None if winner is None else winner["adapter_params"],
            "peak_bytes": None if winner is None else winner["peak_bytes"],
        },
        "device_seconds": busy,
        "division": dict(log.plan),
    }


def _verdict(log: SearchLog) -> dict[str, Any] | None:
    if log.verdict is None:
        return None
    names = ("name", "difference", "low", "high", "takes", "reason", "seeds")
    later = {name: log.verdict.get(name) for name in ("margin", "cost", "costs")}
    return {**{name: log.verdict[name] for name in names}, **later}


def _taken(log: SearchLog, finals: Finals) -> Role | None:
    """The role that is returned: the verdict's, or before one the better of what was seen."""
    if log.verdict is not None:
        return "challenger" if log.verdict["takes"] == "challenger" else "baseline"
    metric = log.rung_metric
    seen = finals.candidates()
    if not seen:
        return None
    return max(seen, key=lambda role: (seen[role].rungs[-1].rung, seen[role].rungs[-1].metrics[metric]))


def _block(role: Role, finals: Finals, ledger: Ledger) -> dict[str, Any] | None:
    log = ledger.log
    runs = finals.evidence(role) if log.finalists else [t for r, t in finals.candidates().items() if r == role]
    if not runs:
        return None
    metric = log.metric if finals.runs(role) else log.rung_metric
    best = finals.best_runs().get(role, runs[0])
    optimism = finals.optimism(role, metric)
    block = _of_runs(runs, best, metric, finals, ledger)
    tested = log.tests.get(role)
    return {
        **block,
        "validation": {
            **block["validation"],
            "optimism": optimism,
            "corrected": None if optimism is None else block["validation"]["mean"] - optimism,
        },
        "test": dict(tested["metrics"]) if tested and tested["metrics"] else None,
        "predicted_bytes": _predicted(role, log.configurations[best.hash], log),
    }


def _front(blocks: Mapping[Role, Any], finals: Finals, ledger: Ledger) -> list[dict[str, Any]]:
    """Blocks of what is worth its size, memory or time, and where each is returned."""
    log = ledger.log
    if log.header.get("procedure", {}).get("objective") != "pareto":
        return []
    made = [{**block, "role": role} for role, block in blocks.items() if block is not None and finals.runs(role)]
    for hash in finals.front():
        runs = finals.front_runs(hash)
        if runs:
            best = max(runs, key=lambda run: run.rungs[-1].metrics[log.metric])
            made.append({**_of_runs(runs, best, log.metric, finals, ledger), "role": None})
    return [{**block, "folder": f"front/{number}"} for number, block in enumerate(confirmed(made), start=1)]


def _of_runs(runs: list[TrialLog], best: TrialLog, metric: str, finals: Finals, ledger: Ledger) -> dict[str, Any]:
    """A finalist block without what only finalists have."""
    log = ledger.log
    known = log.configurations[best.hash]
    adapter = best.rungs[-1].adapter
    about = describe(Path(ledger.journal.folder) / adapter) if adapter else {}
    interval = finals.interval_of(runs, metric)
    return {
        "configuration": dict(known.configuration),
        "hash": best.hash,
        "methods": sorted({str(p["method"]) for parts in known.configuration["sites"].values() for p in parts}),
        "adapter_params": known.adapter_params,
        "head_params": best.rungs[-1].head_params,
        "base_params": log.header["model"]["base_params"],
        "validation": {
            "metric": metric,
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": interval.seeds,
        },
        "adapter_path": adapter,
        "sha256": best.rungs[-1].sha256,
        "lowered_to": about.get("lowered_to"),
        "writes_base_biases": bool(about.get(WRITES)),
        "peak_bytes": max(
            (t.peak_bytes for t in log.trials.values() if t.hash == best.hash and t.peak_bytes), default=None
        ),
        "predicted_bytes": known.predicted_bytes if known.predicted_exactly else None,
        "execution": Execution.from_dict(known.execution).to_dict(),
        "latency": log.latency(best.hash),
        "trials": [run.id for run in runs],
    }


def _predicted(role: Role, known: ConfigurationLog, log: SearchLog) -> int | None:
    """What was predicted exactly, for the finalists or when it was proposed; no bound."""
    predicted: int | None = ((log.finalists or {}).get("predicted_bytes") or {}).get(role)
    return predicted or (known.predicted_bytes if known.predicted_exactly else None)


def _incumbent(log: SearchLog) -> dict[str, Any] | None:
    probe = log.probes.get("incumbent")
    if probe is None or not probe["metrics"]:
        return None
    tested = log.tests.get("incumbent")
    return {
        "validation": dict(probe["metrics"]),
        "test": dict(tested["metrics"]) if tested else None,
        "adapter_params": probe.get("adapter_params"),
        "head_params": probe.get("head_params"),
    }


def _looks(log: SearchLog) -> dict[str, Any] | None:
    if log.looks is None:
        return None
    return {name: log.looks[name] for name in ("this_search", "all_searches", "searches")}


def _reference(log: SearchLog) -> dict[str, Any] | None:
    probe = log.probes.get("heads")
    if probe is None:
        return None
    name = "frozen base" if probe["head"] == "lm" else "linear probe"
    return {"name": name, "validation": probe["score"], "heads": dict(probe["scores"])}


def place_winner(folder: Path, values: Mapping[str, Any]) -> None:
    """Copy the winner's adapter to ``winner/`` and the front's beside it, each complete or not at all."""
    winner = values["winner"]
    if winner is None:
        return
    _place(folder, folder / values[winner["role"]]["adapter_path"], "winner")
    for block in values["front"]:
        _place(folder, folder / block["adapter_path"], block["folder"])


def _place(folder: Path, source: Path, name: str) -> None:
    working = folder / f".{name.replace('/', '-')}.partial"
    shutil.rmtree(working, ignore_errors=True)
    shutil.copytree(source, working)
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.replace(working, folder / name)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
