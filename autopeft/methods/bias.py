"""Trained biases: BitFit as a delta on any bias, and BEFT's added biases."""

from __future__ import annotations

from autopeft.methods.base import LINEAR, Method, Paper, Rate, is_linear

BIAS = Method(
    name="bias",
    bounded=True,
    family="selective",
    paper=Paper(
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        "https://arxiv.org/abs/2106.10199",
    ),
    roles=LINEAR | {"norm"},
    slots=("extra",),
    rate=Rate(3e-4, 4e-3, 2e-2),
    # A delta on the frozen bias, so that switching it off gives the base back exactly.
    count=lambda site, knobs: site.out_features,
    allows=lambda site: site.bias,
    mergeable=True,
    targets=frozenset({"merged"}),
    # peft's `bias="all"` is a field of their configs, which want modules of their own to adapt.
    beside=frozenset({"lora", "dora"}),
    layer="bias",
    quantised=True,
)

BEFT = Method(
    name="beft",
    family="additive",
    paper=Paper(
        "BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data Regimes", "https://arxiv.org/abs/2509.15974"
    ),
    roles=LINEAR,
    slots=("extra",),
    rate=Rate(3e-4, 4e-3, 2e-2),
    count=lambda site, knobs: site.out_features,
    # On a layer without a bias it could be trained, but never merged.
    allows=lambda site: site.bias and is_linear(site),
    mergeable=True,
    targets=frozenset({"peft", "merged"}),
    peft_type="BEFT",
    stock=lambda knobs: {},
    quantised=True,
    tier=2,
)
