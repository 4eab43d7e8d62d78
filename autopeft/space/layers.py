"""The layers encoding: a genome of raw choices, as published searches use it.

One size per method for the whole model, on a log2 scale below the hidden size, and one switch per block. Zhou et al.
2024 (AutoPEFT, arXiv 2301.12132) search this for serial adapters, parallel adapters and prefixes in 12 blocks.
Sizes that are over the limit are halved together until they fit.
"""

from __future__ import annotations

import math

from autopeft.methods import METHODS
from autopeft.space.bound import BoundSpace, Limits, point, training, vary
from autopeft.space.configuration import Configuration, Part, Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.groups import Group, attention_group, block_group, depth_in_site, everywhere
from autopeft.space.modules import ModuleMap
from autopeft.space.placement import admits
from autopeft.space.recipe import no_method
from autopeft.space.sequence import even, stream
from autopeft.space.values import SpaceValues

__all__ = ["LayersSpace"]

_HALVINGS = 10
"""The published scale: hidden size / 2^k for k from 0 to 10."""


class LayersSpace(BoundSpace):
    """A space in the layers encoding, on one model.

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
        halved = {modules.hidden_size >> halving for halving in range(_HALVINGS + 1)}
        self.scale_of_sizes = tuple(sorted(halved | {0}))
        self._groups: dict[str, Group] = {}
        left_out: dict[str, str] = {}
        for name in values.methods:
            group = _group(name, values, modules, tuple(size for size in self.scale_of_sizes if size))
            if not admits(target, [name]):
                left_out[name] = f"cannot be loaded by the target {target}"
            elif group is None:
                left_out[name] = f"{modules.architecture} has no place where it fits"
            else:
                self._groups[name] = group
        if not self._groups:
            raise no_method(left_out, modules)
        least = {name: min(cell.costs[0] for cell in group.cells) for name, group in self._groups.items()}
        self._cheapest = min(least, key=lambda name: least[name])
        if not limits.fits(least[self._cheapest]):
            raise limits.refuse(least[self._cheapest], modules.base_params)
        for name in [name for name in self._groups if not limits.fits(least[name])]:
            left_out[name] = f"needs at least {least[name]:,} adapter parameters here; the limit is {limits.params:,}"
            del self._groups[name]
        self.left_out = left_out
        self.methods = tuple(name for name in METHODS if name in self._groups)
        largest = sum(group.most() for group in self._groups.values())
        self.largest_params = largest if limits.params is None else min(largest, limits.params)
        self.dimensions, self._fixed = self._make_dimensions()

    def _make_dimensions(self) -> tuple[tuple[Dimension, ...], dict[str, Scalar]]:
        dimensions, fixed = list[Dimension](), dict[str, Scalar]()
        for name in self.methods:
            vary(Choice(f"{name}_size", self._options(name), ordered=True), dimensions, fixed)
        for block in range(self.modules.blocks):
            dimensions.append(Choice(f"block_{block}", (False, True)))
        space = self.values
        vary(Real("rate", *((0.0, 0.0) if space.faithful else space.rate_offset)), dimensions, fixed)
        vary(Choice("batch", space.batch, ordered=True), dimensions, fixed)
        vary(Choice("dropout", space.dropout, ordered=True), dimensions, fixed)
        return tuple(dimensions), fixed

    def _options(self, name: str) -> tuple[int, ...]:
        legal = self._groups[name].cells[0].sizes
        return (0, *legal)

    def decode(self, values: Values) -> Configuration:
        """The configuration that a point stands for.

        All sizes are halved together until they fit the limit (a size that reaches 0 is gone); if the smallest are
        still over it, the lower blocks go. If nothing is switched on, the cheapest method sits in the top block.
        """
        full = point(self.dimensions, self._fixed, values)
        sizes = {name: int(full[f"{name}_size"]) for name in self.methods}
        blocks = [block for block in range(self.modules.blocks) if full[f"block_{block}"]]
        sizes = {name: size for name, size in sizes.items() if size and self._cost(name, size, blocks)}
        while sizes and not self._fits(sizes, blocks):
            smaller = {name: self._half(name, size) for name, size in sizes.items()}
            kept = {name: size for name, size in smaller.items() if size}
            if kept:
                sizes = kept
            elif len(sizes) > 1:
                del sizes[max(sizes, key=lambda name: self._cost(name, sizes[name], blocks))]
            elif len(blocks) > 1:
                blocks = blocks[1:]
            else:
                sizes = {}
            sizes = {name: size for name, size in sizes.items() if self._cost(name, size, blocks)}
        if not sizes:
            return self._least(full)
        return self._build(sizes, blocks, full)

    def _half(self, name: str, size: int) -> int:
        """The largest size of the scale that is at most half of a size; 0 when there is none."""
        return max((option for option in self._options(name) if option <= size // 2), default=0)

    def _cost(self, name: str, size: int, blocks: list[int]) -> int:
        wanted = set(blocks)
        return sum(cell.costs[cell.sizes.index(size)] for cell in self._groups[name].cells if cell.block in wanted)

    def _fits(self, sizes: dict[str, int], blocks: list[int]) -> bool:
        return self.limits.fits(sum(self._cost(name, size, blocks) for name, size in sizes.items()))

    def _least(self, full: Values) -> Configuration:
        cells = self._groups[self._cheapest].cells
        cell = min(reversed(cells), key=lambda cell: cell.costs[0])
        return self._build({self._cheapest: cell.sizes[0]}, [cell.block], full)

    def _build(self, sizes: dict[str, int], blocks: list[int], full: Values) -> Configuration:
        wanted = set(blocks)
        sites: dict[str, list[Part]] = {}
        for name in sorted(sizes, key=lambda name: (depth_in_site(METHODS[name]), name)):
            group = self._groups[name]
            for cell in group.cells:
                if cell.block in wanted:
                    for site, part in group.parts(cell, sizes[name], None):
                        sites.setdefault(site, []).append(part)
        return Configuration.of(sites, training(self.values, tuple(sizes), True, full))

    def draw(self, index: int, seed: int) -> Values:
        """Point number `index`: sizes, switches and training options uniform, not everything off.

        The number of blocks switched on is spread evenly over the draws: independent coins would nearly always
        switch on about half of them.
        """
        generator = stream("layers", seed, index)
        count = self.modules.blocks
        on = 1 + int(even(index, 2, seed) * count)
        chosen = set(generator.sample(range(count), on))
        drawn: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            uniform = generator.random()
            if dimension.name.startswith("block_"):
                drawn[dimension.name] = int(dimension.name.removeprefix("block_")) in chosen
            elif isinstance(dimension, Choice):
                drawn[dimension.name] = dimension.options[int(uniform * len(dimension.options))]
            else:
                place = even(index, 7, seed) if dimension.name == "rate" else uniform
                drawn[dimension.name] = dimension.low + place * (dimension.high - dimension.low)
        names = [f"{name}_size" for name in self.methods if f"{name}_size" in drawn]
        if names and not any(drawn[name] for name in names):
            name = names[generator.randrange(len(names))]
            sizes = self._options(name.removesuffix("_size"))
            drawn[name] = sizes[1 + generator.randrange(len(sizes) - 1)]
        return drawn

    def smallest(self) -> Configuration:
        """The cheapest method at its smallest size in one block."""
        return self._least(
            {**self._fixed, "rate": 0.0, "batch": self.values.batch[0], "dropout": self.values.dropout[0]}
        )

    def size(self) -> float:
        """Points of the genome without the learning rate, as a float: sizes x switches x training options.

        An upper bound of the distinct configurations: points over the limit share the one that they are halved to.
        """
        sizes = math.prod(len(self._options(name)) for name in self.methods) - 1
        switches = 2.0 ** min(self.modules.blocks, 1000) - 1
        return sizes * switches * len(self.values.batch) * len(self.values.dropout)

    def unlimited(self) -> BoundSpace:
        """The same space on the same model without any limit."""
        return LayersSpace(self.values, self.modules, Limits(), self.target)


def _group(name: str, space: SpaceValues, modules: ModuleMap, sizes: tuple[int, ...]) -> Group | None:
    method, legal = METHODS[name], space.legal_sizes(name) or sizes
    if "attention" in method.slots:
        return attention_group(name, space.attention_sites[-1], modules, legal)
    if "block" in method.slots:
        return block_group(name, space.block_sites[0], modules, legal)
    return everywhere(method, method.roles, modules, legal)
