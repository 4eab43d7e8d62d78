"""Where a method sits in each block, which sizes it may take there, and what each size costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from autopeft.methods import METHODS, Method
from autopeft.methods.base import ATTENTION, MLP
from autopeft.space.configuration import Part
from autopeft.space.modules import ModuleMap, Site

__all__ = ["LAYER_ORDER", "Cell", "Group", "attention_group", "block_group", "everywhere", "sizes_and_costs"]

LAYER_ORDER = ("attention", "extra", "block", "prefix")
"""Inner to outer on one site: changes of the weights, of the bias, adapters after the sublayer, what attention sees."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One method in one block.

    Attributes:
        block: The block's index.
        sites: Its sites there; all take the same size.
        sizes: The sizes that are legal at every one of them, ascending; empty for a method of fixed size.
        costs: Adapter parameters at each size; exactly one entry for a method of fixed size.
    """

    block: int
    sites: tuple[Site, ...]
    sizes: tuple[int, ...]
    costs: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """One method over a model.

    Attributes:
        method: The method.
        cells: By ascending block; blocks in which it has no site are left out.
        blocks: Number of blocks of the model.
    """

    method: Method
    cells: tuple[Cell, ...]
    blocks: int

    @property
    def sized(self) -> bool:
        """Whether the method has a size to choose."""
        return self.method.size is not None

    @cached_property
    def first(self) -> dict[int, int]:
        """Lowest adapted block -> index of the first cell from there on."""
        found, index = {}, len(self.cells)
        for block in range(self.blocks - 1, -1, -1):
            while index > 0 and self.cells[index - 1].block >= block:
                index -= 1
            found[block] = index
        return found

    @property
    def last_block(self) -> int:
        """The highest block in which it has a site."""
        return self.cells[-1].block

    def above(self, start: int) -> tuple[Cell, ...]:
        """The cells from a block upwards."""
        return self.cells[self.first[start] :]

    def suffix_costs(self, size: int | None = None) -> list[int]:
        """Adapter parameters from each block upwards, at the smallest size or at a given one.

        Args:
            size: A size that is legal in every cell; None takes the smallest of each cell.

        Returns:
            One sum for each block of the model, not rising.
        """
        sums, total, index = [0] * self.blocks, 0, len(self.cells)
        for block in range(self.blocks - 1, -1, -1):
            while index > 0 and self.cells[index - 1].block >= block:
                index -= 1
                cell = self.cells[index]
                total += cell.costs[0 if size is None else cell.sizes.index(size)]
            sums[block] = total
        return sums

    def most(self, start: int = 0) -> int:
        """Adapter parameters at the largest sizes."""
        return sum(cell.costs[-1] for cell in self.above(start))

    def parts(self, cell: Cell, size: int | None, scale: float | None) -> list[tuple[str, Part]]:
        """The parts of one cell, as `(module name, part)`."""
        made = []
        for site in cell.sites:
            knobs = self.method.knobs(site, size)
            if scale is not None and scaled(self.method):
                knobs["scale"] = float(scale)
            made.append((site.name, Part.of(self.method.name, knobs)))
        return made


def scaled(method: Method) -> bool:
    """Whether the space's effective scale applies: low-rank updates, whose scale and rate trade off."""
    return method.family == "reparameterized" and "scale" in method.defaults


def depth_in_site(method: Method) -> int:
    """Rank of a method among the parts of one site, from the inside out."""
    return -1 if method.innermost else min(LAYER_ORDER.index(slot) for slot in method.slots)


def attention_group(name: str, where: str, modules: ModuleMap, legal: Sequence[int] | None) -> Group | None:
    """A method on the attention layers.

    Args:
        name: The method.
        where: ``qv`` or ``all``. A method that cannot sit on queries (such as (IA)^3) has sites of its own, and takes
            all of them either way.
        modules: The model.
        legal: Sizes that replace the table's, or None.

    Returns:
        None when the model has no such site.
    """
    method = METHODS[name]
    roles = method.roles & ATTENTION
    if where == "qv" and "query" in roles:
        roles &= {"query", "value", "qkv"}
    return everywhere(method, roles, modules, legal)


def block_group(name: str, where: str, modules: ModuleMap, legal: Sequence[int] | None) -> Group | None:
    """A method on the feed-forward part of the blocks, for ``both`` also after attention; None without such sites."""
    method = METHODS[name]
    roles = method.roles if where == "both" else method.roles & MLP
    return everywhere(method, roles, modules, legal)


def after_sublayers(method: Method) -> bool:
    """Whether a block method may come after attention as well as after the feed-forward part."""
    return "attention" not in method.slots and bool(method.roles & ATTENTION) and bool(method.roles & MLP)


def everywhere(method: Method, roles: Iterable[str], modules: ModuleMap, legal: Sequence[int] | None) -> Group | None:
    """A method on all sites of some roles; None when it fits none of them."""
    wanted = frozenset(roles)
    by_block: dict[int, list[Site]] = {}
    for site in modules.sites:
        if site.role in wanted and method.fits(site):
            by_block.setdefault(site.block, []).append(site)
    cells = []
    # Blocks repeat: sites that look alike have the same sizes and costs.
    known: dict[tuple[object, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for block in sorted(by_block):
        sites = tuple(by_block[block])
        look = tuple((s.role, s.in_features, s.out_features, s.params, s.read_features, s.kv_features) for s in sites)
        if look not in known:
            known[look] = sizes_and_costs(method, sites, legal)
        sizes, costs = known[look]
        if costs:
            cells.append(Cell(block, sites, sizes, costs))
    return Group(method, tuple(cells), modules.blocks) if cells else None


def sizes_and_costs(
    method: Method, sites: Sequence[Site], legal: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes that are legal at all of some sites, and what each costs there; no sizes for a method of fixed size."""
    if method.size is None:
        return (), (sum(method.count(site, method.knobs(site)) for site in sites),)
    shared = set(method.sizes(sites[0]))
    for site in sites[1:]:
        shared &= set(method.sizes(site))
    if legal is not None and not method.any_size:
        shared &= set(legal)
    elif legal is not None:
        # A size that the table does not list is still exact in its formulas; only the width of the site bounds it.
        largest = max(max(shared, default=0), min(min(site.in_features, site.out_features) for site in sites))
        shared = {size for size in legal if size <= largest}
    sizes = tuple(sorted(shared))
    return sizes, tuple(sum(method.count(site, method.knobs(site, size)) for site in sites) for size in sizes)
