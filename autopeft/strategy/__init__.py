"""How a space is explored: samplers and halving rules, and strategies made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.errors import InputError
from autopeft.space.dimension import Dimension
from autopeft.strategy.base import Halving, Sampler, Strategy
from autopeft.strategy.samplers import Prior, RandomSampler
from autopeft.strategy.values import HALVINGS, SAMPLERS, resolved, validate

__all__ = ["HALVINGS", "SAMPLERS", "Prior", "build", "validate"]


def build(values: Mapping[str, Any], *, dimensions: Sequence[Dimension], prior: Prior, seed: int) -> Strategy:
    """A strategy from plain values.

    Args:
        values: As in a file under ``strategies/``; see `validate`.
        dimensions: The encoding that the sampler sees.
        prior: Point number i of the space's prior.
        seed: Seed of the sampler.

    Raises:
        InputError: Everything that is wrong with the values.
    """
    problems = validate(values)
    if problems:
        raise InputError(problems)
    halving = resolved(values.get("halving", "none"), HALVINGS)
    return Strategy(
        name=str(values["name"]),
        sampler=_sampler(resolved(values["sampler"], SAMPLERS), tuple(dimensions), prior, seed),
        halving=_halving(halving),
        rungs=int(halving.get("rungs", 1)),
        eta=float(halving.get("eta", 3.0)),
        dimensions=tuple(dimensions),
    )


def _sampler(options: dict[str, Any], dimensions: tuple[Dimension, ...], prior: Prior, seed: int) -> Sampler:
    if options.pop("name") == "random":
        return RandomSampler(prior)
    # Optuna takes a moment to import; a random search and `validate` do without it.
    from autopeft.strategy.tpe import TPESampler

    return TPESampler(dimensions, prior, seed=seed, **options)


def _halving(options: dict[str, Any]) -> Halving:
    from autopeft.strategy.halving import Asha, Hyperband, Median, NoHalving

    if options["name"] == "asha":
        return Asha(float(options["eta"]))
    if options["name"] == "hyperband":
        return Hyperband(float(options["eta"]))
    if options["name"] == "curve":
        from autopeft.strategy.curves import Curve

        return Curve(float(options["eta"]), float(options["chance"]), int(options["minimum"]))
    if options["name"] == "median":
        return Median(int(options["minimum"]))
    return NoHalving()
