"""The discrete half of a recipe: which methods go where, which of these mixtures a target and a limit admit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from autopeft.methods import METHODS
from autopeft.space.bound import Limits
from autopeft.space.groups import Group, after_sublayers, attention_group, block_group, everywhere
from autopeft.space.modules import ModuleMap
from autopeft.space.values import SpaceValues

__all__ = ["NONE", "Mixture", "Placement", "Placements", "admits"]

NONE = "none"
AFTER_ATTENTION = "+attention"


def admits(target: str, methods: Sequence[str]) -> bool:
    """Whether a target can load an adapter that mixes these methods.

    Stock peft loads one method at a time, and trained biases beside it where its config has a field for them; merging
    folds any mixture of mergeable parts; vLLM runs LoRA alone.
    """
    if target == "any":
        return True
    if target == "peft":
        methods = [name for name in methods if not METHODS[name].beside.intersection(methods)]
    return all(target in METHODS[name].targets for name in methods) and (target == "merged" or len(set(methods)) == 1)


@dataclass(frozen=True, slots=True)
class Placement:
    """The discrete choices of a recipe.

    Attributes:
        attention: Method on the attention layers, or ``none``.
        sites: Where it sits: ``qv`` or ``all``.
        block: Method on the feed-forward part, or ``none``; with ``+attention`` it comes after attention as well.
        extra: Method over whole blocks, or ``none``.
        prefix: Length of the prefix; 0 is none.
    """

    attention: str
    sites: str
    block: str
    extra: str
    prefix: int


@dataclass(frozen=True)
class Mixture:
    """A placement on one model.

    Attributes:
        placement: The choices.
        groups: `(slot, group)` of what is used.
        minimum: Fewest adapter parameters by lowest adapted block.
        last: Highest block that everything used can start at.
    """

    placement: Placement
    groups: tuple[tuple[str, Group], ...]
    minimum: tuple[int, ...]
    last: int

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods used."""
        return tuple(sorted({group.method.name for _, group in self.groups}))

    def lowest(self, limits: Limits, start: int = 0) -> int | None:
        """The lowest block from `start` on from which it fits the limits, or None."""
        for block in range(min(start, self.last), self.last + 1):
            if limits.fits(self.minimum[block]):
                return block
        return None

    def most(self) -> int:
        """Adapter parameters at the largest sizes, from the lowest block."""
        length = self.placement.prefix
        return sum(group.suffix_costs(length)[0] if slot == "prefix" else group.most() for slot, group in self.groups)


class Placements:
    """All placements of a space that a model and a target admit.

    Args:
        space: The space.
        modules: The model.
        target: What must load the winner.
    """

    def __init__(self, space: SpaceValues, modules: ModuleMap, target: str) -> None:
        self.left_out: dict[str, str] = {}
        self._target = target
        names = []
        for name in space.methods:
            barred = _barred(name, space, target)
            if barred is None:
                names.append(name)
            else:
                self.left_out[name] = barred
        self.attention = self._attention(space, modules, names)
        self.block = self._block(space, modules, names)
        self.extra = {name: self._group(name, modules, space) for name in names if "extra" in METHODS[name].slots}
        self.prefix = self._prefix(space, modules, names)
        self.lengths = self._lengths(space)
        self.mixtures: dict[Placement, Mixture] = {mixture.placement: mixture for mixture in self._all(space)}
        reached = {method for mixture in self.mixtures.values() for method in mixture.methods}
        for name in names:
            if name not in reached:
                self.left_out.setdefault(name, _absence(name, modules))

    def _attention(
        self, space: SpaceValues, modules: ModuleMap, names: Sequence[str]
    ) -> dict[tuple[str, str], Group | None]:
        found = {}
        for name in names:
            if "attention" in METHODS[name].slots:
                for where in space.attention_sites:
                    found[name, where] = attention_group(name, where, modules, space.legal_sizes(name))
        return found

    def _block(self, space: SpaceValues, modules: ModuleMap, names: Sequence[str]) -> dict[str, Group | None]:
        found = {}
        for name in names:
            method = METHODS[name]
            if "block" not in method.slots:
                continue
            legal = space.legal_sizes(name)
            if not after_sublayers(method) or "ffn" in space.block_sites:
                found[name] = block_group(name, "ffn", modules, legal)
            if after_sublayers(method) and "both" in space.block_sites:
                found[name + AFTER_ATTENTION] = block_group(name, "both", modules, legal)
        return found

    def _group(self, name: str, modules: ModuleMap, space: SpaceValues) -> Group | None:
        method = METHODS[name]
        if "prefix" in method.slots:
            # The lengths of the space are the sizes of the prefix.
            legal = space.legal_sizes(name) or tuple(length for length in space.prefix if length)
            return everywhere(method, method.roles, modules, legal)
        return everywhere(method, method.roles, modules, space.legal_sizes(name))

    def _prefix(self, space: SpaceValues, modules: ModuleMap, names: Sequence[str]) -> tuple[str, Group] | None:
        """The first method that puts a prefix before attention; a recipe has a length for one of them only."""
        groups = {name: self._group(name, modules, space) for name in names if "prefix" in METHODS[name].slots}
        fitting = [(name, group) for name, group in groups.items() if group is not None]
        for name, _ in fitting[1:]:
            self.left_out[name] = f"a recipe has one kind of prefix, and that is {fitting[0][0]} here"
        return fitting[0] if fitting else None

    def _lengths(self, space: SpaceValues) -> tuple[int, ...]:
        if self.prefix is None:
            return (0,)
        name, group = self.prefix
        legal = set(group.cells[0].sizes).intersection(*(cell.sizes for cell in group.cells))
        wanted = legal if space.legal_sizes(name) else legal & set(space.prefix)
        return tuple(sorted(wanted | ({0} & set(space.prefix))))

    def _all(self, space: SpaceValues) -> Iterator[Mixture]:
        attention = [NONE, *dict.fromkeys(name for name, _ in self.attention)]
        blocks, extras = [NONE, *self.block], [NONE, *self.extra]
        for name, where, block, extra, length in product(
            attention, space.attention_sites, blocks, extras, self.lengths
        ):
            mixture = self._mixture(Placement(name, where, block, extra, length))
            if mixture is None or not admits(self._target, mixture.methods):
                continue
            if self._unmixed(space, mixture.methods):
                yield mixture

    def _unmixed(self, space: SpaceValues, methods: Sequence[str]) -> bool:
        if space.exclusive == "peft":
            # Two in one config are saved as that only where the target asks for it.
            return admits("peft", methods) and (len(methods) == 1 or self._target == "peft")
        return not space.exclusive or len(methods) == 1

    def _mixture(self, placement: Placement) -> Mixture | None:
        chosen: list[tuple[str, Group | None]] = []
        if placement.attention != NONE:
            chosen.append(("attention", self.attention[placement.attention, placement.sites]))
        if placement.block != NONE:
            chosen.append(("block", self.block[placement.block]))
        if placement.extra != NONE:
            chosen.append(("extra", self.extra[placement.extra]))
        if placement.prefix:
            chosen.append(("prefix", None if self.prefix is None else self.prefix[1]))
        groups = tuple((slot, group) for slot, group in chosen if group is not None)
        if not groups or len(groups) != len(chosen):
            return None
        sums = [self._sums(slot, group, placement.prefix) for slot, group in groups]
        minimum = tuple(map(sum, zip(*sums, strict=True)))
        return Mixture(placement, groups, minimum, min(group.last_block for _, group in groups))

    def _sums(self, slot: str, group: Group, length: int) -> Sequence[int]:
        key = (id(group), length if slot == "prefix" else 0)
        if key not in self._known_sums:
            self._known_sums[key] = group.suffix_costs(length if slot == "prefix" else None)
        return self._known_sums[key]

    @cached_property
    def _known_sums(self) -> dict[tuple[int, int], list[int]]:
        return {}

    def lawful(self, wanted: Placement) -> Placement | None:
        """The placement itself, or the nearest one that the model and the target admit; None when all is ``none``.

        Where the target wants a single method, the one on attention decides.
        """
        if wanted in self.mixtures:
            return wanted
        block = wanted.attention if wanted.attention in self.block else NONE
        # What is loaded beside the method on attention stays with it.
        beside = [replace(wanted, block=block, prefix=0)] if self._target == "peft" and wanted.block != NONE else []
        candidates = [
            # What the model lacks falls away first: one choice at a time.
            replace(wanted, prefix=0),
            replace(wanted, extra=NONE),
            replace(wanted, extra=NONE, prefix=0),
            *beside,
            replace(wanted, block=block if wanted.block != NONE else NONE, extra=NONE, prefix=0),
            replace(wanted, block=NONE, extra=NONE, prefix=0),
            replace(wanted, attention=NONE, extra=NONE, prefix=0),
            replace(wanted, attention=NONE, block=NONE, prefix=0),
            replace(wanted, attention=NONE, block=NONE, extra=NONE),
        ]
        return next((candidate for candidate in candidates if candidate in self.mixtures), None)

    def within(self, limits: Limits) -> dict[Placement, Mixture]:
        """The mixtures that fit the limits at some depth; methods that none of them uses are noted as left out."""
        fitting = {p: m for p, m in self.mixtures.items() if limits.fits(m.minimum[m.last])}
        reached = {name for mixture in fitting.values() for name in mixture.methods}
        for mixture in sorted(self.mixtures.values(), key=lambda m: m.minimum[m.last]):
            for name in mixture.methods:
                if name not in reached:
                    least = mixture.minimum[mixture.last]
                    reason = f"needs at least {least:,} adapter parameters here; the limit is {limits.params:,}"
                    self.left_out.setdefault(name, reason)
        return fitting


def _barred(name: str, space: SpaceValues, target: str) -> str | None:
    """Why a method of the space cannot be used with a target on any model, or None."""
    row = METHODS[name]
    if target == "peft" and space.exclusive is not True and row.beside.intersection(space.methods):
        return None
    if target != "any" and target not in row.targets:
        return f"cannot be loaded by the target {target}"
    if space.exclusive == "peft" and "peft" not in row.targets:
        return "is not loaded by plain peft without the target peft" if row.beside else "is not loaded by plain peft"
    return None


def _absence(name: str, modules: ModuleMap) -> str:
    method = METHODS[name]
    if method.needs_attention_interface and not any(site.kv_features for site in modules.sites):
        return f"{modules.architecture} does not call attention through transformers' interface"
    if not any(site.role in method.roles for site in modules.sites):
        return f"{modules.architecture} has no module with a role of {', '.join(sorted(method.roles))}"
    if name == "bias":
        return f"{modules.architecture} has no biases"
    return f"{modules.architecture} has no place where it fits, or the space gives it no size"
