"""LoHa: the Hadamard product of two low-rank updates."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, ladder, low_rank, on_linear


def _stock(knobs: Knobs) -> dict[str, Any]:
    return {"r": knobs["r"], "alpha": knobs["scale"] * knobs["r"]}


def _sizes(site: SiteShape) -> tuple[int, ...]:
    # Its two pairs of factors cost twice as much as LoRA's.
    return ladder(min(site.in_features, site.out_features) // 4)


LOHA = on_linear(
    "loha",
    family="reparameterized",
    paper=Paper(
        "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        "https://arxiv.org/abs/2108.06098",
    ),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=lambda site, knobs: 2 * low_rank(site, knobs),
    size="r",
    sizes=_sizes,
    defaults={"scale": 1.0},
    targets=frozenset({"peft", "merged"}),
    peft_type="LOHA",
    stock=_stock,
    patterns={"r": "rank_pattern", "alpha": "alpha_pattern"},
)
