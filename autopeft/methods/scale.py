"""SSF: a learned scale and shift of what a module puts out."""

from __future__ import annotations

from autopeft.methods.base import LINEAR, Method, Paper, Rate

SSF = Method(
    name="ssf",
    family="additive",
    paper=Paper(
        "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
        "https://arxiv.org/abs/2210.08823",
    ),
    roles=LINEAR | {"norm"},
    slots=("extra",),
    rate=Rate(3e-4, 4e-3, 2e-2),
    count=lambda site, knobs: 2 * site.out_features,
    # The shift is merged into the bias.
    allows=lambda site: site.bias,
    mergeable=True,
    targets=frozenset({"merged"}),
    layer="ssf",
    tier=2,
    quantised=True,
)
