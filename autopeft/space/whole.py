"""The whole encoding: one method about the whole model, its size, and where its shared state is used.

Such methods share state between layers or are prompts: they cannot be mixed, so they have spaces of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopeft.methods import METHODS, Method
from autopeft.space.bound import BoundSpace, Limits, point, training, vary
from autopeft.space.configuration import WHOLE, Configuration, Part, Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.modules import ModuleMap
from autopeft.space.recipe import no_method
from autopeft.space.sequence import even, stream
from autopeft.space.values import SpaceValues

__all__ = ["WholeSpace"]

EVERYWHERE = "all"


class WholeSpace(BoundSpace):
    """A space in the whole encoding, on one model.

    Args:
        values: The space.
        modules: The model.
        limits: What an adapter may need.
        target: What must load the winner.

    Raises:
        NothingFeasible: When even the cheapest configuration is over the limits, or the target admits none.
    """

    def __init__(self, values: SpaceValues, modules: ModuleMap, limits: Limits, target: str) -> None:
        self.values, self.modules, self.limits, self.target = values, modules, limits, target
        left_out: dict[str, str] = {}
        cheapest: dict[str, int] = {}
        for name in values.methods:
            method = METHODS[name]
            if target != "any" and target not in method.targets:
                left_out[name] = f"cannot be loaded by the target {target}"
            elif not method.allows(modules) or not self._places(method):
                left_out[name] = f"{modules.architecture} has no place where it fits, or the space gives it no size"
            else:
                cheapest[name] = min(self._costs(method, where)[0][1] for where in self._places(method))
        if not cheapest:
            raise no_method(left_out, modules)
        self._cheapest = min(cheapest, key=lambda name: cheapest[name])
        if not limits.fits(cheapest[self._cheapest]):
            raise limits.refuse(cheapest[self._cheapest], modules.base_params)
        for name in [name for name, cost in cheapest.items() if not limits.fits(cost)]:
            left_out[name] = (
                f"needs at least {cheapest[name]:,} adapter parameters here; the limit is {limits.params:,}"
            )
            del cheapest[name]
        self.left_out = left_out
        self.methods = tuple(name for name in METHODS if name in cheapest)
        most = max(
            cost
            for name in self.methods
            for where in self._places(METHODS[name])
            for _, cost in self._fitting(METHODS[name], where)
        )
        self.largest_params = most
        self.dimensions, self._fixed = self._make_dimensions()

    def _make_dimensions(self) -> tuple[tuple[Dimension, ...], dict[str, Scalar]]:
        space, dimensions, fixed = self.values, list[Dimension](), dict[str, Scalar]()
        places = dict.fromkeys(where for name in self.methods for where in self._places(METHODS[name]))
        vary(Choice("method", self.methods), dimensions, fixed)
        vary(Choice("where", tuple(places)), dimensions, fixed)
        vary(Real("share", *space.share, log=True), dimensions, fixed)
        vary(Real("rate", *((0.0, 0.0) if space.faithful else space.rate_offset)), dimensions, fixed)
        vary(Choice("batch", space.batch, ordered=True), dimensions, fixed)
        vary(Choice("dropout", space.dropout, ordered=True), dimensions, fixed)
        return tuple(dimensions), fixed

    def decode(self, values: Values) -> Configuration:
        """The configuration that a point stands for: the largest size within its share of the limit.

        Where the smallest size does not fit at the place that the point names, the cheapest place is taken.
        """
        full = point(self.dimensions, self._fixed, values)
        method = METHODS[str(full["method"])]
        places = self._places(method)
        where = str(full["where"]) if full["where"] in places else places[-1]
        if not self._fitting(method, where):
            where = min(places, key=lambda place: self._costs(method, place)[0][1])
        budget = float(full["share"]) * self.largest_params
        fitting = self._fitting(method, where)
        size = max((size for size, cost in fitting if cost <= budget), default=fitting[0][0])
        return self._build(method, where, size, full)

    def _build(self, method: Method, where: str, size: int, full: Values) -> Configuration:
        knobs = {**method.knobs(self.modules, size), **({"where": where} if "where" in method.defaults else {})}
        part = Part.of(method.name, knobs)
        return Configuration.of(
            {WHOLE: [part]}, training(self.values, (method.name,), method.dropout is not None, full)
        )

    def draw(self, index: int, seed: int) -> Values:
        """Point number `index`: methods in turn, everything else uniform."""
        generator = stream("whole", seed, index)
        drawn: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            uniform = generator.random()
            if dimension.name == "method" and isinstance(dimension, Choice):
                first = stream("whole methods", seed).randrange(len(dimension.options))
                drawn["method"] = dimension.options[(first + index) % len(dimension.options)]
            elif isinstance(dimension, Choice):
                drawn[dimension.name] = dimension.options[int(uniform * len(dimension.options))]
            else:
                place = even(index, 3, seed) if dimension.name == "rate" else uniform
                low, high = dimension.low, dimension.high
                drawn[dimension.name] = low * (high / low) ** place if dimension.log else low + place * (high - low)
        return drawn

    def smallest(self) -> Configuration:
        """The cheapest method at its smallest size."""
        method = METHODS[self._cheapest]
        where = min(self._places(method), key=lambda place: self._costs(method, place)[0][1])
        full: Mapping[str, Any] = {
            "rate": 0.0,
            "batch": self.values.batch[0],
            "dropout": self.values.dropout[0],
        }
        return self._build(method, where, self._costs(method, where)[0][0], full)

    def size(self) -> float:
        """Methods, places and sizes that fit, times the batch sizes, and the dropouts where a method has one."""
        total = 0
        for name in self.methods:
            method = METHODS[name]
            sizes = sum(len(self._fitting(method, where)) for where in self._places(method))
            total += sizes * (len(self.values.dropout) if method.dropout else 1)
        return float(total * len(self.values.batch))

    def unlimited(self) -> BoundSpace:
        """The same space on the same model without any limit."""
        return WholeSpace(self.values, self.modules, Limits(), self.target)

    def _places(self, method: Method) -> tuple[str, ...]:
        """Values of the knob ``where`` that adapt anything here; one for methods without that knob."""
        options = method.choices.get("where", (EVERYWHERE,))
        return tuple(where for where in options if self._costs(method, str(where)))

    def _costs(self, method: Method, where: str) -> list[tuple[int, int]]:
        """`(size, adapter parameters)`, the cheapest first; empty where there is nothing to adapt."""
        legal = self.values.legal_sizes(method.name)
        sizes = [size for size in method.sizes(self.modules) if legal is None or size in legal]
        found = []
        for size in sizes:
            knobs = {**method.knobs(self.modules, size), **({"where": where} if "where" in method.defaults else {})}
            found.append((size, method.count(self.modules, knobs)))
        return sorted((pair for pair in found if pair[1] > 0), key=lambda pair: pair[1])

    def _fitting(self, method: Method, where: str) -> list[tuple[int, int]]:
        ceiling = self.values.ceiling * self.modules.base_params
        costs = self._costs(method, where)
        if self.limits.params is None:
            return [pair for pair in costs if pair[1] <= ceiling] or costs[:1]
        return [pair for pair in costs if self.limits.fits(pair[1])]
