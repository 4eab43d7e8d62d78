"""Which dimensions of the space mattered, by a surrogate that says how well it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from autopeft.journal import SearchLog
from autopeft.report.axes import RIGHT, WIDTH
from autopeft.report.drawing import Drawing

FEWEST = 12
"""Trials at one rung, below which no importance is given."""
TREES, SEED = 200, 0
USELESS, WEAK = 0.1, 0.3
"""Out-of-bag fits (R²) below which a surrogate explains nothing, and not much."""
SHOWN = 10
WORDS = {
    "attention": "method at attention",
    "block": "method after blocks",
    "extra": "biases and norms",
    "prefix": "length of the prefix",
    "share": "parameters spent",
    "split": "attention's share",
    "start": "lowest block",
    "tilt": "lean to the top",
    "rate": "learning rate",
    "batch": "batch size",
    "scale": "scale of LoRA",
    "attention_sites": "places at attention",
    "block_sites": "places after blocks",
}
NAMES, ROW = 200, 26


@dataclass(frozen=True)
class Importance:
    """Points of the space with their scores after as many rows. Final.

    Attributes:
        rows: Rows after which they are compared, or 0.
        points: The points, one for each trial.
        scores: Their scores.
        most: The most trials that any rung has, where these are too few.
    """

    rows: int
    points: tuple[Mapping[str, Any], ...]
    scores: tuple[float, ...]
    most: int = 0

    @cached_property
    def ranked(self) -> tuple[list[tuple[str, float]], float] | None:
        """The dimensions, and how well the surrogate fits; None where there are too few trials.

        A random forest predicts the scores. A dimension matters as much as the forest's error on the trials that a
        tree has not seen (out of bag) grows when the dimension's values are permuted among them, as a share of the
        scores' variance (Breiman 2001, Random Forests). The fit is R² out of bag: 0 is no better than the mean.

        Returns:
            `(dimension, importance)`, the most important first, and R².
        """
        if len(self.points) < FEWEST or len(set(self.scores)) < 2:
            return None
        import numpy as np
        from sklearn.ensemble import RandomForestRegressor

        names, table = _table(self.points)
        features, scores = np.asarray(table, dtype=np.float32), np.asarray(self.scores)
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=SEED)
        forest.fit(features, scores)
        chance = np.random.default_rng(SEED)
        grown = np.zeros((TREES, len(names)))
        for number, (tree, drawn) in enumerate(zip(forest.estimators_, forest.estimators_samples_, strict=True)):
            unseen = np.setdiff1d(np.arange(len(scores)), drawn)
            seen, truth = features[unseen], scores[unseen]
            error = np.mean((tree.tree_.predict(seen)[:, 0] - truth) ** 2)
            for column in range(len(names)):
                shuffled = seen.copy()
                shuffled[:, column] = chance.permutation(shuffled[:, column])
                grown[number, column] = np.mean((tree.tree_.predict(shuffled)[:, 0] - truth) ** 2) - error
        gains = grown.mean(axis=0) / scores.var()
        order = sorted(zip(names, map(float, gains), strict=True), key=lambda pair: -pair[1])
        return order, float(forest.oob_score_)

    def sentence(self) -> str:
        """What it says and how far it is to be trusted."""
        found = self.ranked
        if found is None:
            if len(self.points) >= FEWEST:
                return "All trials scored the same: no dimension made a difference."
            return f"Too few trials for this: {self.most} at one rung, {FEWEST} are needed."
        order, fit = found
        told = f"A random forest over {len(self.points)} trials after {self.rows:,} rows"
        if fit < USELESS:
            return (
                f"{told} explains nothing of their scores (R² {fit:.2f} on trials that it has not seen): from these, "
                "nobody can say what mattered."
            )
        if fit < WEAK:
            return f"{told} explains {fit:.0%} of their variance on trials that it has not seen: take it as a hint."
        first = f"; {WORDS.get(order[0][0], order[0][0])} mattered most" if order[0][1] > 0 else ""
        return f"{told} explains {fit:.0%} of their variance on trials that it has not seen{first}."


def importance(log: SearchLog) -> Importance:
    """The explored points of the space at the highest rung that enough trials reached."""
    found: dict[int, tuple[int, list[tuple[Mapping[str, Any], float]]]] = {}
    for trial in log.trials.values():
        known = log.configurations.get(trial.hash)
        if trial.arm != "space" or trial.purpose != "explore" or known is None or not known.values:
            continue
        for rung in trial.rungs:
            score = rung.metrics.get(log.rung_metric)
            if score is not None:
                found.setdefault(rung.rung, (rung.rows, []))[1].append((known.values, score))
    enough = [rung for rung, (_, pairs) in found.items() if len(pairs) >= FEWEST]
    if not enough:
        return Importance(0, (), (), max((len(pairs) for _, pairs in found.values()), default=0))
    rows, pairs = found[max(enough)]
    return Importance(rows, tuple(point for point, _ in pairs), tuple(score for _, score in pairs))


def _table(points: tuple[Mapping[str, Any], ...]) -> tuple[list[str], list[list[float]]]:
    """The dimensions that vary, and a number for every value: options count in the order of their names."""
    names = sorted({name for point in points for name in point})
    options = {
        name: sorted({str(point.get(name)) for point in points})
        for name in names
        if any(isinstance(point.get(name), str | bool | None) for point in points)
    }
    varying = [name for name in names if len({str(point.get(name)) for point in points}) > 1]

    def number(name: str, value: Any) -> float:
        return float(options[name].index(str(value))) if name in options else float(value)

    return varying, [[number(name, point.get(name)) for name in varying] for point in points]


def importance_drawing(found: Importance) -> Drawing:
    """One bar for each dimension, where the surrogate explains anything."""
    ranked = found.ranked
    if ranked is None or ranked[1] < USELESS:
        return Drawing("", (), empty=found.sentence())
    shown = [(name, max(0.0, gain)) for name, gain in ranked[0][:SHOWN]]
    longest = max(gain for _, gain in shown) or 1.0
    drawn = []
    for row, (name, gain) in enumerate(shown):
        top, width = row * ROW + 8, gain / longest * (WIDTH - RIGHT - NAMES - 60)
        drawn.append(f'<text x="{NAMES - 10}" y="{top + 14}" text-anchor="end">{escape(WORDS.get(name, name))}</text>')
        drawn.append(f'<rect class="heat" x="{NAMES}" y="{top + 2}" width="{width:.1f}" height="{ROW - 9}" rx="2"/>')
        drawn.append(f'<text x="{NAMES + width + 8:.1f}" y="{top + 14}">{gain:.2f}</text>')
    note = "Error added when a dimension's values are shuffled, as a share of the variance of the scores."
    return Drawing("Which dimensions of the space mattered", drawn, note=note, height=len(shown) * ROW + 16)
