"""The structure encoding: which parts of a model get what, as published structure searches ask it.

A genome of one choice for each method and unit: 0 for nothing, or a size. Units are blocks (each block its own size of
each method), single modules, or fixed groups of blocks with fixed methods (of which only the sizes are searched).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from autopeft.methods import METHODS, Method
from autopeft.space.bound import BoundSpace, Limits, point, training, vary
from autopeft.space.configuration import Configuration, Part, Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.groups import Cell, Group, attention_group, block_group, depth_in_site, everywhere, sizes_and_costs
from autopeft.space.modules import ModuleMap
from autopeft.space.placement import admits
from autopeft.space.recipe import no_method
from autopeft.space.sequence import even, stream
from autopeft.space.values import SpaceValues

__all__ = ["StructureSpace"]

SINGLE = ("peft", "vllm")
"""Targets that load one method at a time: of a mixture, the method that takes the most is kept."""


@dataclass(frozen=True)
class Unit:
    """A place that takes one size of one method.

    Attributes:
        key: Name of its dimension.
        method: The method.
        cells: What it covers, by ascending block.
        optional: Whether it may stay empty.
    """

    key: str
    method: Method
    cells: tuple[Cell, ...]
    optional: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its sizes, ascending; 1 stands for a method of fixed size."""
        if self.method.size is None:
            return (1,)
        return tuple(sorted(set(self.cells[0].sizes).intersection(*(cell.sizes for cell in self.cells))))

    @property
    def options(self) -> tuple[int, ...]:
        """What its dimension offers."""
        return (0, *self.sizes) if self.optional else self.sizes

    def cost(self, size: int) -> int:
        """Adapter parameters at a size; 0 for none."""
        if size == 0:
            return 0
        if self.method.size is None:
            return sum(cell.costs[0] for cell in self.cells)
        return sum(cell.costs[cell.sizes.index(size)] for cell in self.cells)


class StructureSpace(BoundSpace):
    """A space in the structure encoding, on one model.

    Args:
        values: The space.
        modules: The model.
        limits: What an adapter may need.
        target: What must load the winner.

    Raises:
        NothingFeasible: When even the cheapest unit is over the limits, or the target admits none.
    """

    def __init__(self, values: SpaceValues, modules: ModuleMap, limits: Limits, target: str) -> None:
        self.values, self.modules, self.limits, self.target = values, modules, limits, target
        left_out: dict[str, str] = {}
        groups: dict[str, Group] = {}
        for name in values.methods:
            group = _group(name, values, modules)
            if not admits(target, [name]):
                left_out[name] = f"cannot be loaded by the target {target}"
            elif group is None:
                left_out[name] = f"{modules.architecture} has no place where it fits"
            else:
                groups[name] = group
        units = [unit for unit in _units(values, groups, modules) if unit.sizes]
        if not units:
            raise no_method(left_out, modules)
        least = min(unit.cost(unit.sizes[0]) for unit in units)
        if not limits.fits(least):
            raise limits.refuse(least, modules.base_params)
        self.units = tuple(unit for unit in units if limits.fits(unit.cost(unit.sizes[0])))
        self._cheapest = min(self.units, key=lambda unit: unit.cost(unit.sizes[0]))
        self.methods = tuple(name for name in METHODS if any(unit.method.name == name for unit in self.units))
        for name in groups:
            if name not in self.methods:
                mine = [unit.cost(unit.sizes[0]) for unit in units if unit.method.name == name]
                left_out[name] = (
                    f"needs at least {min(mine):,} adapter parameters here; the limit is {limits.params:,}"
                    if mine
                    else f"{modules.architecture} has no place for it, or too few blocks for its group"
                )
        self.left_out = left_out
        most = sum(unit.cost(unit.sizes[-1]) for unit in self.units)
        self.largest_params = most if limits.params is None else min(most, limits.params)
        self.dimensions, self._fixed = self._make_dimensions()

    def _make_dimensions(self) -> tuple[tuple[Dimension, ...], dict[str, Scalar]]:
        space, dimensions, fixed = self.values, list[Dimension](), dict[str, Scalar]()
        for unit in self.units:
            vary(Choice(unit.key, unit.options, ordered=True), dimensions, fixed)
        vary(Real("rate", *((0.0, 0.0) if space.faithful else space.rate_offset)), dimensions, fixed)
        vary(Choice("batch", space.batch, ordered=True), dimensions, fixed)
        vary(Choice("dropout", space.dropout, ordered=True), dimensions, fixed)
        return tuple(dimensions), fixed

    def decode(self, values: Values) -> Configuration:
        """The configuration that a point stands for.

        Over the limit, all sizes step down together, down to the smallest; then the dearest units go, one by one. If
        nothing is chosen, the cheapest unit is.
        """
        full = point(self.dimensions, self._fixed, values)
        chosen = {unit.key: int(full[unit.key]) for unit in self.units if full[unit.key]}
        if self.target in SINGLE and chosen:
            spent: dict[str, int] = {}
            for unit in self._used(chosen):
                spent[unit.method.name] = spent.get(unit.method.name, 0) + unit.cost(chosen[unit.key])
            only = max(spent, key=lambda name: spent[name])
            chosen = {unit.key: chosen[unit.key] for unit in self._used(chosen) if unit.method.name == only}
        while chosen and not self._fits(chosen):
            smaller = {unit.key: _down(unit, chosen[unit.key]) for unit in self._used(chosen)}
            if smaller != chosen:
                chosen = smaller
            else:
                dearest = max(self._used(chosen), key=lambda unit: unit.cost(chosen[unit.key]))
                del chosen[dearest.key]
        if not chosen:
            chosen = {self._cheapest.key: self._cheapest.sizes[0]}
        return self._build(chosen, full)

    def _used(self, chosen: dict[str, int]) -> Iterator[Unit]:
        return (unit for unit in self.units if unit.key in chosen)

    def _fits(self, chosen: dict[str, int]) -> bool:
        return self.limits.fits(sum(unit.cost(chosen[unit.key]) for unit in self._used(chosen)))

    def _build(self, chosen: dict[str, int], full: Values) -> Configuration:
        sites: dict[str, list[tuple[int, Part]]] = {}
        for unit in self._used(chosen):
            size = None if unit.method.size is None else chosen[unit.key]
            for cell in unit.cells:
                for site in cell.sites:
                    part = Part.of(unit.method.name, unit.method.knobs(site, size))
                    sites.setdefault(site.name, []).append((depth_in_site(unit.method), part))
        ordered = {
            name: [part for _, part in sorted(parts, key=lambda item: (item[0], item[1].method))]
            for name, parts in sites.items()
        }
        methods = tuple(sorted({unit.method.name for unit in self._used(chosen)}))
        sized = any(METHODS[name].size is not None for name in methods)
        return Configuration.of(ordered, training(self.values, methods, sized, full))

    def draw(self, index: int, seed: int) -> Values:
        """Point number `index`: how many units are used is spread evenly; which, and their sizes, is uniform."""
        generator = stream("structure", seed, index)
        free = [unit for unit in self.units if unit.optional]
        used = (
            {unit.key for unit in generator.sample(free, 1 + int(even(index, 2, seed) * len(free)))} if free else set()
        )
        drawn: dict[str, Scalar] = {}
        by_key = {unit.key: unit for unit in self.units}
        for dimension in self.dimensions:
            uniform = generator.random()
            if dimension.name in by_key:
                sizes = by_key[dimension.name].sizes
                on = dimension.name in used or not by_key[dimension.name].optional
                drawn[dimension.name] = sizes[int(uniform * len(sizes))] if on else 0
            elif isinstance(dimension, Choice):
                drawn[dimension.name] = dimension.options[int(uniform * len(dimension.options))]
            else:
                place = even(index, 7, seed)
                drawn[dimension.name] = dimension.low + place * (dimension.high - dimension.low)
        return drawn

    def smallest(self) -> Configuration:
        """The cheapest unit at its smallest size."""
        full: dict[str, Any] = {"rate": 0.0, "batch": self.values.batch[0], "dropout": self.values.dropout[0]}
        return self._build({self._cheapest.key: self._cheapest.sizes[0]}, full)

    def size(self) -> float:
        """Points of the genome without the learning rate, as a float: an upper bound of the distinct configurations."""
        logs = sum(math.log(len(unit.options)) for unit in self.units)
        return math.exp(min(logs, 700.0)) * len(self.values.batch) * len(self.values.dropout)

    def unlimited(self) -> BoundSpace:
        """The same space on the same model without any limit."""
        return StructureSpace(self.values, self.modules, Limits(), self.target)


def spindle(blocks: int, groups: int) -> list[range]:
    """Blocks in groups that are larger in the middle: the outer two get about half as many as the inner ones."""
    weights = [1 if place in (0, groups - 1) else 2 for place in range(groups)] if groups > 2 else [1] * groups
    ends = [round(blocks * sum(weights[:place]) / sum(weights)) for place in range(groups + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def _units(space: SpaceValues, groups: dict[str, Group], modules: ModuleMap) -> Iterator[Unit]:
    if space.unit == "group":
        for name, group in groups.items():
            where = [
                part
                for part, methods in zip(spindle(modules.blocks, len(space.groups)), space.groups, strict=True)
                if name in methods
            ]
            cells = tuple(cell for cell in group.cells if any(cell.block in part for part in where))
            if cells:
                yield Unit(f"{name}_size", group.method, cells, optional=False)
        return
    for name, group in groups.items():
        for cell in group.cells:
            if space.unit == "block":
                yield Unit(f"{name}_{cell.block}", group.method, (cell,), optional=True)
                continue
            for site in cell.sites:
                sizes, costs = sizes_and_costs(group.method, (site,), cell.sizes or None)
                yield Unit(
                    f"{name} {site.name}", group.method, (Cell(cell.block, (site,), sizes, costs),), optional=True
                )


def _down(unit: Unit, size: int) -> int:
    """The next smaller size of a unit, or the smallest."""
    return max((option for option in unit.sizes if option < size), default=unit.sizes[0])


def _group(name: str, space: SpaceValues, modules: ModuleMap) -> Group | None:
    method, legal = METHODS[name], space.legal_sizes(name)
    if "attention" in method.slots:
        if space.attention_sites == ("qv",):
            return attention_group(name, "qv", modules, legal)
        return everywhere(method, method.roles, modules, legal)
    if "block" in method.slots:
        return block_group(name, space.block_sites[-1], modules, legal)
    return everywhere(method, method.roles, modules, legal)
