"""LoKr: the Kronecker product of a small matrix and a low-rank one."""

from __future__ import annotations

import math
from typing import Any

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, ladder, on_linear


def _factors(width: int) -> tuple[int, int]:
    """The pair of divisors nearest to the square root, the smaller one first."""
    small = next(size for size in range(math.isqrt(width), 0, -1) if width % size == 0)
    return small, width // small


def _count(site: SiteShape, knobs: Knobs) -> int:
    (in_small, in_large), (out_small, out_large) = _factors(site.in_features), _factors(site.out_features)
    return in_small * out_small + int(knobs["r"]) * (in_large + out_large)


def _sizes(site: SiteShape) -> tuple[int, ...]:
    # From half of the larger factor on, the second matrix is no longer factored.
    largest = max(_factors(site.in_features)[1], _factors(site.out_features)[1])
    return ladder((largest - 1) // 2)


def _stock(knobs: Knobs) -> dict[str, Any]:
    return {"r": knobs["r"], "alpha": knobs["scale"] * knobs["r"]}


LOKR = on_linear(
    "lokr",
    family="reparameterized",
    paper=Paper(
        "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
        "https://arxiv.org/abs/2309.14859",
    ),
    rate=Rate(1e-3, 5e-3, 2e-2),
    count=_count,
    size="r",
    sizes=_sizes,
    defaults={"scale": 1.0},
    targets=frozenset({"peft", "merged"}),
    peft_type="LOKR",
    stock=_stock,
    patterns={"r": "rank_pattern", "alpha": "alpha_pattern"},
)
