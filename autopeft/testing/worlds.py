"""A synthetic world for the simulated executor: learning curves with noise, failures on request, outputs on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.evidence.metrics import score
from autopeft.space.configuration import Configuration
from autopeft.strategy.jobs import Evaluate, Job, Outcome, Pack, Probe, Train
from autopeft.trial.checkpoint import write_arrays
from autopeft.trial.pack_speed import pack_gain


def by_method(qualities: Mapping[str, float]) -> Callable[[Configuration], float]:
    """The final accuracy of a configuration: the best of its methods', less at a bad learning rate."""

    def quality(configuration: Configuration) -> float:
        best = max(qualities.get(method, 0.7) for method in configuration.methods)
        spread = [abs(np.log(rate / 3e-3)) for _, rate in configuration.training.rates]
        return float(best - 0.02 * np.mean(spread))

    return quality


@dataclass
class SyntheticWorld:
    """Two-class accuracy that rises with rows towards a configuration's quality. Final.

    Attributes:
        quality: Configuration -> accuracy after endless training.
        rows: Validation rows.
        seed_noise: Standard deviation of accuracy between seeds.
        seconds_per_row: Training time.
        fate: `(job, number of the attempt from 1)` -> ``"ok"``, ``"dies"``, ``"nan"``, ``"slow"`` or ``"oom"``.
        kills: Whether a job of any kind kills its worker.
        answers: `(job, expected accuracy)` -> per-example outputs, e.g. `autopeft.testing.latent.LatentAnswers`, which
            have a seed noise of their own; None for answers that differ by seed alone.
        early_probe: What the linear probe scores on few rows, where these tell the head; None where all are looked at.
        latency: Configuration -> time of its forward pass over the bare base's.
        peak: Configuration -> live bytes of its training.
        pack_speeds: Trials trained together -> seconds of a row's training; nothing is gained where it is empty.
        jobs: All jobs done, in order.
    """

    quality: Callable[[Configuration], float]
    rows: int = 600
    seed_noise: float = 0.004
    seconds_per_row: float = 0.005
    fate: Callable[[Train, int], str] = lambda job, attempt: "ok"
    kills: Callable[[Job], bool] = lambda job: False
    answers: Callable[[Train, float], dict[str, np.ndarray]] | None = None
    early_probe: float | None = None
    latency: Callable[[Configuration], float] = lambda configuration: 1.25
    peak: Callable[[Configuration], int] = lambda configuration: 10**8
    pack_speeds: Mapping[int, float] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    _attempts: dict[tuple[str, int], int] = field(default_factory=dict)

    def outcome(self, job: Job, folder: str) -> Outcome | None:
        """See `autopeft.executors.simulated.World`."""
        self.jobs.append(job)
        if self.kills(job):
            return None
        match job:
            case Probe(kind="heads"):
                early = self.early_probe is not None and not job.whole
                found = self.early_probe if early else 0.7
                head = "cls" if job.whole else "mean"
                values: dict[str, Any] = {"head": head, "score": found, "scores": {"mean": found}, "whole": not early}
                return Outcome(job, metrics={"accuracy": 0.7}, seconds=5.0, values=values)
            case Probe():
                speed: dict[str, Any] = {
                    "train_seconds_per_row": self.seconds_per_row,
                    "evaluate_seconds_per_row": 0.001,
                }
                speed["packs"] = dict(self.pack_speeds)
                return Outcome(job, seconds=2.0, values=speed)
            case Evaluate():
                arrays = self._outputs(0.8, 1)
                write_arrays(Path(folder) / job.outputs, arrays)
                return Outcome(job, metrics={"accuracy": score("accuracy", arrays)}, outputs=job.outputs, seconds=1.0)
            case Train():
                return self._train(job, folder)
            case Pack():
                return self._pack(job, folder)

    def _pack(self, pack: Pack, folder: str) -> Outcome | None:
        members = [self._train(job, folder) for job in pack.members]
        gain, whole = pack_gain(self.pack_speeds, len(members)), []
        for member in members:
            if member is None:
                return None
            train = member.train_seconds / gain
            seconds = member.seconds - member.train_seconds + train
            whole.append(replace(member, seconds=seconds, train_seconds=train))
        return Outcome(pack, members=tuple(whole), seconds=sum(member.seconds for member in whole))

    def _train(self, job: Train, folder: str) -> Outcome | None:
        key = (job.trial, job.rung)
        self._attempts[key] = self._attempts.get(key, 0) + 1
        match self.fate(job, self._attempts[key]):
            case "dies":
                return None
            case "nan":
                return Outcome(job, "failed", "nan", "the loss is not finite", seconds=1.0)
            case "slow":
                ratio = {"measured": 1.2 + 0.01 * (int(job.configuration.hash[:2], 16) % 7)}
                return Outcome(job, "infeasible", "max_latency_overhead", "too slow", seconds=1.0, values=ratio)
            case "oom":
                return Outcome(job, "infeasible", "oom", "out of memory", seconds=1.0)
        rows = job.rows_to - job.rows_from
        chance = np.random.default_rng([job.seed, int(job.configuration.hash[:12], 16)])
        reached = 0.5 + (self.quality(job.configuration) - 0.5) * (1 - np.exp(-job.rows_to / 1500))
        if self.answers is not None:
            arrays = self.answers(job, float(reached))
        else:
            arrays = self._outputs(float(np.clip(reached + self.seed_noise * chance.standard_normal(), 0, 1)), job.seed)
        path = f"{job.folder}/rung-{job.rung}/outputs.safetensors"
        write_arrays(Path(folder) / path, arrays)
        seconds = rows * self.seconds_per_row
        return Outcome(
            job,
            metrics={"accuracy": score("accuracy", arrays)},
            loss=1 - reached,
            seconds=seconds + 0.5,
            train_seconds=seconds,
            evaluate_seconds=0.5,
            rows=rows,
            peak_bytes=self.peak(job.configuration),
            outputs=path,
            adapter=f"{job.folder}/rung-{job.rung}/adapter",
            sha256=sha256(f"{job.configuration.hash} {job.seed} {job.rows_to}".encode()).hexdigest(),
            values={
                "adapter_params": 1,
                "head_params": 770,
                "latency": {"1": self.latency(job.configuration), "16": 1.125} if job.latency else None,
            },
        )

    def _outputs(self, accuracy: float, seed: int) -> dict[str, np.ndarray]:
        labels = np.arange(self.rows) % 2
        # Hard rows are hard for everybody, as in life: errors of two models overlap.
        hardness = np.random.default_rng(11).random(self.rows)
        luck = np.random.default_rng(seed).random(self.rows)
        trouble = 0.7 * hardness + 0.3 * luck
        wrong = trouble >= np.quantile(trouble, accuracy)
        prediction = np.where(wrong, 1 - labels, labels)
        likelihood = np.where(wrong, -1.5, -0.2).astype(np.float32)
        return {"label": labels, "prediction": prediction, "log_likelihood": likelihood}
