"""GLoRA: low-rank changes of a weight and of its bias, multiplied and added."""

from __future__ import annotations

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, ladder, low_rank, on_linear


def _count(site: SiteShape, knobs: Knobs) -> int:
    bias = int(knobs["r"]) * (site.in_features + 1) + 2 if site.bias else 0
    return 2 * low_rank(site, knobs) + bias


GLORA = on_linear(
    "glora",
    family="reparameterized",
    paper=Paper(
        "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", "https://arxiv.org/abs/2306.07967"
    ),
    rate=Rate(3e-4, 2e-3, 8e-3),
    count=_count,
    size="r",
    sizes=lambda site: ladder(min(site.in_features, site.out_features) // 4),
    peft_type="GLORA",
    stock=lambda knobs: {"r": knobs["r"]},
    innermost=True,
)
