"""The module map: the places in one model that can be adapted, as plain values.

`autopeft.inspect` reads it off a built model; everything below reasons about it without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Role = Literal["query", "key", "value", "qkv", "output", "up", "gate", "down", "norm", "embedding"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Site:
    """One module that can carry adapter parts.

    Attributes:
        name: Full module name in the carrier model, e.g. ``encoder.layer.0.attention.self.query``.
        block: Index of the transformer block, from 0 at the input; 0 for an embedding.
        role: What the module does in its block.
        in_features: Width of its input (of the norm, for a norm; tokens of the vocabulary, for an embedding).
        out_features: Width of its output.
        bias: Whether it has a bias.
        params: Its own parameters.
        reads: For a ``down`` site, the module that reads the input of the feed-forward block; None elsewhere.
        read_features: Width of that input; None where `reads` is None.
        kv_features: Key heads x head width, on the site that makes the keys of an attention layer that goes through
            transformers' attention interface; None elsewhere (no per-layer prefix there).
        transposed: Whether its weight is stored `[in, out]`, as GPT-2's is.
        crosses: Whether it makes keys of other states than those that the queries are made of (cross-attention).
    """

    name: str
    block: int
    role: Role
    in_features: int
    out_features: int
    bias: bool
    params: int
    reads: str | None = None
    read_features: int | None = None
    kv_features: int | None = None
    transposed: bool = False
    crosses: bool = False


@dataclass(frozen=True, slots=True)
class ModuleMap:
    """All sites of a model.

    Attributes:
        sites: In the order in which they run.
        blocks: Number of transformer blocks.
        base_params: Parameters of the base model, without head.
        hidden_size: Width of the residual stream.
        architecture: The model type of its config, for messages only.
        reads_tokens: Whether it embeds token ids (an image model does not).
        writes_tokens: Whether it has an output layer over the vocabulary.
    """

    sites: tuple[Site, ...]
    blocks: int
    base_params: int
    hidden_size: int
    architecture: str
    reads_tokens: bool = True
    writes_tokens: bool = False

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    def select(self, roles: Iterable[str], block: int | None = None) -> tuple[Site, ...]:
        """The sites of some roles, in one block or in all."""
        wanted = frozenset(roles)
        return tuple(s for s in self.sites if s.role in wanted and (block is None or s.block == block))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModuleMap:
        """The inverse of `to_dict`."""
        return cls(**{**values, "sites": tuple(Site(**site) for site in values["sites"])})
