"""What a row of the table of methods says.

A method is described by plain values and formulas, so that spaces, budgets and the command line can reason about it
without torch. A method that peft ships is one row in a file here (`peft_type` and `stock` say which config builds it);
a method that peft lacks is one row and one torch layer of the same name in `autopeft.compose.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Family = Literal["additive", "selective", "reparameterized", "hybrid"]
Slot = Literal["attention", "block", "extra", "prefix"]
Knobs = Mapping[str, Any]

TENSORS = {"ADALORA": "LORA"}
"""Types of peft whose tensors are named as another type's."""

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes that are tried for ranks and bottlenecks: neighbours are alike, so that budgets can be met."""


SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Effective scales (alpha / r) that are worth trying; scale and learning rate trade off."""


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
    @property
    def transposed(self) -> bool: ...
    @property
    def crosses(self) -> bool: ...


class ModelShape(Protocol):
    """What a formula about the whole model may ask (see `autopeft.space.modules.ModuleMap`)."""

    @property
    def sites(self) -> Sequence[SiteShape]: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def reads_tokens(self) -> bool: ...
    @property
    def writes_tokens(self) -> bool: ...


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
        count: `(site, knobs) -> int`: adapter parameters that one part adds. Exact. Methods about the whole model are
            asked with the module map in place of a site, here and in the next ones.
        size: The knob that spends parameters, or None when the method has a fixed size per site.
        sizes: `site -> ascending legal values of the size knob`; empty when `size` is None or nothing is legal there.
        any_size: Whether other sizes than those listed are legal as well, up to the width of the site.
        defaults: The other knobs and their values.
        site_knobs: `site -> knobs that follow from the site` (e.g. where a parallel adapter reads).
        allows: `site -> bool`: whether it can sit on a site of a fitting role.
        mergeable: Whether the trained part can be folded into the base weights exactly.
        targets: What can load an adapter made of this method alone: any of ``peft``, ``merged``, ``vllm``.
        beside: Methods of peft beside which plain peft loads it too, though not alone.
        identity: Whether the adapted model equals the base before training.
        peft_type: The type of peft's config for a method that peft ships; None for own layers.
        stock: `knobs -> keyword arguments of that config`.
        patterns: Keyword argument of the stock config -> its field that holds other values for single modules.
        dropout: Field of the stock config for dropout on the input, or None where there is none.
        layer: The key of an own layer in `autopeft.compose.layers`; None for stock methods.
        needs_attention_interface: Works only where the model calls attention through transformers' interface.
        innermost: Whether it replaces the module's own computation, so that no other part can sit inside of it.
        base: ``shared`` when the layer asks the frozen module once, with its own input, so that several adapters can
            share that output; ``own`` when it asks with something else, or not at all.
        extra_bytes: `(site, knobs) -> bytes` on disk beside the parameters: positions, norms; negative where not all
            of the parameters are written.
        lowers: Whether plain peft reads back exactly what was trained, where one config says it all.
        quantised: Whether it was run on 4-bit and on 8-bit bases (bitsandbytes).
        predictable: Whether a training step of it runs on tensors without values, so that its memory is known exactly.
        bounded: Whether a training step of it keeps less than one of DoRA would, on any model: no tensor as large as a
            weight, and per row no more than inputs and outputs of what it sits on.
        recomputable: Whether the blocks that it sits in can be run a second time in the backward pass.
        builds_on_meta: Whether it can be built without weights on torch's meta device.
        choices: Other knobs and their legal values.
        chooses: What places are chosen by when a trial begins: ``magnitude`` of the frozen weights, ``fisher``
            information of the training data, ``tokens`` or whole ``examples`` of it; None where nothing is.
        whole: Whether it is about the whole model and cannot be mixed: shared state, or a prompt.
        unsearchable: Why no search offers it, or None.
        tier: 1 in the default space, 2 by name, 3 experimental.
    """

    name: str
    family: Family
    paper: Paper
    roles: frozenset[str]
    slots: tuple[Slot, ...]
    rate: Rate
    count: Callable[[Any, Knobs], int]
    size: str | None = None
    sizes: Callable[[Any], Sequence[int]] = lambda site: ()
    any_size: bool = False
    defaults: Knobs = field(default_factory=dict)
    site_knobs: Callable[[Any], Knobs] = lambda site: {}
    allows: Callable[[Any], bool] = lambda site: True
    mergeable: bool = False
    targets: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    identity: bool = True
    peft_type: str | None = None
    stock: Callable[[Knobs], dict[str, Any]] = lambda knobs: {}
    patterns: Mapping[str, str] = field(default_factory=dict)
    dropout: str | None = None
    layer: str | None = None
    needs_attention_interface: bool = False
    base: Literal["shared", "own"] = "shared"
    innermost: bool = False
    extra_bytes: Callable[[Any, Knobs], int] = lambda site, knobs: 0
    lowers: bool = True
    quantised: bool = False
    predictable: bool = True
    bounded: bool = False
    recomputable: bool = True
    builds_on_meta: bool = True
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    chooses: Literal["magnitude", "fisher", "tokens", "examples"] | None = None
    whole: bool = False
    unsearchable: str | None = None
    tier: int = 1

    @property
    def hosted(self) -> bool:
        """Whether it sits on single modules, so that it can be part of a mixture."""
        return bool(self.slots) and self.unsearchable is None and not self.whole

    @property
    def packable(self) -> bool:
        """Whether it can be trained beside other configurations on one base: rows part only at single modules."""
        return not self.whole and bool(self.slots)

    @property
    def values(self) -> dict[str, tuple[Any, ...]]:
        """Knob beside the size -> values that are worth trying, the default among them."""
        return {knob: self.choices.get(knob, SCALES if knob == "scale" else (v,)) for knob, v in self.defaults.items()}

    def clashes(self, other: Method) -> bool:
        """Whether the two can never sit on the same module, though both fit there."""
        if not self.roles & other.roles:
            return False
        families = [TENSORS.get(str(row.peft_type), row.peft_type or row.layer) for row in (self, other)]
        return families[0] == families[1] or (self.innermost and other.innermost)

    def fits(self, site: SiteShape) -> bool:
        """Whether a part of this method can sit on the site at its smallest size."""
        return site.role in self.roles and self.allows(site) and (self.size is None or bool(self.sizes(site)))

    def knobs(self, site: Any, size: int | None = None) -> dict[str, Any]:
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


def divisors(number: int, most: int) -> tuple[int, ...]:
    """The divisors of a number from 2 to `most`, ascending."""
    return tuple(size for size in range(2, most + 1) if number % size == 0)


def half_rank(site: SiteShape) -> tuple[int, ...]:
    """Ranks of a low-rank update: beyond half of the full rank it costs more than the weight itself."""
    return ladder(min(site.in_features, site.out_features) // 2)


def low_rank(site: SiteShape, knobs: Knobs) -> int:
    """Parameters of a pair of factors `[out, r]` and `[r, in]`."""
    return int(knobs["r"]) * (site.in_features + site.out_features)


def is_linear(site: SiteShape) -> bool:
    """Whether a site's weight is stored as torch's own linear layers store it (GPT-2's is not)."""
    return not site.transposed


def either_way(site: SiteShape) -> bool:
    """Also weights that are stored as GPT-2's are."""
    return True


def on_linear(name: str, **fields: Any) -> Method:
    """A row about an update of any linear layer's weight: mergeable, by name, where the weight is torch's.

    Args:
        name: The method.
        fields: Further fields of `Method`, and what differs from this.
    """
    common: dict[str, Any] = {
        "roles": LINEAR,
        "slots": ("attention", "block"),
        "allows": is_linear,
        "mergeable": True,
        "targets": frozenset({"merged"}),
        "tier": 2,
    }
    return Method(name=name, **{**common, **fields})
