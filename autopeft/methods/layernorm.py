"""LayerNorm tuning: the norm's own weight and bias are trained."""

from __future__ import annotations

from autopeft.methods.base import Method, Paper, Rate

LAYERNORM = Method(
    name="layernorm",
    bounded=True,
    family="selective",
    paper=Paper(
        "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
        "https://arxiv.org/abs/2312.11420",
    ),
    roles=frozenset({"norm"}),
    slots=("extra",),
    rate=Rate(3e-4, 4e-3, 2e-2),
    count=lambda site, knobs: site.params,
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="LN_TUNING",
    stock=lambda knobs: {},
    base="own",
    innermost=True,
    quantised=True,
)
