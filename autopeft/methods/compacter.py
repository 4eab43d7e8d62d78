"""Compacter: a serial bottleneck whose matrices are sums of Kronecker products with rank-one factors."""

from __future__ import annotations

from autopeft.methods.base import Knobs, Method, Paper, Rate, SiteShape

TERMS = 4
"""Kronecker terms of each matrix; both widths must be divisible by it."""


def _count(site: SiteShape, knobs: Knobs) -> int:
    size, width, terms = int(knobs["size"]), site.out_features, int(knobs["terms"])
    # Two matrices, each of `terms` small squares and as many pairs of vectors; two biases.
    return 2 * (terms**3 + width + size) + size + width


COMPACTER = Method(
    name="compacter",
    family="additive",
    paper=Paper("Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", "https://arxiv.org/abs/2106.04647"),
    roles=frozenset({"output", "down"}),
    slots=("block",),
    rate=Rate(3e-4, 3e-3, 2e-2),
    count=_count,
    size="size",
    sizes=lambda site: tuple(
        size for size in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256) if size <= site.out_features
    ),
    defaults={"activation": "gelu", "scale": 1.0, "terms": TERMS},
    choices={"activation": ("relu", "gelu", "tanh", "silu")},
    allows=lambda site: site.out_features % TERMS == 0,
    layer="compacter",
    tier=2,
    quantised=True,
)
