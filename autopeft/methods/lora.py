"""LoRA and DoRA: a low-rank update beside a frozen linear layer."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import LINEAR, Knobs, Method, Paper, Rate, SiteShape, ladder


def _count(site: SiteShape, knobs: Knobs) -> int:
    return int(knobs["r"]) * (site.in_features + site.out_features)


def _count_dora(site: SiteShape, knobs: Knobs) -> int:
    return _count(site, knobs) + site.out_features


def _sizes(site: SiteShape) -> tuple[int, ...]:
    return ladder(min(site.in_features, site.out_features) // 2)


def _stock(knobs: Knobs, *, dora: bool) -> tuple[str, dict[str, Any]]:
    # peft multiplies by alpha / r: a configuration stores the product itself.
    return "LORA", {"r": knobs["r"], "lora_alpha": knobs["scale"] * knobs["r"], "use_dora": dora}


LORA = Method(
    name="lora",
    family="reparameterized",
    paper=Paper("LoRA: Low-Rank Adaptation of Large Language Models", "https://arxiv.org/abs/2106.09685"),
    roles=LINEAR,
    slots=("attention", "block"),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=_count,
    size="r",
    sizes=_sizes,
    defaults={"scale": 1.0},
    mergeable=True,
    targets=frozenset({"peft", "merged", "vllm"}),
    stock=lambda knobs: _stock(knobs, dora=False),
)

DORA = Method(
    name="dora",
    family="reparameterized",
    paper=Paper("DoRA: Weight-Decomposed Low-Rank Adaptation", "https://arxiv.org/abs/2402.09353"),
    roles=LINEAR,
    slots=("attention", "block"),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=_count_dora,
    size="r",
    sizes=_sizes,
    defaults={"scale": 1.0},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    stock=lambda knobs: _stock(knobs, dora=True),
)
