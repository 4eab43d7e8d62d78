"""Prefix tuning with a length of its own in every layer."""

from __future__ import annotations

from autopeft.methods.base import Knobs, Method, Paper, Rate, SiteShape


def _count(site: SiteShape, knobs: Knobs) -> int:
    if site.kv_features is None:
        raise ValueError("a prefix needs the width of the keys")
    return 2 * int(knobs["length"]) * site.kv_features


PREFIX = Method(
    name="prefix",
    bounded=True,
    family="additive",
    paper=Paper("Prefix-Tuning: Optimizing Continuous Prompts for Generation", "https://arxiv.org/abs/2101.00190"),
    roles=frozenset({"key", "qkv"}),
    slots=("prefix",),
    rate=Rate(5e-4, 5e-3, 3e-2),
    count=_count,
    size="length",
    sizes=lambda site: (1, 2, 4, 8, 16, 32, 64) if site.kv_features is not None else (),
    any_size=True,
    identity=False,
    layer="prefix",
    needs_attention_interface=True,
    quantised=True,
)
