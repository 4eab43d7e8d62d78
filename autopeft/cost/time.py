"""Seconds that a configuration takes, learned from what has run.

A row's cost is a sum: the forward pass of the whole model, the backward pass down to the lowest adapted block, each
method's own layers in proportion to the width of the sites that they sit on, and for all of these but the first a cost
per optimizer step that the rows of a batch share (DoRA's is large: it normalises whole weights once per step). One
probe sets the scale; least squares with a prior on the ratios corrects the terms as trials report, and what a mix of
methods deviates from the sum is learned as a ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autopeft.space.configuration import Configuration
from autopeft.space.execution import PLAIN, Execution
from autopeft.space.frozen import frozen_blocks
from autopeft.space.modules import ModuleMap

__all__ = ["StepCosts"]

Pass = Literal["train", "evaluate"]
Vector = npt.NDArray[np.float64]

PRIOR: dict[Pass, dict[str, float]] = {
    # Measured on MiniLM on a CPU, between its float32 and its bfloat16 ratios, in units of a LoRA on all linear layers:
    # the terms of that LoRA sum to 1. A "step" term is paid once per optimizer step, whatever the rows in it.
    "train": {
        "forward": 0.33,
        "backward": 0.32,
        # Of the blocks that are run a second time, with what sits in them.
        "recompute": 0.40,
        "step": 0.04,
        "step backward": 0.03,
        "lora": 0.20,
        "step lora": 0.08,
        "dora": 0.30,
        "step dora": 0.40,
        "ia3": 0.22,
        "step ia3": 0.02,
        "serial": 0.18,
        "step serial": 0.08,
        "parallel": 0.10,
        "step parallel": 0.05,
        "prefix": 0.20,
        "step prefix": 0.05,
        "bias": 0.10,
        "step bias": 0.02,
        "layernorm": 0.15,
        "step layernorm": 0.02,
        "dropout": 0.10,
        "step dropout": 0.02,
    },
    "evaluate": {
        "forward": 0.88,
        "lora": 0.12,
        "dora": 0.50,
        "ia3": 0.12,
        "serial": 0.12,
        "parallel": 0.08,
        "prefix": 0.15,
        "bias": 0.08,
        "layernorm": 0.10,
    },
}
OTHER_METHOD = 0.25
OTHER_STEP = 0.08

STEP_ROWS = 16
"""Rows of a batch at which the fixed cost of a step has its prior weight."""

PRIOR_WEIGHT = 0.2
"""Weight of the prior on each term's ratio against one observation's relative error: timings scatter by about 10 %, the
ratios of the terms differ between machines by about half."""

WHOLE_ROWS = ("forward", "recompute")
"""Terms without a cost of their own per step."""

KEPT = 500
"""Observations that count: the latest. A machine changes while it works, and a fit over all would cost ever more."""

MIX_WEIGHT = 2.0
"""Observations of a mix of methods at which its own ratio has half its effect."""


class StepCosts:
    """Seconds of training and evaluating configurations of one model on one data set and machine.

    `observe` is called with the speed probe and after every job; `predict` is called while planning and proposing. Both
    are deterministic: equal observations in equal order give equal predictions.

    Args:
        modules: The module map of the model.
    """

    def __init__(self, modules: ModuleMap) -> None:
        self._modules = modules
        self._looks_up = False
        self._sites = {site.name: site for site in modules.sites}
        self._width = sum(s.in_features + s.out_features for s in modules.sites if s.role != "norm") or 1
        self._learned: dict[Pass, _Learned] = {"train": _Learned("train"), "evaluate": _Learned("evaluate")}

    def observe(
        self,
        configuration: Configuration,
        rows: int,
        seconds: float,
        phase: Pass = "train",
        execution: Execution = PLAIN,
        looked_up: int = 0,
    ) -> None:
        """Learns from what ran; observations without rows or time are ignored.

        Args:
            configuration: What ran.
            rows: Rows that were trained or evaluated.
            seconds: Seconds in it.
            phase: ``train`` or ``evaluate``.
            execution: How its batches were computed.
            looked_up: Lowest blocks whose hidden states were looked up instead of computed.
        """
        if frozen_blocks(configuration, self._modules) and phase == "train":
            self._looks_up = looked_up > 0
        if rows > 0 and seconds > 0 and math.isfinite(seconds):
            learned = self._learned[phase]
            learned.add(self._work(configuration, phase, execution, looked_up), seconds / rows, configuration.methods)

    def predict(
        self, configuration: Configuration, rows: int, phase: Pass = "train", execution: Execution = PLAIN
    ) -> float:
        """Seconds that training or evaluating some rows takes.

        Raises:
            LookupError: Nothing has been observed in this phase.
        """
        learned = self._learned[phase]
        if not learned.count:
            raise LookupError(f"no {phase} time has been observed; run the speed probe first")
        # What the latest job did that could look up, the next one will do.
        looked_up = frozen_blocks(configuration, self._modules) if self._looks_up else 0
        return rows * learned.per_row(self._work(configuration, phase, execution, looked_up), configuration.methods)

    def observed(self, phase: Pass = "train") -> int:
        """Number of observations, also of those that do not count any more."""
        return self._learned[phase].count

    def _work(
        self, configuration: Configuration, phase: Pass, execution: Execution, looked_up: int
    ) -> dict[str, float]:
        """Term -> how much of it a row needs, 1 being the whole model, in a batch of `STEP_ROWS`."""
        blocks = max(1, self._modules.blocks)
        lowest = blocks
        work = {"forward": 1.0 - looked_up / blocks}
        for name, part in configuration.parts():
            site = self._sites.get(name)
            lowest = min(lowest, site.block if site else 0)
            share = (site.in_features + site.out_features) / self._width if site else 1.0
            work[part.method] = work.get(part.method, 0.0) + share
        if phase == "train":
            work["backward"] = (blocks - lowest) / blocks
            # Evaluation has batches of its own, so that only training pays by the configuration's.
            if configuration.training.dropout > 0:
                work["dropout"] = sum(work.get(method, 0.0) for method in configuration.methods)
            if execution.checkpointing:
                work["recompute"] = work["backward"]
            per_step = STEP_ROWS / execution.rows(configuration.training.batch_size)
            work |= {f"step {term}": amount * per_step for term, amount in work.items() if term not in WHOLE_ROWS}
            work["step"] = per_step
        return work


@dataclass
class _Learned:
    """One regression: the terms of the latest jobs, their seconds per row, and the fit."""

    phase: Pass
    count: int = 0
    mixes: list[tuple[str, ...]] = field(default_factory=list)
    fit: tuple[float, dict[str, float], dict[tuple[str, ...], float]] | None = None
    _places: dict[str, int] = field(default_factory=dict)
    _features: Vector = field(default_factory=lambda: np.zeros((KEPT, 32)))
    _seconds: Vector = field(default_factory=lambda: np.zeros(KEPT))

    def add(self, work: dict[str, float], seconds: float, mix: tuple[str, ...]) -> None:
        row = self.count % KEPT
        self._features[row] = 0.0
        for term, amount in work.items():
            place = self._places.setdefault(term, len(self._places))
            if place == self._features.shape[1]:
                self._features = np.hstack([self._features, np.zeros_like(self._features)])
            self._features[row, place] = amount * self.prior(term)
        self._seconds[row] = seconds
        # In the order of the rows, which is that of the jobs only until the oldest one is written over.
        if self.count < KEPT:
            self.mixes.append(mix)
        else:
            self.mixes[row] = mix
        self.count += 1
        self.fit = None

    def prior(self, term: str) -> float:
        return PRIOR[self.phase].get(term, OTHER_STEP if term.startswith("step ") else OTHER_METHOD)

    def per_row(self, work: dict[str, float], mix: tuple[str, ...]) -> float:
        if self.fit is None:
            self.fit = self._solve()
        unit, ratios, mixes = self.fit
        return unit * self._sum(work, ratios) * mixes.get(mix, 1.0)

    def _sum(self, work: dict[str, float], ratios: dict[str, float]) -> float:
        return sum(amount * self.prior(term) * ratios.get(term, 1.0) for term, amount in work.items())

    def _solve(self) -> tuple[float, dict[str, float], dict[tuple[str, ...], float]]:
        """Unit (seconds per row of the reference LoRA), ratio of each term to its prior, ratio of each mix."""
        rows, terms = min(self.count, KEPT), sorted(self._places)
        seconds = self._seconds[:rows]
        features = self._features[:rows, [self._places[term] for term in terms]]
        # The median holds against a job that shared its core with something else.
        unit = float(np.median(seconds / features.sum(axis=1)))
        scaled: Any = features * unit / seconds[:, None]
        penalty = PRIOR_WEIGHT * np.eye(len(terms))
        change: Vector = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (1.0 - scaled.sum(axis=1)))
        clipped = np.clip(1.0 + change, 0.1, 10.0)
        ratios = {term: float(ratio) for term, ratio in zip(terms, clipped, strict=True)}
        logs: dict[tuple[str, ...], list[float]] = {}
        for mix, off in zip(self.mixes, np.log(seconds / (unit * (features @ clipped))), strict=True):
            logs.setdefault(mix, []).append(float(off))
        mixes = {mix: math.exp(sum(values) / (len(values) + MIX_WEIGHT)) for mix, values in logs.items()}
        return unit, ratios, mixes
