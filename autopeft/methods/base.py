"""What a row of the table of methods says.

A method is described by plain values and formulas, so that spaces, budgets and the command line can reason about it
without torch. A method that peft ships is one file here (`stock` says which peft config builds it); a method that
peft lacks is one file here and one torch layer of the same name in `autopeft.compose.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Family = Literal["additive", "selective", "reparameterized", "hybrid"]
Slot = Literal["attention", "block", "extra", "prefix"]
Knobs = Mapping[str, Any]

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes that are tried for ranks and bottlenecks: neighbours are alike, so that budgets can be met."""


class SiteShape(Protocol):
    """What a formula may ask of a place in a model (see `autopeft.space.modules.Site`)."""

    @property
    def role(self) -> str: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def bias(self) -> bool: ...
    @property
    def params(self) -> int: ...
    @property
    def reads(self) -> str | None: ...
    @property
    def read_features(self) -> int | None: ...
    @property
    def kv_features(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a method comes from."""

    title: str
    link: str


@dataclass(frozen=True, slots=True)
class Rate:
    """Learning rates that are worth trying, for AdamW on a mean loss."""

    low: float
    default: float
    high: float


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    Attributes:
        name: The name in configurations, spaces and reports.
        family: Its family in the surveys (arXiv 2403.14608, 2501.13787).
        paper: The paper that proposed it.
        roles: Roles of the sites that it can sit on.
        slots: Slots of a recipe that it can fill.
        rate: Learning rates.
        count: `(site, knobs) -> int`: adapter parameters that one part adds. Exact.
        size: The knob that spends parameters, or None when the method has a fixed size per site.
        sizes: `site -> ascending legal values of the size knob`; empty when `size` is None or nothing is legal there.
        defaults: The other knobs and their values.
        site_knobs: `site -> knobs that follow from the site` (e.g. where a parallel adapter reads).
        allows: `site -> bool`: whether it can sit on a site of a fitting role.
        mergeable: Whether the trained part can be folded into the base weights exactly.
        targets: What can load an adapter made of this method alone: any of ``peft``, ``merged``, ``vllm``.
        identity: Whether the adapted model equals the base before training.
        stock: `knobs -> (peft type, keyword arguments of its config)` for a method of peft; None for own layers.
        layer: The key of an own layer in `autopeft.compose.layers`; None for stock methods.
        needs_attention_interface: Works only where the model calls attention through transformers' interface.
        base: ``shared`` when the layer only adds to the base module's own output; ``own`` otherwise.
        tier: 1 in the default space, 2 by name, 3 experimental.
    """

    name: str
    family: Family
    paper: Paper
    roles: frozenset[str]
    slots: tuple[Slot, ...]
    rate: Rate
    count: Callable[[SiteShape, Knobs], int]
    size: str | None = None
    sizes: Callable[[SiteShape], Sequence[int]] = lambda site: ()
    defaults: Knobs = field(default_factory=dict)
    site_knobs: Callable[[SiteShape], Knobs] = lambda site: {}
    allows: Callable[[SiteShape], bool] = lambda site: True
    mergeable: bool = False
    targets: frozenset[str] = frozenset()
    identity: bool = True
    stock: Callable[[Knobs], tuple[str, dict[str, Any]]] | None = None
    layer: str | None = None
    needs_attention_interface: bool = False
    base: Literal["shared", "own"] = "shared"
    tier: int = 1

    def fits(self, site: SiteShape) -> bool:
        """Whether a part of this method can sit on the site at its smallest size."""
        return site.role in self.roles and self.allows(site) and (self.size is None or bool(self.sizes(site)))

    def knobs(self, site: SiteShape, size: int | None = None) -> dict[str, Any]:
        """All knobs of a part of this method at a site.

        Args:
            site: Where the part sits.
            size: The value of the size knob; required exactly when the method has one.
        """
        knobs = {**self.defaults, **self.site_knobs(site)}
        if self.size is not None:
            if size is None:
                raise ValueError(f"{self.name} needs a {self.size}")
            knobs[self.size] = size
        return knobs


ATTENTION = frozenset({"query", "key", "value", "qkv", "output"})
MLP = frozenset({"up", "gate", "down"})
LINEAR = ATTENTION | MLP


def ladder(largest: int) -> tuple[int, ...]:
    """The sizes of `LADDER` up to `largest`."""
    return tuple(size for size in LADDER if size <= largest)
