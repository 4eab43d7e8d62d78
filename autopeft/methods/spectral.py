"""Updates that are sparse in another basis, or circulant: FourierFT, WaveFT, C3A."""

from __future__ import annotations

import math
from typing import Any

from autopeft.methods.base import Knobs, Paper, Rate, SiteShape, either_way, on_linear

COUNTS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""How many coefficients of a weight's transform are tried."""


def _coefficients(site: SiteShape) -> tuple[int, ...]:
    return tuple(count for count in COUNTS if count <= site.in_features * site.out_features // 4)


def _fourier(knobs: Knobs) -> dict[str, Any]:
    # peft starts it from random coefficients; zeros leave the model as it is at first, and the transform is linear.
    return {"n_frequency": knobs["count"], "scaling": knobs["scaling"], "init_weights": True}


def _wavelet(knobs: Knobs) -> dict[str, Any]:
    return {"n_frequency": knobs["count"], "scaling": knobs["scaling"]}


def _width(site: SiteShape) -> int:
    return math.gcd(site.in_features, site.out_features)


def _splits(site: SiteShape) -> tuple[int, ...]:
    width = _width(site)
    # From 2 numbers per block on a circulant block shares nothing worth the transform.
    return tuple(splits for splits in range(1, width // 2 + 1) if width % splits == 0)


def _circulant(knobs: Knobs) -> dict[str, Any]:
    # Zeros at the start, for the same reason as above.
    return {"block_size": knobs["width"] // knobs["splits"], "init_weights": True}


FOURIERFT = on_linear(
    "fourierft",
    family="reparameterized",
    paper=Paper("Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", "https://arxiv.org/abs/2405.03003"),
    rate=Rate(3e-3, 2e-2, 1e-1),
    count=lambda site, knobs: int(knobs["count"]),
    size="count",
    sizes=_coefficients,
    defaults={"scaling": 150.0},
    choices={"scaling": (50.0, 150.0, 300.0)},
    targets=frozenset({"peft", "merged"}),
    peft_type="FOURIERFT",
    stock=_fourier,
    patterns={"n_frequency": "n_frequency_pattern"},
    quantised=True,
    allows=either_way,
)

WAVEFT = on_linear(
    "waveft",
    family="reparameterized",
    paper=Paper(
        "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets", "https://arxiv.org/abs/2505.12532"
    ),
    rate=Rate(5e-5, 5e-4, 2e-3),
    count=lambda site, knobs: int(knobs["count"]),
    size="count",
    sizes=_coefficients,
    defaults={"scaling": 25.0},
    choices={"scaling": (10.0, 25.0, 50.0)},
    targets=frozenset({"peft", "merged"}),
    peft_type="WAVEFT",
    stock=_wavelet,
    patterns={"n_frequency": "n_frequency_pattern"},
    predictable=False,
    quantised=True,
    allows=either_way,
)

C3A = on_linear(
    "c3a",
    family="reparameterized",
    paper=Paper("Parameter-Efficient Fine-Tuning via Circular Convolution", "https://arxiv.org/abs/2407.19342"),
    rate=Rate(1e-3, 1e-2, 1e-1),
    count=lambda site, knobs: site.in_features * site.out_features * int(knobs["splits"]) // int(knobs["width"]),
    size="splits",
    sizes=_splits,
    # A block has width / splits numbers: more splits are more parameters.
    site_knobs=lambda site: {"width": _width(site)},
    peft_type="C3A",
    stock=_circulant,
)
