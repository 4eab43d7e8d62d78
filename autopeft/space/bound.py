"""A space on one model under one set of limits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.errors import NothingFeasible
from autopeft.space.configuration import Configuration, Training
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.modules import ModuleMap
from autopeft.space.values import SpaceValues

__all__ = ["BoundSpace", "Limits"]

_BYTES_PER_PARAM = 4
_OVERHEAD = 8 * 1024
_OVERHEAD_PER_SITE = 1200
"""What headers and JSON take on disk beside the float32 parameters: the first, and the second for each site."""
_HEAD_RATE = (1e-3, 3e-2)
MEETS = 0.9
"""Where the largest adapter takes more than this share of a limit, the limit ends the space."""


class Limits:
    """The limit on adapter parameters that follows from all that is limited.

    Args:
        param_limit: Adapter parameters, or None.
        max_bytes: Bytes of the adapter on disk, or None. The head is not counted: subtract it before.
        space_limit: The space's own limit on parameters, or None.
        sites: Sites of the model; their names and headers take room on disk.
    """

    def __init__(
        self,
        param_limit: int | None = None,
        max_bytes: int | None = None,
        space_limit: int | None = None,
        sites: int = 0,
    ) -> None:
        self._overhead = _OVERHEAD + _OVERHEAD_PER_SITE * sites
        self._sized = max_bytes is not None
        limits: list[tuple[int, str]] = []
        if param_limit is not None:
            limits.append((param_limit, "max_adapter_params"))
        if max_bytes is not None:
            limits.append(((max_bytes - self._overhead) // _BYTES_PER_PARAM, "max_adapter_size"))
        if space_limit is not None:
            limits.append((space_limit, "space.max_share"))
        self.params: int | None = None
        self.binds: str | None = None
        if limits:
            self.params, self.binds = min(limits)

    def fits(self, params: int) -> bool:
        """Whether an adapter of this many parameters is within all limits."""
        return self.params is None or params <= self.params

    def refuse(self, smallest: int, base_params: int) -> NothingFeasible:
        """The error for a space whose cheapest configuration is over the limit."""
        binds = self.binds or "max_adapter_params"
        detail = (
            f"The cheapest configuration of this space on this model has {smallest:,} adapter parameters "
            f"({smallest / base_params:.4%} of the base); {binds} allows {max(self.params or 0, 0):,}."
        )
        needed = {"max_adapter_params": float(smallest)}
        if self._sized:
            needed["max_adapter_size"] = float(_BYTES_PER_PARAM * smallest + self._overhead)
        if binds == "space.max_share":
            needed[binds] = smallest / base_params
        return NothingFeasible(binds, needed, detail)


class BoundSpace(ABC):
    """What can come out of a space on one model under one set of limits.

    A search binds its space once, gives `dimensions` to a sampler and `draw` to its start-up, and decodes every point
    that the sampler proposes. All of it is deterministic and plain Python.

    Attributes:
        values: The space.
        modules: The model.
        dimensions: What a sampler sees: only what can vary here.
        methods: Names of the methods that can come out, in the order of the table.
        left_out: Name -> reason, for methods of the space that cannot come out here.
        largest_params: No configuration has more adapter parameters than this.
    """

    values: SpaceValues
    modules: ModuleMap
    dimensions: tuple[Dimension, ...]
    methods: tuple[str, ...]
    left_out: Mapping[str, str]
    largest_params: int

    @abstractmethod
    def decode(self, values: Values) -> Configuration:
        """The configuration that a point stands for; within the limits for every point.

        Args:
            values: A value for each of `dimensions`. Numbers outside their range are clipped.

        Raises:
            ValueError: When a dimension is missing or an option is not one of its options.
        """

    @abstractmethod
    def draw(self, index: int, seed: int) -> Values:
        """Point number `index` of the space's prior, conditioned on what fits the limits; the same in any process."""

    @abstractmethod
    def smallest(self) -> Configuration:
        """The configuration with the fewest adapter parameters."""

    @abstractmethod
    def size(self) -> float:
        """How many configurations there are, learning rates not counted; how it is counted says the encoding."""

    @abstractmethod
    def unlimited(self) -> BoundSpace:
        """The same space on the same model without any limit."""

    @property
    def is_plain_lora(self) -> bool:
        """Whether nothing but plain LoRA can come out."""
        return self.methods == ("lora",)

    @property
    def limit(self) -> int | None:
        """The tightest limit on adapter parameters, or None."""
        return self.limits.params

    def about(self) -> dict[str, Any]:
        """What is possible here at most, as plain values for the journal.

        Returns:
            ``params``: the ``least`` and ``most`` adapter parameters, and the ``limit`` that ends them (None where the
            space itself does). ``rates``: method -> its lowest, default and highest learning rate here.
            ``rate_offset``: the natural log of the lowest and the highest factor on the default.
        """
        limit = self.limits.params
        ends = self.limits.binds if limit is not None and self.largest_params > MEETS * limit else None
        low, high = (0.0, 0.0) if self.values.faithful else self.values.rate_offset
        rates = {}
        for name in self.methods:
            lowest, highest = self.values.rate_range(name)
            rates[name] = [lowest, self.values.rate(name).default, highest]
        least = self.smallest().adapter_params(self.modules)
        params = {"least": least, "most": self.largest_params, "limit": ends}
        return {"params": params, "rates": rates, "rate_offset": [low, high]}

    def feasible_share(self, samples: int = 256, seed: int = 0) -> float:
        """Share of the unlimited prior that fits the limits, in [0, 1], from this many points."""
        if self.limits.params is None:
            return 1.0
        free = self.unlimited()
        fitting = sum(
            self.limits.fits(free.decode(free.draw(index, seed)).adapter_params(self.modules))
            for index in range(samples)
        )
        return fitting / samples

    limits: Limits


def point(dimensions: Sequence[Dimension], fixed: Values, values: Values) -> dict[str, float | int | str | bool]:
    """A complete point: checked, clipped, with what does not vary filled in.

    Raises:
        ValueError: When a dimension is missing or an option is not one of its options.
    """
    full = dict(fixed)
    for dimension in dimensions:
        if dimension.name not in values:
            raise ValueError(f"the point has no value for {dimension.name}")
        value = values[dimension.name]
        if isinstance(dimension, Real):
            number = float(value)
            if math.isnan(number):
                raise ValueError(f"{dimension.name} is not a number")
            full[dimension.name] = min(max(number, dimension.low), dimension.high)
        elif value in dimension.options:
            full[dimension.name] = value
        else:
            raise ValueError(f"{dimension.name} has no option {value!r}")
    return full


def vary(dimension: Dimension, dimensions: list[Dimension], fixed: dict[str, float | int | str | bool]) -> None:
    """Adds a dimension, or its only value to what is fixed."""
    if isinstance(dimension, Choice) and len(dimension.options) == 1:
        fixed[dimension.name] = dimension.options[0]
    elif isinstance(dimension, Real) and dimension.low == dimension.high:
        fixed[dimension.name] = dimension.low
    else:
        dimensions.append(dimension)


def training(space: SpaceValues, methods: Sequence[str], sized: bool, values: Values) -> Training:
    """The hyperparameters at a point, canonical: what has no effect is not stored.

    The head learns at the geometric mean of the parts' rates, and never slower than 1e-3.

    Args:
        space: For its learning rates.
        methods: The methods used.
        sized: Whether any part has an inner layer that dropout acts on.
        values: A complete point with ``rate``, ``batch`` and ``dropout``.
    """
    factor = math.exp(float(values["rate"]))
    rates = []
    for name in sorted(methods):
        rate = space.rate(name)
        # Four digits: finer differences are no different configurations.
        rates.append((name, float(f"{min(max(rate.default * factor, rate.low), rate.high):.4g}")))
    mean = math.exp(sum(math.log(rate) for _, rate in rates) / len(rates))
    head_rate = float(f"{min(max(mean, _HEAD_RATE[0]), _HEAD_RATE[1]):.4g}")
    return Training(tuple(rates), head_rate, int(values["batch"]), float(values["dropout"]) if sized else 0.0)
