"""Bottleneck adapters, serial (Houlsby, Pfeiffer) and parallel (He et al.)."""

from __future__ import annotations

from autopeft.methods.base import Knobs, Method, Paper, Rate, SiteShape, ladder


def _count_serial(site: SiteShape, knobs: Knobs) -> int:
    size, width = int(knobs["size"]), site.out_features
    return size * width + size + size * width + width


def _count_parallel(site: SiteShape, knobs: Knobs) -> int:
    size, width = int(knobs["size"]), site.out_features
    read = site.read_features if site.read_features is not None else site.in_features
    return size * read + size + size * width + width


SERIAL = Method(
    name="serial",
    bounded=True,
    family="additive",
    paper=Paper("Parameter-Efficient Transfer Learning for NLP", "https://arxiv.org/abs/1902.00751"),
    roles=frozenset({"output", "down"}),
    slots=("block",),
    rate=Rate(1e-4, 1.5e-3, 8e-3),
    count=_count_serial,
    size="size",
    sizes=lambda site: ladder(site.out_features),
    any_size=True,
    defaults={"activation": "relu", "scale": 1.0},
    layer="serial",
    choices={"activation": ("relu", "gelu", "tanh", "silu")},
    quantised=True,
)

PARALLEL = Method(
    name="parallel",
    bounded=True,
    family="additive",
    paper=Paper("Towards a Unified View of Parameter-Efficient Transfer Learning", "https://arxiv.org/abs/2110.04366"),
    roles=frozenset({"down"}),
    slots=("block",),
    rate=Rate(1e-4, 1.5e-3, 8e-3),
    count=_count_parallel,
    size="size",
    sizes=lambda site: ladder(site.out_features),
    any_size=True,
    defaults={"activation": "relu", "scale": 1.0},
    # The adapter runs beside the whole feed-forward block: it reads what the block's first layer reads.
    site_knobs=lambda site: {"reads": site.reads} if site.reads is not None else {},
    layer="parallel",
    choices={"activation": ("relu", "gelu", "tanh", "silu")},
    quantised=True,
)
