"""A search as its journal tells it, written through the real Journal: for tests of whatever reads one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopeft.journal import Journal, Record
from autopeft.search.division import FINALIST_SEEDS, Division, Speed
from autopeft.space.configuration import Configuration, Part, Training

BLOCKS, WIDTH = 6, 384
PROBED = {"scores": {"cls": 0.78, "mean": 0.812}, "head": "mean", "score": 0.812, "rows": 4000, "outputs": None}


class Clock:
    """A clock that the example moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def modules() -> dict[str, Any]:
    """Query, value and norm of six blocks."""
    sites = []
    for block in range(BLOCKS):
        for role, name in (("query", "attention.self.query"), ("value", "attention.self.value"), ("norm", "norm")):
            norm = role == "norm"
            params = 2 * WIDTH if norm else WIDTH * WIDTH + WIDTH
            site = {"name": f"encoder.layer.{block}.{name}", "block": block, "role": role, "in_features": WIDTH}
            sites.append({**site, "out_features": WIDTH, "bias": True, "params": params})
    return {
        "sites": sites,
        "blocks": BLOCKS,
        "base_params": 22_713_216,
        "hidden_size": WIDTH,
        "architecture": "bert",
    }


def division(rungs: tuple[int, ...] = (1000, 3000, 9000)) -> Division:
    """Half an hour on two workers, divided."""
    return Division(
        rungs=rungs,
        warmup_rows=60,
        cooldown_rows=rungs[-1] * 3 // 10,
        seeds=FINALIST_SEEDS[:3],
        baseline_share=1 / 3,
        max_trials=None,
        rung_evaluated=1000,
        final_evaluated=1000,
        explore_until=985.0,
        confirm_until=1609.0,
        deadline=1790.0,
        speed=Speed(train=0.004, evaluate=0.001),
        workers=2,
    )


def configuration(method: str, size: int, first: int = 0, rate: float = 3e-3, bias: bool = False) -> Configuration:
    """One method on query and value from a block on, with or without trained biases."""
    sites: dict[str, list[Part]] = {}
    for block in range(first, BLOCKS):
        for name in ("query", "value"):
            knobs: dict[str, Any] = {"r": size, "scale": 1.0} if method == "lora" else {}
            parts = [Part.of(method, knobs)]
            sites[f"encoder.layer.{block}.attention.self.{name}"] = parts + ([Part("bias")] if bias else [])
    rates = {method: rate, **({"bias": 1e-3} if bias else {})}
    return Configuration.of(sites, Training(tuple(sorted(rates.items())), head_rate=1e-3, batch_size=32, dropout=0.1))


class ExampleSearch:
    """Writes the journal of one search, step by step.

    Args:
        folder: The run folder.
        name: The task's name; the tests put hostile text here.
        target: What must load the winner.
    """

    def __init__(self, folder: Path, name: str = "sst2", target: str = "any") -> None:
        self.target = target
        self.clock = Clock()
        self.journal = Journal.create(folder, clock=self.clock)
        self.name = name
        self.trials = 0
        self.tell: Callable[[Record], None] = lambda record: None

    def add(self, type: str, /, later: float = 0.0, **data: Any) -> None:
        self.clock.now += later
        self.tell(self.journal.append(type, **data))

    def head(self, rungs: tuple[int, ...] = (1000, 3000, 9000)) -> None:
        spec = {
            "task": {"model": "models/minilm", "data": "data/sst2", "name": self.name},
            "budget": {"max_adapter_params": 0.01, "max_memory": 2**30, "max_time": 1800.0, "target": self.target},
            "space": "hybrid",
            "strategy": "tpe-asha",
            "evidence": "standard",
            "seed": 7,
            "out": "runs/first",
        }
        self.add(
            "search_started",
            schema=1,
            version="0.1.0",
            spec=spec,
            fingerprint={"task": "1" * 64, "space": "2" * 64, "strategy": "3" * 64, "seed": 7, "limits": "4" * 64},
            task={
                "kind": "sequence_classification",
                "metric": "accuracy",
                "label_names": ["negative", "positive"],
                "columns": ["sentence", "label"],
                "max_length": 64,
                "notes": ["train: 3 duplicates of validation rows were left out"],
                "rows": {"train": 20000, "validation": 1000, "test": 872},
                "hashes": {"train": "a" * 64, "validation": "b" * 64, "test": "c" * 64},
            },
            model={
                "id": "models/minilm",
                "revision": None,
                "content_hash": "d" * 64,
                "architecture": "bert",
                "base_params": 22_713_216,
                "blocks": BLOCKS,
            },
            space={
                "name": "hybrid",
                "methods": ["lora", "ia3", "bias"],
                "size": 1e9,
                "left_out": {"prefix": "the model's attention does not go through the interface"},
            },
            environment={"python": "3.11", "torch": "2.13", "cpu": "2 cores"},
            procedure={"seeds": 3, "evidence": "standard", "split": "the data's own"},
        )
        self.add("modules", map=modules())
        self.add("probe", later=4.0, kind="heads", values=PROBED, seconds=4.0)
        self.add("probe", later=3.0, kind="speed", values={"train": 0.004, "evaluate": 0.001}, seconds=3.0)
        self.add("plan", **division(rungs).to_dict(), started=self.clock.now)

    def configure(self, made: Configuration, arm: str, params: int) -> str:
        self.add(
            "configuration",
            hash=made.hash,
            configuration=made.to_dict(),
            values={"share": 0.5},
            adapter_params=params,
            arm=arm,
            predicted_bytes=310 * 2**20,
        )
        return made.hash

    def begin(self, hash: str, arm: str, purpose: str = "explore", seed: int = 0) -> str:
        trial = f"t{self.trials:04}"
        self.trials += 1
        self.add(
            "trial_started",
            later=0.1,
            trial=trial,
            hash=hash,
            arm=arm,
            purpose=purpose,
            seed=seed,
            index=self.trials - 1,
            slot=self.trials % 2,
        )
        return trial

    def rung(self, trial: str, rung: int, rows: int, score: float, seconds: float = 9.0) -> None:
        self.add(
            "rung",
            later=seconds,
            trial=trial,
            rung=rung,
            rows=rows,
            metrics={"accuracy": score, "log_likelihood": -0.4},
            loss=1 - score,
            seconds=seconds,
            train_seconds=seconds * 0.8,
            evaluate_seconds=seconds * 0.2,
            peak_bytes=300 * 2**20,
            outputs=f"trials/{trial}/outputs-{rung}.safetensors",
            adapter=f"trials/{trial}/rung-{rung}",
            sha256="e" * 64,
            head_params=770,
        )

    def end(self, trial: str, status: str, reason: str | None = None, detail: str | None = None, **more: Any) -> None:
        self.add("trial_ended", trial=trial, status=status, reason=reason, detail=detail, **more)

    def explore(self) -> tuple[str, str]:
        """Exploration of both arms: completed, stopped, failed, infeasible, rejected; hashes of the two best."""
        lora = self.configure(configuration("lora", 8), "baseline", 73_728)
        mix = self.configure(configuration("lora", 4, first=3, bias=True), "space", 20_736)
        poor = self.configure(configuration("ia3", 0, rate=1e-2), "space", 4_608)
        wide = self.configure(configuration("lora", 64, rate=8e-3), "space", 589_824)
        first, second, third, fourth = (
            self.begin(hash, arm)
            for hash, arm in ((lora, "baseline"), (mix, "space"), (poor, "space"), (wide, "space"))
        )
        self.rung(first, 0, 1000, 0.80)
        self.rung(second, 0, 1000, 0.81)
        self.rung(third, 0, 1000, 0.60)
        for trial in (first, second):
            self.add("decision", trial=trial, rung=0, action="continue", reason="among the best third at 1000 rows")
        self.add("decision", trial=third, rung=0, action="stop", reason="0.600 is below the best third at 1000 rows")
        self.end(third, "stopped", "below the best third at 1000 rows")
        self.end(fourth, "failed", "nan", "the loss became NaN at row 640", seconds=5.0)
        self.add(
            "rejected",
            hash="f" * 64,
            arm="space",
            index=9,
            values={"share": 1.0},
            constraint="max_memory",
            value=2**31,
            limit=2**30,
        )
        for constraint in ("duplicate", "duplicate", "plain_lora"):
            passed_over = {"constraint": constraint, "value": None, "limit": None}
            self.add("rejected", hash=mix, arm="space", index=10, values={"share": 0.5}, **passed_over)
        for rung, rows, gain in ((1, 3000, 0.04), (2, 9000, 0.07)):
            self.rung(first, rung, rows, 0.80 + gain, 20.0)
            self.rung(second, rung, rows, 0.81 + gain, 20.0)
        for trial in (first, second):
            self.end(trial, "completed")
        return lora, mix

    def confirm(self, lora: str, mix: str) -> None:
        """Finalists, verdict, test and end."""
        self.add("finalists", baseline=lora, challenger=mix, seeds=[101, 102], rows=9000, rung=2)
        for seed in (101, 102):
            for hash, arm, score in ((lora, "baseline", 0.871), (mix, "space", 0.884)):
                trial = self.begin(hash, arm, "confirm", seed)
                self.rung(trial, 2, 9000, score + seed / 1e5, 30.0)
                self.end(trial, "completed")
        self.add(
            "verdict",
            name="better",
            difference=0.013,
            low=0.004,
            high=0.022,
            takes="challenger",
            reason="lora+bias is better than tuned LoRA by 0.013 [0.004, 0.022] on validation",
            seeds=[101, 102],
        )
        self.add("test_opened", winner_sha256="e" * 64, test_hash="c" * 64)
        self.add("test", later=3.0, name="challenger", metrics={"accuracy": 0.8794}, outputs=None, sha256="e" * 64)
        self.add("test", later=3.0, name="baseline", metrics={"accuracy": 0.8701}, outputs=None, sha256="e" * 64)
        interval = {"metric": "accuracy", "mean": 0.885, "low": 0.866, "high": 0.904, "seeds": 2}
        sizes = {"adapter_params": 20_736, "head_params": 770, "peak_bytes": 300 * 2**20}
        ours = {"hash": mix, **sizes, "validation": interval, "test": {"accuracy": 0.8794}}
        theirs = {**ours, "hash": lora, "adapter_params": 73_728, "test": {"accuracy": 0.8701}}
        theirs["validation"] = {**interval, "mean": 0.872, "low": 0.851, "high": 0.893}
        result = {
            "status": "found",
            "verdict": {"name": "better", "difference": 0.013, "low": 0.004, "high": 0.022, "takes": "challenger"},
            "winner": {**ours, "role": "challenger", "adapter_path": "winner"},
            "challenger": ours,
            "baseline": theirs,
            "incumbent": None,
            "reference": {"name": "linear probe", "validation": 0.812, "heads": PROBED["scores"]},
        }
        self.add("finished", status="found", result=result)

    def whole(self) -> ExampleSearch:
        """All of it, and the journal closed."""
        self.head()
        self.confirm(*self.explore())
        self.journal.close()
        return self
