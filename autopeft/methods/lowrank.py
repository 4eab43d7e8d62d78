"""Other low-rank updates: MiSS, HiRA, GraLoRA, DeLoRA, DEFT, PEANuT."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, either_way, half_rank, low_rank, on_linear


def _even(site: SiteShape) -> tuple[int, ...]:
    return tuple(rank for rank in half_rank(site) if rank % 2 == 0)


def _gralora(knobs: Knobs) -> dict[str, Any]:
    return {"r": knobs["r"], "alpha": knobs["scale"] * knobs["r"], "gralora_k": 2}


def _deft(knobs: Knobs) -> dict[str, Any]:
    return {"r": knobs["r"], "alpha": knobs["scale"] * knobs["r"]}


MISS = on_linear(
    "miss",
    family="reparameterized",
    paper=Paper(
        "MiSS: Balancing LoRA Performance and Efficiency with Simple Shard Sharing", "https://arxiv.org/abs/2409.15371"
    ),
    rate=Rate(5e-5, 5e-4, 2e-3),
    count=lambda site, knobs: int(knobs["r"]) * site.out_features,
    size="r",
    sizes=half_rank,
    peft_type="MISS",
    stock=lambda knobs: {"r": knobs["r"]},
    dropout="miss_dropout",
    quantised=True,
)

HIRA = on_linear(
    "hira",
    family="reparameterized",
    paper=Paper(
        "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models",
        "https://openreview.net/forum?id=TwJrTz9cRS",
    ),
    rate=Rate(3e-4, 3e-3, 1e-2),
    count=low_rank,
    size="r",
    sizes=half_rank,
    targets=frozenset({"peft", "merged"}),
    peft_type="HIRA",
    stock=lambda knobs: {"r": knobs["r"]},
    patterns={"r": "rank_pattern"},
    dropout="hira_dropout",
    quantised=True,
    allows=either_way,
)

GRALORA = on_linear(
    "gralora",
    family="reparameterized",
    paper=Paper(
        "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", "https://arxiv.org/abs/2505.20355"
    ),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=low_rank,
    size="r",
    # Two by two blocks: ranks and widths must be even.
    sizes=_even,
    defaults={"scale": 1.0},
    allows=lambda site: site.in_features % 2 == site.out_features % 2 == 0,
    peft_type="GRALORA",
    stock=_gralora,
    dropout="gralora_dropout",
)

DELORA = on_linear(
    "delora",
    family="reparameterized",
    paper=Paper("Decoupling Angles and Strength in Low-rank Adaptation", "https://arxiv.org/abs/2503.18225"),
    rate=Rate(1e-4, 1e-3, 5e-3),
    # One number more: the bound on the update's norm is learned.
    count=lambda site, knobs: low_rank(site, knobs) + 1,
    size="r",
    sizes=half_rank,
    # The update has the bound's full strength from the first step on; peft's default of 15 destroys small models.
    defaults={"bound": 3.0},
    choices={"bound": (1.0, 3.0, 15.0)},
    targets=frozenset({"peft", "merged"}),
    peft_type="DELORA",
    stock=lambda knobs: {"r": knobs["r"], "delora_lambda": knobs["bound"]},
    # The norms of the frozen weight's columns.
    extra_bytes=lambda site, knobs: 4 * site.in_features,
    patterns={"r": "rank_pattern", "delora_lambda": "lambda_pattern"},
)

DEFT = on_linear(
    "deft",
    family="reparameterized",
    paper=Paper(
        "DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models", "https://arxiv.org/abs/2509.22793"
    ),
    rate=Rate(3e-4, 2e-3, 8e-3),
    count=low_rank,
    size="r",
    sizes=half_rank,
    defaults={"scale": 1.0},
    peft_type="DEFT",
    stock=_deft,
    dropout="deft_dropout",
    allows=either_way,
)

PEANUT = on_linear(
    "peanut",
    family="additive",
    paper=Paper(
        "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers", "https://arxiv.org/abs/2410.01870"
    ),
    rate=Rate(3e-4, 3e-3, 8e-3),
    # A small network that reads the frozen weight's rows.
    count=lambda site, knobs: 2 * int(knobs["r"]) * site.out_features,
    size="r",
    sizes=half_rank,
    peft_type="PEANUT",
    stock=lambda knobs: {"r": knobs["r"]},
)
