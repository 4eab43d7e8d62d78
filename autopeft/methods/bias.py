"""Bias delta: BitFit as an addition to the frozen bias, so that switching it off gives the base back exactly."""

from __future__ import annotations

from autopeft.methods.base import LINEAR, Method, Paper, Rate

BIAS = Method(
    name="bias",
    family="selective",
    paper=Paper(
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        "https://arxiv.org/abs/2106.10199",
    ),
    roles=LINEAR | {"norm"},
    slots=("extra",),
    rate=Rate(3e-4, 4e-3, 2e-2),
    count=lambda site, knobs: site.out_features,
    allows=lambda site: site.bias,
    mergeable=True,
    targets=frozenset({"merged"}),
    layer="bias",
)
