"""Updates of chosen weights: SHiRA at random, PaFi and Super-tuning by magnitude, FishMask by Fisher information; and
OSF's low singular directions.
"""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, half_rank, low_rank, on_linear

MASK_SEED = 20_240_613

PARTS_PER_MILLE = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 80, 100)


def _mask(knobs: Knobs) -> dict[str, Any]:
    # A fixed seed lets plain peft choose the same ones; modules of one shape train the same places.
    return {"r": knobs["r"], "random_seed": MASK_SEED}


def _positions(site: SiteShape, knobs: Knobs) -> int:
    return 4 * low_rank(site, knobs)


def _super(knobs: Knobs) -> dict[str, Any]:
    return {"sparsity": 1 - knobs["permille"] / 1000}


def _count_super(site: SiteShape, knobs: Knobs) -> int:
    # As peft rounds it.
    return int(site.in_features * site.out_features * (1 - (1 - int(knobs["permille"]) / 1000)))


def _osf(knobs: Knobs) -> dict[str, Any]:
    return {"effective_rank": knobs["width"] - knobs["trained"]}


SHIRA = on_linear(
    "shira",
    family="selective",
    paper=Paper("Sparse High Rank Adapters", "https://arxiv.org/abs/2406.13175"),
    rate=Rate(3e-4, 3e-3, 1e-2),
    # As many single weights as LoRA of this rank has parameters.
    count=low_rank,
    size="r",
    sizes=half_rank,
    peft_type="SHIRA",
    stock=_mask,
    base="own",
    innermost=True,
    predictable=False,
    quantised=True,
)

PAFI = on_linear(
    "pafi",
    family="selective",
    paper=Paper("Parameter-Efficient Fine-Tuning without Introducing New Latency", "https://arxiv.org/abs/2305.16742"),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=low_rank,
    size="r",
    sizes=half_rank,
    # The weights of the smallest magnitude, per module (the paper chooses over the whole model).
    layer="sparse",
    chooses="magnitude",
    extra_bytes=_positions,
    allows=lambda site: True,
)

FISHMASK = on_linear(
    "fishmask",
    family="selective",
    paper=Paper("Training Neural Networks with Fixed Sparse Masks", "https://arxiv.org/abs/2111.09839"),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=low_rank,
    size="r",
    sizes=half_rank,
    # The weights of the highest Fisher information, per module (the paper chooses over the whole model).
    layer="sparse",
    chooses="fisher",
    extra_bytes=_positions,
    allows=lambda site: True,
)

SUPERTUNING = on_linear(
    "supertuning",
    family="selective",
    paper=Paper(
        "Super-Tuning: sparse fine-tuning of the weights of largest magnitude", "https://arxiv.org/abs/2607.09287"
    ),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=_count_super,
    size="permille",
    sizes=lambda site: tuple(p for p in PARTS_PER_MILLE if site.in_features * site.out_features * p >= 2000),
    peft_type="SUPERTUNING",
    stock=_super,
    base="own",
    innermost=True,
    extra_bytes=lambda site, knobs: 4 * _count_super(site, knobs),
)

OSF = on_linear(
    "osf",
    family="selective",
    paper=Paper(
        "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        "https://arxiv.org/abs/2504.07097",
    ),
    rate=Rate(1e-5, 1e-4, 1e-3),
    count=lambda site, knobs: int(knobs["trained"]) * (site.in_features + site.out_features + 1),
    size="trained",
    sizes=half_rank,
    # The smallest singular directions are trained; peft wants to know how many are kept.
    site_knobs=lambda site: {"width": min(site.in_features, site.out_features)},
    peft_type="OSF",
    stock=_osf,
    tier=3,
)
