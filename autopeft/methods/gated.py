"""UniPELT: parts behind gates that every token opens or closes for itself."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import LINEAR, Knobs, Method, Paper, Rate, SiteShape, half_rank, ladder, low_rank
from autopeft.methods.bottleneck import SERIAL
from autopeft.methods.prefix import PREFIX

PAPER = Paper(
    "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", "https://arxiv.org/abs/2110.07577"
)


def _gate(width: int) -> int:
    return width + 1


def _count_lora(site: SiteShape, knobs: Knobs) -> int:
    return low_rank(site, knobs) + _gate(site.in_features)


def _count_serial(site: SiteShape, knobs: Knobs) -> int:
    return SERIAL.count(site, knobs) + _gate(site.out_features)


def _count_prefix(site: SiteShape, knobs: Knobs) -> int:
    return PREFIX.count(site, knobs) + _gate(site.in_features)


def _gated(name: str, **fields: Any) -> Method:
    """A row of this file."""
    return Method(name=name, family="hybrid", paper=PAPER, layer=name, tier=2, quantised=True, **fields)


GATED_LORA = _gated(
    "gated_lora",
    roles=LINEAR,
    slots=("attention", "block"),
    rate=Rate(3e-4, 2e-3, 8e-3),
    count=_count_lora,
    size="r",
    sizes=half_rank,
)

GATED_SERIAL = _gated(
    "gated_serial",
    roles=SERIAL.roles,
    slots=("block",),
    rate=SERIAL.rate,
    count=_count_serial,
    size="size",
    sizes=lambda site: ladder(site.out_features // 2),
    any_size=True,
    defaults=SERIAL.defaults,
    choices=SERIAL.choices,
)

GATED_PREFIX = _gated(
    "gated_prefix",
    roles=PREFIX.roles,
    slots=("prefix",),
    rate=PREFIX.rate,
    count=_count_prefix,
    size="length",
    sizes=PREFIX.sizes,
    any_size=True,
    identity=False,
    needs_attention_interface=True,
    # Its gate reads what the keys are made of, and opens for the queries.
    allows=lambda site: site.kv_features is not None and not site.crosses,
)
