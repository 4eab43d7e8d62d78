"""Orthogonal updates: OFT, BOFT, HRA, PSOFT and RoAd rotate what a frozen layer reads or writes."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, divisors, half_rank, is_linear, low_rank, on_linear

LARGEST_BLOCK = 64


def _blocks(site: SiteShape) -> tuple[int, ...]:
    return divisors(site.in_features, LARGEST_BLOCK)


def _count_oft(site: SiteShape, knobs: Knobs) -> int:
    # One skew-symmetric matrix per block.
    return site.in_features * (int(knobs["block"]) - 1) // 2


def _count_boft(site: SiteShape, knobs: Knobs) -> int:
    return site.in_features * int(knobs["block"]) + site.out_features


def _count_psoft(site: SiteShape, knobs: Knobs) -> int:
    rank = int(knobs["r"])
    return rank * (rank - 1) // 2 + 2 * rank


def _group(site: SiteShape) -> dict[str, int]:
    """RoAd's groups: the largest power of two up to 64 that divides the output."""
    return {"group": next((size for size in (64, 32, 16, 8, 4, 2) if site.out_features % size == 0), 0)}


def _road(knobs: Knobs) -> dict[str, Any]:
    return {"variant": f"road_{knobs['variant']}", "group_size": knobs["group"]}


def _psoft(knobs: Knobs) -> dict[str, Any]:
    return {"r": knobs["r"], "psoft_alpha": knobs["r"]}


OFT = on_linear(
    "oft",
    family="reparameterized",
    paper=Paper("Controlling Text-to-Image Diffusion by Orthogonal Finetuning", "https://arxiv.org/abs/2306.07280"),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=_count_oft,
    size="block",
    sizes=_blocks,
    peft_type="OFT",
    stock=lambda knobs: {"r": 0, "oft_block_size": knobs["block"]},
    base="own",
    quantised=True,
)

BOFT = on_linear(
    "boft",
    family="reparameterized",
    paper=Paper(
        "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", "https://arxiv.org/abs/2311.06243"
    ),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=_count_boft,
    size="block",
    sizes=_blocks,
    # One butterfly factor: more need a compiled kernel, without which peft goes back to one.
    peft_type="BOFT",
    stock=lambda knobs: {"boft_block_size": knobs["block"], "boft_n_butterfly_factor": 1},
    base="own",
    quantised=True,
    builds_on_meta=False,
    # It multiplies the whole weight by a permutation in every forward pass.
    tier=3,
)

HRA = on_linear(
    "hra",
    family="reparameterized",
    paper=Paper(
        "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation",
        "https://arxiv.org/abs/2405.17484",
    ),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=lambda site, knobs: int(knobs["r"]) * site.in_features,
    size="r",
    # Reflections come in pairs that undo each other at the start.
    sizes=lambda site: tuple(rank for rank in half_rank(site) if rank % 2 == 0),
    peft_type="HRA",
    stock=lambda knobs: {"r": knobs["r"]},
    base="own",
    innermost=True,
)

PSOFT = on_linear(
    "psoft",
    family="reparameterized",
    paper=Paper(
        "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation", "https://arxiv.org/abs/2505.11235"
    ),
    rate=Rate(3e-4, 3e-3, 2e-2),
    count=_count_psoft,
    size="r",
    # A rotation needs two directions.
    sizes=lambda site: half_rank(site)[1:],
    peft_type="PSOFT",
    stock=_psoft,
    dropout="psoft_dropout",
    # The singular vectors that it turns are stored.
    extra_bytes=lambda site, knobs: 4 * low_rank(site, knobs),
    lowers=False,
)

ROAD = on_linear(
    "road",
    family="reparameterized",
    paper=Paper(
        "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability",
        "https://arxiv.org/abs/2409.00119",
    ),
    rate=Rate(1e-3, 6e-3, 3e-2),
    count=lambda site, knobs: int(knobs["variant"]) * site.out_features,
    size="variant",
    sizes=lambda site: (1, 2, 4),
    site_knobs=_group,
    allows=lambda site: is_linear(site) and site.out_features % 2 == 0,
    peft_type="ROAD",
    stock=_road,
    quantised=True,
)
