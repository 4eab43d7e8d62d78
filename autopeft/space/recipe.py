"""The recipe encoding: a dozen unconditional dimensions, the same on 6 and on 80 blocks, feasible by construction.

Every point is one mixture of methods over all adapted blocks, a share of the parameter limit, and how it is divided:
between attention and feed-forward, and along the depth. A point that cannot fit as it stands is repaired by a fixed
rule (`RecipeSpace.decode`), and points that decode to the same configuration are the same configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autopeft.errors import NothingFeasible
from autopeft.methods import METHODS
from autopeft.space.allot import Claim, allot, allot_uniform, lean
from autopeft.space.bound import BoundSpace, Limits, point, training, vary
from autopeft.space.configuration import Configuration, Part, Scalar
from autopeft.space.dimension import Choice, Dimension, Real, Values
from autopeft.space.groups import Cell, Group, depth_in_site, scaled
from autopeft.space.modules import ModuleMap
from autopeft.space.placement import AFTER_ATTENTION, NONE, Mixture, Placement, Placements
from autopeft.space.prior import RecipePrior
from autopeft.space.values import SpaceValues

__all__ = ["RecipeSpace"]

_STEPS = {"share": 20, "split": 9, "tilt": 17}
"""Resolution at which `RecipeSpace.size` counts what is continuous."""


class RecipeSpace(BoundSpace):
    """A space in the recipe encoding, on one model.

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
        self.placements = Placements(values, modules, target)
        self.left_out = self.placements.left_out
        everything = self.placements.mixtures
        if not everything:
            raise no_method(self.left_out, modules)
        cheapest = min(everything.values(), key=lambda mixture: mixture.minimum[mixture.last])
        least = cheapest.minimum[cheapest.last]
        if not limits.fits(least):
            raise limits.refuse(least, modules.base_params)
        if limits.params is None:
            # The ceiling stands in for the limit, but never so low that nothing is left.
            ceiling = max(int(values.ceiling * modules.base_params), least)
            self.within = Limits(space_limit=ceiling)
        else:
            self.within = limits
        self.mixtures = self.placements.within(self.within)
        self._cheapest = cheapest
        reached = {name for mixture in self.mixtures.values() for name in mixture.methods}
        self.methods = tuple(name for name in METHODS if name in reached)
        self.largest_params = min(
            max(mixture.most() for mixture in self.mixtures.values()), self.within.params or least
        )
        self.dimensions, self._fixed = self._make_dimensions()
        self._prior = RecipePrior(self)
        self._parts: dict[tuple[int, int, int | None, float], list[tuple[str, Part]]] = {}

    def _make_dimensions(self) -> tuple[tuple[Dimension, ...], dict[str, Scalar]]:
        space, dimensions, fixed = self.values, list[Dimension](), dict[str, Scalar]()
        placements = self.mixtures

        def used(name: str) -> tuple[Scalar, ...]:
            return tuple(dict.fromkeys(getattr(placement, name) for placement in placements))

        def groups(slot: str) -> list[Group]:
            return [group for mixture in placements.values() for kind, group in mixture.groups if kind == slot]

        apart = {
            name
            for (name, where), group in self.placements.attention.items()
            if group is not None
            and where == "qv"
            and (other := self.placements.attention.get((name, "all"))) is not None
            and other.cells != group.cells
        }
        sites = used("sites") if any(p.attention in apart for p in placements) else (space.attention_sites[-1],)
        sized = [slot for slot in ("attention", "block") if any(group.sized for group in groups(slot))]
        vary(Choice("attention", used("attention")), dimensions, fixed)
        vary(Choice("attention_sites", sites), dimensions, fixed)
        vary(Choice("block", used("block")), dimensions, fixed)
        vary(Choice("extra", used("extra")), dimensions, fixed)
        vary(Choice("prefix", tuple(sorted(used("prefix"))), ordered=True), dimensions, fixed)
        share = space.share if sized else (space.share[1],) * 2
        vary(Real("share", share[0], share[1], log=True), dimensions, fixed)
        free = bool(sized) and not space.uniform
        split = space.split if free and len(sized) == 2 and space.split is not None else (0.5, 0.5)
        vary(Real("split", *split), dimensions, fixed)
        vary(Real("start", *space.start), dimensions, fixed)
        vary(Real("tilt", *(space.tilt if free else (0.0, 0.0))), dimensions, fixed)
        rate = (0.0, 0.0) if space.faithful else space.rate_offset
        vary(Real("rate", *rate), dimensions, fixed)
        vary(Choice("batch", space.batch, ordered=True), dimensions, fixed)
        vary(Choice("dropout", space.dropout if sized or groups("prefix") else (0.0,), ordered=True), dimensions, fixed)
        scales = space.scale if any(scaled(METHODS[name]) for name in self.methods) else space.scale[:1]
        vary(Choice("scale", scales, ordered=True), dimensions, fixed)
        return tuple(dimensions), fixed

    def decode(self, values: Values) -> Configuration:
        """The configuration that a point stands for.

        What the model lacks or the target refuses falls away. If the smallest sizes are over the limit, then in this
        order, until it fits: the prefix gets shorter, the lowest adapted block rises, the extra goes, sites go
        (attention only on queries and values, adapters only after the feed-forward part), the dearest method goes; one
        part stays.
        """
        full = point(self.dimensions, self._fixed, values)
        wanted = Placement(
            str(full["attention"]),
            str(full["attention_sites"]),
            str(full["block"]),
            str(full["extra"]),
            int(full["prefix"]),
        )
        blocks = self.modules.blocks
        mixture, start = self._repaired(
            self.placements.lawful(wanted), min(int(float(full["start"]) * blocks), blocks - 1)
        )
        return self._build(mixture, start, full)

    def smallest(self) -> Configuration:
        """The configuration with the fewest adapter parameters, with middle values for its training."""
        full = point(self.dimensions, self._fixed, self.draw(0, 0))
        full.update(share=self.values.share[0], rate=0.0, batch=self.values.batch[len(self.values.batch) // 2])
        full.update(dropout=self.values.dropout[0], scale=self.values.scale[0])
        return self._build(self._cheapest, self._cheapest.last, full, budget=0)

    def draw(self, index: int, seed: int) -> Values:
        """Point number `index` of the prior (`autopeft.space.prior`)."""
        return self._prior.draw(index, seed)

    def unlimited(self) -> BoundSpace:
        """The same space on the same model without any limit."""
        return RecipeSpace(self.values, self.modules, Limits(), self.target)

    def size(self) -> float:
        """How many configurations there are, learning rates not counted.

        Methods, places, prefix lengths, lowest blocks, batch sizes, dropouts and scales are counted one by one; the
        share of the limit in 20 steps, the split in 9 and the tilt in 17 where they vary (one size for all: the sizes
        that fit are counted).
        """
        varying = {dimension.name for dimension in self.dimensions}
        batches = len(self.values.batch)
        starts = self._starts()
        total, seen = 0.0, set()
        for mixture in self.mixtures.values():
            same = (
                mixture.placement.attention,
                mixture.placement.block,
                mixture.placement.extra,
                mixture.placement.prefix,
            )
            key = (
                *same,
                mixture.placement.sites if "attention_sites" in varying and mixture.placement.attention != NONE else "",
            )
            if key in seen:
                continue
            seen.add(key)
            sized = [group for slot, group in mixture.groups if group.sized and slot != "prefix"]
            inner = len(self.values.dropout) if sized or mixture.placement.prefix else 1
            inner *= len(self.values.scale) if any(scaled(METHODS[name]) for name in mixture.methods) else 1
            if sized and self.values.uniform:
                divisions = len(set(sized[0].cells[0].sizes).intersection(*(group.cells[0].sizes for group in sized)))
            elif sized:
                divisions = math.prod(_STEPS[n] for n in ("share", "tilt") if n in varying)
                divisions *= _STEPS["split"] if len(sized) == 2 and "split" in varying else 1
            else:
                divisions = 1
            fitting = sum(1 for start in starts if start <= mixture.last and self.within.fits(mixture.minimum[start]))
            total += float(max(fitting, 1)) * batches * inner * divisions
        return total

    def _starts(self) -> range:
        low, high = self.values.start
        return range(int(low * self.modules.blocks), min(int(high * self.modules.blocks), self.modules.blocks - 1) + 1)

    def _repaired(self, wanted: Placement | None, start: int) -> tuple[Mixture, int]:
        """A mixture that fits the limits, and its lowest block: the wanted one where possible."""
        everything = self.placements.mixtures
        while wanted is not None:
            mixture = everything.get(wanted)
            if mixture is not None:
                begin = min(start, mixture.last)
                for length in self._shorter(wanted):
                    shorter = everything.get(replace(wanted, prefix=length))
                    if shorter is not None and self.within.fits(shorter.minimum[begin]):
                        return shorter, begin
                    mixture = shorter or mixture
                lowest = mixture.lowest(self.within, begin)
                if lowest is not None:
                    return mixture, lowest
            wanted = self._without_one(wanted)
        lowest = self._cheapest.lowest(self.within, start)
        return self._cheapest, self._cheapest.last if lowest is None else lowest

    def _shorter(self, wanted: Placement) -> Sequence[int]:
        """The prefix lengths to try, longest first."""
        lengths = [length for length in self.placements.lengths if 0 < length <= wanted.prefix]
        return sorted(lengths, reverse=True) or (0,)

    def _without_one(self, wanted: Placement) -> Placement | None:
        """A simpler placement: without the extra, on fewer sites, without its dearest method; None at the last one."""
        everything = self.placements.mixtures
        mixture = everything.get(wanted)
        if mixture is None:
            return None
        if wanted.extra != NONE and len(mixture.groups) > 1:
            return replace(wanted, extra=NONE)
        fewer = (replace(wanted, sites="qv"), replace(wanted, block=wanted.block.removesuffix(AFTER_ATTENTION)))
        for placement in fewer:
            if placement != wanted and placement in everything:
                return placement
        if len(mixture.groups) == 1:
            return None
        last = mixture.last
        costs = {slot: group.suffix_costs()[last] for slot, group in mixture.groups}
        dearest = max(costs, key=lambda slot: costs[slot])
        return {
            "attention": replace(wanted, attention=NONE),
            "block": replace(wanted, block=NONE),
            "prefix": replace(wanted, prefix=0),
        }[dearest]

    def _build(self, mixture: Mixture, start: int, full: Values, budget: int | None = None) -> Configuration:
        """The configuration of a mixture from a block upwards, at the share of the limit that the point names."""
        least = mixture.minimum[start]
        if budget is None:
            budget = int(float(full["share"]) * self.largest_params)
        spare = max(budget - least, 0)
        chosen = self._sizes(mixture, start, full, spare)
        scale = float(full["scale"])
        sites: dict[str, list[tuple[int, Part]]] = {}
        for slot, group in mixture.groups:
            rank = depth_in_site(group.method)
            for index, cell in enumerate(group.above(start)):
                size = mixture.placement.prefix if slot == "prefix" else chosen.get((slot, index))
                for name, part in self._cell_parts(group, cell, size, scale):
                    sites.setdefault(name, []).append((rank, part))
        ordered = {name: [part for _, part in sorted(parts, key=lambda item: item[0])] for name, parts in sites.items()}
        inner = any(group.sized for _, group in mixture.groups)
        return Configuration.of(ordered, training(self.values, mixture.methods, inner, full))

    def _sizes(self, mixture: Mixture, start: int, full: Values, spare: int) -> dict[tuple[str, int], int]:
        """The size of each cell, by slot and number among the adapted blocks.

        Args:
            mixture: What is used.
            start: The lowest adapted block.
            full: A complete point.
            spare: Parameters beyond those of the smallest sizes.
        """
        sized = [(slot, group.above(start)) for slot, group in mixture.groups if group.sized and slot != "prefix"]
        if not sized:
            return {}
        keys = [(slot, index) for slot, cells in sized for index in range(len(cells))]
        cells = [cell for _, group_cells in sized for cell in group_cells]
        budget = spare + sum(cell.costs[0] for cell in cells)
        if self.values.uniform:
            indices = allot_uniform(cells, budget)
        else:
            tilt, split = float(full["tilt"]), float(full["split"])
            claims: list[Claim] = []
            for slot, group_cells in sized:
                if len(sized) == 1:
                    share = 1.0
                elif self.values.split is None:
                    share = float(sum(cell.costs[0] for cell in group_cells))
                else:
                    share = split if slot == "attention" else 1 - split
                claims.extend(lean(group_cells, tilt, share))
            indices = allot(claims, budget)
        return {key: cell.sizes[index] for key, cell, index in zip(keys, cells, indices, strict=True)}

    def _cell_parts(self, group: Group, cell: Cell, size: int | None, scale: float) -> list[tuple[str, Part]]:
        key = (id(group), cell.block, size, scale)
        if key not in self._parts:
            self._parts[key] = group.parts(cell, size, scale)
        return self._parts[key]


def no_method(left_out: Mapping[str, str], modules: ModuleMap) -> NothingFeasible:
    """The error for a space none of whose methods the model and the target admit."""
    reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
    detail = f"No method of this space can be used on this {modules.architecture} model: {reasons}."
    binds = "target" if any("target" in reason for reason in left_out.values()) else "space.methods"
    if binds == "target":
        detail += " Use another target, or a space with what this one loads (`autopeft ls methods`)."
    return NothingFeasible(binds, {}, detail)
