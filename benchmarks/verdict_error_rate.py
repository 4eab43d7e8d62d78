"""How often a verdict is wrong when both arms are equally good (A/A), and how often a true gain is found.

Run: python benchmarks/verdict_error_rate.py [--searches 1000]. Besides printing the table it writes it to
``results/verdict_error_rate.json``, with the worst ``selected`` rate of the three spreads, by rows and seeds, which
`autopeft.evidence.calibration` repeats and every report shows.

The answers are those of `autopeft.testing.latent`, a model of fine-tuning results without any training. Whole searches
are in ``search_error_rate.py``. Columns, in per cent of the simulated comparisons:

* ``naive``: two-level percentile bootstrap in closed form (seeds resampled, normal quantile);
* ``seeds``: Welch's t-test over seed means only, as papers do it; it says nothing about other examples;
* ``verdict``: false ``better`` by `autopeft.evidence.compare`;
* ``selected``: the same when each arm's finalist was the best by validation (on the same rows) of 20 and 10
  equally good candidates and was then retrained with fresh seeds;
* ``until``: false ``better`` of the same finalists when the race of seeds ends as soon as it is settled (``--until
  decided``: looks after 2, 3, ... seeds at 99 %, after the last one at 95 %); ``hasty``: the same with all looks at
  95 %;
* ``found``: ``better`` when the challenger is truly 2 points better;
* ``within``: false ``within`` when the challenger is truly worse by the margin of 1 point (``--within 1``), and was the
  best of 20 such candidates; ``kept``: ``within`` when it is truly as good;
* ``half``: mean half-width of the verdict's interval, in points;
* ``covered``: how often the 95 % interval of a single arm (`autopeft.evidence.interval`) holds its expected score.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from autopeft.evidence import LEVEL, compare, interval
from autopeft.search.finals import EARLY_LEVEL
from autopeft.testing.latent import ACCURACY, Floats, Latent, threshold

COLUMNS = ("naive", "seeds", "verdict", "selected", "until", "hasty", "found", "within", "kept", "half", "covered")
MARGIN = 0.01
RESULTS = Path(__file__).parent / "results" / "verdict_error_rate.json"


@dataclass(frozen=True)
class Setting:
    """Rows of the validation set, seeds per arm, and the spread of each arm's seeds in points of accuracy."""

    rows: int
    seeds: int
    challenger_spread: float
    baseline_spread: float


class Lab:
    """Draws right (1) and wrong (0) answers of arms that share their examples, see `autopeft.testing.latent`. Final."""

    def __init__(self, setting: Setting, rng: np.random.Generator) -> None:
        self._rng = rng
        self._latent = Latent(setting.rows, rng)
        self._threshold, self._density = threshold(ACCURACY)

    def arm(self, gain: float = 0.0) -> Floats:
        """The examples' affinity to a new arm, `[rows]`, with a gain in accuracy (0.02: two points)."""
        return self._latent.affinity(self._rng) + self._threshold + gain / self._density

    def answers(self, arm: Floats, spread: float, seeds: int) -> Floats:
        """Answers of freshly trained seeds of an arm, `[seeds, rows]`; `spread` in points."""
        return self._latent.answers(self._rng, arm, spread / 100 / self._density, seeds)

    def selected(self, candidates: int, spread: float, gain: float = 0.0) -> Floats:
        """The affinity of the best of some equal candidates, chosen by one run each on these examples."""
        arms = [self.arm(gain) for _ in range(candidates)]
        scores = [self.answers(arm, spread, 1).mean() for arm in arms]
        return arms[int(np.argmax(scores))]


def verdict(ours: Floats, theirs: Floats, margin: float | None = None) -> tuple[str, float]:
    """The verdict's name and the half-width of its interval."""
    arms = [[{"prediction": run, "label": np.ones_like(run)} for run in answers] for answers in (ours, theirs)]
    found = compare("accuracy", arms[0], arms[1], costs=(1, 2), margin=margin)
    return found.name, (found.high - found.low) / 2


def covered(answers: Floats) -> bool:
    """Whether an arm's interval holds the score that is expected of it."""
    found = interval("accuracy", [{"prediction": run, "label": np.ones_like(run)} for run in answers])
    return found.low <= ACCURACY <= found.high


def raced(ours: Floats, theirs: Floats, early: float) -> str:
    """The verdict's name when seeds are added one at a time until it is settled at this level."""
    name = "tie"
    for seeds in range(2, len(ours) + 1):
        level = LEVEL if seeds == len(ours) else early
        arms = [
            [{"prediction": run, "label": np.ones_like(run)} for run in answers[:seeds]] for answers in (ours, theirs)
        ]
        name = compare("accuracy", arms[0], arms[1], costs=(1, 2), level=level).name
        if name != "tie":
            break
    return name


def naive_better(ours: Floats, theirs: Floats) -> bool:
    """Whether a two-level bootstrap over seeds and examples would call the first arm better."""
    values = ours.mean(0) - theirs.mean(0)
    # Resampling S seeds with replacement gives the variance over S of the sample without Bessel's correction.
    seeds = sum(float(arm.mean(1).var()) / len(arm) for arm in (ours, theirs))
    return bool(values.mean() > 1.96 * (float(values.var()) / values.size + seeds) ** 0.5)


def seeds_better(ours: Floats, theirs: Floats) -> bool:
    """Whether Welch's t-test over the seeds' scores would."""
    if max(np.ptp(ours.mean(1)), np.ptp(theirs.mean(1))) < 1e-9:
        return bool(ours.mean() > theirs.mean())
    test = stats.ttest_ind(ours.mean(1), theirs.mean(1), equal_var=False)
    return bool(test.pvalue < 0.05 and test.statistic > 0)


def measure(setting: Setting, searches: int, seed: int = 0) -> dict[str, float]:
    """The columns of one row, rates in [0, 1] and the half-width in accuracy."""
    rng = np.random.default_rng([seed, setting.rows, setting.seeds])
    counts = dict.fromkeys(COLUMNS, 0.0)
    spreads = setting.challenger_spread, setting.baseline_spread
    for _ in range(searches):
        lab = Lab(setting, rng)
        ours, theirs = (lab.answers(lab.arm(), spread, setting.seeds) for spread in spreads)
        name, half = verdict(ours, theirs)
        counts["half"] += half
        counts["covered"] += covered(ours)
        counts["naive"] += (naive_better(ours, theirs) + naive_better(theirs, ours)) / 2
        counts["seeds"] += (seeds_better(ours, theirs) + seeds_better(theirs, ours)) / 2
        # Both directions of an A/A comparison are the same experiment: half the noise for nothing.
        counts["verdict"] += (name in ("better", "worse")) / 2
        better = lab.answers(lab.arm(0.02), spreads[0], setting.seeds)
        counts["found"] += verdict(better, theirs)[0] == "better"
        chosen, rival = (
            lab.answers(lab.selected(n, s), s, setting.seeds) for n, s in zip((20, 10), spreads, strict=True)
        )
        counts["selected"] += verdict(chosen, rival)[0] == "better"
        counts["until"] += raced(chosen, rival, EARLY_LEVEL) == "better"
        counts["hasty"] += raced(chosen, rival, LEVEL) == "better"
        lossy = lab.answers(lab.selected(20, spreads[0], -MARGIN), spreads[0], setting.seeds)
        counts["within"] += verdict(lossy, rival, MARGIN)[0] == "within"
        counts["kept"] += verdict(ours, theirs, MARGIN)[0] == "within"
    return {column: count / searches for column, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Error rates of verdicts in simulated comparisons.")
    parser.add_argument("--searches", type=int, default=1000, help="simulated comparisons in each row")
    searches = parser.parse_args().searches
    print("spread  rows  seeds  " + "  ".join(f"{column:>8}" for column in COLUMNS))
    worst: dict[str, int] = {}
    table: list[dict[str, float | str]] = []
    for ours, theirs in ((0.4, 0.4), (0.8, 0.2), (1.5, 1.5)):
        for rows in (200, 872, 3100):
            for seeds in (2, 3, 5):
                found = measure(Setting(rows, seeds, ours, theirs), searches)
                row = "  ".join(f"{100 * found[column]:8.2f}" for column in COLUMNS)
                print(f"{ours}/{theirs}  {rows:5d}  {seeds:5d}  {row}", flush=True)
                table.append({"spreads": f"{ours}/{theirs}", "rows": rows, "runs": seeds, **found})
                key = f"{rows} rows, {seeds} seeds"
                worst[key] = max(worst.get(key, 0), round(found["selected"] * searches))
    RESULTS.write_text(json.dumps({"searches": searches, "false_better": worst, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
