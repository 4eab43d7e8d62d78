"""LoRA and its variants with the same factors: DoRA, and AdaLoRA at a fixed rank."""

from __future__ import annotations

from typing import Any

from autopeft.methods.base import (
    LINEAR,
    Knobs,
    Method,
    Paper,
    Rate,
    SiteShape,
    either_way,
    half_rank,
    low_rank,
    on_linear,
)


def _count_dora(site: SiteShape, knobs: Knobs) -> int:
    return low_rank(site, knobs) + site.out_features


def _count_adalora(site: SiteShape, knobs: Knobs) -> int:
    return low_rank(site, knobs) + int(knobs["r"])


def _stock(knobs: Knobs, *, dora: bool) -> dict[str, Any]:
    # peft multiplies by alpha / r: a configuration stores the product itself.
    return {"r": knobs["r"], "lora_alpha": _whole(knobs["scale"] * knobs["r"]), "use_dora": dora}


def _stock_adalora(knobs: Knobs) -> dict[str, Any]:
    # Its schedule of ranks is never run: the search decides about ranks. One step is what the config insists on.
    rank = knobs["r"]
    return {"init_r": rank, "target_r": rank, "lora_alpha": knobs["scale"] * rank, "total_step": 1}


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


LORA = Method(
    name="lora",
    bounded=True,
    family="reparameterized",
    paper=Paper("LoRA: Low-Rank Adaptation of Large Language Models", "https://arxiv.org/abs/2106.09685"),
    roles=LINEAR,
    slots=("attention", "block"),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=low_rank,
    size="r",
    sizes=half_rank,
    any_size=True,
    defaults={"scale": 1.0},
    mergeable=True,
    targets=frozenset({"peft", "merged", "vllm"}),
    peft_type="LORA",
    stock=lambda knobs: _stock(knobs, dora=False),
    patterns={"r": "rank_pattern", "lora_alpha": "alpha_pattern"},
    dropout="lora_dropout",
    quantised=True,
)

DORA = Method(
    name="dora",
    bounded=True,
    family="reparameterized",
    paper=Paper("DoRA: Weight-Decomposed Low-Rank Adaptation", "https://arxiv.org/abs/2402.09353"),
    roles=LINEAR,
    slots=("attention", "block"),
    rate=Rate(3e-4, 3e-3, 8e-3),
    count=_count_dora,
    size="r",
    sizes=half_rank,
    any_size=True,
    defaults={"scale": 1.0},
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="LORA",
    stock=lambda knobs: _stock(knobs, dora=True),
    patterns={"r": "rank_pattern", "lora_alpha": "alpha_pattern"},
    dropout="lora_dropout",
)

ADALORA = on_linear(
    "adalora",
    family="reparameterized",
    paper=Paper("Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", "https://arxiv.org/abs/2303.10512"),
    rate=Rate(1e-3, 5e-3, 2e-2),
    count=_count_adalora,
    size="r",
    sizes=half_rank,
    defaults={"scale": 1.0},
    peft_type="ADALORA",
    stock=_stock_adalora,
    dropout="lora_dropout",
    quantised=True,
    allows=either_way,
)
