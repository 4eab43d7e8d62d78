"""(IA)^3: learned rescaling of keys, values and the input of the last feed-forward layer."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import Knobs, Method, Paper, Rate, SiteShape


def _count(site: SiteShape, knobs: Knobs) -> int:
    return site.in_features if knobs["feedforward"] else site.out_features


def _stock(knobs: Knobs) -> dict[str, Any]:
    # The host fills target_modules; a feed-forward site is named in feedforward_modules as well.
    return {"feedforward": bool(knobs["feedforward"])}


IA3 = Method(
    name="ia3",
    bounded=True,
    family="additive",
    paper=Paper(
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        "https://arxiv.org/abs/2205.05638",
    ),
    roles=frozenset({"key", "value", "qkv", "down"}),
    slots=("attention", "block"),
    rate=Rate(1e-3, 1e-2, 3e-2),
    count=_count,
    site_knobs=lambda site: {"feedforward": site.role == "down"},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="IA3",
    stock=_stock,
    base="own",
    quantised=True,
)
