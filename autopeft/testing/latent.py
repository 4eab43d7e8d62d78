"""A model of fine-tuning results without any training: which examples an arm answers rightly.

An example is answered rightly when a normal latent variable is above zero. Most of the latent belongs to the example
(all arms find the same ones hard), a part to the arm, the rest to seed x example; a shift per seed makes the seed's own
spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autopeft.space.configuration import Configuration
from autopeft.strategy.jobs import Train

Floats = npt.NDArray[np.float64]
ACCURACY = 0.86
EXAMPLE_SHARE = 0.75
ARM_SHARE = 0.08
SPREADS = (0.3, 1.5)
"""Points of accuracy between which the spread over seeds of a configuration lies, evenly in its logarithm."""


class Latent:
    """Draws right (1) and wrong (0) answers of arms that share their examples. Final.

    Args:
        rows: Examples.
        rng: Draws the examples.
        example_share: Share of the latent's variance that belongs to the example.
        arm_share: Share that belongs to example x arm; what is left of 1 belongs to example x seed.
    """

    def __init__(
        self,
        rows: int,
        rng: np.random.Generator,
        example_share: float = EXAMPLE_SHARE,
        arm_share: float = ARM_SHARE,
    ) -> None:
        self.rows = rows
        self._examples = rng.normal(size=rows) * example_share**0.5
        self._arm = arm_share**0.5
        self._rest = (1 - example_share - arm_share) ** 0.5

    def affinity(self, rng: np.random.Generator) -> Floats:
        """How well the examples suit a new arm, `[rows]`, around 0."""
        return np.asarray(self._examples + rng.normal(size=self.rows) * self._arm)

    def answers(self, rng: np.random.Generator, levels: Floats, shift: float, seeds: int) -> Floats:
        """Answers of freshly trained seeds of an arm, `[seeds, rows]`.

        Args:
            rng: Draws the seeds.
            levels: The arm's affinity and the threshold of its accuracy, `[rows]`.
            shift: Standard deviation of the shift per seed, in units of the latent.
            seeds: How many.
        """
        shifts = rng.normal(size=(seeds, 1)) * shift
        noise = rng.normal(size=(seeds, self.rows)) * self._rest
        return np.asarray(levels + shifts + noise > 0, dtype=np.float64)


def threshold(accuracy: float) -> tuple[float, float]:
    """The latent's mean at an accuracy in (0, 1), and the density there: accuracy gained per unit of the latent."""
    from scipy.stats import norm

    at = float(norm.ppf(accuracy))
    return at, float(norm.pdf(at))


def spread_of(configuration: Configuration, spreads: tuple[float, float] = SPREADS) -> float:
    """Points by which the seeds of a configuration spread, a constant of it."""
    low, high = spreads
    return float(low * (high / low) ** (int(configuration.hash[-8:], 16) / 2**32))


@dataclass
class LatentAnswers:
    """The answers of every run of a search: what `SyntheticWorld.answers` may be. Final.

    A run answers the same at each rung but for what it has learnt since; runs of one configuration share its affinity,
    all runs of one world the examples.

    Attributes:
        rows: Validation rows.
        seed: Of the world; another one has other examples and other runs.
        spread: Configuration -> standard deviation of its accuracy over seeds, in points.
        example_share: As `Latent`.
        arm_share: As `Latent`.
    """

    rows: int
    seed: int = 0
    spread: Callable[[Configuration], float] = spread_of
    example_share: float = EXAMPLE_SHARE
    arm_share: float = ARM_SHARE
    _latent: Latent = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self._latent = Latent(self.rows, rng, self.example_share, self.arm_share)

    def __call__(self, job: Train, accuracy: float) -> dict[str, np.ndarray]:
        """Per-example outputs at an expected accuracy, on as many rows as the job evaluates."""
        own = int(job.configuration.hash[:12], 16)
        at, density = threshold(accuracy)
        levels = self._latent.affinity(np.random.default_rng([self.seed, own])) + at
        rng = np.random.default_rng([self.seed, own, job.seed])
        right = self._latent.answers(rng, levels, self.spread(job.configuration) / 100 / density, 1)[0] > 0
        right = right[: job.evaluate_rows]
        labels = np.arange(len(right)) % 2
        likelihood = np.where(right, -0.2, -1.5).astype(np.float32)
        return {"label": labels, "prediction": np.where(right, labels, 1 - labels), "log_likelihood": likelihood}
